"""``segmentation.v1.Segmentation``: the three methods of the service."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count

from service.core.deadline import within
from service.core.errors import DrainingError, InvalidArgumentError, RequestTooSlowError
from service.core.models.model_host import ModelHost
from service.core.pictures.segmenter import Segmenter
from service.core.scheduling.memory_budget import MemoryBudget
from service.core.streams.frame_stream import StreamTurns
from service.grpc_api.edge import Call, Context, GrpcEdge
from service.grpc_api.limits import PeerLimits
from service.grpc_api.messages import MaskRequest, Target, class_infos, model_info, segmented
from service.grpc_api.streams import FrameStream, MessageT, StreamLimits, StreamTools, next_message
from service.telemetry import Metrics
from service.wire import segmentation_pb2 as wire

_ABOUT_TO_STOP = "the service is about to stop"


@dataclass(frozen=True)
class ServicerOptions:
    """How calls are answered.

    Args:
        key_digests: of the API keys; empty = no key is asked for.
        default_timeout_s: how long a client waits that set no deadline.
        max_timeout_s: more than this is not waited for.
        receive_timeout_s: from the head of a call to the end of its first message.
        max_image_bytes: size of one picture.
        max_image_bytes_in_flight: of all pictures that came and are not answered yet.
        max_calls: at the same time.
        streams: limits of a stream.
        frames_at_once: frames of all streams together that are read or wait for the device.
        film_frames_at_once: the same while all streams are films.
    """

    key_digests: frozenset[bytes] = frozenset()
    default_timeout_s: float = 30.0
    max_timeout_s: float = 600.0
    receive_timeout_s: float = 30.0
    max_image_bytes: int = 20 * 1024 * 1024
    max_image_bytes_in_flight: int = 512 * 1024 * 1024
    max_calls: int = PeerLimits.max_calls
    streams: StreamLimits = field(default_factory=StreamLimits)
    frames_at_once: int = 2
    film_frames_at_once: int = 2


class Servicer:
    """Answers the calls of all clients.

    Args:
        segmenter: answers pictures.
        host: knows the served models.
        metrics: counts.
        options: limits.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        host: ModelHost,
        metrics: Metrics,
        options: ServicerOptions,
    ) -> None:
        self._segmenter = segmenter
        self._host = host
        self._metrics = metrics
        self._options = options
        self._edge = GrpcEdge(options.key_digests, metrics, max_calls=options.max_calls)
        self._room = MemoryBudget(options.max_image_bytes_in_flight)
        turns = StreamTurns(options.frames_at_once, options.film_frames_at_once)
        self._tools = StreamTools(segmenter, host, turns, self._room, metrics, options.streams)
        self._streams: set[FrameStream] = set()
        self._stream_numbers = count(1)
        self._stops_at_s: float | None = None
        self._draining = asyncio.Event()

    @property
    def is_idle(self) -> bool:
        """Whether every call that reached this object is answered, to the last byte."""
        return self._edge.is_idle

    async def until_idle(self) -> None:
        """Return when that is so."""
        await self._edge.until_idle()

    def drain(self, stops_at_s: float) -> None:
        """End all streams as soon as what they have sent is answered, and open no new ones.

        Args:
            stops_at_s: when the service will have stopped, on the clock of ``time.monotonic``.
        """
        self._stops_at_s = stops_at_s
        self._draining.set()
        for stream in list(self._streams):
            stream.drain(stops_at_s)

    async def ListModels(
        self,
        requests: object,  # noqa: ARG002 - see next_message
        context: Context,
    ) -> wire.ListModelsResponse:
        """List what is served, the default model first."""
        async with self._edge.call(context, "ListModels"):
            await self._first(context, wire.ListModelsRequest)
            return wire.ListModelsResponse(models=[model_info(served) for served in self._host.models])

    async def Segment(
        self,
        requests: object,  # noqa: ARG002 - see next_message
        context: Context,
    ) -> wire.SegmentResponse:
        """Answer one picture."""
        async with self._edge.call(context, "Segment") as call:
            deadline_s = self._deadline_s(context)
            with self._metrics.in_flight():
                request = await self._first(context, wire.SegmentRequest)
                # It is here already: what waits for room would need it.
                place = await self._room.acquire(len(request.image.data), timeout_s=0.0)
                try:
                    return await self._segment(request, call, deadline_s)
                finally:
                    self._room.release(place)

    async def SegmentStream(
        self,
        requests: object,  # noqa: ARG002 - see next_message
        context: Context,
    ) -> None:
        """Answer the frames of one stream."""
        async with self._edge.call(context, "SegmentStream") as call:
            with self._metrics.stream():
                await self._converse(call, context)

    def _deadline_s(self, context: Context) -> float:
        left_s: float | None = context.time_remaining()  # None without a deadline
        options = self._options
        timeout_s = options.default_timeout_s if left_s is None else min(left_s, options.max_timeout_s)
        return time.monotonic() + timeout_s

    async def _segment(
        self, request: wire.SegmentRequest, call: Call, deadline_s: float
    ) -> wire.SegmentResponse:
        target = Target.parse(request.model)
        with self._host.hold(target.name, target.number) as model:
            call.served = model.version.name, model.version.number
            wanted = MaskRequest.parse(
                request.mask, request.classes, model.manifest.palette, request.confidence
            )
            async with segmented(
                self._segmenter,
                model,
                request.image,
                wanted,
                deadline_s=deadline_s,
                max_bytes=self._options.max_image_bytes,
                source=call.source,
            ) as encoded:
                self._metrics.stages_done(encoded.stages_s)
        version = encoded.version
        call.notes.update(bytes_in=len(request.image.data), bytes_out=len(encoded.mask.data))
        return wire.SegmentResponse(
            mask=encoded.mask,
            model=version.name,
            version=version.number,
            timings=encoded.timings,
            confidence=encoded.confidence,
        )

    async def _converse(self, call: Call, context: Context) -> None:
        if self._stops_at_s is not None:
            raise DrainingError(_ABOUT_TO_STOP)
        wanted = await self._opening(context)
        target = Target.parse(wanted.model)
        served = self._host.find(target.name, target.number)
        call.served = served.version.name, served.version.number
        rules = self._options.streams.rules(wanted)
        stream = FrameStream(
            context,
            target=Target(served.version.name, target.number),
            version=served.version.number,
            wanted=MaskRequest.parse(wanted.mask, (), served.manifest.palette, wanted.confidence),
            rules=rules,
            source=f"stream-{next(self._stream_numbers)}",
            tools=self._tools,
        )
        opened = wire.StreamOpened(
            model=served.version.name,
            version=served.version.number,
            max_in_flight=rules.max_in_flight,
            max_frame_age_ms=round(1e3 * rules.max_frame_age_s),
            classes=class_infos(served.manifest.palette),
        )
        await context.write(wire.StreamResponse(opened=opened))
        with self._known(stream):
            try:
                await stream.run()
            finally:
                call.notes.update(stream.outcomes)

    @contextmanager
    def _known(self, stream: FrameStream) -> Iterator[None]:
        """Let ``drain`` reach a stream; one that was opened while the drain began is told at once."""
        self._streams.add(stream)
        if self._stops_at_s is not None:
            stream.drain(self._stops_at_s)
        try:
            yield
        finally:
            self._streams.discard(stream)

    async def _opening(self, context: Context) -> wire.StreamOpen:
        """Return how a stream is to be answered; a drain does not wait for that."""
        reading = asyncio.create_task(self._first(context, wire.StreamRequest))
        draining = asyncio.create_task(self._draining.wait())
        try:
            await asyncio.wait((reading, draining), return_when=asyncio.FIRST_COMPLETED)
            if not reading.done():
                raise DrainingError(_ABOUT_TO_STOP)
            message = await reading
        finally:
            reading.cancel()
            draining.cancel()
        if message.WhichOneof("kind") != "open":
            raise InvalidArgumentError("the first message of a stream is open")
        return message.open

    async def _first(self, context: Context, kind: type[MessageT]) -> MessageT:
        limit_s = self._options.receive_timeout_s
        async with within(limit_s, lambda: _too_slow(limit_s)):
            message = await next_message(context, kind)
        if message is None:
            raise InvalidArgumentError("there is no message")
        return message


def _too_slow(limit_s: float) -> RequestTooSlowError:
    return RequestTooSlowError(f"no message came within {limit_s:g} s (limits.receive_timeout_s)")
