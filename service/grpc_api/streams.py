"""One stream of frames: connects the messages of a call with a ``StreamSession``."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from contextvars import copy_context
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, assert_never

import grpc
import structlog
from google.protobuf.message import DecodeError, Message

from service.core.errors import (
    BusyError,
    DeadlineExceededError,
    DrainingError,
    InternalError,
    InvalidArgumentError,
    ServiceError,
)
from service.core.models.model_host import ModelHost
from service.core.pictures.segmenter import Segmenter
from service.core.scheduling.dispatcher import Answer
from service.core.scheduling.memory_budget import MemoryBudget, MemoryReservation
from service.core.scheduling.scheduler import Lane
from service.core.streams.frame_permits import FramePermits
from service.core.streams.stream_session import (
    AnsweredFrame,
    DroppedFrames,
    DropReason,
    FailedFrame,
    FramePolicy,
    ModelSwitch,
    StartedFrame,
    StreamAnswer,
    StreamRules,
    StreamSession,
)
from service.grpc_api.messages import MaskRequest, Target, segment_image
from service.grpc_api.status import is_our_fault, status_number
from service.spans import NO_TRACING, Tracing, current_span, working_on
from service.telemetry import FrameOutcome, Metrics
from service.wire import segmentation_pb2 as wire

_log = structlog.get_logger()

MessageT = TypeVar("MessageT", bound=Message)

Context = grpc.aio.ServicerContext[Any, Any]

_POLICIES: dict[int, FramePolicy] = {
    wire.FRAME_POLICY_UNSPECIFIED: FramePolicy.LATEST_WINS,
    wire.LATEST_WINS: FramePolicy.LATEST_WINS,
    wire.BLOCK: FramePolicy.BLOCK,
}

_REASONS: dict[DropReason, wire.DropReason.ValueType] = {
    DropReason.SUPERSEDED: wire.SUPERSEDED,
    DropReason.TOO_OLD: wire.TOO_OLD,
    DropReason.DRAINING: wire.DRAINING,
}

_OUTCOMES: dict[DropReason, FrameOutcome] = {
    DropReason.SUPERSEDED: "superseded",
    DropReason.TOO_OLD: "too_old",
    DropReason.DRAINING: "draining",
}


@dataclass(frozen=True)
class StreamLimits:
    """The most that a stream may ask for.

    Args:
        max_in_flight: frames of one stream that are started, or answered and not sent yet; a client that does
            not read keeps so many results in memory.
        max_frame_age_s: time after which a frame is dropped, in seconds.
        max_frame_bytes: size of the picture of a frame.
    """

    max_in_flight: int = 4
    max_frame_age_s: float = 30.0
    max_frame_bytes: int = 20 * 1024 * 1024

    def rules(self, wanted: wire.StreamOpen) -> StreamRules:
        """Return the rules of a stream, within the limits.

        Raises:
            InvalidArgumentError: there is no such policy.
        """
        if wanted.policy not in _POLICIES:
            raise InvalidArgumentError(f"policy: there is no {wanted.policy}")
        return StreamRules(
            _POLICIES[wanted.policy],
            max_in_flight=min(wanted.max_in_flight or self.max_in_flight, self.max_in_flight),
            max_frame_age_s=min(wanted.max_frame_age_ms / 1e3 or self.max_frame_age_s, self.max_frame_age_s),
        )


@dataclass(frozen=True)
class StreamResources:
    """What all streams of a service share.

    Args:
        segmenter: segments frames.
        host: the served models.
        permits: decide which stream starts its next frame.
        image_budget: memory of pictures that were received and are not answered yet.
        metrics: counts frames.
        limits: of one stream.
        tracing: decides which frames are traced.
    """

    segmenter: Segmenter
    host: ModelHost
    permits: FramePermits
    image_budget: MemoryBudget
    metrics: Metrics
    limits: StreamLimits
    tracing: Tracing = NO_TRACING


class MessageChannel(Protocol):
    """Carries the messages of one stream: a call of gRPC, or something that does the same."""

    async def read(self) -> object:
        """Return the next message, or ``grpc.aio.EOF``."""
        ...

    async def write(self, message: wire.StreamResponse) -> None:
        """Send a message, and wait while the client is slow."""
        ...


class ByteChannel:
    """The same messages in their encoded form, over another protocol.

    Args:
        receive: returns the next message; None = there are no more.
        send: sends one.
    """

    def __init__(
        self, receive: Callable[[], Awaitable[bytes | None]], send: Callable[[bytes], Awaitable[None]]
    ) -> None:
        self._receive = receive
        self._send = send

    async def read(self) -> object:
        """Return the next message, ``grpc.aio.EOF``, or None for bytes that are no message."""
        data = await self._receive()
        if data is None:
            return grpc.aio.EOF
        try:
            return wire.StreamRequest.FromString(data)
        except DecodeError:
            return None

    async def write(self, message: wire.StreamResponse) -> None:
        """Send a message."""
        await self._send(message.SerializeToString())


async def next_message(context: MessageChannel | Context, kind: type[MessageT]) -> MessageT | None:
    """Return the next message of a call; None when the client has ended its messages.

    gRPC's iterator over the messages is not used: if it is left before its end, it is never closed.

    Raises:
        InvalidArgumentError: the bytes are no message of this type.
    """
    message: object = await context.read()
    if message is grpc.aio.EOF:
        return None
    if not isinstance(message, kind):
        raise InvalidArgumentError("the bytes are not a message of this service")
    return message


@dataclass(frozen=True, eq=False)
class _ReceivedFrame:
    message: wire.Frame
    memory: MemoryReservation


class FrameStream:
    """Reads the frames of one client, has them segmented, and sends the answers.

    Belongs to one event loop. A frame holds its permit until the device is done with it, or a little longer;
    masks are encoded and sent while the next frame is in the device.

    Args:
        context: of the call.
        target: the model.
        version: number of the version that the client was told.
        wanted: the masks.
        rules: of the stream.
        source: name of the stream for the scheduler.
        resources: shared by all streams.
    """

    def __init__(
        self,
        context: MessageChannel | Context,
        *,
        target: Target,
        version: int,
        wanted: MaskRequest,
        rules: StreamRules,
        source: str,
        resources: StreamResources,
    ) -> None:
        self.outcomes: Counter[str] = Counter()
        self._context = context
        self._target = target
        self._wanted = wanted
        self._source = source
        self._resources = resources
        self._max_age_s = rules.max_frame_age_s
        self._is_live = rules.policy is FramePolicy.LATEST_WINS
        self._session: StreamSession[_ReceivedFrame, wire.FrameResult] = StreamSession(
            rules, version=version, on_answered=lambda frame: resources.image_budget.release(frame.memory)
        )
        self._last_bytes = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._may_read = asyncio.Event()
        self._may_write = asyncio.Event()
        self._is_over = False
        self._refusal: ServiceError | None = None
        self._stops_at_s: float | None = None
        self._log_context = copy_context()

    async def answer_frames(self) -> None:
        """Read frames and send answers until the client has ended its frames and all are answered.

        Raises:
            InvalidArgumentError: a message is out of place.
            DrainingError: the service is about to stop, and all frames that arrived are answered.
        """
        self._spawn(self._read())
        try:
            self._continue()
            await self._write()
        finally:
            self._is_over = True
            self._resources.permits.remove_stream(self._start_frame)
            tasks = list(self._tasks)
            for task in tasks:
                task.cancel()
            try:
                await asyncio.gather(*tasks, return_exceptions=True)
            finally:
                self._session.discard_frames()

    def drain(self, stops_at_s: float) -> None:
        """Answer the frames that have arrived, then end.

        Args:
            stops_at_s: time at which the service will have stopped (``time.monotonic``, seconds).
        """
        self._stops_at_s = stops_at_s
        self._session.drain()
        self._continue()

    async def _read(self) -> None:
        try:
            await self._may_read.wait()
            while (message := await next_message(self._context, wire.StreamRequest)) is not None:
                await self._receive(message)
                await self._may_read.wait()
                await self._wait_for_memory()
        except ServiceError as error:
            self._refusal = error
        self._session.end_input()
        self._continue()

    async def _wait_for_memory(self) -> None:
        """Wait, at most for the age limit of a frame, until memory for a frame like the last one is free."""
        budget = self._resources.image_budget
        with suppress(BusyError):
            budget.release(await budget.acquire(self._last_bytes, timeout_s=self._max_age_s))

    async def _receive(self, message: wire.StreamRequest) -> None:
        if message.WhichOneof("kind") != "frame":
            raise InvalidArgumentError("only the first message of a stream is open, all others are frames")
        frame, budget = message.frame, self._resources.image_budget
        self._last_bytes = len(frame.image.data)
        try:
            # No waiting: the picture is in memory already, and so would be one of every other stream.
            memory = await budget.acquire(self._last_bytes, timeout_s=0.0)
        except BusyError as error:
            self._session.refuse_frame(frame.seq, error)
        else:
            try:
                self._session.add_frame(frame.seq, _ReceivedFrame(frame, memory), now_s=time.monotonic())
            except InvalidArgumentError:
                budget.release(memory)
                raise
        self._continue()

    async def _write(self) -> None:
        while True:
            self._may_write.clear()
            while (answer := self._session.next_answer()) is not None:
                self._count(answer)
                await self._context.write(_response(answer))
                self._continue()
            if self._refusal is not None:
                raise self._refusal
            if self._session.is_finished:
                break
            await self._may_write.wait()
        if self._stops_at_s is not None and not self._session.is_input_over:
            await self._send_going_away(self._stops_at_s)

    async def _send_going_away(self, stops_at_s: float) -> None:
        left_ms = max(0, round(1e3 * (stops_at_s - time.monotonic())))
        notice = wire.StreamNotice(kind=wire.GOING_AWAY, deadline_ms=left_ms)
        await self._context.write(wire.StreamResponse(notice=notice))
        raise DrainingError("the service is about to stop", retry_after_s=left_ms / 1e3)

    def _continue(self) -> None:
        """Do what the last change of the session has made possible."""
        if self._is_over:
            return
        if self._session.can_start:
            self._resources.permits.request(self._start_frame, is_live=self._is_live)
        if self._session.wants_frame:
            self._may_read.set()
        else:
            self._may_read.clear()
        self._may_write.set()

    def _start_frame(self) -> bool:
        started = self._session.start_frame(now_s=time.monotonic())
        if started is not None:
            permit = _Permit(self._resources.permits)
            # Not in the coroutine: a stream that ends now cancels the task before its first step.
            self._spawn(self._answer(started, permit)).add_done_callback(lambda _: permit.release())
        self._continue()  # no frame waits now, so the next one may be read
        return started is not None

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        # Permits are handed on by other streams, whose request id and trace are not this one's.
        task = asyncio.create_task(work, context=self._log_context.copy())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _answer(self, started: StartedFrame[_ReceivedFrame], permit: _Permit) -> None:
        span = self._resources.tracing.begin({}, started.arrived_s, cause=current_span())
        code, error_code = "ok", None
        with working_on(span):
            try:
                result, version = await self._result(started, permit)
                self._resources.metrics.frame_done("answered", age_s=time.monotonic() - started.arrived_s)
                self._session.answer_frame(started.seq, result, version=version)
            except DeadlineExceededError:
                code = "too_old"
                self._session.drop_frame(started.seq, DropReason.TOO_OLD)
            except DrainingError:
                code = "draining"
                self._session.drop_frame(started.seq, DropReason.DRAINING)
            except ServiceError as error:
                code = error.code
                error_code = code if is_our_fault(code) else None
                self._session.fail_frame(started.seq, error)
            except Exception:  # noqa: BLE001 - the outermost edge of a frame: the stream must go on
                code = error_code = InternalError.code
                _log.exception("frame failed")
                self._session.fail_frame(started.seq, InternalError("unexpected"))
            finally:
                if span is not None:
                    span.end("frame", {"bisenet.code": code, "bisenet.seq": started.seq}, error_code)
                self._continue()

    async def _result(
        self, started: StartedFrame[_ReceivedFrame], permit: _Permit
    ) -> tuple[wire.FrameResult, int]:
        resources, frame = self._resources, started.frame.message
        with resources.host.hold(self._target.name, self._target.number) as model:
            answering = segment_image(
                resources.segmenter,
                model,
                frame.image,
                self._wanted,
                deadline_s=started.deadline_s,
                max_bytes=resources.limits.max_frame_bytes,
                lane=Lane.STREAM,
                source=self._source,
                labelled=permit.frame_left_device,
            )
            async with answering as rendered:
                resources.metrics.stages_done(rendered.stages_s)
        version = rendered.version.number
        result = wire.FrameResult(
            seq=frame.seq,
            mask=rendered.mask,
            version=version,
            timings=rendered.timings,
            confidence=rendered.confidence,
        )
        if frame.HasField("capture_time"):
            result.capture_time.CopyFrom(frame.capture_time)
        return result, version

    def _count(self, answer: StreamAnswer[wire.FrameResult]) -> None:
        match answer:
            case AnsweredFrame():
                self.outcomes["answered"] += 1
            case FailedFrame():
                self.outcomes["failed"] += 1
                self._resources.metrics.frame_done("failed")
            case DroppedFrames(count=count, reason=reason):
                outcome = _OUTCOMES[reason]
                self.outcomes[outcome] += count
                self._resources.metrics.frame_done(outcome, count=count)


class _Permit:
    """The permit of one frame, returned once: when the frame has left the device, or at its end.

    Args:
        permits: gave it.
    """

    def __init__(self, permits: FramePermits) -> None:
        self._permits = permits
        self._started_s = time.monotonic()
        self._is_held = True

    def frame_left_device(self, answer: Answer) -> None:
        """Return the permit: now, or later so that the next frame starts just in time."""
        if not self._is_held:
            return
        self._is_held = False
        busy_s = answer.infer_s + answer.post_s
        lead_s = time.monotonic() - self._started_s - answer.queue_s - busy_s
        if delay_s := self._permits.frame_left_device(lead_s=lead_s, busy_s=busy_s):
            asyncio.get_running_loop().call_later(delay_s, self._permits.release_delayed)

    def release(self) -> None:
        """Return the permit, if the device has not answered the frame."""
        if self._is_held:
            self._is_held = False
            self._permits.release()


def _response(answer: StreamAnswer[wire.FrameResult]) -> wire.StreamResponse:
    match answer:
        case AnsweredFrame(result=result):
            return wire.StreamResponse(result=result)
        case FailedFrame(seq=seq, code=code):
            failed = wire.FrameError(seq=seq, grpc_code=status_number(code), code=code)
            return wire.StreamResponse(error=failed)
        case DroppedFrames(first_seq=first, last_seq=last, count=count, reason=reason):
            dropped = wire.FramesDropped(first_seq=first, last_seq=last, count=count, reason=_REASONS[reason])
            return wire.StreamResponse(dropped=dropped)
        case ModelSwitch(version=version):
            notice = wire.StreamNotice(kind=wire.MODEL_CHANGED, version=version)
            return wire.StreamResponse(notice=notice)
        case _:
            assert_never(answer)
