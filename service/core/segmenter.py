"""The application object behind every frontend: bytes of a picture in, its label map out."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from concurrent.futures import Executor, Future
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial

import model.errors as image_errors
from model.image import DEFAULT_LIMITS, ImageHeader, ImageLimits, decode_image, peek_header
from model.labels import LabelMap, UInt8Array
from model.manifest import ModelVersion
from model.preprocess import DEFAULT_MAX_INFER_PIXELS, ImageSize, PreparedImage, PreprocessSpec
from service.core.admission import (
    BYTES_PER_PIXEL_IN_FLIGHT,
    DEFAULT_MAX_PIXELS_IN_FLIGHT,
    MemoryBudget,
    Place,
)
from service.core.deadline import within
from service.core.errors import (
    DeadlineExceededError,
    EmptyBodyError,
    ServiceError,
    TooManyPixelsError,
    UndecodableImageError,
    UnsupportedMediaError,
)
from service.core.host import ModelHost, ServedModel

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


@dataclass(frozen=True, eq=False)
class Segmentation:
    """The answer for one picture.

    Attributes:
        label_map: class ids at the picture's upright size.
        image_HW3: the picture itself, upright uint8 RGB.
        version: the model that answered.
        timings: where the time went.
        inference_size: what the network saw of it; smaller than ``image_HW3`` when it was reduced.
    """

    label_map: LabelMap
    image_HW3: UInt8Array
    version: ModelVersion
    timings: StageTimings
    inference_size: ImageSize


@dataclass(frozen=True, eq=False)
class _Picture:
    image_HW3: UInt8Array
    prepared: PreparedImage
    decode_s: float
    preprocess_s: float


class Segmenter:
    """Reads pictures, has them answered by a model, and bounds the memory that this takes.

    Belongs to one event loop. Pictures are read in a thread pool; nothing here blocks the loop.

    Args:
        host: the models.
        pool: threads that read pictures; the caller closes it.
        limits: of one picture and of all together.
    """

    def __init__(self, host: ModelHost, pool: Executor, limits: SegmenterLimits | None = None) -> None:
        self._host = host
        self._pool = pool
        self._limits = limits or SegmenterLimits()
        self._budget = MemoryBudget(self._limits.max_pixels_in_flight * BYTES_PER_PIXEL_IN_FLIGHT)

    @asynccontextmanager
    async def segment(
        self,
        data: bytes,
        *,
        deadline_s: float,
        model: str | None = None,
        version: int | None = None,
        encode_bytes: int = DEFAULT_ENCODE_BYTES,
    ) -> AsyncIterator[Segmentation]:
        """Answer one picture; its memory counts as taken until the context is left.

        Leaving early (an error, a cancelled task) withdraws what has not begun.

        Args:
            data: a JPEG, PNG or WebP file.
            deadline_s: when nobody waits for the answer any more, on the clock of ``time.monotonic``.
            model: name of a model; None = the default.
            version: its number; None = the one that is served under the name.
            encode_bytes: memory that the caller will take to encode the answer, in bytes a pixel.

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
            DrainingError: the service is about to stop.
            DeadlineExceededError: the deadline passed.
            ModelOutputInvalidError: the model produced values that are no scores.
            InternalError: the engine failed.
        """
        served = self._host.find(model, version)
        header = await self._peek(data, deadline_s)
        num_bytes = _bytes_needed(header, self._limits.max_infer_pixels, encode_bytes)
        place = await self._budget.acquire(num_bytes, timeout_s=deadline_s - time.monotonic())
        reading = self._pool.submit(_read, data, self._limits.image, self._spec(served))
        try:
            yield await self._answer(reading, served, deadline_s)
        finally:
            # A thread cannot be interrupted: a picture that nobody waits for is in memory until it is read.
            release = partial(self._release, place, asyncio.get_running_loop())
            reading.add_done_callback(release)

    def _release(self, place: Place, loop: asyncio.AbstractEventLoop, _reading: Future[_Picture]) -> None:
        with suppress(RuntimeError):  # the loop is closed, and nobody waits for room any more
            loop.call_soon_threadsafe(self._budget.release, place)

    async def _peek(self, data: bytes, deadline_s: float) -> ImageHeader:
        async with _until(deadline_s):
            return await asyncio.wrap_future(self._pool.submit(_peek_header, data, self._limits.image))

    def _spec(self, served: ServedModel) -> PreprocessSpec:
        return dataclasses.replace(served.manifest.preprocess, max_infer_pixels=self._limits.max_infer_pixels)

    async def _answer(
        self, reading: Future[_Picture], served: ServedModel, deadline_s: float
    ) -> Segmentation:
        async with _until(deadline_s):
            picture = await asyncio.wrap_future(reading)
            answer = await asyncio.wrap_future(
                self._host.submit(picture.prepared, version=served.version, deadline_s=deadline_s)
            )
        return Segmentation(
            label_map=LabelMap(answer.labels_HW, served.manifest.palette),
            image_HW3=picture.image_HW3,
            version=served.version,
            timings=StageTimings(
                picture.decode_s, picture.preprocess_s, answer.queue_s, answer.infer_s, answer.post_s
            ),
            inference_size=picture.prepared.content,
        )


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
    """Return the most memory that a picture takes: while it is decoded, in the network, or encoded."""
    pixels = header.size.pixels
    network_bytes = _NETWORK_BYTES * header.size.reduced_to(max_infer_pixels).padded().pixels
    return max(header.decode_bytes, _ANSWER_BYTES * pixels + max(network_bytes, encode_bytes * pixels))


def _peek_header(data: bytes, limits: ImageLimits) -> ImageHeader:
    with _service_errors():
        return peek_header(data, limits)


def _read(data: bytes, limits: ImageLimits, spec: PreprocessSpec) -> _Picture:
    started_s = time.monotonic()
    with _service_errors():
        image_HW3 = decode_image(data, limits)
    decoded_s = time.monotonic()
    prepared = spec.prepare(image_HW3)
    return _Picture(image_HW3, prepared, decoded_s - started_s, time.monotonic() - decoded_s)
