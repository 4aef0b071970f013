"""The frames of one stream, from their arrival to their answer: rules without clock, thread or network.

A frame waits, is started, and is answered by a result, by an error, or as part of a dropped range. Each frame
is answered exactly once, in the order of arrival, so a finished frame may have to wait for an older one.

At most one frame of a stream waits. It is started as late as possible, when the device has capacity: until
then a newer frame can replace it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Generic, TypeVar

from service.core.errors import InvalidArgumentError, ServiceError

FrameT = TypeVar("FrameT")
ResultT = TypeVar("ResultT")


class FramePolicy(Enum):
    """The treatment of frames that come faster than they are answered."""

    LATEST_WINS = auto()
    """A newer frame replaces the waiting one."""
    BLOCK = auto()
    """No frame is read while one waits."""


class DropReason(Enum):
    """Why a frame has no result."""

    SUPERSEDED = auto()
    TOO_OLD = auto()
    DRAINING = auto()


@dataclass(frozen=True)
class StreamRules:
    """Options of one stream.

    Args:
        policy: for frames that come too fast.
        max_in_flight: frames that are started, or answered and not sent yet.
        max_frame_age_s: time from its arrival after which the result of a frame is not needed, in seconds.
    """

    policy: FramePolicy
    max_in_flight: int
    max_frame_age_s: float


@dataclass(frozen=True, eq=False)
class StartedFrame(Generic[FrameT]):
    """A frame to work on.

    Attributes:
        seq: its number.
        frame: the frame.
        arrived_s: time of its arrival.
        deadline_s: time at which it is too old.
    """

    seq: int
    frame: FrameT
    arrived_s: float
    deadline_s: float


@dataclass(frozen=True, eq=False)
class AnsweredFrame(Generic[ResultT]):
    """The result of a frame."""

    seq: int
    result: ResultT


@dataclass(frozen=True)
class FailedFrame:
    """The error of a frame: its code alone, since the exception references memory."""

    seq: int
    code: str


@dataclass(frozen=True)
class DroppedFrames:
    """``count`` frames without a result, numbered from ``first_seq`` to ``last_seq``."""

    first_seq: int
    last_seq: int
    count: int
    reason: DropReason


@dataclass(frozen=True)
class ModelSwitch:
    """The results that follow come from another version; answers no frame."""

    version: int


_FrameAnswer = AnsweredFrame[ResultT] | FailedFrame | DroppedFrames
StreamAnswer = AnsweredFrame[ResultT] | FailedFrame | DroppedFrames | ModelSwitch


@dataclass(eq=False)
class _Entry(Generic[FrameT, ResultT]):
    """A frame whose answer is not sent yet."""

    seq: int
    arrived: StartedFrame[FrameT] | None = None
    version: int | None = None
    answer: _FrameAnswer[ResultT] | None = None
    was_refused: bool = False

    @property
    def is_dropped(self) -> bool:
        return isinstance(self.answer, DroppedFrames)


class StreamSession(Generic[FrameT, ResultT]):
    """The frames of one stream whose answers are not sent yet.

    Not thread-safe. After each change the owner reads the properties.

    Args:
        rules: of the stream.
        version: number of the model version that the client was told.
        on_answered: called with each accepted frame as soon as it has its answer.
    """

    def __init__(self, rules: StreamRules, *, version: int, on_answered: Callable[[FrameT], None]) -> None:
        self._rules = rules
        self._version = version
        self._on_answered = on_answered
        self._entries: deque[_Entry[FrameT, ResultT]] = deque()
        self._waiting: _Entry[FrameT, ResultT] | None = None
        self._last_seq: int | None = None
        self._is_input_over = False
        self._is_draining = False

    @property
    def wants_frame(self) -> bool:
        """Whether the next frame should be read now."""
        if self._is_draining:
            return True
        is_blocked = self._rules.policy is FramePolicy.BLOCK and self._waiting is not None
        return self._has_capacity and not is_blocked

    @property
    def can_start(self) -> bool:
        """Whether a frame waits that may be started."""
        if self._waiting is None or self._in_flight >= self._rules.max_in_flight:
            return False
        return self._has_capacity or self._entries[0] is self._waiting  # for which all others wait

    @property
    def is_input_over(self) -> bool:
        """Whether the client has ended its frames."""
        return self._is_input_over

    @property
    def is_finished(self) -> bool:
        """Whether no answer will follow."""
        return not self._entries and (self._is_input_over or self._is_draining)

    def add_frame(self, seq: int, frame: FrameT, *, now_s: float) -> None:
        """Accept a frame.

        Raises:
            InvalidArgumentError: ``seq`` is not larger than the one before.
        """
        entry = self._new_entry(seq)
        entry.arrived = StartedFrame(seq, frame, now_s, now_s + self._rules.max_frame_age_s)
        if self._is_draining:
            self._entries.append(entry)
            self._drop(entry, DropReason.DRAINING)
            return
        if self._waiting is not None:
            assert self._rules.policy is FramePolicy.LATEST_WINS
            self._drop(self._waiting, DropReason.SUPERSEDED)
        self._entries.append(entry)
        self._waiting = entry

    def refuse_frame(self, seq: int, error: ServiceError) -> None:
        """Answer a frame that is not accepted with an error.

        Raises:
            InvalidArgumentError: ``seq`` is not larger than the one before.
        """
        entry = self._new_entry(seq)
        entry.answer, entry.was_refused = FailedFrame(seq, error.code), True
        self._entries.append(entry)

    def start_frame(self, *, now_s: float) -> StartedFrame[FrameT] | None:
        """Start the waiting frame; None if there is none or it is too old, and then dropped."""
        entry = self._waiting
        if entry is None or not self.can_start:
            return None
        self._waiting, started = None, entry.arrived
        assert started is not None
        if now_s < started.deadline_s:
            return started
        self._drop(entry, DropReason.TOO_OLD)
        return None

    def answer_frame(self, seq: int, result: ResultT, *, version: int) -> None:
        """Answer a started frame with its result, which the model version ``version`` made."""
        entry = self._started(seq)
        entry.version = version
        self._settle(entry, AnsweredFrame(seq, result))

    def fail_frame(self, seq: int, error: ServiceError) -> None:
        """Answer a started frame with an error; the stream goes on."""
        self._settle(self._started(seq), FailedFrame(seq, error.code))

    def drop_frame(self, seq: int, reason: DropReason) -> None:
        """Answer a started frame as dropped."""
        self._drop(self._started(seq), reason)

    def discard_frames(self) -> None:
        """Give up all unanswered frames, because the client is gone."""
        self._waiting = None
        for entry in self._entries:
            self._release_frame(entry)

    def end_input(self) -> None:
        """Record that the client has ended its frames."""
        self._is_input_over = True

    def drain(self) -> None:
        """Answer the frames that have arrived, and drop those that still come."""
        self._is_draining = True

    def next_answer(self) -> StreamAnswer[ResultT] | None:
        """Remove and return the next answer to send; None while the oldest frame has no answer."""
        if not self._entries or self._entries[0].answer is None:
            return None
        entry = self._entries[0]
        if entry.version not in (None, self._version):
            assert entry.version is not None
            self._version = entry.version
            return ModelSwitch(entry.version)
        self._entries.popleft()
        return self._joined_with_followers(entry.answer) if entry.is_dropped else entry.answer

    @property
    def _has_capacity(self) -> bool:
        """Bounds the entries of a client that reads nothing while its frames get too old or are refused."""
        return len(self._entries) <= 2 * self._rules.max_in_flight + 1

    @property
    def _in_flight(self) -> int:
        return sum(
            entry is not self._waiting and not (entry.is_dropped or entry.was_refused)
            for entry in self._entries
        )

    def _new_entry(self, seq: int) -> _Entry[FrameT, ResultT]:
        if self._last_seq is not None and seq <= self._last_seq:
            raise InvalidArgumentError(f"seq {seq} follows {self._last_seq}: it must increase")
        self._last_seq = seq
        return _Entry[FrameT, ResultT](seq)

    def _started(self, seq: int) -> _Entry[FrameT, ResultT]:
        return next(
            entry
            for entry in self._entries
            if entry.seq == seq and entry is not self._waiting and entry.answer is None
        )

    def _settle(self, entry: _Entry[FrameT, ResultT], answer: _FrameAnswer[ResultT]) -> None:
        entry.answer = answer
        self._release_frame(entry)

    def _release_frame(self, entry: _Entry[FrameT, ResultT]) -> None:
        arrived, entry.arrived = entry.arrived, None
        if arrived is not None:
            self._on_answered(arrived.frame)

    def _drop(self, entry: _Entry[FrameT, ResultT], reason: DropReason) -> None:
        self._settle(entry, DroppedFrames(entry.seq, entry.seq, 1, reason))
        before = self._entries[-2] if entry is self._entries[-1] and len(self._entries) > 1 else None
        if before is not None and (joined := _joined(before.answer, entry.answer)):
            before.answer = joined
            self._entries.pop()

    def _joined_with_followers(self, answer: _FrameAnswer[ResultT] | None) -> DroppedFrames:
        assert isinstance(answer, DroppedFrames)
        while self._entries and (joined := _joined(answer, self._entries[0].answer)):
            answer = joined
            self._entries.popleft()
        return answer


def _joined(first: object, second: object) -> DroppedFrames | None:
    """Return the range of two neighbours that were dropped for the same reason, else None."""
    if not (
        isinstance(first, DroppedFrames)
        and isinstance(second, DroppedFrames)
        and first.reason is second.reason
    ):
        return None
    return DroppedFrames(first.first_seq, second.last_seq, first.count + second.count, first.reason)
