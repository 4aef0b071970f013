"""One stream of frames: between the wire and the rules of ``core.streaming``."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar, assert_never

import grpc
import structlog
from google.protobuf.message import Message

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
from service.core.scheduling.dispatcher import Answer as DeviceAnswer
from service.core.scheduling.memory_budget import MemoryBudget, MemoryReservation
from service.core.scheduling.scheduler import Lane
from service.core.streams.frame_stream import (
    Answer,
    AnsweredFrame,
    DroppedFrames,
    DropReason,
    FailedFrame,
    FramePolicy,
    ModelSwitch,
    StartedFrame,
    StreamRules,
    StreamSession,
    StreamTurns,
)
from service.grpc_api.messages import MaskRequest, Target, segmented
from service.grpc_api.status import status_number
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
    """What a stream may ask for at most.

    Args:
        max_in_flight: frames of one stream; each may keep a result in memory that its client does not read.
        max_frame_age_s: after how long a frame is given up.
        max_frame_bytes: size of a frame's picture.
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
class StreamTools:
    """What all streams of a service share.

    Args:
        segmenter: answers frames.
        host: knows the served models.
        turns: which stream goes next.
        room: for the pictures that came and are not answered yet.
        metrics: counts frames.
        limits: of a stream.
    """

    segmenter: Segmenter
    host: ModelHost
    turns: StreamTurns
    room: MemoryBudget
    metrics: Metrics
    limits: StreamLimits


async def next_message(context: Context, kind: type[MessageT]) -> MessageT | None:
    """Return the next message of a call; None when the client has ended it.

    gRPC's iterator over the messages is not used: left before its end, it is never closed.

    Raises:
        InvalidArgumentError: it is not a message of this service.
    """
    message: object = await context.read()
    if message is grpc.aio.EOF:
        return None
    if not isinstance(message, kind):
        raise InvalidArgumentError("the bytes are not a message of this service")
    return message


@dataclass(frozen=True, eq=False)
class _Received:
    """A frame and the room for its picture."""

    frame: wire.Frame
    place: MemoryReservation


