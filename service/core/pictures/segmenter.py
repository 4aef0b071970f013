"""The application object behind every frontend: bytes of a picture in, its encoded answer out."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import Executor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np

import model.errors as image_errors
from model.artifacts.manifest import ModelVersion
from model.labels import UInt8Array
from model.pictures.image import DEFAULT_LIMITS, ImageHeader, ImageLimits, decode_image, peek_header
from model.pictures.preprocess import DEFAULT_MAX_INFER_PIXELS, ImageSize, PreparedImage
from service.core.errors import (
    EmptyBodyError,
    InvalidArgumentError,
    ServiceError,
    TooManyPixelsError,
    UndecodableImageError,
    UnsupportedMediaError,
)
from service.core.models.model_host import LoadedModel, ModelHost
from service.core.pictures.picture_request import (
    EncodedT,
    EncodingLatency,
    Picture,
    PictureRequest,
    PictureRequestTools,
    RequestOrder,
    Segmentation,
)
from service.core.scheduling.dispatcher import Answer
from service.core.scheduling.memory_budget import (
    BYTES_PER_PIXEL_IN_FLIGHT,
    DEFAULT_MAX_PIXELS_IN_FLIGHT,
    MemoryBudget,
)
from service.core.scheduling.scheduler import Lane
from service.telemetry import Metrics

IMAGE_ERRORS: Mapping[type[image_errors.ImageError], type[ServiceError]] = {
    image_errors.EmptyImageError: EmptyBodyError,
    image_errors.UnsupportedImageError: UnsupportedMediaError,
    image_errors.TooManyPixelsError: TooManyPixelsError,
    image_errors.UndecodableImageError: UndecodableImageError,
}
"""What a picture that cannot be read is called by every protocol."""

DEFAULT_ENCODE_BYTES = 5
"""Memory, in bytes a pixel, that suffices to encode any answer."""

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


_Prepare = Callable[[UInt8Array], PreparedImage]


class Segmenter:
    """Reads pictures, has them answered by a model and encoded, and bounds the memory that this takes.

    Belongs to one event loop. Pictures are read and encoded in a thread pool; nothing here blocks the loop.

    Args:
        host: the models.
        pool: threads that read and encode pictures; the caller closes it.
        limits: of one picture and of all together.
        metrics: counts pictures that nobody waited for to their end, and what threads worked on the others;
            None = nobody looks at it.
    """

    def __init__(
        self,
        host: ModelHost,
        pool: Executor,
        limits: SegmenterLimits | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        self._host = host
        self._limits = limits or SegmenterLimits()
        self._tools = PictureRequestTools(
            host=host,
            pool=pool,
            max_infer_pixels=self._limits.max_infer_pixels,
            budget=MemoryBudget(self._limits.max_pixels_in_flight * BYTES_PER_PIXEL_IN_FLIGHT),
            metrics=metrics or Metrics(),
            encoding=EncodingLatency(),
        )

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
        encode_s = self._tools.encoding.least_s(deadline_s)
        self._host.check(version=version, deadline_s=deadline_s - encode_s, source=source)

    @asynccontextmanager
    async def segment(
        self,
        data: bytes,
        encode: Callable[[Segmentation], EncodedT],
        *,
        deadline_s: float,
        model: str | None = None,
        version: int | None = None,
        encode_bytes: int = DEFAULT_ENCODE_BYTES,
        lane: Lane = Lane.INTERACTIVE,
        source: str | None = None,
        answered: Callable[[Answer], None] | None = None,
    ) -> AsyncIterator[EncodedT]:
        """Answer one picture; its memory counts as taken until the context is left.

        Leaving early (an error, a cancelled task) withdraws what has not begun.

        Args:
            data: a JPEG, PNG or WebP file.
            encode: makes of the segmentation what is wanted; called in a thread of the pool.
            deadline_s: when nobody waits for the labels any more, on the clock of ``time.monotonic``; labels
                that are there by then are encoded, however long that takes.
            model: name of a model; None = the default.
            version: its number; None = the one that is served under the name.
            encode_bytes: memory that ``encode`` takes beside the segmentation, in bytes a pixel.
            lane: how urgent it is.
            source: who asks, a client or a stream: sources of a lane take turns.
            answered: called in the event loop with what the device made of the picture, as soon as that is
                there; perhaps after the context was left.

        Yields:
            What ``encode`` returned.

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
            order = RequestOrder(served, deadline_s, encode_bytes, lane, source, answered)
            peek = partial(_peek_header, data, self._limits.image)
            read = partial(_read, data, self._limits.image, self._prepare(served))
            async with self._passage(order, peek, read, encode) as encoded:
                yield encoded

    @asynccontextmanager
    async def segment_pixels(
        self,
        data: bytes,
        size: ImageSize,
        encode: Callable[[Segmentation], EncodedT],
        *,
        deadline_s: float,
        bgr: bool = False,
        model: str | None = None,
        version: int | None = None,
        encode_bytes: int = DEFAULT_ENCODE_BYTES,
        lane: Lane = Lane.INTERACTIVE,
        source: str | None = None,
        answered: Callable[[Answer], None] | None = None,
    ) -> AsyncIterator[EncodedT]:
        """Answer one picture that needs no decoding; otherwise as ``segment``.

        Args:
            data: 3 bytes a pixel, rows from top to bottom without padding.
            size: of the picture.
            encode: see ``segment``.
            deadline_s: see ``segment``.
            bgr: the bytes of a pixel are blue, green, red instead of red, green, blue.
            model: see ``segment``.
            version: see ``segment``.
            encode_bytes: see ``segment``.
            lane: see ``segment``.
            source: see ``segment``.
            answered: see ``segment``.

        Yields:
            What ``encode`` returned.

        Raises:
            EmptyBodyError: there are no bytes.
            InvalidArgumentError: there are more or fewer bytes than pixels need.
            TooManyPixelsError: the size is more than the limits allow.
            ServiceError: as ``segment``.
        """
        with self._host.hold(model, version) as served:
            _check_pixels(data, size, self._limits.image)
            order = RequestOrder(served, deadline_s, encode_bytes, lane, source, answered)
            header = ImageHeader(size, _RAW_BYTES * size.pixels)
            read = partial(_wrap, data, size, self._prepare(served), bgr=bgr)
            async with self._passage(order, lambda: header, read, encode) as encoded:
                yield encoded

    @asynccontextmanager
    async def _passage(
        self,
        order: RequestOrder,
        peek: Callable[[], ImageHeader],
        read: Callable[[], Picture],
        encode: Callable[[Segmentation], EncodedT],
    ) -> AsyncIterator[EncodedT]:
        passage = PictureRequest(self._tools, order, peek, read, encode)
        try:
            yield await passage.encoded()
        finally:
            passage.leave()

    def _prepare(self, served: LoadedModel) -> _Prepare:
        preprocess, max_pixels = served.manifest.preprocess, self._limits.max_infer_pixels
        spec = dataclasses.replace(preprocess, max_infer_pixels=max_pixels)
        return partial(spec.prepare, canvas=self._host.canvas)


