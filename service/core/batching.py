"""The waiting room in front of a device: pure rules, no clock, no thread."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from service.core.errors import DeadlineExceededError, QueueFullError

WorkT = TypeVar("WorkT")
ResultT = TypeVar("ResultT")

DEFAULT_MAX_WAITING = 256

_SMOOTHING = 0.2
"""Weight of the newest duration: about the last ten items decide, a single slow one does not."""


@dataclass(eq=False)
class Item(Generic[WorkT, ResultT]):
    """One piece of work that somebody waits for.

    Args:
        work: what the worker needs; opaque here.
        pixels: its size, in pixels of the padded picture.
        admitted_s: when it came, on the clock of the room's ``now_s``.
        deadline_s: when nobody waits for it any more, on the same clock.
        future: where the answer goes; cancelling it withdraws the item.
    """

    work: WorkT
    pixels: int
    admitted_s: float
    deadline_s: float
    future: Future[ResultT] = field(default_factory=Future)

    def claim(self, now_s: float) -> bool:
        """Begin the item; False when it was cancelled or its deadline has passed: then it is answered."""
        if not self.future.set_running_or_notify_cancel():
            return False
        if now_s < self.deadline_s:
            return True
        self.future.set_exception(DeadlineExceededError("the deadline passed while the request was queued"))
        return False


class WaitingRoom(Generic[WorkT, ResultT]):
    """Bounded first-in first-out queue that admits only what can still be answered in time.

    Not thread-safe: its worker holds a lock around every call.

    Args:
        max_items: how many items may wait.
    """

    def __init__(self, max_items: int = DEFAULT_MAX_WAITING) -> None:
        self._max_items = max_items
        self._items: deque[Item[WorkT, ResultT]] = deque()
        self._seconds_per_pixel = 0.0

    def __len__(self) -> int:
        """Items that wait."""
        return len(self._items)

    @property
    def expected_wait_s(self) -> float:
        """How long the items that wait will take, by what was learnt so far; 0 before anything was."""
        return self._seconds_per_pixel * sum(item.pixels for item in self._items)

    def admit(self, item: Item[WorkT, ResultT]) -> None:
        """Let an item wait.

        Raises:
            DeadlineExceededError: its deadline has passed.
            QueueFullError: the room is full, or the queue in front alone outlasts the item's deadline;
                the advice is the time in which the present queue will be gone.
        """
        if item.admitted_s >= item.deadline_s:
            raise DeadlineExceededError("the deadline passed before the request was queued")
        wait_s = self.expected_wait_s
        if len(self._items) >= self._max_items or item.admitted_s + wait_s > item.deadline_s:
            raise QueueFullError(f"{len(self._items)} requests are waiting", retry_after_s=wait_s)
        self._items.append(item)

    def take(self, *, now_s: float) -> Item[WorkT, ResultT] | None:
        """Remove and begin the oldest item that somebody still waits for; None when there is none."""
        while self._items:
            item = self._items.popleft()
            if item.claim(now_s):
                return item
        return None

    def withdraw(self, future: Future[ResultT]) -> None:
        """Forget the item of a future, and with it its pixels, if it still waits."""
        self._items = deque(item for item in self._items if item.future is not future)

    def learn(self, *, pixels: int, duration_s: float) -> None:
        """Take note of how long the device was busy with one item."""
        newest = duration_s / pixels
        if not self._seconds_per_pixel:
            self._seconds_per_pixel = newest
        self._seconds_per_pixel += _SMOOTHING * (newest - self._seconds_per_pixel)
