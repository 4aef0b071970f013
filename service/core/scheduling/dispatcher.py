"""Thread-safe front of the scheduler: queues pictures, hands batches to a runner, settles the results.

Axes: N images in a batch, K channels of the head, H height, W width, 3 = red green blue; h w = H/stride
W/stride.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np

from model.artifacts.artifact import Artifact
from model.artifacts.manifest import ModelVersion
from model.labels import UInt8Array
from model.pictures.preprocess import ImageSize, PreparedImage
from service.core.device.batch_job import (
    BatchJob,
    BatchOutput,
    BatchReport,
    LabelBatchJob,
    Outcome,
    Runner,
    ScoreBatchJob,
    answer_planes,
)
from service.core.device.engine import (
    DEFAULT_TUNING,
    EngineInfo,
    EngineTuning,
    Float32Array,
    ImageBatch,
)
from service.core.errors import (
    BusyError,
    DeadlineExceededError,
    DrainingError,
    InternalError,
    ModelOutputInvalidError,
    NoWorkerError,
    ServiceError,
    TooManyPixelsError,
    UndecodableImageError,
    VersionNotFoundError,
)
from service.core.scheduling.quarantine import MAX_DEATHS, Quarantine
from service.core.scheduling.scheduler import (
    DEFAULT_MAX_WAITING,
    Batch,
    BatchKey,
    BatchLimits,
    Item,
    Lane,
    Scheduler,
)
from service.core.scheduling.utilization import UtilizationMeter
from service.spans import NO_TRACING, BatchRun, Tracing, current_span
from service.telemetry import Metrics

_MAX_RECENT_SIZES = 8

_ERRORS: Mapping[Outcome, Callable[[], ServiceError]] = MappingProxyType(
    {
        Outcome.EXPIRED: lambda: DeadlineExceededError("the deadline passed while the request was queued"),
        Outcome.INVALID: lambda: ModelOutputInvalidError(
            "the model's output is not finite or of a wrong shape"
        ),
        Outcome.FAILED: lambda: InternalError("inference failed"),
        Outcome.NO_MEMORY: lambda: BusyError("the device has no memory for the picture"),
    }
)


@dataclass(frozen=True, eq=False)
class Answer:
    """Labels of one picture, and the times of its batch.

    Attributes:
        labels_HW: class ids at the picture's original size, uint8.
        queue_s: time from the arrival of the picture to the start of its batch, in seconds.
        infer_s: time of the batch in the engine, in seconds.
        post_s: time of the batch from raw output to labels, in seconds.
        batch_size: pictures in the batch.
        confidence_HW: probability of each label in 255ths, uint8; None if it was not asked for.
    """

    labels_HW: UInt8Array
    queue_s: float
    infer_s: float
    post_s: float
    batch_size: int = 1
    confidence_HW: UInt8Array | None = None


@dataclass(frozen=True, eq=False)
class Scores:
    """Raw scores of one batch, and the time that they took.

    Attributes:
        raw_NKhw: float32, the head's raw output.
        infer_s: time of the batch in the engine, in seconds.
    """

    raw_NKhw: Float32Array
    infer_s: float


@dataclass(frozen=True, eq=False)
class _Picture:
    version: ModelVersion
    image: PreparedImage


@dataclass(frozen=True, eq=False)
class _Scores:
    version: ModelVersion
    images_NHW3: ImageBatch
    raw_shape: tuple[int, int, int, int]
    image: PreparedImage | None = None  # of a client, which a worker may die of


@dataclass(frozen=True, eq=False)
class _Reserved:
    version: ModelVersion
    image: None = None


_Work = _Picture | _Scores | _Reserved
_Item = Item[_Work, Any]
_Batch = Batch[_Work, Any]

Reservation = _Item
"""Place in the queue for a picture that is not read yet; cancel its future to give it back."""


class Dispatcher:
    """Queues pictures and settles their results; thread-safe. A ``RunnerListener``.

    A failing item fails alone. Cancelled and expired items never reach the engine. When the runner loses its
    worker, batches that had started fail with ``NoWorkerError``; the others wait for the next worker.

    Args:
        runner: runs batches; opened and closed by this object.
        max_waiting: items that may wait.
        limits: of a batch; None = one picture.
        metrics: counts batches; None = no counts.
        tracing: notes the batches that have traced pictures.
        clock: seconds, as ``time.monotonic``.

    Attributes:
        canvas: returns memory for a prepared picture (``Runner.canvas``).
    """

    def __init__(
        self,
        runner: Runner,
        *,
        max_waiting: int = DEFAULT_MAX_WAITING,
        limits: BatchLimits | None = None,
        metrics: Metrics | None = None,
        tracing: Tracing = NO_TRACING,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._runner = runner
        self.canvas = runner.canvas
        self._limits = limits or BatchLimits()
        self._metrics = metrics or Metrics()
        self._tracing = tracing
        self._clock = clock
        self._max_waiting = max_waiting
        self._scheduler: Scheduler[_Work, Any] = Scheduler(max_waiting)
        self._quarantine = Quarantine()
        self._running: dict[int, _Batch] = {}
        self._unanswered: dict[ModelVersion, int] = {}  # items of each loaded version
        self._recent_sizes: dict[ImageSize, None] = {}
        self._tokens = itertools.count()
        self._is_ready = False
        self._outage_s = 0.0
        self._closing = False
        # Reentrant: a callback of a future may call this object.
        self._changed = threading.Condition(threading.RLock())
        self._utilization = UtilizationMeter()
        self._metrics.watch(queue_depth=lambda: self.num_waiting, busy_ratio=self._busy_ratio)
        runner.open(self)

    @property
    def is_ready(self) -> bool:
        """Whether batches can be run now."""
        return self._is_ready

    @property
    def num_waiting(self) -> int:
        """Number of waiting and reserved items."""
        return len(self._scheduler)

    @property
    def recent_sizes(self) -> Sequence[ImageSize]:
        """Padded sizes of the last pictures, at most 8, the latest last; new versions run once at each."""
        with self._changed:
            return list(self._recent_sizes)

    def load(
        self,
        version: ModelVersion,
        artifact: Artifact,
        sizes: Sequence[ImageSize] = (),
        tuning: EngineTuning = DEFAULT_TUNING,
    ) -> EngineInfo:
        """Build and prove an engine; from then on its version accepts pictures.

        Raises:
            EngineUnavailableError: the engine cannot run here.
            model.errors.ArtifactError: the artifact is broken, or the engine computes something else.
            NoWorkerError: there is no worker, or it died meanwhile.
        """
        info = self._runner.load(version, artifact, sizes, tuning)
        with self._changed:
            self._unanswered[version] = 0
        return info

    def unload(self, version: ModelVersion) -> None:
        """Accept no more pictures for a version, answer those that wait, and free its engine."""
        with self._changed:
            self._changed.wait_for(lambda: not self._unanswered[version])
            del self._unanswered[version]
        self._runner.unload(version)

    def check_capacity(self, version: ModelVersion, *, deadline_s: float, source: str | None = None) -> None:
        """Refuse an interactive picture of unknown size, before it is received.

        Args:
            version: the model version.
            deadline_s: time after which the labels are no longer needed, on the clock, in seconds.
            source: client that sends it; None = unknown.

        Raises:
            QueueFullError: too many items wait, or they outlast the deadline.
            RateLimitedError: too many items of this source wait.
        """
        model, now_s = (version, "labels"), self._clock()
        with self._changed:
            self._scheduler.check_early(
                Lane.INTERACTIVE, model, now_s=now_s, deadline_s=deadline_s, source=source
            )

    def expected_wait_s(self) -> float:
        """Return the estimated time until everything that runs and waits is done, in seconds."""
        with self._changed:
            return self._scheduler.expected_wait_s(now_s=self._clock())

    def reserve_picture(
        self,
        version: ModelVersion,
        padded: ImageSize,
        *,
        deadline_s: float,
        lane: Lane = Lane.INTERACTIVE,
        source: str | None = None,
    ) -> Reservation:
        """Reserve a place in the queue for a picture before it is read.

        Args:
            version: the model version.
            padded: size of the prepared picture.
            deadline_s: time after which the labels are no longer needed, on the clock, in seconds.
            lane: how urgent the picture is.
            source: client or stream that sends it; sources of a lane are served in turn. None = unknown.

        Returns:
            The argument of ``submit_picture``; cancel its future if nothing is submitted.

        Raises:
            VersionNotFoundError: the version is not loaded.
            QueueFullError: too many items wait, or they outlast the deadline.
            RateLimitedError: too many items of this source wait.
            DeadlineExceededError: the deadline has passed.
            NoWorkerError: workers die as soon as they are started.
            DrainingError: the service is about to stop.
        """
        key = BatchKey((version, "labels"), padded, self._limits)
        with self._changed:
            reservation: Reservation = Item(
                _Reserved(version), key, self._clock(), deadline_s, lane, source, span=current_span()
            )
            self._enter([reservation], self._scheduler.reserve_items)
            return reservation

    def reserve_tiles(
        self,
        version: ModelVersion,
        padded: ImageSize,
        count: int,
        *,
        deadline_s: float,
        lane: Lane = Lane.INTERACTIVE,
        source: str | None = None,
    ) -> list[Reservation]:
        """Reserve places in the queue for all tiles of a picture, before it is read, or for none of them.

        Args:
            version: the model version.
            padded: size of each prepared tile.
            count: number of tiles.
            deadline_s: time after which the labels are no longer needed, on the clock, in seconds.
            lane: how urgent the picture is.
            source: client or stream that sends it; sources of a lane are served in turn. None = unknown.

        Returns:
            The arguments of ``submit_tile``; cancel their futures if nothing is submitted.

        Raises:
            TooManyPixelsError: the queue never has so many places.
            ServiceError: an error of ``reserve_picture``.
        """
        if count > self._max_waiting:
            raise TooManyPixelsError(
                f"the picture has {count} tiles, and the queue has {self._max_waiting} places "
                "(limits.max_waiting): send a smaller picture, or ask for less detail"
            )
        key, span = _scores_key(version, np.dtype(np.uint8), padded), current_span()
        with self._changed:
            now_s = self._clock()
            places: list[Reservation] = [
                Item(_Reserved(version), key, now_s, deadline_s, lane, source, span=span)
                for _ in range(count)
            ]
            self._enter(places, self._scheduler.reserve_items)
            return places

    def submit_picture(self, reservation: Reservation, image: PreparedImage) -> Future[Answer]:
        """Queue one picture in its reserved place.

        Args:
            reservation: given back if the picture cannot use it, because its padded size differs or it must
                run alone in a batch; then the picture needs another place.
            image: the prepared picture.

        Returns:
            The answer; cancelling the future withdraws the picture unless the engine has it already.

        Raises:
            UndecodableImageError: two workers died of this picture.
            ServiceError: there is no other place for the picture, as in ``reserve_picture``.
        """
        version = reservation.work.version
        key = BatchKey(reservation.key.model, image.padded, self._limits)
        with self._changed:
            self._add_recent_size(key.size)
            if deaths := self._quarantine.deaths_of(version, image):
                key = key.alone()
            if deaths >= MAX_DEATHS:
                reservation.future.cancel()
                raise UndecodableImageError("two workers died of this picture")
            picture = _Picture(version, image)
            if reservation.key == key:
                reservation.admitted_s = self._clock()
                return self._use(reservation, picture)
            reservation.future.cancel()
            return self._admit(
                Item(
                    picture,
                    key,
                    self._clock(),
                    reservation.deadline_s,
                    reservation.lane,
                    reservation.source,
                    span=reservation.span,
                )
            )

    def submit_tile(
        self, reservation: Reservation, tile: PreparedImage, raw_shape: tuple[int, int, int, int]
    ) -> Future[Scores]:
        """Queue one tile in its reserved place; its age is that of the reservation.

        Args:
            reservation: of ``reserve_tiles``.
            tile: of the reserved size, without confidence.
            raw_shape: shape of the scores, raw_NKhw.

        Returns:
            The scores; cancelling the future withdraws the tile unless the engine has it already.

        Raises:
            UndecodableImageError: two workers died of this tile.
        """
        version = reservation.work.version
        with self._changed:
            self._add_recent_size(tile.padded)
            if self._quarantine.deaths_of(version, tile) >= MAX_DEATHS:
                raise UndecodableImageError("two workers died of this picture")
            return self._use(reservation, _Scores(version, tile.pixels_HW3[np.newaxis], raw_shape, tile))

    def submit_scoring(
        self,
        version: ModelVersion,
        images_NHW3: ImageBatch,
        raw_shape: tuple[int, int, int, int],
        *,
        deadline_s: float,
        lane: Lane = Lane.BULK,
    ) -> Future[Scores]:
        """Queue one batch whose raw scores are wanted; no other picture joins it.

        Args:
            version: the model version.
            images_NHW3: uint8, or float32 of 0..255.
            raw_shape: shape of the scores, raw_NKhw.
            deadline_s: time after which the scores are no longer needed, on the clock, in seconds.
            lane: how urgent the batch is.

        Raises:
            VersionNotFoundError: the version is not loaded.
            QueueFullError: too many items wait, or they outlast the deadline.
            DeadlineExceededError: the deadline has passed.
            NoWorkerError: workers die as soon as they are started.
            DrainingError: the service is about to stop.
        """
        count, height, width = images_NHW3.shape[:3]
        key = _scores_key(version, images_NHW3.dtype, ImageSize(height, width))
        work = _Scores(version, images_NHW3, raw_shape)
        with self._changed:
            return self._admit(Item(work, key, self._clock(), deadline_s, lane, pictures=count))

    def close(self) -> None:
        """Answer everything that waits, then close the runner."""
        with self._changed:
            self._closing = True
            self._changed.wait_for(lambda: not self._running and not self.num_waiting)
        self._runner.close()

    # --- events of the runner

    def on_ready(self) -> None:
        """Start to run batches."""
        with self._changed:
            self._is_ready, self._outage_s = True, 0.0
            self._dispatch()

    def on_batch_done(self, token: int, report: BatchReport, outputs: Sequence[BatchOutput]) -> None:
        """Answer the items of a batch."""
        with self._changed:
            batch = self._end_batch(token, report)
            self._dispatch()  # first, because the device is free
            self._utilization.add_batch(report.infer_s + report.post_s, now_s=self._clock())
            for item, outcome in zip(batch.items, report.outcomes, strict=True):
                if outcome is Outcome.ANSWERED and item.work.image is not None:
                    self._quarantine.clear(item.work.version, item.work.image)
        self._metrics.batch_done(size=len(batch.items), padding_ratio=_padding_ratio(batch))
        for item, outcome, output in zip(batch.items, report.outcomes, outputs, strict=True):
            # Errors are made here and not raised below: a traceback would keep the pixels in memory.
            if outcome is Outcome.ANSWERED:
                item.future.set_result(_result(item, report, output))
            else:
                item.future.set_exception(_ERRORS[outcome]())
        if queued := [(item.span, item.admitted_s) for item in batch.items if item.span is not None]:
            self._tracing.batch(_batch_run(batch, report), queued)

    def on_worker_lost(
        self, executing: Sequence[int], waiting: Sequence[int], *, retry_after_s: float
    ) -> None:
        """Fail the items of batches that had started, and queue the others again."""
        with self._changed:
            if not self._closing and self._is_ready:
                self._metrics.worker_restarted()
            self._is_ready, self._outage_s = False, retry_after_s
            lost = [item for token in executing for item in self._end_batch(token).items]
            for item in lost:
                if item.work.image is not None:
                    self._quarantine.record_death(item.work.version, item.work.image)
            for token in waiting:
                self._scheduler.requeue_items(self._end_batch(token).items)
            if retry_after_s or self._closing:
                self._scheduler.fail_all(self._no_worker)
            self._changed.notify_all()
        for item in lost:
            item.future.set_exception(NoWorkerError("the worker died while it worked on the request"))

    def _add_recent_size(self, padded: ImageSize) -> None:
        self._recent_sizes.pop(padded, None)
        self._recent_sizes[padded] = None
        if len(self._recent_sizes) > _MAX_RECENT_SIZES:
            del self._recent_sizes[next(iter(self._recent_sizes))]

    def _busy_ratio(self) -> float:
        with self._changed:
            return self._utilization.ratio(now_s=self._clock())

    def _use(self, reservation: Reservation, work: _Picture | _Scores) -> Future[Any]:
        reservation.work = work
        self._scheduler.admit_item(reservation)
        self._dispatch()
        return reservation.future

    def _admit(self, item: _Item) -> Future[Any]:
        self._enter([item], lambda items: self._scheduler.admit_item(items[0]))
        self._dispatch()
        return item.future

    def _enter(self, items: Sequence[_Item], enter: Callable[[Sequence[_Item]], None]) -> None:
        """Hand new items of one version to the scheduler."""
        if self._closing:
            raise DrainingError("the service is about to stop")
        if self._outage_s:
            raise self._no_worker()
        if (version := items[0].work.version) not in self._unanswered:
            raise VersionNotFoundError(f"{version} is not served")
        enter(items)
        self._unanswered[version] += len(items)
        for item in items:
            item.future.add_done_callback(partial(self._on_answered, version))

    def _no_worker(self) -> NoWorkerError:
        return NoWorkerError("no worker could be started", retry_after_s=max(1.0, self._outage_s))

    def _on_answered(self, version: ModelVersion, future: Future[Any]) -> None:
        with self._changed:
            self._unanswered[version] -= 1
            if future.cancelled():
                self._scheduler.withdraw(future)
            self._changed.notify_all()

    def _dispatch(self) -> None:
        while self._is_ready and len(self._running) < self._runner.depth:
            batch = self._scheduler.take_batch(now_s=self._clock())
            if batch is None:
                return
            token = next(self._tokens)
            self._running[token] = batch
            self._runner.run_batch(token, _batch_job(batch))

    def _end_batch(self, token: int, report: BatchReport | None = None) -> _Batch:
        batch = self._running.pop(token)
        self._scheduler.finish_batch(batch, now_s=self._clock(), duration_s=_duration_s(report))
        self._changed.notify_all()
        return batch


def _duration_s(report: BatchReport | None) -> float | None:
    """Return the duration of a batch; None if some items failed or were left out."""
    if report is None or any(outcome is not Outcome.ANSWERED for outcome in report.outcomes):
        return None
    return report.infer_s + report.post_s


def _batch_run(batch: _Batch, report: BatchReport) -> BatchRun:
    version = str(batch.items[0].work.version)
    return BatchRun(version, len(batch.items), report.begun_s, report.infer_s, report.post_s)


def _padding_ratio(batch: _Batch) -> float:
    content = sum(
        item.work.image.content.pixels if isinstance(item.work, _Picture) else item.pixels
        for item in batch.items
    )
    return 1 - content / batch.pixels


def _batch_job(batch: _Batch) -> BatchJob:
    work = batch.items[0].work
    deadlines_s = [item.deadline_s for item in batch.items]
    if isinstance(work, _Scores):
        return ScoreBatchJob(work.version, work.images_NHW3, work.raw_shape, deadlines_s[0], batch.expected_s)
    images = [item.work.image for item in batch.items if isinstance(item.work, _Picture)]
    return LabelBatchJob(work.version, images, deadlines_s, batch.expected_s)


def _scores_key(version: ModelVersion, dtype: np.dtype[Any], padded: ImageSize) -> BatchKey:
    """Return the key of a batch whose raw scores are wanted: no other item joins it."""
    return BatchKey((version, "scores", dtype.name), padded)


def _result(item: _Item, report: BatchReport, output: Any) -> Answer | Scores:
    if isinstance(item.work, _Scores):
        return Scores(output, report.infer_s)
    queue_s = max(0.0, report.begun_s - item.admitted_s)
    labels_HW, confidence_HW = answer_planes(output)
    times_s = queue_s, report.infer_s, report.post_s
    return Answer(labels_HW, *times_s, len(report.outcomes), confidence_HW)
