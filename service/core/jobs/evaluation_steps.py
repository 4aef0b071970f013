"""The steps of evaluation jobs: read pictures, run them through the models of a host, count.

Axes: N pictures, H height, W width, 3 = red green blue; h w = H/stride W/stride, K channels of the head.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from os.path import relpath
from pathlib import Path

from model.artifacts.registry import ModelRegistry
from model.datasets.confined_paths import ConfinedReader
from model.datasets.dataset import DatasetSpec, LabeledImages
from model.datasets.text import printable
from model.decoding.score_grid import Float32Array
from model.errors import DatasetError, ModelError
from model.evaluation.evaluation import (
    EvaluationContext,
    EvaluationReport,
    Evaluator,
    ScoredImage,
    SkippedImage,
)
from model.evaluation.picture_scorer import PictureScorer, check_same_classes, fingerprint_of
from model.evaluation.protocols import Protocol, find_protocol, make_plan
from model.evaluation.report import render_html
from model.evaluation.resampling import PixelArray
from model.pictures.preprocess import size_of
from service.core.jobs.evaluation_job import EVALUATIONS, EvaluationRequest, EvaluationResult
from service.core.jobs.job import JobError, JobPlan, JsonObject
from service.core.jobs.job_models import STEP_PIXELS, JobModels, check_pins, job_errors
from service.core.models.loaded_model import LoadedModel

_MAX_STEP_IMAGES = 8
_MAX_SHOWN = 6
_BATCH_TIMEOUT_S = 120.0  # of one batch; the bulk lane waits behind the others


@dataclass(frozen=True)
class Datasets:
    """The configured data sets, the only ones that jobs can read.

    Args:
        files: data-set file by name.
    """

    files: Mapping[str, Path]

    def open(self, name: str, split: str) -> LabeledImages:
        """Return the pictures of a split.

        Raises:
            DatasetError: there is no such name or split, its file or list is broken, or a path leads out of
                the data set's folder; the message names no path outside of it.
        """
        spec = self._spec(name)
        try:
            return LabeledImages(spec, split, read=ConfinedReader(spec.root, spec.folders_elsewhere))
        except DatasetError as error:
            raise DatasetError(without_root(error, spec)) from error

    def check_files(self, *, may_be_elsewhere: bool) -> None:
        """Refuse data-set files that no job could use.

        Args:
            may_be_elsewhere: a file that is not on this machine is no error.

        Raises:
            DatasetError: a file is broken; the message names its data set.
        """
        for name, file in self.files.items():
            try:
                if file.exists() or not may_be_elsewhere:
                    self._spec(name)
            except DatasetError as error:
                raise DatasetError(f"datasets.{name}: {error}") from error

    def check_split(self, name: str, split: str) -> None:
        """Refuse a split that no job could use, where the data set is on this machine.

        Raises:
            DatasetError: the file or the list is broken, or there is no such split.
        """
        if self.files[name].exists():
            self.open(name, split)

    def _spec(self, name: str) -> DatasetSpec:
        if name not in self.files:
            raise DatasetError(f"no data set {name!r} is configured")
        file = self.files[name]
        try:
            return DatasetSpec.from_toml(file)
        except DatasetError as error:
            raise DatasetError(str(error).replace(str(file), file.name)) from error


@dataclass(frozen=True)
class _OpenSplit:
    """An open split.

    Attributes:
        dataset: name in the configuration.
        pictures: of the split.
        pins: what the counts depend on beside the bytes of the files.
    """

    dataset: str
    pictures: LabeledImages
    pins: JsonObject


class EvaluationSteps:
    """``JobSteps`` of evaluation jobs.

    Args:
        models: score the pictures.
        registry: stores the reports.
        datasets: data sets to evaluate on.
        pool: threads that read and score pictures.
    """

    kind = EVALUATIONS

    def __init__(
        self, models: JobModels, registry: ModelRegistry, datasets: Datasets, pool: Executor
    ) -> None:
        self._models = models
        self._registry = registry
        self._datasets = datasets
        self._pool = pool
        self._data: _OpenSplit | None = None

    def plan_job(self, request: EvaluationRequest) -> JobPlan:
        """Divide a job into steps, and pin the data set and this machine."""
        with job_errors(), self._models.loaded(request.version, request.precision) as served:
            protocol = find_protocol(request.protocol)
            data = self._open(request)
            pictures = data.pictures
            palette = pictures.spec.palette
            check_same_classes(str(served.version), served.manifest.palette, pictures.spec.name, palette)
            return JobPlan(
                images=len(pictures),
                images_per_step=_images_per_step(pictures, protocol),
                pins=self._pins(served, data) | {"data": _fingerprint(pictures, request)},
            )

    def process_images(self, request: EvaluationRequest, plan: JobPlan, images: range) -> JsonObject:
        """Evaluate some pictures of a job."""
        counts: JsonObject = {"images": [], "skipped": []}
        with job_errors(), self._models.loaded(request.version, plan.pins["precision"]) as served:
            data = self._planned_data(request, plan)
            check_pins(plan, self._pins(served, data))
            pictures = data.pictures
            reason = partial(without_root, spec=pictures.spec)
            outcomes = self._scorer(request, pictures, served).score(
                pictures,
                images,
                executor=self._pool,
                name=partial(picture_name, pictures),
                reason=reason if request.skip_broken else None,
            )
            try:
                for outcome in outcomes:
                    if isinstance(outcome, SkippedImage):
                        counts["skipped"].append(asdict(outcome))
                    else:
                        counts["images"].append(outcome.to_json())
            except DatasetError as error:
                raise DatasetError(reason(error)) from error
        return counts

    def finish_job(
        self,
        job_id: str,
        request: EvaluationRequest,
        plan: JobPlan,
        outcomes: Sequence[JsonObject],
        *,
        confirm: Callable[[], None],
    ) -> EvaluationResult:
        """Add up the counts, and store the report beside the model."""
        with job_errors(), self._models.loaded(request.version, plan.pins["precision"]) as served:
            data = self._open(request)
            check_pins(plan, self._pins(served, data))
            pictures = data.pictures
            if _fingerprint(pictures, request) != plan.pins["data"]:
                raise JobError(
                    f"files of {request.dataset} {request.split} were changed: submit the job again"
                )
            report = _report(request, plan, outcomes, served, pictures)
            scorer = self._scorer(request, pictures, served)
            worst = report.worst(min(_MAX_SHOWN, plan.images_per_step))
            shown = [scorer.show(pictures, one.index, one.name) for one in worst]
            result = _result(report)
            document = report.to_json() | {
                "digest": result.digest,
                "protocol_name": request.protocol,
                "finished_at": dt.datetime.now(dt.UTC).isoformat(timespec="milliseconds"),
            }
            page = render_html(report, shown)
            confirm()
            self._registry.evaluations.add(request.version.name, job_id, document, page)
        return result

    def release_idle(self) -> None:
        """Free the models of jobs."""
        self._models.release_idle()

    def stop(self) -> None:
        """Let the running call, and all later ones, end with ``JobInterruptedError``."""
        self._models.stop()

    def _open(self, request: EvaluationRequest) -> _OpenSplit:
        pictures = self._datasets.open(request.dataset, request.split)
        self._data = _OpenSplit(request.dataset, pictures, _data_pins(pictures))
        return self._data

    def _planned_data(self, request: EvaluationRequest, plan: JobPlan) -> _OpenSplit:
        """Return the split that was opened last, if it is the one of the plan; else open it."""
        data = self._data
        if data is None or (data.dataset, data.pictures.split) != (request.dataset, request.split):
            return self._open(request)
        if any(plan.pins.get(key) != value for key, value in data.pins.items()):  # opened for an earlier job
            return self._open(request)
        return data

    def _pins(self, served: LoadedModel, data: _OpenSplit) -> JsonObject:
        return self._models.pins(served) | data.pins

    def _scorer(
        self, request: EvaluationRequest, pictures: LabeledImages, served: LoadedModel
    ) -> PictureScorer:
        def infer(images_NHW3: PixelArray) -> Float32Array:
            self._models.check_not_stopping()
            deadline_s = time.monotonic() + _BATCH_TIMEOUT_S
            return served.infer(images_NHW3, deadline_s=deadline_s).result().raw_NKhw

        protocol = find_protocol(request.protocol)
        return PictureScorer(served.manifest, protocol, pictures.spec.palette, [infer])


def _images_per_step(pictures: LabeledImages, protocol: Protocol) -> int:
    """Return the pictures per step, if all are like the first readable one."""
    for index in range(len(pictures)):
        with suppress(DatasetError):
            plan = make_plan(protocol, size_of(pictures[index][0]))
            views = 2 if plan.flip else 1
            pixels = views * sum(chip.size.padded().pixels for one in plan.passes for chip in one.chips)
            return min(max(1, STEP_PIXELS // pixels), _MAX_STEP_IMAGES)
    return _MAX_STEP_IMAGES


def _fingerprint(pictures: LabeledImages, request: EvaluationRequest) -> str | None:
    try:
        return fingerprint_of(pictures, skip_broken=request.skip_broken)
    except DatasetError as error:
        raise DatasetError(without_root(error, pictures.spec)) from error


def _data_pins(pictures: LabeledImages) -> JsonObject:
    return {"list": _list_digest(pictures), "labelling": pictures.spec.labelling}


def _list_digest(pictures: LabeledImages) -> str:
    # Relative paths: workers may have the data set in different folders.
    root = pictures.spec.root
    lines = [
        f"{relpath(pair.image, root)}\n{relpath(pair.label, root) if pair.label else ''}\n"
        for pair in pictures.pairs
    ]
    return hashlib.sha256("".join(lines).encode(errors="surrogateescape")).hexdigest()


def _report(
    request: EvaluationRequest,
    plan: JobPlan,
    counts: Sequence[JsonObject],
    served: LoadedModel,
    pictures: LabeledImages,
) -> EvaluationReport:
    evaluator = Evaluator(pictures.spec.palette, total=plan.images)
    for part in counts:
        for image in part["images"]:
            evaluator.add(ScoredImage.from_json(image))
        for image in part["skipped"]:
            evaluator.add(SkippedImage(**image))
    return evaluator.report(_context(request, plan, served))


def _context(request: EvaluationRequest, plan: JobPlan, served: LoadedModel) -> EvaluationContext:
    return EvaluationContext(
        model=str(served.version),
        weights=plan.pins["weights"],
        engine=plan.pins["engine"],
        device=plan.pins["device"],
        processor=plan.pins["environment"]["processor"],
        precision=plan.pins["precision"],
        protocol=str(find_protocol(request.protocol)),
        dataset=request.dataset,
        split=request.split,
        data_fingerprint=plan.pins["data"],
        versions=plan.pins["environment"]["versions"],
        command="evaluation job",
    )


def _result(report: EvaluationReport) -> EvaluationResult:
    document: JsonObject = report.to_json()
    return EvaluationResult(
        miou=report.matrix.miou,
        per_class=dict(zip(report.palette.names, report.matrix.iou, strict=True)),
        images=len(report.images),
        skipped=tuple(image.name for image in report.skipped),
        digest=hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest(),
    )


def picture_name(pictures: LabeledImages, index: int) -> str:
    """Return the name of a picture in reports: its path below the root of its data set."""
    image, root = pictures.pairs[index].image, pictures.spec.root
    return printable(image.relative_to(root) if image.is_relative_to(root) else image.name)


def without_root(error: ModelError, spec: DatasetSpec) -> str:
    """Return the message of an error without the folder of the data set on this machine."""
    root = spec.root
    if not (root.is_absolute() and root.name):
        return str(error)
    shown = printable(root)
    return str(error).replace(f"{shown}/", "").replace(shown, printable(root.name))
