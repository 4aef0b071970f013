"""The application object behind every frontend: bytes of a picture in, its label map out."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import Executor, Future
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial

import numpy as np

import model.errors as image_errors
from model.image import DEFAULT_LIMITS, ImageHeader, ImageLimits, decode_image, peek_header
from model.labels import LabelMap, UInt8Array
from model.manifest import ModelVersion
from model.preprocess import DEFAULT_MAX_INFER_PIXELS, ImageSize, PreparedImage
from service.core.admission import (
    BYTES_PER_PIXEL_IN_FLIGHT,
    DEFAULT_MAX_PIXELS_IN_FLIGHT,
    MemoryBudget,
    Place,
)
from service.core.batching import Lane
from service.core.deadline import within
from service.core.errors import (
    BusyError,
    DeadlineExceededError,
    EmptyBodyError,
    InvalidArgumentError,
    ServiceError,
    TooManyPixelsError,
    UndecodableImageError,
    UnsupportedMediaError,
)
from service.core.host import ModelHost, ServedModel
from service.core.pace import Pace
from service.core.worker import Reservation
from service.telemetry import Metrics, Stage

IMAGE_ERRORS: Mapping[type[image_errors.ImageError], type[ServiceError]] = {
    image_errors.EmptyImageError: EmptyBodyError,
    image_errors.UnsupportedImageError: UnsupportedMediaError,
    image_errors.TooManyPixelsError: TooManyPixelsError,
    image_errors.UndecodableImageError: UndecodableImageError,
}
"""What a picture that cannot be read is called by every protocol."""

DEFAULT_ENCODE_BYTES = 5
"""Memory, in bytes a pixel, that suffices to encode any answer."""

_ANSWER_BYTES = 5  # a pixel's: 4 for the picture, Pillow's padding included, and 1 for its label
_NETWORK_BYTES = 3
_RAW_BYTES = 3  # beside the request's own bytes, which are the picture itself unless they must be swapped


@dataclass(frozen=True)
class SegmenterLimits:
    """How much one picture, and all of them together, may cost.

    Args:
        image: what the header of a picture may declare.
        max_infer_pixels: larger pictures are area-reduced before the network.
        max_pixels_in_flight: decoded pixels in memory at the same time, all requests together; pictures
            that take more than 7 bytes a pixel while they are decoded or encoded count for more pixels.
    """

    image: ImageLimits = DEFAULT_LIMITS
    max_infer_pixels: int = DEFAULT_MAX_INFER_PIXELS
    max_pixels_in_flight: int = DEFAULT_MAX_PIXELS_IN_FLIGHT


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
        idle_s: how long its user waited instead of encoding it; to be set by the user, since from the rest is
            learnt how long encoding takes.
    """

    label_map: LabelMap
    image_HW3: UInt8Array
    version: ModelVersion
    timings: StageTimings
    inference_size: ImageSize
    batch_size: int
    idle_s: float = 0.0


_Prepare = Callable[[UInt8Array], PreparedImage]


@dataclass(frozen=True, eq=False)
class _Picture:
    image_HW3: UInt8Array
    prepared: PreparedImage
    decode_s: float
    preprocess_s: float


@dataclass(frozen=True)
class _Order:
    """Who answers a picture, until when, how urgently, and what its encoding will take."""

    served: ServedModel
    deadline_s: float
    encode_bytes: int
    lane: Lane
    source: str | None