class FrameStream:
    """Reads the frames of one client, has them answered, and sends the answers.

    Belongs to one event loop. A frame occupies its turn until the device is done with it, or a little longer;
    encoding and sending go on beside the next frame.

    Args:
        context: of the call.
        target: the model that was asked for, by name.
        version: number of the version that the client was told.
        wanted: how masks are encoded.
        rules: how frames are treated.
        source: tells this stream from all others.
        tools: what it shares with them.
    """

    def __init__(
        self,
        context: Context,
        *,
        target: Target,
        version: int,
        wanted: MaskRequest,
        rules: StreamRules,
        source: str,
        tools: StreamTools,
    ) -> None:
        self.outcomes: Counter[str] = Counter()
        self._context = context
        self._target = target
        self._wanted = wanted
        self._source = source
        self._tools = tools
        self._max_age_s = rules.max_frame_age_s
        self._is_live = rules.policy is FramePolicy.LATEST_WINS
        self._session: StreamSession[_Received, wire.FrameResult] = StreamSession(
            rules, version=version, forget=lambda received: tools.room.release(received.place)
        )
        self._last_bytes = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._may_read = asyncio.Event()
        self._may_write = asyncio.Event()
        self._is_over = False
        self._refusal: ServiceError | None = None
        self._stops_at_s: float | None = None

    async def run(self) -> None:
        """Converse until the client has ended its frames and every one is answered.

        Raises:
            InvalidArgumentError: a message is out of place.
            DrainingError: the service is about to stop, every frame is answered, and more could come.
        """
        self._spawn(self._read())
        try:
            self._look_around()
            await self._write()
        finally:
            self._is_over = True
            self._tools.turns.leave(self._take_turn)
            tasks = list(self._tasks)
            for task in tasks:
                task.cancel()
            try:
                await asyncio.gather(*tasks, return_exceptions=True)
            finally:
                self._session.abandon()

    def drain(self, stops_at_s: float) -> None:
        """Answer what is here, then end.

        Args:
            stops_at_s: when the service will have stopped, on the clock of ``time.monotonic``.
        """
        self._stops_at_s = stops_at_s
        self._session.drain()
        self._look_around()

    async def _read(self) -> None:
        try:
            await self._may_read.wait()
            while (message := await next_message(self._context, wire.StreamRequest)) is not None:
                await self._take(message)
                await self._may_read.wait()
                await self._until_room()
        except ServiceError as error:
            self._refusal = error
        self._session.end_input()
        self._look_around()

    async def _until_room(self) -> None:
        """Wait, not for ever, until there would be room for a frame like the last one."""
        room = self._tools.room
        with suppress(BusyError):
            room.release(await room.acquire(self._last_bytes, timeout_s=self._max_age_s))

    async def _take(self, message: wire.StreamRequest) -> None:
        if message.WhichOneof("kind") != "frame":
            raise InvalidArgumentError("only the first message of a stream is open, all others are frames")
        frame = message.frame
        self._last_bytes = len(frame.image.data)
        try:
            # It is here already: if every stream let one wait for room, these would need as much of it.
            place = await self._tools.room.acquire(self._last_bytes, timeout_s=0.0)
        except BusyError as error:
            self._session.refuse(frame.seq, error)
        else:
            try:
                self._session.offer(frame.seq, _Received(frame, place), now_s=time.monotonic())
            except InvalidArgumentError:
                self._tools.room.release(place)
                raise
        self._look_around()

    async def _write(self) -> None:
        while True:
            self._may_write.clear()
            while (answer := self._session.next_answer()) is not None:
                self._count(answer)
                await self._context.write(_response(answer))
                self._look_around()
            if self._refusal is not None:
                raise self._refusal
            if self._session.is_finished:
                break
            await self._may_write.wait()
        if self._stops_at_s is not None and not self._session.is_input_over:
            await self._say_goodbye(self._stops_at_s)

    async def _say_goodbye(self, stops_at_s: float) -> None:
        left_ms = max(0, round(1e3 * (stops_at_s - time.monotonic())))
        notice = wire.StreamNotice(kind=wire.GOING_AWAY, deadline_ms=left_ms)
        await self._context.write(wire.StreamResponse(notice=notice))
        raise DrainingError("the service is about to stop", retry_after_s=left_ms / 1e3)

    def _look_around(self) -> None:
        """Go on with whatever the last change has made possible."""
        if self._is_over:
            return
        if self._session.can_start:
            self._tools.turns.ask(self._take_turn, is_live=self._is_live)
        if self._session.wants_frame:
            self._may_read.set()
        else:
            self._may_read.clear()
        self._may_write.set()

    def _take_turn(self) -> bool:
        started = self._session.start(now_s=time.monotonic())
        if started is not None:
            turn = _Turn(self._tools.turns)
            # Not in the coroutine: a stream that ends in this moment cancels the task before it has begun.
            self._spawn(self._answer(started, turn)).add_done_callback(lambda _: turn.end())
        self._look_around()  # without a frame that waits, the next one may be read
        return started is not None

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _answer(self, started: StartedFrame[_Received], turn: _Turn) -> None:
        try:
            result, version = await self._result(started, turn)
            self._tools.metrics.frame_done("answered", age_s=time.monotonic() - started.arrived_s)
            self._session.answer(started.seq, result, version=version)
        except DeadlineExceededError:
            self._session.drop(started.seq, DropReason.TOO_OLD)
        except DrainingError:
            self._session.drop(started.seq, DropReason.DRAINING)
        except ServiceError as error:
            self._session.fail(started.seq, error)
        except Exception:  # noqa: BLE001 - the outermost edge of a frame: the stream must go on
            _log.exception("frame failed")
            self._session.fail(started.seq, InternalError("unexpected"))
        finally:
            self._look_around()

    async def _result(self, started: StartedFrame[_Received], turn: _Turn) -> tuple[wire.FrameResult, int]:
        tools, frame = self._tools, started.frame.frame
        with tools.host.hold(self._target.name, self._target.number) as model:
            answering = segmented(
                tools.segmenter,
                model,
                frame.image,
                self._wanted,
                deadline_s=started.deadline_s,
                max_bytes=tools.limits.max_frame_bytes,
                lane=Lane.STREAM,
                source=self._source,
                labelled=turn.leave_device,
            )
            async with answering as encoded:
                tools.metrics.stages_done(encoded.stages_s)
        version = encoded.version.number
        result = wire.FrameResult(
            seq=frame.seq,
            mask=encoded.mask,
            version=version,
            timings=encoded.timings,
            confidence=encoded.confidence,
        )
        if frame.HasField("capture_time"):
            result.capture_time.CopyFrom(frame.capture_time)
        return result, version

    def _count(self, answer: Answer[wire.FrameResult]) -> None:
        match answer:
            case AnsweredFrame():
                self.outcomes["answered"] += 1
            case FailedFrame():
                self.outcomes["failed"] += 1
                self._tools.metrics.frame_done("failed")
            case DroppedFrames(count=count, reason=reason):
                outcome = _OUTCOMES[reason]
                self.outcomes[outcome] += count
                self._tools.metrics.frame_done(outcome, count=count)


class _Turn:
    """The turn of a frame, given back once: when the frame has left the device, or at its end.

    Args:
        turns: that it is one of.
    """

    def __init__(self, turns: StreamTurns) -> None:
        self._turns = turns
        self._began_s = time.monotonic()
        self._is_mine = True

    def leave_device(self, answer: DeviceAnswer) -> None:
        """Let another frame have its turn: now, or just in time for the device."""
        if not self._is_mine:
            return
        self._is_mine = False
        busy_s = answer.infer_s + answer.post_s
        lead_s = time.monotonic() - self._began_s - answer.queue_s - busy_s
        if delay_s := self._turns.left_device(lead_s=lead_s, busy_s=busy_s):
            asyncio.get_running_loop().call_later(delay_s, self._turns.done_resting)

    def end(self) -> None:
        """Give it back, if the device has not answered the frame."""
        if self._is_mine:
            self._is_mine = False
            self._turns.done()


def _response(answer: Answer[wire.FrameResult]) -> wire.StreamResponse:
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