@contextmanager
def _service_errors() -> Iterator[None]:
    try:
        yield
    except image_errors.ImageError as error:
        raise IMAGE_ERRORS[type(error)](str(error)) from error


def _peek_header(data: bytes, limits: ImageLimits) -> ImageHeader:
    with _service_errors():
        return peek_header(data, limits)


def _read(data: bytes, limits: ImageLimits, prepare: _Prepare) -> Picture:
    started_s = time.monotonic()
    with _service_errors():
        image_HW3 = decode_image(data, limits)
    decoded_s = time.monotonic()
    prepared = prepare(image_HW3)
    return Picture(image_HW3, prepared, decoded_s - started_s, time.monotonic() - decoded_s)


def _check_pixels(data: bytes, size: ImageSize, limits: ImageLimits) -> None:
    if not data:
        raise EmptyBodyError("there are no pixels")
    if size.pixels > limits.max_pixels or max(size.height, size.width) > limits.max_side:
        raise TooManyPixelsError(
            f"{size} pixels: {limits.max_pixels} and {limits.max_side} a side are allowed"
        )
    if len(data) != _RAW_BYTES * size.pixels:
        raise InvalidArgumentError(f"{size} pixels are {_RAW_BYTES * size.pixels} bytes, not {len(data)}")


def _wrap(data: bytes, size: ImageSize, prepare: _Prepare, *, bgr: bool) -> Picture:
    started_s = time.monotonic()
    image_HW3 = np.frombuffer(data, np.uint8).reshape(size.height, size.width, 3)
    if bgr:
        image_HW3 = np.ascontiguousarray(image_HW3[..., ::-1])
    wrapped_s = time.monotonic()
    prepared = prepare(image_HW3)
    return Picture(image_HW3, prepared, wrapped_s - started_s, time.monotonic() - wrapped_s)
