"""What became of each frame that was sent: pure bookkeeping."""

from __future__ import annotations

from collections import Counter, deque

from service.client.answers import Dropped, Failed, Result, StreamEvent
from service.client.errors import ProtocolError


class FrameLedger:
    """Checks that every frame has exactly one answer, in order, and counts outcomes.

    Attributes:
        sent: frames that went out, each counted once even if it was sent again.
        outcomes: frames by what became of them: ``answered``, ``failed``, ``superseded``, ``too_old``,
            ``draining``, ``lost``.
    """

    def __init__(self) -> None:
        self.sent = 0
        self.outcomes: Counter[str] = Counter()
        self._open: deque[int] = deque()

    @property
    def unanswered(self) -> tuple[int, ...]:
        """Numbers of the frames whose answer is still to come, in order."""
        return tuple(self._open)

    def __len__(self) -> int:
        """How many frames wait for their answer."""
        return len(self._open)

    def send(self, seq: int) -> None:
        """Note that a frame goes out."""
        self.sent += 1
        self._open.append(seq)

    def take(self, event: StreamEvent) -> None:
        """Note an answer; what answers no frame is passed over.

        Raises:
            ProtocolError: it is not the answer of the oldest frame, or covers frames that were not sent.
        """
        match event:
            case Result(seq=seq):
                self._close(seq, seq, 1, "answered")
            case Failed(seq=seq):
                self._close(seq, seq, 1, "failed")
            case Dropped(first_seq=first, last_seq=last, count=count, reason=reason):
                self._close(first, last, count, reason)

    def lose(self) -> tuple[int, ...]:
        """Give up the frames that wait for an answer; return their numbers."""
        lost = self.unanswered
        self.outcomes["lost"] += len(lost)
        self._open.clear()
        return lost

    def take_back(self, dropped: Dropped | None = None) -> tuple[int, ...]:
        """Return the numbers of frames that will be sent again.

        Args:
            dropped: those of this range; None = all that wait for an answer.

        Raises:
            ProtocolError: as ``take``.
        """
        again = self.unanswered
        if dropped is not None:
            again = self._closed(dropped.first_seq, dropped.last_seq, dropped.count, dropped.reason)
        else:
            self._open.clear()
        self.sent -= len(again)
        return again

    def _close(self, first: int, last: int, count: int, outcome: str) -> None:
        self.outcomes[outcome] += len(self._closed(first, last, count, outcome))

    def _closed(self, first: int, last: int, count: int, outcome: str) -> tuple[int, ...]:
        closed = tuple(self._open.popleft() for _ in range(min(count, len(self._open))))
        if len(closed) != count or (closed[0], closed[-1]) != (first, last):
            raise ProtocolError(f"{outcome} {first}..{last} ({count}) answers {list(closed)}")
        return closed
