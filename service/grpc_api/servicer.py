"""``segmentation.v1.Segmentation``: the three methods of the gRPC API."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Protocol

from service.core.errors import DrainingError, InvalidArgumentError
from service.core.keys.key_ring import KeyRing
from service.core.models.model_host import ModelHost
from service.core.pictures.segmenter import Segmenter
from service.core.scheduling.memory_budget import MemoryBudget
from service.core.streams.frame_permits import FramePermits
from service.grpc_api.calls import Calls
from service.grpc_api.edge import Call, Context, GrpcEdge
from service.grpc_api.limits import PeerLimits
from service.grpc_api.messages import (
    MaskRequest,
    Target,
    class_infos,
    model_info,
    segment_image,
    tiles_of,
)
from service.grpc_api.streams import (
    ByteChannel,
    FrameStream,
    MessageChannel,
    StreamLimits,
    StreamResources,
)
from service.spans import NO_TRACING, Tracing, stage_done
from service.telemetry import Metrics
from service.wire import segmentation_pb2 as wire

_ABOUT_TO_STOP = "the service is about to stop"


@dataclass(frozen=True)
class ServicerOptions:
    """How calls are answered.

    Args:
        keys: of which one is needed; None = none is needed.
        default_timeout_s: deadline of calls without one, in seconds from their arrival.
        max_timeout_s: longest deadline.
        receive_timeout_s: time from the head of a call to the end of its first message.
        max_image_bytes: size of the largest picture.
        max_image_bytes_in_flight: of all pictures that were received and are not answered yet.
        max_calls: open at the same time.
        streams: limits of one stream.
        max_started_frames: frames of all streams that are started and have not left the device.
        max_started_film_frames: the same while there is no live stream.
    """

    keys: KeyRing | None = None
    default_timeout_s: float = 30.0
    max_timeout_s: float = 600.0
    receive_timeout_s: float = 30.0
    max_image_bytes: int = 20 * 1024 * 1024
    max_image_bytes_in_flight: int = 512 * 1024 * 1024
    max_calls: int = PeerLimits.max_calls
    streams: StreamLimits = field(default_factory=StreamLimits)
    max_started_frames: int = 2
    max_started_film_frames: int = 2


class StreamCall(Protocol):
    """What a stream tells the log line of its call."""

    served: tuple[str, int] | None
    log_fields: dict[str, Any]


class Servicer:
    """Answers the calls of all clients.

    Args:
        segmenter: segments pictures.
        host: the served models.
        metrics: counts calls and frames.
        options: limits.
        tracing: decides which calls and frames are traced.

    Attributes:
        calls: receives calls; shared with the other services of the port.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        host: ModelHost,
        metrics: Metrics,
        options: ServicerOptions,
        tracing: Tracing = NO_TRACING,
    ) -> None:
        self._segmenter = segmenter
        self._host = host
        self._metrics = metrics
        self._options = options
        self.calls = Calls(
            GrpcEdge(options.keys, metrics, max_calls=options.max_calls, tracing=tracing),
            MemoryBudget(options.max_image_bytes_in_flight),
            default_timeout_s=options.default_timeout_s,
            max_timeout_s=options.max_timeout_s,
            receive_timeout_s=options.receive_timeout_s,
        )
        permits = FramePermits(options.max_started_frames, options.max_started_film_frames)
        self._resources = StreamResources(
            segmenter, host, permits, self.calls.image_budget, metrics, options.streams, tracing
        )
        self._streams: set[FrameStream] = set()
        self._stream_numbers = count(1)
        self._stops_at_s: float | None = None

    @property
    def is_idle(self) -> bool:
        """Whether no call is open: gRPC has the last byte of every answer."""
        return self.calls.edge.is_idle

    async def until_idle(self) -> None:
        """Wait until no call is open."""
        await self.calls.edge.until_idle()

    def cut(self) -> None:
        """Refuse the open calls with ``draining``."""
        self.calls.edge.cut()

    def drain(self, stops_at_s: float) -> None:
        """Open no new streams, and end each open one when the frames that it sent are answered.

        Args:
            stops_at_s: time at which the service will have stopped (``time.monotonic``, seconds).
        """
        self._stops_at_s = stops_at_s
        self.calls.draining.set()
        for stream in list(self._streams):
            stream.drain(stops_at_s)

    async def ListModels(
        self,
        requests: object,  # noqa: ARG002 - see next_message
        context: Context,
    ) -> wire.ListModelsResponse:
        """List the served versions, the default model first."""
        async with self.calls.edge.call(context, "ListModels"):
            await self.calls.first_message(context, wire.ListModelsRequest)
            return wire.ListModelsResponse(models=[model_info(model) for model in self._host.models])

    async def Segment(
        self,
        requests: object,  # noqa: ARG002 - see next_message
        context: Context,
    ) -> wire.SegmentResponse:
        """Segment one picture."""
        async with self.calls.edge.call(context, "Segment") as call:
            deadline_s = self.calls.deadline_s(context)
            with self._metrics.in_flight():
                request = await self.calls.first_message(context, wire.SegmentRequest)
                stage_done("receive", call.started_s, time.monotonic())
                # No waiting for memory: the picture is in memory already.
                memory = await self.calls.image_budget.acquire(len(request.image.data), timeout_s=0.0)
                try:
                    return await self._segment(request, call, deadline_s)
                finally:
                    self.calls.image_budget.release(memory)

    async def SegmentStream(
        self,
        requests: object,  # noqa: ARG002 - see next_message
        context: Context,
    ) -> None:
        """Answer the frames of one stream."""
        async with self.calls.edge.call(context, "SegmentStream") as call:
            with self._metrics.stream():
                await self._answer_stream(call, context)

    async def answer_messages(
        self,
        call: StreamCall,
        receive: Callable[[], Awaitable[bytes | None]],
        send: Callable[[bytes], Awaitable[None]],
    ) -> None:
        """Answer the frames of one stream whose encoded messages come by another protocol.

        The rules, limits and turns are those of ``SegmentStream``; access is the caller's concern.

        Args:
            call: gets what the log tells.
            receive: returns the next message; None = there are no more.
            send: sends one, and waits while the client is slow.

        Raises:
            ServiceError: the stream cannot go on.
        """
        with self._metrics.stream():
            await self._answer_stream(call, ByteChannel(receive, send))

    async def _segment(
        self, request: wire.SegmentRequest, call: Call, deadline_s: float
    ) -> wire.SegmentResponse:
        target = Target.parse(request.model)
        with self._host.hold(target.name, target.number) as model:
            call.served = model.version.name, model.version.number
            wanted = MaskRequest.parse(
                request.mask, request.classes, model.manifest.palette, request.confidence
            )
            async with segment_image(
                self._segmenter,
                model,
                request.image,
                wanted,
                deadline_s=deadline_s,
                max_bytes=self._options.max_image_bytes,
                tiles=tiles_of(request),
                source=call.source,
            ) as rendered:
                self._metrics.stages_done(rendered.stages_s)
        version = rendered.version
        call.log_fields.update(bytes_in=len(request.image.data), bytes_out=len(rendered.mask.data))
        return wire.SegmentResponse(
            mask=rendered.mask,
            model=version.name,
            version=version.number,
            timings=rendered.timings,
            confidence=rendered.confidence,
        )

    async def _answer_stream(self, call: StreamCall, context: MessageChannel | Context) -> None:
        if self._stops_at_s is not None:
            raise DrainingError(_ABOUT_TO_STOP)
        wanted = await self._stream_open(context)
        target = Target.parse(wanted.model)
        model = self._host.find(target.name, target.number)
        call.served = model.version.name, model.version.number
        rules = self._options.streams.rules(wanted)
        stream = FrameStream(
            context,
            target=Target(model.version.name, target.number),
            version=model.version.number,
            wanted=MaskRequest.parse(wanted.mask, (), model.manifest.palette, wanted.confidence),
            rules=rules,
            source=f"stream-{next(self._stream_numbers)}",
            resources=self._resources,
        )
        opened = wire.StreamOpened(
            model=model.version.name,
            version=model.version.number,
            max_in_flight=rules.max_in_flight,
            max_frame_age_ms=round(1e3 * rules.max_frame_age_s),
            classes=class_infos(model.manifest.palette),
        )
        await context.write(wire.StreamResponse(opened=opened))
        with self._registered(stream):
            try:
                await stream.answer_frames()
            finally:
                call.log_fields.update(stream.outcomes)

    @contextmanager
    def _registered(self, stream: FrameStream) -> Iterator[None]:
        """Let ``drain`` reach a stream; one that was opened during a drain is drained at once."""
        self._streams.add(stream)
        if self._stops_at_s is not None:
            stream.drain(self._stops_at_s)
        try:
            yield
        finally:
            self._streams.discard(stream)

    async def _stream_open(self, context: MessageChannel | Context) -> wire.StreamOpen:
        """Return the first message of a stream; a drain does not wait for it."""
        message = await self.calls.first_of_stream(context, wire.StreamRequest)
        if message.WhichOneof("kind") != "open":
            raise InvalidArgumentError("the first message of a stream is open")
        return message.open
