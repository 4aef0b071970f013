"""Shows single pictures of an evaluation: the model answers them once more, and nothing is stored.

Axes: H height, W width, 3 = red green blue.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass

import model.errors as model_errors
from model.datasets.dataset import LabeledImages
from model.decoding.score_grid import Float32Array
from model.evaluation.picture_scorer import PictureScorer, check_same_classes
from model.evaluation.protocols import find_protocol
from model.evaluation.report import ShownImage
from model.evaluation.resampling import PixelArray
from model.labels import ClassPalette
from service.core.errors import ConflictError, ModelOutputInvalidError, NotFoundError
from service.core.jobs.evaluation_job import EvaluationRequest
from service.core.jobs.evaluation_steps import Datasets, picture_name, without_root
from service.core.jobs.job import JsonObject
from service.core.jobs.submission import EvaluationSubmission
from service.core.models.loaded_model import LoadedModel
from service.core.models.model_host import ModelHost

_BATCH_TIMEOUT_S = 60.0
"""Time for a batch, which waits behind the requests."""


@dataclass(frozen=True, eq=False)
class EvaluatedPicture:
    """A picture of an evaluation as the model answers it now.

    Attributes:
        shown: picture, truth and answer.
        palette: classes and ignore id of truth and answer.
        engine: of the answer, with its precision.
        is_as_counted: whether the mIoU of the answer is that of the report; another precision or processor
            may round differently, and files may have changed.
    """

    shown: ShownImage
    palette: ClassPalette
    engine: str
    is_as_counted: bool


class EvaluatedPictures:
    """Runs pictures of evaluations on the models that are loaded here. Calls block; any thread may call.

    Args:
        submission: the jobs and their reports.
        datasets: data sets on this machine.
        host: the loaded models.
    """

    def __init__(self, submission: EvaluationSubmission, datasets: Datasets, host: ModelHost) -> None:
        self._submission = submission
        self._datasets = datasets
        self._host = host

    def show(self, job_id: str, index: int) -> EvaluatedPicture:
        """Read a picture and its labels, and let the evaluated version answer it by the job's protocol.

        Args:
            job_id: of a job that has succeeded.
            index: of the picture in its split.

        Raises:
            NotFoundError: there is no such job, report or picture, or the data set is not on this machine.
            ConflictError: the version is not loaded here, or the data set has changed since the evaluation.
            BusyError: the jobs database does not answer.
            DeadlineExceededError: the device had no time for it.
            OverloadError: an error of ``LoadedModel.infer``.
            ModelOutputInvalidError: the network returns scores that are not finite.
        """
        entry = self._entry(job_id, index)
        request = self._submission.jobs.get_job(job_id).request
        version = request.version
        if not self._host.has(version):
            raise ConflictError(f"{version} is not loaded here: load it, then open its pictures")
        with self._host.hold_loaded(version) as served:
            try:
                return self._answered(served, request, entry)
            except model_errors.ModelOutputError as error:
                raise ModelOutputInvalidError(str(error)) from error

    def _entry(self, job_id: str, index: int) -> JsonObject:
        report = json.loads(self._submission.report_document(job_id))
        for entry in report["per_image"]:
            if entry["index"] == index:
                return dict(entry)
        raise NotFoundError(f"the evaluation has scored no picture {index}")

    def _answered(
        self, served: LoadedModel, request: EvaluationRequest, entry: JsonObject
    ) -> EvaluatedPicture:
        index = entry["index"]
        pictures = self._opened(request.dataset, request.split)
        if not (index < len(pictures) and picture_name(pictures, index) == entry["name"]):
            raise ConflictError(f"the list of {request.dataset} {request.split} has changed: evaluate again")
        palette = pictures.spec.palette

        def infer(images_NHW3: PixelArray) -> Float32Array:
            deadline_s = time.monotonic() + _BATCH_TIMEOUT_S
            return served.infer(images_NHW3, deadline_s=deadline_s).result().raw_NKhw

        try:
            check_same_classes(str(served.version), served.manifest.palette, request.dataset, palette)
            scorer = PictureScorer(served.manifest, find_protocol(request.protocol), palette, [infer])
            shown = scorer.show(pictures, index, entry["name"])
        except (model_errors.DatasetError, model_errors.EvaluationError) as error:
            raise ConflictError(without_root(error, pictures.spec)) from error
        engine = f"{served.engine.engine} {served.engine.precision}"
        return EvaluatedPicture(shown, palette, engine, shown.miou == (entry["miou"] or 0.0))

    def _opened(self, dataset: str, split: str) -> LabeledImages:
        try:
            return self._datasets.open(dataset, split)
        except model_errors.DatasetError as error:
            raise NotFoundError(f"the data set cannot be read here: {error}") from error
