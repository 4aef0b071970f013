"""The rules of frame streams, without a clock, a thread or a network.

A frame waits, is worked on, and is answered: by a result, as part of a dropped range, or by an error. Every
frame has exactly one answer, and answers leave in the order in which frames came, so a finished frame may
have to wait for an older one. ``StreamSession`` keeps the book of one stream, ``StreamTurns`` decides between
streams.

A stream has at most one waiting frame. Which one is worked on is decided as late as possible, when the device
has room: a frame that waits for its turn can still be replaced by a newer one, one in the device's queue not.
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
    """What happens to frames that come faster than they can be answered."""

    LATEST_WINS = auto()
    """A newer frame takes the place of the one that waits."""
    BLOCK = auto()
    """No frame is read while one waits."""


class DropReason(Enum):
    """Why a frame was not worked on to its end."""

    SUPERSEDED = auto()
    TOO_OLD = auto()
    DRAINING = auto()


@dataclass(frozen=True)
class StreamRules:
    """How the frames of one stream are treated.

    Args:
        policy: see ``FramePolicy``.
        max_in_flight: frames that are worked on, or are answered but not sent, at the same time.
        max_frame_age_s: after how long, counted from its arrival, nobody wants a frame's result any more.
    """

    policy: FramePolicy
    max_in_flight: int
    max_frame_age_s: float


@dataclass(frozen=True, eq=False)
class StartedFrame(Generic[FrameT]):
    """A frame whose turn it is.

    Attributes:
        seq: its number.
        frame: what came.
        arrived_s: when it came.
        deadline_s: when it is too old.
    """

    seq: int
    frame: FrameT
    arrived_s: float
    deadline_s: float


@dataclass(frozen=True, eq=False)
class AnsweredFrame(Generic[ResultT]):
    """A frame's result."""

    seq: int
    result: ResultT


@dataclass(frozen=True)
class FailedFrame:
    """A frame that could not be answered; of its error only the code is kept, not what it refers to."""

    seq: int
    code: str


@dataclass(frozen=True)
class DroppedFrames:
    """Frames that were not answered: ``count`` of them, numbered from ``first_seq`` to ``last_seq``."""

    first_seq: int
    last_seq: int
    count: int
    reason: DropReason


@dataclass(frozen=True)
class ModelSwitch:
    """Results from here on come from another version; answers no frame."""

    version: int


Answer = AnsweredFrame[ResultT] | FailedFrame | DroppedFrames | ModelSwitch


@dataclass(eq=False)
class _Entry(Generic[FrameT, ResultT]):
    """A frame in the book: it waits, is worked on, and has an answer, which is to be sent; then it goes."""

    seq: int
    offered: StartedFrame[FrameT] | None = None
    version: int | None = None
    answer: AnsweredFrame[ResultT] | FailedFrame | DroppedFrames | None = None
    was_refused: bool = False

    @property
    def is_dropped(self) -> bool:
        return isinstance(self.answer, DroppedFrames)


