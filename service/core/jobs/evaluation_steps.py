"""The steps of evaluation jobs: read pictures, run them through the models of a host, count.

Axes: N pictures, H height, W width, 3 = red green blue; h w = H/stride W/stride, K channels of the head.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from os.path import relpath
from pathlib import Path

import structlog

from model.artifacts.manifest import WEIGHTS_FILE, ModelVersion
from model.artifacts.registry import ModelRegistry
from model.datasets.confined_paths import ConfinedReader
from model.datasets.dataset import DatasetSpec, LabeledImages
from model.datasets.text import printable
from model.decoding.score_grid import Float32Array
from model.errors import DatasetError, ModelError, StorageError
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
from service.core.device.engine import EngineUnavailableError, Precision
from service.core.errors import (
    DeadlineExceededError,
    DrainingError,
    ModelOutputInvalidError,
    OverloadError,
    StorageFullError,
)
from service.core.jobs.evaluation_job import (
    JobError,
    JobHeldUpError,
    JobInterruptedError,
    JobPlan,
    JobRequest,
    JobResult,
    JsonObject,
)
from service.core.models.loaded_model import LoadedModel
from service.core.models.model_host import ModelHost

_STEP_PIXELS = 16 << 20
"""Pixels of the network's input in one step; 2 to 5 seconds on the processors tried."""

_MAX_STEP_IMAGES = 8
_MAX_SHOWN = 6
_BATCH_TIMEOUT_S = 120.0  # of one batch; the bulk lane waits behind the others

_log = structlog.get_logger()


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
            raise DatasetError(_relative(error, spec)) from error

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
    """``JobSteps`` on the models of a host.

    The host is opened for the first job and closed when no job runs any more. A version that it does not
    serve is borrowed until then, or until another one is needed. One call runs at a time.

    Args:
        open_host: opens the models.
        registry: versions and reports.
        datasets: data sets to evaluate on.
        pool: threads that read and score pictures.
        environment: plain JSON with ``processor``, ``versions`` of libraries, and all else that counts depend
            on.
    """

    def __init__(
        self,
        open_host: Callable[[], AbstractContextManager[ModelHost]],
        registry: ModelRegistry,
        datasets: Datasets,
        pool: Executor,
        *,
        environment: JsonObject,
    ) -> None:
        self._open_host = open_host
        self._registry = registry
        self._datasets = datasets
        self._pool = pool
        self._environment = environment
        self._stopping = threading.Event()
        self._call_lock = threading.Lock()
        self._opened = ExitStack()
        self._host: ModelHost | None = None
        self._borrowed: tuple[ModelVersion, Precision | None] | None = None
        self._data: _OpenSplit | None = None

    def plan_job(self, request: JobRequest) -> JobPlan:
        """Divide a job into steps, and pin the data set and this machine."""
        with _job_errors(), self._loaded(request.version, request.precision) as served:
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

    def count_images(self, request: JobRequest, plan: JobPlan, images: range) -> JsonObject:
        """Evaluate some pictures of a job."""
        counts: JsonObject = {"images": [], "skipped": []}
        with _job_errors(), self._loaded(request.version, plan.pins["precision"]) as served:
            data = self._planned_data(request, plan)
            self._check_pins(plan, served, data)
            pictures = data.pictures
            reason = partial(_relative, spec=pictures.spec)
            outcomes = self._scorer(request, pictures, served).score(
                pictures,
                images,
                executor=self._pool,
                name=partial(_name, pictures),
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
        request: JobRequest,
        plan: JobPlan,
        counts: Sequence[JsonObject],
        *,
        confirm: Callable[[], None],
    ) -> JobResult:
        """Add up the counts, and store the report beside the model."""
        with _job_errors(), self._loaded(request.version, plan.pins["precision"]) as served:
            data = self._open(request)
            self._check_pins(plan, served, data)
            pictures = data.pictures
            if _fingerprint(pictures, request) != plan.pins["data"]:
                raise JobError(
                    f"files of {request.dataset} {request.split} were changed: submit the job again"
                )
            report = _report(request, plan, counts, served, pictures)
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
        """Give back the borrowed version and close the host."""
        with self._call_lock:
            self._close_host()

    def close(self, *, timeout_s: float = 1.0) -> None:
        """Close the host, unless a call runs for longer than ``timeout_s``; for the end of the process."""
        if self._call_lock.acquire(timeout=timeout_s):
            self._close_host()
            self._call_lock.release()

    def stop(self) -> None:
        """Let the running call, and all later ones, end with ``JobInterruptedError``."""
        self._stopping.set()

    @contextmanager
    def _loaded(self, version: ModelVersion, precision: Precision | None) -> Iterator[LoadedModel]:
        """Yield a version, loaded in a precision; it stays loaded for the next call.

        Raises:
            JobError: the host serves the version in another precision.
        """
        with self._call_lock:
            if self._host is None:
                self._host = self._opened.enter_context(self._open_host())
            if self._borrowed is not None and self._borrowed != (version, precision):
                self._give_back()
            if not self._host.has(version):
                self._host.borrow(version, self._registry.open(version), precision=precision)
                self._borrowed = version, precision
            with self._host.hold_loaded(version) as served:
                if precision not in (None, served.engine.precision):
                    raise JobError(
                        f"the job needs {version} in {precision}, and this worker serves it in "
                        f"{served.engine.precision}: submit it again"
                    )
                yield served

    def _give_back(self) -> None:
        if self._borrowed is not None and self._host is not None:
            self._host.give_back(self._borrowed[0])
        self._borrowed = None

    def _close_host(self) -> None:
        self._give_back()
        self._host = None
        self._opened.close()

    def _open(self, request: JobRequest) -> _OpenSplit:
        pictures = self._datasets.open(request.dataset, request.split)
        self._data = _OpenSplit(request.dataset, pictures, _data_pins(pictures))
        return self._data

    def _planned_data(self, request: JobRequest, plan: JobPlan) -> _OpenSplit:
        """Return the split that was opened last, if it is the one of the plan; else open it."""
        data = self._data
        if data is None or (data.dataset, data.pictures.split) != (request.dataset, request.split):
            return self._open(request)
        if any(plan.pins.get(key) != value for key, value in data.pins.items()):  # opened for an earlier job
            return self._open(request)
        return data

    def _pins(self, served: LoadedModel, data: _OpenSplit) -> JsonObject:
        engine = served.engine
        return {
            "engine": engine.engine,
            "device": engine.device.partition(":")[0],  # GPUs of one machine count as equal
            "precision": engine.precision,
            "weights": served.manifest.files[WEIGHTS_FILE],
            "environment": self._environment,
            **data.pins,
        }

    def _check_pins(self, plan: JobPlan, served: LoadedModel, data: _OpenSplit) -> None:
        for key, value in self._pins(served, data).items():
            if value != plan.pins.get(key):
                _log.warning("worker does not match the job", pin=key, job=plan.pins.get(key), here=value)
                raise JobError(f"the job began with another {key} than this worker has: submit it again")

    def _scorer(self, request: JobRequest, pictures: LabeledImages, served: LoadedModel) -> PictureScorer:
        def infer(images_NHW3: PixelArray) -> Float32Array:
            if self._stopping.is_set():
                raise JobInterruptedError
            deadline_s = time.monotonic() + _BATCH_TIMEOUT_S
            return served.infer(images_NHW3, deadline_s=deadline_s).result().raw_NKhw

        protocol = find_protocol(request.protocol)
        return PictureScorer(served.manifest, protocol, pictures.spec.palette, [infer])


