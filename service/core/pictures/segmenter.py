"""Segments pictures: reserves memory and places in the queue, reads, submits, awaits the labels, renders.

Axes: H height, W width, 3 = red green blue.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Executor, Future
from contextlib import asynccontextmanager, contextmanager, suppress
from contextvars import copy_context
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, TypeVar

from model.artifacts.manifest import ModelVersion
from model.evaluation import protocols
from model.labels import LabelMap, UInt8Array
from model.pictures.image import DEFAULT_LIMITS, ImageHeader, ImageLimits
from model.pictures.preprocess import DEFAULT_MAX_INFER_PIXELS, ImageSize, size_of
from service.core.deadline import within
from service.core.errors import (
    BusyError,
    DeadlineExceededError,
    DrainingError,
    ServiceError,
    TooManyPixelsError,
)
from service.core.models.loaded_model import LoadedModel
from service.core.pictures.passes import DeviceResult, Passes, TilePasses, WholePass
from service.core.pictures.picture import Picture
from service.core.scheduling.dispatcher import Answer
from service.core.scheduling.latency_model import LatencyModel
from service.core.scheduling.memory_budget import (
    BYTES_PER_PIXEL_IN_FLIGHT,
    DEFAULT_MAX_PIXELS_IN_FLIGHT,
    MemoryBudget,
    MemoryReservation,
)
from service.core.scheduling.scheduler import Lane
from service.spans import stage_done
from service.telemetry import Metrics, Stage

RenderedT = TypeVar("RenderedT")
StepT = TypeVar("StepT")

DEFAULT_RENDER_BYTES = 5
"""Memory, in bytes a pixel, that suffices to render any answer."""

_ANSWER_BYTES = 5  # a pixel's: 4 for the picture, Pillow's padding included, and 1 for its label
_CONFIDENCE_BYTES = 1


@dataclass(frozen=True)
class StageTimings:
    """Time that each stage of a picture took, in seconds."""

    decode_s: float
    preprocess_s: float
    queue_s: float
    infer_s: float
    post_s: float

    def by_stage(self, *, encode_s: float) -> dict[Stage, float]:
        """Return the times by stage, with the time that encoding the answer took."""
        return {
            "decode": self.decode_s,
            "preprocess": self.preprocess_s,
            "queue": self.queue_s,
            "infer": self.infer_s,
            "post": self.post_s,
            "encode": encode_s,
        }


@dataclass(eq=False)
class Segmentation:
    """The labels of one picture.

    Attributes:
        label_map: class ids at the picture's upright size.
        confidence_HW: probability of each label in 255ths, uint8; None if it was not asked for.
        image_HW3: the picture itself, upright uint8 RGB.
        version: of the model that answered.
        timings: duration of each stage.
        inference_size: size of the network's input; smaller than ``image_HW3`` if that was reduced.
        batch_size: pictures that were answered together.
    """

    label_map: LabelMap
    confidence_HW: UInt8Array | None
    image_HW3: UInt8Array
    version: ModelVersion
    timings: StageTimings
    inference_size: ImageSize
    batch_size: int


@dataclass(frozen=True)
class SegmenterLimits:
    """Limits of one picture and of all pictures together.

    Args:
        image: largest declared size of a picture.
        max_infer_pixels: larger pictures are area-reduced before the network.
        max_pixels_in_flight: decoded pixels in memory at the same time, in all requests; a picture that takes
            more than 7 bytes per pixel while it is decoded or rendered counts for more pixels.
    """

    image: ImageLimits = DEFAULT_LIMITS
    max_infer_pixels: int = DEFAULT_MAX_INFER_PIXELS
    max_pixels_in_flight: int = DEFAULT_MAX_PIXELS_IN_FLIGHT


@dataclass(frozen=True, eq=False)
class _Read:
    image_HW3: UInt8Array
    decode_s: float
    preprocess_s: float


@dataclass(eq=False)
class _Request:
    """One picture, its request, and the resources that it holds."""

    model: LoadedModel
    picture: Picture
    deadline_s: float
    render_bytes: int
    confidence: bool
    tiles: protocols.Protocol | None
    lane: Lane
    source: str | None
    stage: Stage = "decode"
    is_left: bool = False
    passes: Passes | None = None
    num_bytes: int = 0
    memory: MemoryReservation | None = None
    read: _Read | None = None
    labelled_s: float = 0.0
    step: Future[Any] | None = None

    def is_wanted(self) -> bool:
        return not self.is_left  # a call, since another thread sets it between two of them

    def withdraw(self) -> None:
        """Cancel what the device has not begun."""
        if self.passes is not None:
            self.passes.withdraw()


class Segmenter:
    """Segments pictures with a model, and bounds the memory of all of them.

    Belongs to one event loop. Pictures are read and rendered in a thread pool; nothing here blocks the loop.

    Args:
        pool: threads that read and render pictures; the caller closes it.
        limits: of one picture and of all together.
        metrics: counts lost pictures and the processor time of the others; None = not counted.
        load_kernels: loads what sums the scores of tiles; called in a thread, by the first pictures in tiles.
    """

    def __init__(
        self,
        pool: Executor,
        limits: SegmenterLimits | None = None,
        metrics: Metrics | None = None,
        load_kernels: Callable[[], None] = lambda: None,
    ) -> None:
        self._pool = pool
        self._limits = limits or SegmenterLimits()
        self._metrics = metrics or Metrics()
        self._load_kernels = cache(load_kernels)
        self._budget = MemoryBudget(self._max_bytes)
        self._rendering = RenderingLatency()
        self._summing_and_rendering = RenderingLatency()

    @property
    def _max_bytes(self) -> int:
        return self._limits.max_pixels_in_flight * BYTES_PER_PIXEL_IN_FLIGHT

    @asynccontextmanager
    async def segment(
        self,
        model: LoadedModel,
        picture: Picture,
        render: Callable[[Segmentation], RenderedT],
        *,
        deadline_s: float,
        render_bytes: int = DEFAULT_RENDER_BYTES,
        confidence: bool = False,
        tiles: protocols.Protocol | None = None,
        lane: Lane = Lane.INTERACTIVE,
        source: str | None = None,
        labelled: Callable[[Answer], None] | None = None,
    ) -> AsyncIterator[RenderedT]:
        """Segment one picture; its memory is reserved until the context is left.

        An error or a cancelled task withdraws the picture unless the device has begun it.

        Args:
            model: answers the picture; held until the context is left.
            picture: a file or pixels.
            render: makes the answer of the segmentation; called in a thread of the pool.
            deadline_s: time after which the labels are no longer needed (``time.monotonic``, seconds);
                labels that are there by then are rendered, however long that takes.
            render_bytes: memory of ``render`` beside the segmentation, in bytes per pixel.
            confidence: whether ``render`` needs the confidence of each label; not with ``tiles``.
            tiles: ``passes.tile_protocol``: the picture is labelled at full resolution, tile by tile; None =
                it is labelled at once, and reduced first if it is too large.
            lane: how urgent the picture is.
            source: the client or stream; sources of a lane take turns. None = unknown.
            labelled: called in the event loop as soon as the device has answered; not with ``tiles``.

        Yields:
            The result of ``render``.

        Raises:
            EmptyBodyError: there are no bytes.
            InvalidArgumentError: there are more or fewer bytes than the pixels need.
            UnsupportedMediaError: neither JPEG, PNG nor WebP.
            TooManyPixelsError: the header declares more than the limits allow, or the picture has more tiles.
            UndecodableImageError: the picture does not decode.
            BusyError: there was no memory for the picture before the deadline.
            QueueFullError: too many pictures wait.
            RateLimitedError: too many pictures of this source wait.
            VersionNotFoundError: the version was unloaded meanwhile.
            NoWorkerError: no worker runs.
            DrainingError: the service is about to stop.
            DeadlineExceededError: the deadline passed.
            ModelOutputInvalidError: the model produced values that are no scores.
            InternalError: the engine failed.
        """
        assert tiles is None or not confidence
        request = _Request(model, picture, deadline_s, render_bytes, confidence, tiles, lane, source)
        try:
            with self._losses_counted(request):
                async with within(deadline_s - time.monotonic(), lambda: _too_late(request)):
                    last = await self._pass_through(request)
                request.stage, request.labelled_s = "encode", time.monotonic()
                if labelled is not None and isinstance(last, Answer):
                    labelled(last)
                rendered = await asyncio.wrap_future(self._in_thread(request, self._render, last, render))
            yield rendered
        finally:
            self._give_back(request)

    # --- in the event loop

    async def _pass_through(self, request: _Request) -> DeviceResult:
        """Await all passes; return the result of the last one."""
        result = await _result(self._in_thread(request, self._reserve_and_submit))
        if result is None:  # there was no memory for the pixels
            request.memory = await self._budget.acquire(request.num_bytes)
            result = await _result(self._in_thread(request, self._read_and_submit))
        assert result is not None
        assert request.passes is not None
        while not request.passes.is_complete:
            result = await _result(self._in_thread(request, self._submit_next, result))
            assert result is not None
        return result

    def _in_thread(self, request: _Request, step: Callable[..., StepT], *arguments: object) -> Future[StepT]:
        try:
            # In the context of the request, for its log lines and its trace.
            taken = request.step = self._pool.submit(copy_context().run, step, request, *arguments)
        except RuntimeError as error:
            if "shutdown" not in str(error):  # but out of threads
                raise
            raise DrainingError("the service is about to stop") from None
        return taken

    @contextmanager
    def _losses_counted(self, request: _Request) -> Iterator[None]:
        try:
            yield
        except DeadlineExceededError:
            self._metrics.expired(request.stage)
            raise
        except asyncio.CancelledError:
            is_late = time.monotonic() >= request.deadline_s
            (self._metrics.expired if is_late else self._metrics.cancelled)(request.stage)
            raise

    def _give_back(self, request: _Request) -> None:
        """Release the resources of a request, at the end of its thread if one still works for it."""
        request.is_left = True
        request.withdraw()
        step, request.step = request.step, None  # an error in it would refer to itself through the request
        if step is not None:
            step.cancel()
            step.add_done_callback(lambda _: self._free(request))

    def _free(self, request: _Request) -> None:
        request.withdraw()
        memory, request.memory = request.memory, None
        request.passes = request.read = None
        if memory is not None:
            self._budget.release(memory)

    # --- in a thread of the pool

    def _reserve_and_submit(self, request: _Request) -> Future[DeviceResult] | None:
        """Reserve places in the queue or refuse, before the picture is read.

        Returns:
            Future of the first pass; None = there is no memory for the pixels now.
        """
        limits = self._limits
        with self._metrics.working("decode"):
            header = request.picture.header(limits.image)
        request.passes = self._passes(request, header.size)
        render_bytes = request.render_bytes + _CONFIDENCE_BYTES * request.confidence
        num_bytes = bytes_needed(header, request.passes.network_bytes, render_bytes)
        if request.tiles is not None and num_bytes > self._max_bytes:
            raise TooManyPixelsError(
                f"{header.size} pixels in tiles need {num_bytes / 1e6:.0f} MB for their scores, and "
                f"{self._max_bytes / 1e6:.0f} MB are allowed (limits.max_pixels_in_flight): send a smaller "
                "picture, or ask for less detail"
            )
        kept_s = self._rendering_of(request).kept_s(header.size.pixels, request.deadline_s)
        request.passes.reserve(
            deadline_s=request.deadline_s - kept_s, lane=request.lane, source=request.source
        )
        request.num_bytes = num_bytes
        request.memory = self._budget.take(num_bytes)
        return None if request.memory is None else self._read_and_submit(request)

    def _passes(self, request: _Request, size: ImageSize) -> Passes:
        if request.tiles is not None:
            self._load_kernels()
            return TilePasses(request.model, size, request.tiles)
        max_pixels = self._limits.max_infer_pixels
        return WholePass(request.model, size, max_infer_pixels=max_pixels, confidence=request.confidence)

    def _rendering_of(self, request: _Request) -> RenderingLatency:
        return self._rendering if request.tiles is None else self._summing_and_rendering

    def _read_and_submit(self, request: _Request) -> Future[DeviceResult] | None:
        if not request.is_wanted():
            return None
        with self._metrics.working("decode"):
            request.read = self._read(request)
        request.stage = "queue"
        return self._submit_next(request)

    @staticmethod
    def _submit_next(request: _Request, last: DeviceResult | None = None) -> Future[DeviceResult] | None:
        if not request.is_wanted():
            return None
        assert request.passes is not None
        return request.passes.submit_next(last)

    def _read(self, request: _Request) -> _Read:
        assert request.passes is not None
        began_s = time.monotonic()
        image_HW3 = request.picture.read(self._limits.image)
        decoded_s = time.monotonic()
        stage_done("decode", began_s, decoded_s)
        request.passes.prepare(image_HW3)
        prepared_s = time.monotonic()
        stage_done("preprocess", decoded_s, prepared_s)
        return _Read(image_HW3, decoded_s - began_s, prepared_s - decoded_s)

    def _render(
        self, request: _Request, last: DeviceResult, render: Callable[[Segmentation], RenderedT]
    ) -> RenderedT:
        read, passes, model = request.read, request.passes, request.model
        assert read is not None
        assert passes is not None
        with self._metrics.working("encode"):
            answer = passes.answer(last)
        segmentation = Segmentation(
            label_map=LabelMap(answer.labels_HW, model.manifest.palette),
            confidence_HW=answer.confidence_HW,
            image_HW3=read.image_HW3,
            version=model.version,
            timings=StageTimings(
                read.decode_s, read.preprocess_s, answer.queue_s, answer.infer_s, answer.post_s
            ),
            inference_size=passes.inference_size,
            batch_size=answer.batch_size,
        )
        began_s = time.monotonic()
        with self._metrics.working("encode"):
            rendered = render(segmentation)
        ended_s = time.monotonic()
        stage_done("encode", began_s, ended_s)
        pixels, duration_s = size_of(read.image_HW3).pixels, ended_s - request.labelled_s
        self._rendering_of(request).learn(pixels=pixels, duration_s=duration_s)
        return rendered


class RenderingLatency:
    """Estimates the time of rendering: labels must be there this long before the deadline; thread-safe."""

    def __init__(self) -> None:
        self._latency = LatencyModel()
        self._lock = threading.Lock()

    def learn(self, *, pixels: int, duration_s: float) -> None:
        """Learn from a duration.

        Args:
            pixels: of the picture.
            duration_s: from the labels to the answer, in seconds.
        """
        with self._lock:
            self._latency.learn(pixels=pixels, duration_s=duration_s)

    def kept_s(self, pixels: int, deadline_s: float) -> float:
        """Return the time to reserve for rendering a picture, in seconds.

        At most half of the time until the deadline: otherwise one slow answer could refuse all later ones.
        """
        with self._lock:
            return min(self._latency.predict(pixels), (deadline_s - time.monotonic()) / 2)


def bytes_needed(header: ImageHeader, network_bytes: int, render_bytes: int) -> int:
    """Return the most memory of a picture, while it is decoded or its answer is rendered, in bytes.

    Args:
        header: of the picture.
        network_bytes: of ``Passes``: it lies beside the labels until these are rendered.
        render_bytes: memory of rendering beside the segmentation, in bytes per pixel.
    """
    pixels = header.size.pixels
    return max(header.decode_bytes, _ANSWER_BYTES * pixels + network_bytes + render_bytes * pixels)


def _too_late(request: _Request) -> ServiceError:
    if request.num_bytes and request.memory is None:
        wait_s = max(1.0, request.model.expected_wait_s())
        return BusyError("no memory for another picture is free", retry_after_s=wait_s)
    return DeadlineExceededError("the deadline passed before the answer was there")


async def _result(step: Future[Future[DeviceResult] | None]) -> DeviceResult | None:
    """Await the result of the pass that a step in a thread submits.

    The event loop is woken once, when the result is there, and not also at the end of the step.
    """
    result: asyncio.Future[DeviceResult | None] = asyncio.get_running_loop().create_future()
    step.add_done_callback(partial(_pass_on, result))
    try:
        return await result
    finally:
        del step, result  # an error in them would refer to itself through this frame


def _pass_on(target: asyncio.Future[Any], source: Future[Any]) -> None:
    """Give the result of a future to another one; if it is a future, then the result of that one."""
    if not source.cancelled() and source.exception() is None and isinstance(source.result(), Future):
        source.result().add_done_callback(partial(_pass_on, target))
        return
    with suppress(RuntimeError):  # the loop is closed
        target.get_loop().call_soon_threadsafe(_settle, target, source)


def _settle(target: asyncio.Future[Any], source: Future[Any]) -> None:
    if target.done():
        return
    if source.cancelled():
        target.cancel()
    elif (error := source.exception()) is not None:
        target.set_exception(error)
    else:
        target.set_result(source.result())
