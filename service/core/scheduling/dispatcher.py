"""Between those who want pictures answered and what carries batches out: decides who goes next.

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
    UndecodableImageError,
    VersionNotFoundError,
)
from service.core.scheduling.quarantine import Quarantine
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
from service.telemetry import Metrics

_RECENT_SIZES = 8
"""Sizes at which a new version is run once before it is served."""

_MADE_OF_OUTCOME: Mapping[Outcome, Callable[[], ServiceError]] = MappingProxyType(
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
    """What became of one picture.

    Attributes:
        labels_HW: class ids at the picture's original size, uint8.
        queue_s: time from ``submit`` to the engine, in seconds.
        infer_s: time in the engine, in seconds; of all the batch.
        post_s: time from raw output to labels, in seconds; of all the batch.
        batch_size: pictures that were answered together.
        confidence_HW: probability of each label in 255ths, uint8; None if it was not asked for.
    """

    labels_HW: UInt8Array
    queue_s: float
    infer_s: float
    post_s: float
    batch_size: int = 1
    confidence_HW: UInt8Array | None = None


@dataclass(frozen=True, eq=False)
class _Picture:
    version: ModelVersion
    image: PreparedImage


@dataclass(frozen=True, eq=False)
class _Scores:
    version: ModelVersion
    images_NHW3: ImageBatch
    raw_shape: tuple[int, int, int, int]


@dataclass(frozen=True, eq=False)
class _Promise:
    version: ModelVersion


_Work = _Picture | _Scores | _Promise
_Item = Item[_Work, Any]
_Batch = Batch[_Work, Any]

Reservation = _Item
"""A place for a picture that is still to be read; whoever cancels its future gives it back."""


class Dispatcher:
    """Queues pictures, hands batches to a runner, and settles what becomes of them; thread-safe.

    An item that fails fails alone. Cancelled and expired items never reach the engine. When the runner loses
    its worker, what had begun is answered with ``NoWorkerError``, and what had not waits for the next one.

    Args:
        runner: carries batches out; opened here, closed with this.
        max_waiting: pictures that may wait; more are refused.
        limits: how much goes into a batch.
        metrics: told of batches.
        clock: seconds, as ``time.monotonic``.
    """

    def __init__(
        self,
        runner: Runner,
        *,
        max_waiting: int = DEFAULT_MAX_WAITING,
        limits: BatchLimits | None = None,
        metrics: Metrics | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._runner = runner
        self._limits = limits or BatchLimits()
        self._metrics = metrics or Metrics()
        self._clock = clock
        self._batcher: Scheduler[_Work, Any] = Scheduler(max_waiting)
        self._quarantine = Quarantine()
        self._running: dict[int, _Batch] = {}
        self._outstanding: dict[ModelVersion, int] = {}  # items of each version that is loaded
        self._recent_sizes: dict[ImageSize, None] = {}
        self._tokens = itertools.count()
        self._is_ready = False
        self._outage_s = 0.0
        self._closing = False
        # Reentrant: whoever hears of an answer may ask the next question at once.
        self._changed = threading.Condition(threading.RLock())
        self._busy = UtilizationMeter()
        self._metrics.watch(queue_depth=lambda: len(self._batcher), busy_ratio=self._busy_ratio)
        runner.open(self)

    @property
    def is_ready(self) -> bool:
        """Whether batches are carried out at this moment."""
        return self._is_ready

    @property
    def recent_sizes(self) -> Sequence[ImageSize]:
        """Padded sizes of the pictures that came last, at most 8; the latest comes last."""
        with self._changed:
            return list(self._recent_sizes)

    def canvas(self, padded: ImageSize, original: ImageSize, *, confidence: bool = False) -> UInt8Array:
        """Return memory for a prepared picture from which it need not be copied again, uint8 HW3."""
        return self._runner.canvas(padded, original, confidence=confidence)

    def load(
        self,
        version: ModelVersion,
        artifact: Artifact,
        sizes: Sequence[ImageSize] = (),
        tuning: EngineTuning = DEFAULT_TUNING,
    ) -> EngineInfo:
        """Build an engine beside those that run, so that its version can be submitted to: see ``Runner``."""
        info = self._runner.load(version, artifact, sizes, tuning)
        with self._changed:
            self._outstanding[version] = 0
        return info

    def unload(self, version: ModelVersion) -> None:
        """Accept no more for a version, answer what there is, and free its engine."""
        with self._changed:
            self._changed.wait_for(lambda: not self._outstanding[version])
            del self._outstanding[version]
        self._runner.unload(version)

    def check(self, version: ModelVersion, *, deadline_s: float, source: str | None = None) -> None:
        """Refuse an interactive picture that is not even received yet, if no place could be promised to it.

        Args:
            version: whose engine would answer it.
            deadline_s: as in ``submit``.
            source: as in ``submit``.

        Raises:
            QueueFullError: as ``submit``.
            RateLimitedError: as ``submit``.
        """
        with self._changed:
            self._batcher.check(
                Lane.INTERACTIVE,
                (version, "labels"),
                now_s=self._clock(),
                deadline_s=deadline_s,
                source=source,
            )

    def expected_wait_s(self) -> float:
        """Return in how many seconds all that runs and waits will be done, by what was learnt."""
        with self._changed:
            return self._batcher.expected_wait_s(now_s=self._clock())

    def reserve(
        self,
        version: ModelVersion,
        padded: ImageSize,
        *,
        deadline_s: float,
        lane: Lane = Lane.INTERACTIVE,
        source: str | None = None,
    ) -> Reservation:
        """Promise a place to a picture before anything is spent on reading it.

        Args:
            version: whose engine will answer it.
            padded: its size then.
            deadline_s: as in ``submit``.
            lane: as in ``submit``.
            source: as in ``submit``.

        Returns:
            What ``submit`` takes; its future has to be cancelled if nothing is submitted.

        Raises:
            ServiceError: as ``submit``.
        """
        key = BatchKey((version, "labels"), padded, self._limits)
        with self._changed:
            reservation: Reservation = Item(_Promise(version), key, self._clock(), deadline_s, lane, source)
            self._enter(reservation, self._batcher.reserve)
            return reservation

    def submit(
        self,
        version: ModelVersion,
        image: PreparedImage,
        *,
        deadline_s: float,
        lane: Lane = Lane.INTERACTIVE,
        source: str | None = None,
    ) -> Future[Answer]:
        """Queue one picture; ``reserve`` and ``redeem`` in one.

        Args:
            version: whose engine answers it.
            image: the prepared picture.
            deadline_s: when nobody waits for the answer any more, on the clock.
            lane: how urgent it is.
            source: who asks, inside the lane: sources take turns.

        Returns:
            The answer to come; cancelling it withdraws the picture unless the engine already has it.

        Raises:
            VersionNotFoundError: the version is not loaded (any more).
            QueueFullError: too many wait, or they alone outlast the deadline.
            RateLimitedError: too many of this source wait.
            DeadlineExceededError: the deadline has passed.
            NoWorkerError: workers die as soon as they are started.
            UndecodableImageError: two workers died of this picture.
            DrainingError: the worker is about to stop.
        """
        place = self.reserve(version, image.padded, deadline_s=deadline_s, lane=lane, source=source)
        return self.redeem(place, image)

    def redeem(self, reservation: Reservation, image: PreparedImage) -> Future[Answer]:
        """Queue one picture in its reserved place.

        Args:
            reservation: given back if the picture cannot take it: because it has another padded size, or must
                be alone in its batch; then the picture asks for another place.
            image: the prepared picture.

        Returns:
            The answer to come; cancelling it withdraws the picture unless the engine already has it.

        Raises:
            UndecodableImageError: two workers died of this picture.
            ServiceError: the picture asks for another place: as ``submit``.
        """
        place, version = reservation, reservation.work.version
        key = BatchKey(place.key.model, image.padded, self._limits)
        with self._changed:
            self._note_size(key.size)
            if self._quarantine.is_banned(version, image):
                place.future.cancel()
                raise UndecodableImageError("two workers died of this picture")
            if self._quarantine.is_suspect(version, image):
                key = key.alone()
            picture = _Picture(version, image)
            if place.key == key:
                return self._redeem(place, picture)
            place.future.cancel()
            return self._admit(Item(picture, key, self._clock(), place.deadline_s, place.lane, place.source))

    def infer(
        self,
        version: ModelVersion,
        images_NHW3: ImageBatch,
        raw_shape: tuple[int, int, int, int],
        *,
        deadline_s: float,
        lane: Lane = Lane.BULK,
    ) -> Future[Float32Array]:
        """Queue one batch whose raw scores are wanted; it stays as it is.

        Args:
            version: whose engine.
            images_NHW3: uint8, or float32 of 0..255.
            raw_shape: of the answer, raw_NKhw.
            deadline_s: as in ``submit``.
            lane: how urgent it is.

        Raises:
            ServiceError: as ``submit``.
        """
        count, height, width = images_NHW3.shape[:3]
        key = BatchKey((version, "scores", images_NHW3.dtype.name), ImageSize(height, width))
        work = _Scores(version, images_NHW3, raw_shape)
        with self._changed:
            return self._admit(Item(work, key, self._clock(), deadline_s, lane, pictures=count))

    def close(self) -> None:
        """Answer everything that waits, then stop."""
        with self._changed:
            self._closing = True
            self._changed.wait_for(lambda: not self._running and not len(self._batcher))
        self._runner.close()

    def ready(self) -> None:
        """Hear from the runner that batches can be run."""
        with self._changed:
            self._is_ready, self._outage_s = True, 0.0
            self._dispatch()

    def done(self, token: int, report: BatchReport, outputs: Sequence[BatchOutput]) -> None:
        """Hear from the runner what became of a batch."""
        with self._changed:
            batch = self._end(token, report)
            self._dispatch()  # before anything else: the device is free
            self._busy.add(report.infer_s + report.post_s, now_s=self._clock())
            for item, outcome in zip(batch.items, report.outcomes, strict=True):
                if outcome is Outcome.ANSWERED and isinstance(item.work, _Picture):
                    self._quarantine.clear(item.work.version, item.work.image)
        self._metrics.batch_done(size=len(batch.items), padding_ratio=_padding_ratio(batch))
        for item, outcome, output in zip(batch.items, report.outcomes, outputs, strict=True):
            # Failures are made here and not raised below: a traceback would keep the pixels alive.
            if outcome is Outcome.ANSWERED:
                item.future.set_result(_answer(item, report, output))
            else:
                item.future.set_exception(_MADE_OF_OUTCOME[outcome]())

    def lost(self, executing: Sequence[int], waiting: Sequence[int], *, retry_after_s: float) -> None:
        """Hear from the runner that its worker is gone."""
        with self._changed:
            if not self._closing and self._is_ready:
                self._metrics.worker_restarted()
            self._is_ready, self._outage_s = False, retry_after_s
            dead = [item for token in executing for item in self._end(token).items]
            for item in dead:
                if isinstance(item.work, _Picture):
                    self._quarantine.blame(item.work.version, item.work.image)
            for token in waiting:
                self._batcher.requeue(self._end(token).items)
            if retry_after_s or self._closing:
                self._batcher.abandon(self._no_worker)
            self._changed.notify_all()
        for item in dead:
            item.future.set_exception(NoWorkerError("the worker died while it worked on the request"))

    def _note_size(self, padded: ImageSize) -> None:
        self._recent_sizes.pop(padded, None)
        self._recent_sizes[padded] = None
        if len(self._recent_sizes) > _RECENT_SIZES:
            del self._recent_sizes[next(iter(self._recent_sizes))]

    def _busy_ratio(self) -> float:
        with self._changed:
            return self._busy.ratio(now_s=self._clock())

    def _redeem(self, reservation: Reservation, picture: _Picture) -> Future[Any]:
        reservation.work = picture
        reservation.admitted_s = self._clock()
        self._batcher.admit(reservation)
        self._dispatch()
        return reservation.future

    def _admit(self, item: _Item) -> Future[Any]:
        self._enter(item, self._batcher.admit)
        self._dispatch()
        return item.future

    def _enter(self, item: _Item, enter: Callable[[_Item], None]) -> None:
        if self._closing:
            raise DrainingError("the service is about to stop")
        if self._outage_s:
            raise self._no_worker()
        if (version := item.work.version) not in self._outstanding:
            raise VersionNotFoundError(f"{version} is not served")
        enter(item)
        self._outstanding[version] += 1
        item.future.add_done_callback(partial(self._leave, version))

    def _no_worker(self) -> NoWorkerError:
        return NoWorkerError("no worker could be started", retry_after_s=max(1.0, self._outage_s))

    def _leave(self, version: ModelVersion, future: Future[Any]) -> None:
        with self._changed:
            self._outstanding[version] -= 1
            if future.cancelled():
                self._batcher.withdraw(future)
            self._changed.notify_all()

    def _dispatch(self) -> None:
        while self._is_ready and len(self._running) < self._runner.depth:
            batch = self._batcher.take(now_s=self._clock())
            if batch is None:
                return
            token = next(self._tokens)
            self._running[token] = batch
            self._runner.run(token, _job(batch))

    def _end(self, token: int, report: BatchReport | None = None) -> _Batch:
        batch = self._running.pop(token)
        self._batcher.finish(batch, now_s=self._clock(), duration_s=_duration_s(report))
        self._changed.notify_all()
        return batch


def _duration_s(report: BatchReport | None) -> float | None:
    """Return what can be learnt: a batch of which a part failed or was left out says nothing about time."""
    if report is None or any(outcome is not Outcome.ANSWERED for outcome in report.outcomes):
        return None
    return report.infer_s + report.post_s


def _padding_ratio(batch: _Batch) -> float:
    content = sum(
        item.work.image.content.pixels if isinstance(item.work, _Picture) else item.pixels
        for item in batch.items
    )
    return 1 - content / batch.pixels


def _job(batch: _Batch) -> BatchJob:
    work = batch.items[0].work
    deadlines_s = [item.deadline_s for item in batch.items]
    if isinstance(work, _Scores):
        return ScoreBatchJob(work.version, work.images_NHW3, work.raw_shape, deadlines_s[0], batch.expected_s)
    images = [item.work.image for item in batch.items if isinstance(item.work, _Picture)]
    return LabelBatchJob(work.version, images, deadlines_s, batch.expected_s)


def _answer(item: _Item, report: BatchReport, output: Any) -> Answer | Float32Array:
    if isinstance(item.work, _Scores):
        scores: Float32Array = output
        return scores
    queue_s = max(0.0, report.begun_s - item.admitted_s)
    labels_HW, confidence_HW = answer_planes(output)
    times_s = queue_s, report.infer_s, report.post_s
    return Answer(labels_HW, *times_s, len(report.outcomes), confidence_HW)