@contextmanager
def _job_errors() -> Iterator[None]:
    """Turn errors into ``JobError``, or into ``JobHeldUpError`` if a later try may succeed."""
    try:
        yield
    except DrainingError:
        raise JobInterruptedError from None
    except StorageError as error:
        raise JobHeldUpError("the registry does not answer, or has no space") from error
    except (OverloadError, DeadlineExceededError, StorageFullError) as error:
        raise JobHeldUpError(str(error)) from error
    except (ModelError, ModelOutputInvalidError, EngineUnavailableError) as error:
        raise JobError(str(error)) from error


def _images_per_step(pictures: LabeledImages, protocol: Protocol) -> int:
    """Return the pictures per step, if all are like the first readable one."""
    for index in range(len(pictures)):
        with suppress(DatasetError):
            plan = make_plan(protocol, size_of(pictures[index][0]))
            views = 2 if plan.flip else 1
            pixels = views * sum(chip.size.padded().pixels for one in plan.passes for chip in one.chips)
            return min(max(1, _STEP_PIXELS // pixels), _MAX_STEP_IMAGES)
    return _MAX_STEP_IMAGES


def _fingerprint(pictures: LabeledImages, request: JobRequest) -> str | None:
    try:
        return fingerprint_of(pictures, skip_broken=request.skip_broken)
    except DatasetError as error:
        raise DatasetError(_relative(error, pictures.spec)) from error


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
    request: JobRequest,
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


def _context(request: JobRequest, plan: JobPlan, served: LoadedModel) -> EvaluationContext:
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


def _result(report: EvaluationReport) -> JobResult:
    document: JsonObject = report.to_json()
    return JobResult(
        miou=report.matrix.miou,
        per_class=dict(zip(report.palette.names, report.matrix.iou, strict=True)),
        images=len(report.images),
        skipped=tuple(image.name for image in report.skipped),
        digest=hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest(),
    )


def _name(pictures: LabeledImages, index: int) -> str:
    """Return the name of a picture in reports: its path below the root of its data set."""
    image, root = pictures.pairs[index].image, pictures.spec.root
    return printable(image.relative_to(root) if image.is_relative_to(root) else image.name)


def _relative(error: DatasetError, spec: DatasetSpec) -> str:
    """Return the message of an error without the folder of the data set on this machine."""
    root = spec.root
    if not (root.is_absolute() and root.name):
        return str(error)
    shown = printable(root)
    return str(error).replace(f"{shown}/", "").replace(shown, printable(root.name))