class StreamSession(Generic[FrameT, ResultT]):
    """The book of one stream. Not thread-safe; whoever changes it looks at its properties afterwards.

    Args:
        rules: how frames are treated.
        version: number of the model version that the client was told.
        forget: called with each frame that was offered, as soon as it has its answer.
    """

    def __init__(self, rules: StreamRules, *, version: int, forget: Callable[[FrameT], None]) -> None:
        self._rules = rules
        self._version = version
        self._forget = forget
        self._book: deque[_Entry[FrameT, ResultT]] = deque()
        self._waiting: _Entry[FrameT, ResultT] | None = None
        self._last_seq: int | None = None
        self._is_input_over = False
        self._is_draining = False

    @property
    def wants_frame(self) -> bool:
        """Whether the next frame should be read now."""
        if self._is_draining:
            return True
        is_kept_waiting = self._rules.policy is FramePolicy.BLOCK and self._waiting is not None
        return self._has_room and not is_kept_waiting

    @property
    def can_start(self) -> bool:
        """Whether a frame waits for nothing but its turn."""
        if self._waiting is None or self._in_flight >= self._rules.max_in_flight:
            return False
        return self._has_room or self._book[0] is self._waiting  # which all others wait for

    @property
    def is_input_over(self) -> bool:
        """Whether the client has said that no frame will come any more."""
        return self._is_input_over

    @property
    def is_finished(self) -> bool:
        """Whether no answer will follow."""
        return not self._book and (self._is_input_over or self._is_draining)

    def offer(self, seq: int, frame: FrameT, *, now_s: float) -> None:
        """Take a frame that came.

        Raises:
            InvalidArgumentError: its number is not larger than that of the one before.
        """
        entry = self._entry(seq)
        entry.offered = StartedFrame(seq, frame, now_s, now_s + self._rules.max_frame_age_s)
        if self._is_draining:
            self._book.append(entry)
            self._drop(entry, DropReason.DRAINING)
            return
        if self._waiting is not None:
            assert self._rules.policy is FramePolicy.LATEST_WINS
            self._drop(self._waiting, DropReason.SUPERSEDED)
        self._book.append(entry)
        self._waiting = entry

    def refuse(self, seq: int, error: ServiceError) -> None:
        """Take note of a frame that came and was not kept; raises as ``offer``."""
        entry = self._entry(seq)
        entry.answer, entry.was_refused = FailedFrame(seq, error.code), True
        self._book.append(entry)

    def start(self, *, now_s: float) -> StartedFrame[FrameT] | None:
        """Take the waiting frame to work on it; None when there is none, or it is too old."""
        entry = self._waiting
        if entry is None or not self.can_start:
            return None
        self._waiting, started = None, entry.offered
        assert started is not None
        if now_s < started.deadline_s:
            return started
        self._drop(entry, DropReason.TOO_OLD)
        return None

    def answer(self, seq: int, result: ResultT, *, version: int) -> None:
        """Take the result of a started frame, and the number of the model version that made it."""
        entry = self._started(seq)
        entry.version = version
        self._settle(entry, AnsweredFrame(seq, result))

    def fail(self, seq: int, error: ServiceError) -> None:
        """Take note that a started frame has no result; the stream goes on."""
        self._settle(self._started(seq), FailedFrame(seq, error.code))

    def drop(self, seq: int, reason: DropReason) -> None:
        """Take note that a started frame was given up."""
        self._drop(self._started(seq), reason)

    def abandon(self) -> None:
        """Forget the frames that have no answer: nobody is there any more to hear one."""
        self._waiting = None
        for entry in self._book:
            self._forget_frame(entry)

    def end_input(self) -> None:
        """Take note that no frame will come any more."""
        self._is_input_over = True

    def drain(self) -> None:
        """Answer what is here, and drop what still comes."""
        self._is_draining = True

    def next_answer(self) -> Answer[ResultT] | None:
        """Remove and return what is to be sent next; None while the oldest frame has no answer."""
        if not self._book or self._book[0].answer is None:
            return None
        entry = self._book[0]
        if entry.version not in (None, self._version):
            assert entry.version is not None
            self._version = entry.version
            return ModelSwitch(entry.version)
        self._book.popleft()
        return self._joined_with_followers(entry.answer) if entry.is_dropped else entry.answer

    @property
    def _has_room(self) -> bool:
        """Bounds the book of a client that does not read while its frames get too old or are refused."""
        return len(self._book) <= 2 * self._rules.max_in_flight + 1

    @property
    def _in_flight(self) -> int:
        return sum(
            entry is not self._waiting and not (entry.is_dropped or entry.was_refused) for entry in self._book
        )

    def _entry(self, seq: int) -> _Entry[FrameT, ResultT]:
        if self._last_seq is not None and seq <= self._last_seq:
            raise InvalidArgumentError(f"seq {seq} follows {self._last_seq}: it must increase")
        self._last_seq = seq
        return _Entry[FrameT, ResultT](seq)

    def _started(self, seq: int) -> _Entry[FrameT, ResultT]:
        return next(
            entry
            for entry in self._book
            if entry.seq == seq and entry is not self._waiting and entry.answer is None
        )

    def _settle(
        self, entry: _Entry[FrameT, ResultT], answer: AnsweredFrame[ResultT] | FailedFrame | DroppedFrames
    ) -> None:
        entry.answer = answer
        self._forget_frame(entry)

    def _forget_frame(self, entry: _Entry[FrameT, ResultT]) -> None:
        offered, entry.offered = entry.offered, None
        if offered is not None:
            self._forget(offered.frame)

    def _drop(self, entry: _Entry[FrameT, ResultT], reason: DropReason) -> None:
        self._settle(entry, DroppedFrames(entry.seq, entry.seq, 1, reason))
        before = self._book[-2] if entry is self._book[-1] and len(self._book) > 1 else None
        if before is not None and (joined := _joined(before.answer, entry.answer)):
            before.answer = joined
            self._book.pop()

    def _joined_with_followers(
        self, answer: AnsweredFrame[ResultT] | FailedFrame | DroppedFrames | None
    ) -> Answer[ResultT]:
        assert isinstance(answer, DroppedFrames)
        while self._book and (joined := _joined(answer, self._book[0].answer)):
            answer = joined
            self._book.popleft()
        return answer


