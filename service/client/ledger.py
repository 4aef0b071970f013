"""The frames that were sent, and the outcome of each."""

from __future__ import annotations

from collections import Counter, deque

from service.client.answers import Dropped, Failed, Result, StreamEvent
from service.client.errors import ProtocolError


class FrameLedger:
    """Checks that every frame has exactly one answer, in order, and counts the outcomes.

    Attributes:
        sent: frames that were sent. A frame that is sent again counts once.
        outcomes: how many frames were ``answered``, ``failed``, ``superseded``, ``too_old``, ``draining``
            or ``lost``.
    """

    def __init__(self) -> None:
        self.sent = 0
        self.outcomes: Counter[str] = Counter()
        self._unanswered: deque[int] = deque()

    @property
    def unanswered(self) -> tuple[int, ...]:
        """Numbers of the frames without an answer, in order."""
        return tuple(self._unanswered)

    def __len__(self) -> int:
        """Return how many frames have no answer yet."""
        return len(self._unanswered)

    def send(self, seq: int) -> None:
        """Record that a frame is sent."""
        self.sent += 1
        self._unanswered.append(seq)

    def take(self, event: StreamEvent) -> None:
        """Record the answer of a frame. Events that answer no frame change nothing.

        Raises:
            ProtocolError: the answer is not that of the oldest frame, or covers frames that were not sent.
        """
        match event:
            case Result(seq=seq):
                self._close(seq, seq, 1, "answered")
            case Failed(seq=seq):
                self._close(seq, seq, 1, "failed")
            case Dropped(first_seq=first, last_seq=last, count=count, reason=reason):
                self._close(first, last, count, reason)

    def lose(self) -> tuple[int, ...]:
        """Record that all frames without an answer are lost; return their numbers."""
        lost = self.unanswered
        self.outcomes["lost"] += len(lost)
        self._unanswered.clear()
        return lost

    def take_back(self, dropped: Dropped | None = None) -> tuple[int, ...]:
        """Forget frames that will be sent again; return their numbers.

        Args:
            dropped: the frames; None = all without an answer.

        Raises:
            ProtocolError: ``dropped`` starts at another frame, or covers frames that were not sent.
        """
        again = self.unanswered
        if dropped is not None:
            again = self._answered(dropped.first_seq, dropped.last_seq, dropped.count, dropped.reason)
        else:
            self._unanswered.clear()
        self.sent -= len(again)
        return again

    def _close(self, first: int, last: int, count: int, outcome: str) -> None:
        self.outcomes[outcome] += len(self._answered(first, last, count, outcome))

    def _answered(self, first: int, last: int, count: int, outcome: str) -> tuple[int, ...]:
        answered = tuple(self._unanswered.popleft() for _ in range(min(count, len(self._unanswered))))
        if len(answered) != count or (answered[:1], answered[-1:]) != ((first,), (last,)):
            raise ProtocolError(f"{outcome} {first}..{last} ({count}) answers {list(answered)}")
        return answered
