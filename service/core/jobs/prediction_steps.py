"""The steps of bulk predictions: read pictures, label them with the models of a host, write masks.

Axes: H height, W width, 3 = red green blue.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from model.datasets import panoptic
from model.datasets.text import printable
from model.labels import ClassPalette, LabelMap, UInt8Array
from model.pictures.image import ImageLimits
from model.pictures.preprocess import size_of
from service.core.errors import (
    EmptyBodyError,
    InternalError,
    InvalidArgumentError,
    ModelOutputInvalidError,
    NotFoundError,
    RequestError,
    ServiceError,
    TooManyPixelsError,
    UndecodableImageError,
    UnsupportedMediaError,
)
from service.core.jobs.job import JobError, JobPlan, JsonObject
from service.core.jobs.job_models import STEP_PIXELS, JobModels, check_pins, job_errors
from service.core.jobs.picture_list import PictureList, list_pictures, mask_of
from service.core.jobs.picture_stores import MaskTarget, PictureSource, PictureStores
from service.core.jobs.prediction_job import (
    PREDICTIONS,
    PictureFailure,
    PredictionOutput,
    PredictionRequest,
    PredictionResult,
)
from service.core.models.loaded_model import LoadedModel
from service.core.pictures import codec
from service.core.pictures.local_files import not_taken_line, read_picture
from service.core.pictures.mask_rendering import mask_png
from service.core.pictures.picture_labeler import PictureLabeler
from service.core.pictures.segmenter import Segmenter, SegmenterLimits
from service.core.scheduling.scheduler import Lane

_MAX_STEP_IMAGES = 64
_TRIED_FOR_SIZE = 8
_IN_FLIGHT = 4
"""While two pictures are in the engine, others are read and written."""

_MAX_FAILURES = 20
"""In the result of a job; all are in its manifest."""

_PICTURE_ERRORS = (
    *(EmptyBodyError, InvalidArgumentError, NotFoundError, TooManyPixelsError),
    *(UndecodableImageError, UnsupportedMediaError, ModelOutputInvalidError, InternalError),
)
"""Errors of one picture; the job goes on with the next one."""


class PredictionSteps:
    """``JobSteps`` of bulk predictions.

    Each mask is a new file, written as a whole: a step that runs again, after its worker was killed,
    takes the masks that are there for its own. The list of pictures lies in the target while the job runs.

    Args:
        models: label the pictures.
        stores: sources and targets.
        pool: threads that read pictures and write masks.
        limits: of a picture.
    """

    kind = PREDICTIONS

    def __init__(
        self, models: JobModels, stores: PictureStores, pool: Executor, limits: SegmenterLimits
    ) -> None:
        self._models = models
        self._stores = stores
        self._pool = pool
        self._limits = limits
        self._list: tuple[str, PictureList] | None = None

    def plan_job(self, request: PredictionRequest) -> JobPlan:
        """List the pictures that have no mask yet, and pin the list and this machine."""
        with job_errors(), self._models.loaded(request.version, request.precision) as served:
            source, target = self._open(request)
            listed = list_pictures(source.objects(), target.paths())
            if not listed.has_pictures:
                others = not_taken_line(listed.not_taken) or "there are no files at all"
                raise JobError(f"no pictures in source {request.source!r}; {others}")
            document = listed.to_bytes()
            digest = hashlib.sha256(document).hexdigest()
            target.write(_list_path(digest), document)
            return JobPlan(
                images=len(listed.pictures),
                images_per_step=self._images_per_step(source, listed.pictures),
                pins=self._pins(served) | {"pictures": digest},
            )

    def process_images(self, request: PredictionRequest, plan: JobPlan, images: range) -> JsonObject:
        """Write the masks of some pictures of a job."""
        with job_errors(), self._models.loaded(request.version, plan.pins["precision"]) as served:
            check_pins(plan, self._pins(served))
            source, target = self._open(request)
            listed = self._listed(target, plan)
            labeler = PictureLabeler(Segmenter(self._pool, self._limits), served, Lane.BULK)
            limits = self._limits.image
            task = _PredictionTask(source, target, labeler, request.output, self._pool, limits)
            return {"pictures": asyncio.run(self._predict_all(task, listed.pictures, images))}

    def finish_job(
        self,
        job_id: str,
        request: PredictionRequest,
        plan: JobPlan,
        outcomes: Sequence[JsonObject],
        *,
        confirm: Callable[[], None],
    ) -> PredictionResult:
        """Write the manifest, and for COCO the annotations, into the target."""
        path = f"manifest-{job_id}.json"
        with job_errors(), self._models.loaded(request.version, plan.pins["precision"]) as served:
            _, target = self._open(request)
            manifest = target.read(path)  # from before a crash
            if manifest is None:
                check_pins(plan, self._pins(served))
                listed = self._listed(target, plan)
                entries = _in_order(outcomes, plan)
                manifest = _encoded(_manifest(request, plan, listed, entries))
                confirm()
                if request.output == "coco":
                    annotations = _annotations(listed, entries, served.manifest.palette)
                    target.write(f"panoptic-{job_id}.json", _encoded(annotations))
                target.write(path, manifest)
            target.clean_up(_list_path(plan.pins["pictures"]))
        return _result(path, manifest)

    def release_idle(self) -> None:
        """Free the models of jobs."""
        self._models.release_idle()

    def stop(self) -> None:
        """Let the running call, and all later ones, end with ``JobInterruptedError``."""
        self._models.stop()

    def _open(self, request: PredictionRequest) -> tuple[PictureSource, MaskTarget]:
        try:
            self._stores.check(request.source, request.target)
        except RequestError as error:
            raise JobError(str(error)) from error
        return self._stores.open(request.source, request.target)

    def _pins(self, served: LoadedModel) -> JsonObject:
        image = self._limits.image
        limits = [image.max_pixels, image.max_side, self._limits.max_infer_pixels]
        return self._models.pins(served) | {"limits": limits}

    def _listed(self, target: MaskTarget, plan: JobPlan) -> PictureList:
        """Return the list of a plan: the one that was read last, or that in the target."""
        digest: str = plan.pins["pictures"]
        if self._list is None or self._list[0] != digest:
            document = target.read(_list_path(digest))
            if document is None or hashlib.sha256(document).hexdigest() != digest:
                raise JobError(f"{_list_path(digest)} in the target was changed: submit the job again")
            self._list = digest, PictureList.from_bytes(document)
        return self._list[1]

    def _images_per_step(self, source: PictureSource, pictures: Sequence[str]) -> int:
        """Return the pictures per step, if all are like the first readable one."""
        for path in pictures[:_TRIED_FOR_SIZE]:
            with suppress(*_PICTURE_ERRORS):
                picture = read_picture(source.read(path), self._limits.image)
                reduced = size_of(picture.image_HW3).reduced_to(self._limits.max_infer_pixels)
                return min(max(1, STEP_PIXELS // reduced.padded().pixels), _MAX_STEP_IMAGES)
        return _MAX_STEP_IMAGES

    async def _predict_all(
        self, task: _PredictionTask, pictures: Sequence[str], images: range
    ) -> list[JsonObject]:
        entries: dict[int, JsonObject] = {}
        remaining = iter(images)

        async def work() -> None:
            for index in remaining:
                self._models.check_not_stopping()
                entries[index] = {"index": index} | await task.predict(pictures[index])

        await asyncio.gather(*(work() for _ in range(_IN_FLIGHT)))
        return [entries[index] for index in images]


@dataclass(frozen=True)
class _PredictionTask:
    """Turns pictures of one job into masks; belongs to one event loop.

    Attributes:
        source: of the pictures.
        target: of the masks.
        labeler: labels the pictures.
        output: content of the masks.
        pool: threads that read and write.
        limits: of a picture.
    """

    source: PictureSource
    target: MaskTarget
    labeler: PictureLabeler
    output: PredictionOutput
    pool: Executor
    limits: ImageLimits

    async def predict(self, path: str) -> JsonObject:
        """Write the mask of a picture; return what the manifest says of it, or ``code`` and ``message``."""
        loop = asyncio.get_running_loop()
        try:
            image_HW3 = await loop.run_in_executor(self.pool, self._read, path)
            labelled = await self.labeler.label(image_HW3)
            return await loop.run_in_executor(self.pool, self._write, path, image_HW3, labelled.label_map)
        except _PICTURE_ERRORS as error:
            return _failure_entry(error)

    def _read(self, path: str) -> UInt8Array:
        return read_picture(self.source.read(path), self.limits).image_HW3

    def _write(self, path: str, image_HW3: UInt8Array, label_map: LabelMap) -> JsonObject:
        height, width = label_map.ids_HW.shape
        entry: JsonObject = {"height": height, "width": width}
        if self.output == "coco":
            numbers_HW3 = panoptic.segment_numbers(label_map.ids_HW, label_map.palette)
            mask = codec.encode_rgb_png(codec.raster_of(numbers_HW3))
            entry["segments"] = panoptic.segments(label_map.ids_HW, label_map.palette)
        else:
            mask = mask_png(image_HW3, label_map, self.output)
        written = self.target.write(mask_of(path), mask)
        return entry | {"sha256": hashlib.sha256(written).hexdigest()}


def _failure_entry(error: ServiceError) -> JsonObject:
    return {"code": error.code, "message": str(error)}


def _list_path(digest: str) -> str:
    return f"pictures-{digest[:16]}.json"


def _in_order(outcomes: Sequence[JsonObject], plan: JobPlan) -> list[JsonObject]:
    entries = [entry for outcome in outcomes for entry in outcome["pictures"]]
    if [entry["index"] for entry in entries] != list(range(plan.images)):
        raise JobError("outcomes of pictures are missing or there twice: submit the job again")
    return entries


def _manifest(
    request: PredictionRequest, plan: JobPlan, listed: PictureList, entries: Sequence[JsonObject]
) -> JsonObject:
    """Return the manifest; it names neither the job nor a time, so that equal jobs have equal ones."""
    failed = [
        PictureFailure(listed.pictures[entry["index"]], entry["code"], entry["message"])
        for entry in entries
        if "code" in entry
    ]
    engine = {key: plan.pins[key] for key in ("engine", "device", "precision", "weights", "environment")}
    return {
        "model": str(request.version),
        **engine,
        "source": request.source,
        "target": request.target,
        "output": request.output,
        "written": [_written(listed, entry) for entry in _successes(entries)],
        "kept": list(listed.kept),
        "failed": [asdict(one) for one in sorted((*listed.failed, *failed), key=lambda one: one.picture)],
        "not_taken": dict(listed.not_taken),
    }


def _written(listed: PictureList, entry: JsonObject) -> JsonObject:
    picture = listed.pictures[entry["index"]]
    described = {key: entry[key] for key in ("sha256", "width", "height")}
    return {"picture": picture, "mask": mask_of(picture)} | described


def _annotations(listed: PictureList, entries: Sequence[JsonObject], palette: ClassPalette) -> JsonObject:
    """Return the panoptic annotations of the written masks."""
    images, annotations = [], []
    for image_id, entry in enumerate(_successes(entries), 1):
        picture = listed.pictures[entry["index"]]
        size = {"height": entry["height"], "width": entry["width"]}
        images.append({"id": image_id, "file_name": picture, **size})
        segments = {"segments_info": entry["segments"]}
        annotations.append({"image_id": image_id, "file_name": mask_of(picture), **segments})
    return {"images": images, "annotations": annotations, "categories": panoptic.categories(palette)}


def _successes(entries: Sequence[JsonObject]) -> Iterator[JsonObject]:
    return (entry for entry in entries if "code" not in entry)


def _encoded(document: JsonObject) -> bytes:
    return json.dumps(document, indent=1).encode()


def _result(path: str, manifest: bytes) -> PredictionResult:
    document: dict[str, Any] = json.loads(manifest)
    failures = [PictureFailure(**one) for one in document["failed"][:_MAX_FAILURES]]
    return PredictionResult(
        written=len(document["written"]),
        kept=len(document["kept"]),
        failed=len(document["failed"]),
        failures=tuple(
            PictureFailure(printable(one.picture), one.code, printable(one.message)) for one in failures
        ),
        not_taken=document["not_taken"],
        manifest=path,
        digest=hashlib.sha256(manifest).hexdigest(),
    )
