"""The way of one picture through the threads of the service: read, answered, encoded.

Axes: H height, W width, 3 = red green blue.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

import structlog

from model.artifacts.manifest import ModelVersion
from model.labels import LabelMap, UInt8Array
from model.pictures.image import ImageHeader
from model.pictures.preprocess import ImageSize, PreparedImage, size_of
from service.core.errors import BusyError, DeadlineExceededError, DrainingError
from service.core.models.model_host import LoadedModel, ModelHost
from service.core.scheduling.dispatcher import Answer, Reservation
from service.core.scheduling.latency_model import LatencyModel
from service.core.scheduling.memory_budget import MemoryBudget, MemoryReservation
from service.core.scheduling.scheduler import Lane
from service.telemetry import CpuStage, Metrics, Stage

_log = structlog.get_logger()

EncodedT = TypeVar("EncodedT")

_ANSWER_BYTES = 5  # a pixel's: 4 for the picture, Pillow's padding included, and 1 for its label
_NETWORK_BYTES = 3


@dataclass(frozen=True)
class StageTimings:
    """Where the time went, in seconds."""

    decode_s: float
    preprocess_s: float
    queue_s: float
    infer_s: float
    post_s: float


@dataclass(eq=False)
class Segmentation:
    """The answer for one picture.

    Attributes:
        label_map: class ids at the picture's upright size.
        image_HW3: the picture itself, upright uint8 RGB.
        version: the model that answered.
        timings: where the time went.
        inference_size: what the network saw of it; smaller than ``image_HW3`` when it was reduced.
        batch_size: pictures that were answered together.
    """

    label_map: LabelMap
    image_HW3: UInt8Array
    version: ModelVersion
    timings: StageTimings
    inference_size: ImageSize
    batch_size: int


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture that was read.

    Attributes:
        image_HW3: upright uint8 RGB.
        prepared: the same as the network sees it.
        decode_s: from the file to the former, in seconds.
        preprocess_s: from that to the latter, in seconds.
    """

    image_HW3: UInt8Array
    prepared: PreparedImage
    decode_s: float
    preprocess_s: float


@dataclass(frozen=True)
class RequestOrder:
    """What a user wants of a picture.

    Attributes:
        served: the version that answers it.
        deadline_s: when nobody waits for the labels any more, on the clock of ``time.monotonic``.
        encode_bytes: memory that encoding takes beside the segmentation, in bytes a pixel.
        lane: how urgent it is.
        source: who asks; None = nobody in particular.
        answered: called in the event loop with what the device made of it; None = nobody wants to know.
    """

    served: LoadedModel
    deadline_s: float
    encode_bytes: int
    lane: Lane
    source: str | None
    answered: Callable[[Answer], None] | None = None


class EncodingLatency:
    """How long before a deadline labels must be there, by how long encoding took lately; thread-safe."""

    def __init__(self) -> None:
        self._pace = LatencyModel()
        self._lock = threading.Lock()

    def learn(self, *, pixels: int, duration_s: float) -> None:
        """Take note of how long it took.

        Args:
            pixels: of the picture.
            duration_s: from the labels to the answer, in seconds.
        """
        with self._lock:
            self._pace.learn(pixels=pixels, duration_s=duration_s)

    def kept_s(self, pixels: int, deadline_s: float) -> float:
        """Return what is kept for a picture of so many pixels, in seconds."""
        with self._lock:
            return _at_most_half(self._pace.predict(pixels), deadline_s)

    def least_s(self, deadline_s: float) -> float:
        """Return what is kept for the smallest one, in seconds."""
        with self._lock:
            return _at_most_half(self._pace.least_s(), deadline_s)


def _at_most_half(encode_s: float, deadline_s: float) -> float:
    """Leave half of the time to the rest, or a slow answer could be the last one that is tried."""
    return min(encode_s, (deadline_s - time.monotonic()) / 2)


@dataclass(frozen=True)
class PictureRequestTools:
    """What all pictures share.

    Attributes:
        host: the models.
        pool: threads that read and encode.
        max_infer_pixels: larger pictures are reduced for the network.
        budget: memory for all of them together, in bytes.
        metrics: counts.
        encoding: how long encoding takes.
    """

    host: ModelHost
    pool: Executor
    max_infer_pixels: int
    budget: MemoryBudget
    metrics: Metrics
    encoding: EncodingLatency