class Segmenter:
    """Reads pictures, has them answered by a model, and bounds the memory that this takes.

    Belongs to one event loop. Pictures are read in a thread pool; nothing here blocks the loop.

    Args:
        host: the models.
        pool: threads that read pictures; the caller closes it.
        limits: of one picture and of all together.
        metrics: counts pictures that nobody waited for to their end; None = nobody looks at it.
    """

    def __init__(
        self,
        host: ModelHost,
        pool: Executor,
        limits: SegmenterLimits | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        self._metrics = metrics or Metrics()
        self._host = host
        self._pool = pool
        self._limits = limits or SegmenterLimits()
        self._budget = MemoryBudget(self._limits.max_pixels_in_flight * BYTES_PER_PIXEL_IN_FLIGHT)
        self._encoding = Pace()

    def check(self, version: ModelVersion, *, deadline_s: float, source: str | None = None) -> None:
        """Refuse a picture by what waits alone, before it is received.

        Args:
            version: that would answer it.
            deadline_s: see ``segment``.
            source: see ``segment``.

        Raises:
            QueueFullError: nothing could be answered in time, however small.
            RateLimitedError: too many pictures of this source wait.
        """
        encode_s = _kept_s(self._encoding.least_s(), deadline_s)
        self._host.check(version=version, deadline_s=deadline_s - encode_s, source=source)

    @asynccontextmanager
    async def segment(
        self,
        data: bytes,
        *,
        deadline_s: float,
        model: str | None = None,
        version: int | None = None,
        encode_bytes: int = DEFAULT_ENCODE_BYTES,
        lane: Lane = Lane.INTERACTIVE,
        source: str | None = None,
    ) -> AsyncIterator[Segmentation]:
        """Answer one picture; its memory counts as taken until the context is left.

        Leaving early (an error, a cancelled task) withdraws what has not begun.

        Args:
            data: a JPEG, PNG or WebP file.
            deadline_s: when nobody waits for the answer any more, on the clock of ``time.monotonic``.
            model: name of a model; None = the default.
            version: its number; None = the one that is served under the name.
            encode_bytes: memory that the caller will take to encode the answer, in bytes a pixel.
            lane: how urgent it is.
            source: who asks, a client or a stream: sources of a lane take turns.

        Yields:
            The answer, to be encoded inside the context.

        Raises:
            ModelNotFoundError: no such model is served.
            VersionNotFoundError: not in this version.
            LoadingError: it is not loaded yet.
            EmptyBodyError: there are no bytes.
            UnsupportedMediaError: neither JPEG, PNG nor WebP.
            TooManyPixelsError: the header declares more than the limits allow.
            UndecodableImageError: the picture does not decode.
            BusyError: there was no memory for the picture before the deadline.
            QueueFullError: too many pictures wait.
            RateLimitedError: too many pictures of this source wait.
            DrainingError: the service is about to stop.
            DeadlineExceededError: the deadline passed.
            ModelOutputInvalidError: the model produced values that are no scores.
            InternalError: the engine failed.
        """
        with self._host.hold(model, version) as served:
            header = await self._peek(data, deadline_s)
            read = partial(_read, data, self._limits.image, self._prepare(served))
            order = _Order(served, deadline_s, encode_bytes, lane, source)
            async with self._segmented(header, read, order) as segmentation:
                yield segmentation

    @asynccontextmanager
    async def segment_pixels(
        self,
        data: bytes,
        size: ImageSize,
        *,
        deadline_s: float,
        bgr: bool = False,
        model: str | None = None,
        version: int | None = None,
        encode_bytes: int = DEFAULT_ENCODE_BYTES,
        lane: Lane = Lane.INTERACTIVE,
        source: str | None = None,
    ) -> AsyncIterator[Segmentation]:
        """Answer one picture that needs no decoding; otherwise as ``segment``.

        Args:
            data: 3 bytes a pixel, rows from top to bottom without padding.
            size: of the picture.
            deadline_s: see ``segment``.
            bgr: the bytes of a pixel are blue, green, red instead of red, green, blue.
            model: see ``segment``.
            version: see ``segment``.
            encode_bytes: see ``segment``.
            lane: see ``segment``.
            source: see ``segment``.

        Yields:
            The answer, to be encoded inside the context.

        Raises:
            EmptyBodyError: there are no bytes.
            InvalidArgumentError: there are more or fewer bytes than pixels need.
            TooManyPixelsError: the size is more than the limits allow.
            ServiceError: as ``segment``.
        """
        with self._host.hold(model, version) as served:
            _check_pixels(data, size, self._limits.image)
            header = ImageHeader(size, _RAW_BYTES * size.pixels)
            read = partial(_wrap, data, size, self._prepare(served), bgr=bgr)
            order = _Order(served, deadline_s, encode_bytes, lane, source)
            async with self._segmented(header, read, order) as segmentation:
                yield segmentation

    @asynccontextmanager
    async def _segmented(
        self, header: ImageHeader, read: Callable[[], _Picture], order: _Order
    ) -> AsyncIterator[Segmentation]:
        num_bytes = _bytes_needed(header, self._limits.max_infer_pixels, order.encode_bytes)
        with self._reserved(header.size, order) as reservation:
            place = await self._room(num_bytes, order.deadline_s)
            reading = self._pool.submit(read)
            try:
                segmentation = await self._answer(reading, order, reservation)
                answered_s = time.monotonic()
                yield segmentation
                encode_s = time.monotonic() - answered_s - segmentation.idle_s
                self._encoding.learn(pixels=header.size.pixels, duration_s=encode_s)
            finally:
                # A thread cannot be interrupted: what nobody waits for is in memory until it is read.
                release = partial(self._release, place, asyncio.get_running_loop())
                reading.add_done_callback(release)

    async def _room(self, num_bytes: int, deadline_s: float) -> Place:
        try:
            return await self._budget.acquire(num_bytes, timeout_s=deadline_s - time.monotonic())
        except BusyError as error:
            error.retry_after_s = max(error.retry_after_s, self._host.expected_wait_s())
            raise

    @contextmanager
    def _reserved(self, size: ImageSize, order: _Order) -> Iterator[Reservation]:
        """Be refused now, if at all: reading a picture for nothing would take time from those admitted."""
        encode_s = _kept_s(self._encoding.predict(size.pixels), order.deadline_s)
        reservation = self._host.reserve(
            size.reduced_to(self._limits.max_infer_pixels).padded(),
            version=order.served.version,
            deadline_s=order.deadline_s - encode_s,
            lane=order.lane,
            source=order.source,
        )
        try:
            yield reservation
        finally:
            reservation.future.cancel()

    def _release(self, place: Place, loop: asyncio.AbstractEventLoop, _reading: Future[_Picture]) -> None:
        with suppress(RuntimeError):  # the loop is closed, and nobody waits for room any more
            loop.call_soon_threadsafe(self._budget.release, place)

    async def _peek(self, data: bytes, deadline_s: float) -> ImageHeader:
        async with _until(deadline_s):
            with self._counting("decode", deadline_s):
                return await asyncio.wrap_future(self._pool.submit(_peek_header, data, self._limits.image))

    def _prepare(self, served: ServedModel) -> _Prepare:
        preprocess, max_pixels = served.manifest.preprocess, self._limits.max_infer_pixels
        spec = dataclasses.replace(preprocess, max_infer_pixels=max_pixels)
        return partial(spec.prepare, canvas=self._host.canvas)

    async def _answer(
        self, reading: Future[_Picture], order: _Order, reservation: Reservation
    ) -> Segmentation:
        served = order.served
        async with _until(order.deadline_s):
            with self._counting("decode", order.deadline_s):
                picture = await asyncio.wrap_future(reading)
            answering = self._host.submit(
                picture.prepared,
                version=served.version,
                deadline_s=reservation.deadline_s,
                lane=order.lane,
                source=order.source,
                reservation=reservation,
            )
            with self._counting("queue", order.deadline_s):
                answer = await asyncio.wrap_future(answering)
        return Segmentation(
            label_map=LabelMap(answer.labels_HW, served.manifest.palette),
            image_HW3=picture.image_HW3,
            version=served.version,
            timings=StageTimings(
                picture.decode_s, picture.preprocess_s, answer.queue_s, answer.infer_s, answer.post_s
            ),
            inference_size=picture.prepared.content,
            batch_size=answer.batch_size,
        )

    @contextmanager
    def _counting(self, stage: Stage, deadline_s: float) -> Iterator[None]:
        """Count a picture that is given up in a stage; the time of the device belongs to the queue."""
        try:
            yield
        except DeadlineExceededError:
            self._metrics.expired(stage)
            raise
        except asyncio.CancelledError:  # by ``_until``, or because the client left
            late = time.monotonic() >= deadline_s
            (self._metrics.expired if late else self._metrics.cancelled)(stage)
            raise


def _kept_s(encode_s: float, deadline_s: float) -> float:
    """Return how long before the deadline labels must be there, when encoding takes so long lately.

    At most half of the time is kept for that, or a slow answer could be the last one that is tried.
    """
    return min(encode_s, (deadline_s - time.monotonic()) / 2)


def _until(deadline_s: float) -> AbstractAsyncContextManager[None]:
    message = "the deadline passed before the answer was there"
    return within(deadline_s - time.monotonic(), DeadlineExceededError, message)


@contextmanager
def _service_errors() -> Iterator[None]:
    try:
        yield
    except image_errors.ImageError as error:
        raise IMAGE_ERRORS[type(error)](str(error)) from error


def _bytes_needed(header: ImageHeader, max_infer_pixels: int, encode_bytes: int) -> int:
    """Return the most memory that a picture takes: while it is decoded, or while its answer is encoded."""
    pixels = header.size.pixels
    network_bytes = _NETWORK_BYTES * header.size.reduced_to(max_infer_pixels).padded().pixels
    # What the network saw lies beside its labels until those are encoded.
    return max(header.decode_bytes, _ANSWER_BYTES * pixels + network_bytes + encode_bytes * pixels)


def _peek_header(data: bytes, limits: ImageLimits) -> ImageHeader:
    with _service_errors():
        return peek_header(data, limits)


def _read(data: bytes, limits: ImageLimits, prepare: _Prepare) -> _Picture:
    started_s = time.monotonic()
    with _service_errors():
        image_HW3 = decode_image(data, limits)
    decoded_s = time.monotonic()
    prepared = prepare(image_HW3)
    return _Picture(image_HW3, prepared, decoded_s - started_s, time.monotonic() - decoded_s)


def _check_pixels(data: bytes, size: ImageSize, limits: ImageLimits) -> None:
    if not data:
        raise EmptyBodyError("there are no pixels")
    if size.pixels > limits.max_pixels or max(size.height, size.width) > limits.max_side:
        raise TooManyPixelsError(
            f"{size} pixels: {limits.max_pixels} and {limits.max_side} a side are allowed"
        )
    if len(data) != _RAW_BYTES * size.pixels:
        raise InvalidArgumentError(f"{size} pixels are {_RAW_BYTES * size.pixels} bytes, not {len(data)}")


def _wrap(data: bytes, size: ImageSize, prepare: _Prepare, *, bgr: bool) -> _Picture:
    started_s = time.monotonic()
    image_HW3 = np.frombuffer(data, np.uint8).reshape(size.height, size.width, 3)
    if bgr:
        image_HW3 = np.ascontiguousarray(image_HW3[..., ::-1])
    wrapped_s = time.monotonic()
    prepared = prepare(image_HW3)
    return _Picture(image_HW3, prepared, wrapped_s - started_s, time.monotonic() - wrapped_s)