def _joined(first: object, second: object) -> DroppedFrames | None:
    """Return the range that covers two neighbours, if they were dropped for the same reason."""
    if not (
        isinstance(first, DroppedFrames)
        and isinstance(second, DroppedFrames)
        and first.reason is second.reason
    ):
        return None
    return DroppedFrames(first.first_seq, second.last_seq, first.count + second.count, first.reason)


_WINDOW = 32
_RARE = 3
"""So many frames of a window may be later than expected, or the device be free earlier."""

_MARGIN_S = 0.001


class FrameTiming:
    """How long to wait with the next live frame, so that it is ready when the device is, and hardly earlier.

    One that is taken when the last one leaves the device would be read in no time, and wait, and grow old,
    while the device has another one.
    """

    def __init__(self) -> None:
        self._leads_s: deque[float] = deque(maxlen=_WINDOW)
        self._busy_s: deque[float] = deque(maxlen=_WINDOW)

    def learn(self, *, lead_s: float, busy_s: float) -> None:
        """Take note of a frame.

        Args:
            lead_s: from its turn until it lay ready for the device.
            busy_s: for how long it kept the device from others.
        """
        self._leads_s.append(lead_s)
        self._busy_s.append(busy_s)

    @property
    def delay_s(self) -> float:
        """From the end of one frame in the device, which has another, to the turn of the next, in seconds."""
        if len(self._busy_s) < _WINDOW // 2:
            return 0.0
        soonest_s = sorted(self._busy_s)[_RARE]
        latest_s = sorted(self._leads_s)[-1 - _RARE]
        return max(0.0, soonest_s - latest_s - _MARGIN_S)


TakeTurn = Callable[[], bool]
"""Starts a frame of one stream; False = it had none to start."""


class StreamTurns:
    """Lets the streams take turns, and only as many frames at once as keep the device busy.

    Goes in rounds: a stream that has a frame to start asks for a turn of the round that is on, or of the next
    one if it already had its turn. A plain line would not be fair: who asks a little later after each turn,
    because its next frame comes a little later, would go round more slowly than the others.

    While live streams are there, a turn is kept a while after its frame has left the device, if that has
    another one: the next frame is taken just in time for it.

    Args:
        at_once: frames of all streams together that are read, or wait for the device, or are in it.
        films_at_once: the same while no live stream is there: films want many frames, not young ones.

    Source:
        Start-time fair queueing (Goyal, Vin, Cheng 1996), with a cost of one for each frame.
    """

    def __init__(self, at_once: int, films_at_once: int | None = None) -> None:
        self._at_once = at_once
        self._films_at_once = max(at_once, films_at_once or 0)
        self._taken = 0
        self._resting = 0
        self._just_in_time = FrameTiming()
        self._live: set[TakeTurn] = set()
        self._round = 0
        self._next_round: dict[TakeTurn, int] = {}
        self._line: dict[TakeTurn, int] = {}

    def ask(self, take: TakeTurn, *, is_live: bool = True) -> None:
        """Wait for a turn, unless this stream waits already; ``take`` may be called before this returns.

        Args:
            take: takes the turn, if the stream still has a frame for it; tells whether it does.
            is_live: whether the stream's frames are of no use when they are old.
        """
        if is_live:
            self._live.add(take)
        if take not in self._line:
            self._line[take] = max(self._round, self._next_round.get(take, 0))
        self._advance()

    def leave(self, take: TakeTurn) -> None:
        """Forget a stream, whether it waits or not."""
        self._line.pop(take, None)
        self._next_round.pop(take, None)
        self._live.discard(take)
        self._advance()

    def left_device(self, *, lead_s: float, busy_s: float) -> float:
        """Take note that the frame of a turn is worked on no more.

        Args:
            lead_s: from its turn until it lay ready for the device.
            busy_s: for how long it kept the device from others.

        Returns:
            In how many seconds to call ``done_resting``; 0 = the turn is given back already.
        """
        self._just_in_time.learn(lead_s=lead_s, busy_s=busy_s)
        delay_s = self._just_in_time.delay_s
        if not delay_s or not self._live or self._taken - self._resting <= 1:
            self.done()
            return 0.0
        self._resting += 1
        return delay_s

    def done_resting(self) -> None:
        """Give back a turn that ``left_device`` has kept."""
        self._resting -= 1
        self.done()

    def done(self) -> None:
        """Give back a turn that ``take`` made use of, at once."""
        self._taken -= 1
        self._advance()

    @property
    def _most(self) -> int:
        return self._at_once if self._live else self._films_at_once

    def _advance(self) -> None:
        while self._taken < self._most and self._line:
            take = min(self._line, key=self._line.__getitem__)  # in one round: who asked first
            self._round = self._line.pop(take)
            self._taken += 1
            if take():
                self._next_round[take] = self._round + 1
            else:
                self._taken -= 1