@dataclass(eq=False)
class _Held:
    """What a picture has taken so far."""

    reservation: Reservation | None = None
    place: MemoryReservation | None = None
    picture: Picture | None = None
    answering: Future[Answer] | None = None
    answer: Answer | None = None

    def withdraw(self) -> None:
        """Cancel what the worker has not begun."""
        if self.reservation is not None:
            self.reservation.future.cancel()
        if self.answering is not None:
            self.answering.cancel()


class PictureRequest(Generic[EncodedT]):
    """The way of one picture: its header is read, then all of it, it is answered, and the answer encoded.

    Whoever ends a step starts the next one, in whatever thread that is, without waking the event loop in
    between. The loop hears of the end, and of the device's if somebody wants to know.

    Made in the event loop, which calls what is public.

    Args:
        tools: shared by all pictures.
        order: what is wanted.
        peek: reads the header; in a thread of the pool, as the next two.
        read: reads all of it.
        encode: makes the answer.
    """

    def __init__(
        self,
        tools: PictureRequestTools,
        order: RequestOrder,
        peek: Callable[[], ImageHeader],
        read: Callable[[], Picture],
        encode: Callable[[Segmentation], EncodedT],
    ) -> None:
        self._tools = tools
        self._order = order
        self._peek = peek
        self._read = read
        self._encode = encode
        self._loop = asyncio.get_running_loop()
        self._end: asyncio.Future[None] = self._loop.create_future()
        self._stage: Stage = "decode"
        self._answered_s = 0.0
        self._held = _Held()
        self._results: list[EncodedT] = []
        self._lock = threading.Lock()
        self._error: BaseException | None = None
        self._is_over = False
        self._is_left = False
        self._at_work = 0

    # --- the event loop

    async def encoded(self) -> EncodedT:
        """Go the way, once.

        Raises:
            ServiceError: as ``Segmenter.segment``.
        """
        left_s = self._order.deadline_s - time.monotonic()
        if left_s > 0:
            self._do_next(self._begin)
        timer = self._loop.call_later(max(0.0, left_s), self._give_up)
        try:
            await self._end
        except asyncio.CancelledError:
            self._count_lost()
            raise
        finally:
            timer.cancel()
        error, self._error = self._error, None
        if error is not None:
            if isinstance(error, DeadlineExceededError):
                self._tools.metrics.expired(self._stage)
            try:
                raise error
            finally:
                del error  # or it would hold this frame, which holds it
        return self._results.pop()

    def leave(self) -> None:
        """Withdraw what has not begun, and give the memory back: a thread's, when it is done with it."""
        with self._lock:
            self._is_left = True
            is_idle = not self._at_work
        self._held.withdraw()
        if is_idle:
            self._give_back()

    def _give_up(self) -> None:
        if self._stage == "encode":
            return  # the labels are there
        place = self._held.place
        if place is not None and not place.is_taken:
            wait_s = max(1.0, self._tools.host.expected_wait_s())
            self._finish(BusyError("no memory for another picture is free", retry_after_s=wait_s))
        else:
            self._finish(DeadlineExceededError("the deadline passed before the answer was there"))

    def _count_lost(self) -> None:
        metrics, is_late = self._tools.metrics, time.monotonic() >= self._order.deadline_s
        (metrics.expired if is_late else metrics.cancelled)(self._stage)

    # --- any thread

    def _is_wanted(self) -> bool:
        return not (self._is_over or self._is_left)

    def _do_next(self, step: Callable[[], None]) -> None:
        """Have a thread of the pool take a step."""
        try:
            self._tools.pool.submit(self._do, step)
        except RuntimeError as error:
            is_closed = "shutdown" in str(error)  # and not out of threads
            self._finish(DrainingError("the service is about to stop") if is_closed else error)

    def _do(self, step: Callable[[], None]) -> None:
        """Take a step, unless nobody waits for it any more."""
        with self._lock:
            if not self._is_wanted():
                return
            self._at_work += 1
        try:
            step()
        except BaseException as error:  # noqa: BLE001 - whoever waits in the event loop gets it
            self._finish(error)
        with self._lock:
            self._at_work -= 1
            is_last_to_leave = self._is_left and not self._at_work
        if is_last_to_leave:
            try:
                self._give_back()
            except Exception:  # noqa: BLE001 - the edge of the thread: nobody else would hear of it
                _log.exception("memory of a picture cannot be given back")

    @contextmanager
    def _working(self, stage: CpuStage) -> Iterator[None]:
        began_s = time.thread_time()
        try:
            yield
        finally:
            self._tools.metrics.picture_cpu(stage, time.thread_time() - began_s)

    def _begin(self) -> None:
        """Be refused now, if at all: to read a picture for nothing would take time from those admitted."""
        tools, order = self._tools, self._order
        with self._working("decode"):
            header = self._peek()
        self._held.reservation = tools.host.reserve(
            header.size.reduced_to(tools.max_infer_pixels).padded(),
            version=order.served.version,
            deadline_s=order.deadline_s - tools.encoding.kept_s(header.size.pixels, order.deadline_s),
            lane=order.lane,
            source=order.source,
        )
        num_bytes = bytes_needed(header, tools.max_infer_pixels, order.encode_bytes)
        place = self._held.place = tools.budget.ask(num_bytes, lambda: self._do_next(self._read_it))
        if place.at_once:
            self._read_it()

    def _read_it(self) -> None:
        if not self._is_wanted():
            return
        order, reservation = self._order, self._held.reservation
        assert reservation is not None
        with self._working("decode"):
            picture = self._held.picture = self._read()
        if not self._is_wanted():
            return
        self._stage = "queue"
        answering = self._tools.host.submit(
            picture.prepared,
            version=order.served.version,
            deadline_s=reservation.deadline_s,
            lane=order.lane,
            source=order.source,
            reservation=reservation,
        )
        self._held.answering = answering
        answering.add_done_callback(self._take_answer)

    def _take_answer(self, answering: Future[Answer]) -> None:
        try:
            self._go_on_with(answering)
        except BaseException as error:  # noqa: BLE001 - the edge of the worker's thread
            self._finish(error)

    def _go_on_with(self, answering: Future[Answer]) -> None:
        if answering.cancelled():
            return  # by ``leave``
        if (error := answering.exception()) is not None:
            self._finish(error)
            return
        with self._lock:
            if not self._is_wanted():
                return
            self._stage = "encode"
        self._answered_s = time.monotonic()
        answer = self._held.answer = answering.result()
        if self._order.answered is not None:
            self._tell(partial(self._order.answered, answer))
        self._do_next(self._encode_it)

    def _encode_it(self) -> None:
        order, picture, answer = self._order, self._held.picture, self._held.answer
        assert picture is not None
        assert answer is not None
        segmentation = Segmentation(
            label_map=LabelMap(answer.labels_HW, order.served.manifest.palette),
            image_HW3=picture.image_HW3,
            version=order.served.version,
            timings=StageTimings(
                picture.decode_s, picture.preprocess_s, answer.queue_s, answer.infer_s, answer.post_s
            ),
            inference_size=picture.prepared.content,
            batch_size=answer.batch_size,
        )
        with self._working("encode"):
            self._results.append(self._encode(segmentation))
        duration_s = time.monotonic() - self._answered_s
        self._tools.encoding.learn(pixels=size_of(picture.image_HW3).pixels, duration_s=duration_s)
        self._finish(None)

    def _finish(self, error: BaseException | None) -> None:
        """Tell the event loop how it ended; what is told first counts."""
        with self._lock:
            if self._is_over:
                return
            self._is_over, self._error = True, error
        self._tell(self._wake)

    def _wake(self) -> None:
        if not self._end.done():
            self._end.set_result(None)

    def _tell(self, news: Callable[[], None]) -> None:
        with suppress(RuntimeError):  # the loop is closed, and nobody waits any more
            self._loop.call_soon_threadsafe(news)

    def _give_back(self) -> None:
        """Let go of everything: the worker refers to this for as long as it has the picture."""
        held, self._held = self._held, _Held()
        del self._peek, self._read, self._encode
        self._error = None
        self._results.clear()
        held.withdraw()
        if held.place is not None:
            self._tools.budget.release(held.place)


def bytes_needed(header: ImageHeader, max_infer_pixels: int, encode_bytes: int) -> int:
    """Return the most memory that a picture takes: while it is decoded, or while its answer is encoded.

    Args:
        header: of the picture.
        max_infer_pixels: what the network sees of it at most.
        encode_bytes: memory that encoding takes beside the segmentation, in bytes a pixel.
    """
    pixels = header.size.pixels
    network_bytes = _NETWORK_BYTES * header.size.reduced_to(max_infer_pixels).padded().pixels
    # What the network saw lies beside its labels until those are encoded.
    return max(header.decode_bytes, _ANSWER_BYTES * pixels + network_bytes + encode_bytes * pixels)
