"""The scheduler in front of a device: pure rules under a virtual clock; no thread, no timer.

Nothing is ever delayed to fill a batch: while the device works, the next batch forms, and it leaves the
moment the device is free. Who came first goes first, unless a more urgent lane or another source's turn comes
between: nothing that comes later from the same source can break what was promised when an item was admitted.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Generic

from service.core.errors import (
    DeadlineExceededError,
    NoWorkerError,
    QueueFullError,
    RateLimitedError,
    ServiceError,
)
from service.core.scheduling.lane_queue import BatchKey, BatchLimits, Item, Lane, LaneQueue, ResultT, WorkT
from service.core.scheduling.latency_model import LatencyModel

__all__ = ["DEFAULT_MAX_WAITING", "Batch", "BatchKey", "BatchLimits", "Item", "Lane", "Scheduler"]

DEFAULT_MAX_WAITING = 256

_SHARES = {Lane.INTERACTIVE: 1.0, Lane.STREAM: 0.5, Lane.BULK: 0.25}
"""Of the places, how many a lane may fill together with the lanes behind it."""

_SOURCE_SHARE = 0.25
"""Of the places, how many one source may fill; of the interactive ones at least its fair share, and all if it
is alone: behind a proxy it may be everybody."""

_LATECOMERS_SHARE = 8
"""One place for so many, beyond all others, for interactive sources of which nothing waits: who fills the
room while he is alone does not keep others out."""

_SPREADS = 3.0
"""How many average deviations longer than predicted a wait may turn out. On a device with 10 % noise, twice
overloaded, with deadlines of five durations, 8 % of what was admitted came too late without this, and 0.5 %
with it, at the same number of answers in time."""

_PATIENCE_S = {Lane.STREAM: 0.1, Lane.BULK: 1.0}
"""How long a lane is passed over at most; then one batch of it goes first."""


@dataclass(frozen=True, eq=False)
class Batch(Generic[WorkT, ResultT]):
    """Items that go to the device together: of one key and one lane, begun, not cancellable any more.

    Attributes:
        items: at least one.
        lane: theirs.
        pixels: of all of them.
        expected_s: how long the device will be busy with them, by what was learnt; 0 before anything was.
    """

    items: tuple[Item[WorkT, ResultT], ...]
    lane: Lane
    pixels: int
    expected_s: float

    @property
    def key(self) -> BatchKey:
        """What its items have in common."""
        return self.items[0].key


class Scheduler(Generic[WorkT, ResultT]):
    """Bounded waiting room that admits only what can be answered in time, and says what goes next.

    Each admitted item is answered exactly once: by the caller, once it is in a batch; by the batcher, when
    its time is up; or by whoever cancels its future.

    A refusal should come before anything is spent on the request: ``reserve`` decides as ``admit`` does, as
    soon as the size of a picture is known, and what has a place is not asked again.

    Not thread-safe: its owner holds a lock around every call.

    Args:
        max_items: how many items may wait; an eighth more of interactive sources of which no other item does.
    """

    def __init__(self, max_items: int = DEFAULT_MAX_WAITING) -> None:
        self._max_items = max_items
        self._lanes: dict[Lane, LaneQueue[WorkT, ResultT]] = {lane: LaneQueue() for lane in Lane}
        self._passed_over_since_s = dict.fromkeys(Lane, 0.0)
        self._waiting: dict[Future[ResultT], Item[WorkT, ResultT]] = {}
        self._reserved: dict[Future[ResultT], Item[WorkT, ResultT]] = {}
        self._paces: defaultdict[Hashable, LatencyModel] = defaultdict(LatencyModel)
        self._running: list[Batch[WorkT, ResultT]] = []
        self._free_at_s = 0.0

    def __len__(self) -> int:
        """Items that wait, or will once they are ready for the device."""
        return len(self._waiting) + len(self._reserved)

    def expected_wait_s(self, *, now_s: float) -> float:
        """Return in how many seconds all that runs and waits will be done, by what was learnt."""
        return self._busy_s(now_s) + sum(queue.work_s(self._paces) for queue in self._lanes.values())

    def check(
        self, lane: Lane, model: Hashable, *, now_s: float, deadline_s: float, source: Hashable = None
    ) -> None:
        """Refuse what ``reserve`` would refuse even if it were as small as the smallest of late.

        Under overload even to receive a picture takes time from those that were admitted.

        Args:
            lane: its lane.
            model: of its key.
            now_s: when it came.
            deadline_s: when nobody waits for it any more.
            source: its source.

        Raises:
            QueueFullError: as ``admit``.
            RateLimitedError: as ``admit``.
        """
        pace = self._paces.get(model, LatencyModel())
        wait_s = self._wait_s(lane, now_s) + self._lanes[lane].work_before_s(source, self._paces)
        ready_s = now_s + _with_margin(wait_s, pace.least_s(), pace)
        self._check_place(lane, source, now_s)
        if not (self._is_idle or ready_s <= deadline_s):
            raise self._too_late(now_s)

    def reserve(self, item: Item[WorkT, ResultT]) -> None:
        """Promise a place to an item whose picture is not ready for the device yet.

        ``admit`` or ``withdraw`` follows; cancelling the future is not enough.

        Raises:
            ServiceError: as ``admit``.
        """
        self._check(item)
        self._lanes[item.lane].reserve(item)
        self._reserved[item.future] = item

    def admit(self, item: Item[WorkT, ResultT]) -> None:
        """Let an item wait; one that has a place is not refused, and one that was answered is ignored.

        Raises:
            DeadlineExceededError: its deadline has passed.
            QueueFullError: there is no place, or what goes first outlasts the item's deadline; the advice is
                the time in which everything that waits now will be gone.
            RateLimitedError: its source has filled its share of the places.
        """
        queue = self._lanes[item.lane]
        if self._reserved.pop(item.future, None):
            queue.release(item)
        elif not item.future.done():
            self._check(item)
        if item.future.done():
            return
        if not queue:
            self._passed_over_since_s[item.lane] = item.admitted_s
        queue.add(item)
        self._waiting[item.future] = item

    def take(self, *, now_s: float) -> Batch[WorkT, ResultT] | None:
        """Remove and begin what the device should do next; None when nothing waits.

        Items that were cancelled or can not be answered in time any more are dropped, the latter answered
        with ``DeadlineExceededError``. The caller runs the batch, answers its items, and calls ``finish``.

        It may ask for a second batch while one is running, so that the device need not wait for it to travel.
        It gets none that others might still join, and none of the bulk lane, before which others might go.
        """
        late: list[Item[WorkT, ResultT]] = []
        batch = self._next_batch(now_s, late)
        for item in late:  # not before: whoever hears of it may come back at once
            item.expire()
        return batch

    def finish(self, batch: Batch[WorkT, ResultT], *, now_s: float, duration_s: float | None = None) -> None:
        """Take note that the device is done with a batch, or will never be.

        Args:
            batch: what ``take`` returned.
            now_s: when.
            duration_s: how long the device was busy with it; None = nothing can be learnt from it.
        """
        self._running.remove(batch)
        self._free_at_s = now_s + sum(other.expected_s for other in self._running)
        if duration_s is not None:
            self._paces[batch.key.model].learn(pixels=batch.pixels, duration_s=duration_s)

    def requeue(self, items: Sequence[Item[WorkT, ResultT]]) -> None:
        """Let items wait again, in front, that a worker had taken but not begun when it died.

        An item to which this happens a second time is answered with ``NoWorkerError``. Nothing can cancel the
        others any more; their deadlines still hold. They do not count as one too many.
        """
        for item in reversed(items):
            if item.was_requeued:
                item.future.set_exception(NoWorkerError("two workers died before they began the request"))
            else:
                item.was_requeued = True
                self._lanes[item.lane].put_back(item)
                self._waiting[item.future] = item

    def withdraw(self, future: Future[ResultT]) -> None:
        """Forget the item of a future, and with it its pixels or its place, if it still waits or will."""
        if item := self._waiting.get(future):
            self._remove(item)
        elif item := self._reserved.pop(future, None):
            self._lanes[item.lane].release(item)

    def abandon(self, failure: Callable[[], ServiceError]) -> None:
        """Answer everything that waits or will with an error of its own, because nobody will run it.

        Args:
            failure: makes the error of one item.
        """
        abandoned = (*self._waiting.values(), *self._reserved.values())
        for item in abandoned:
            self.withdraw(item.future)
        for item in abandoned:
            if item.claim():
                item.future.set_exception(failure())

    def _check(self, item: Item[WorkT, ResultT]) -> None:
        now_s = item.admitted_s
        if now_s >= item.deadline_s:
            raise DeadlineExceededError("the deadline passed before the request was queued")
        self._check_place(item.lane, item.source, now_s)
        if not self._is_in_time(item):
            raise self._too_late(now_s)

    def _too_late(self, now_s: float) -> QueueFullError:
        queue = _are_waiting(len(self)) if len(self) else "the device is busy"
        message = (
            f"the answer would come after the deadline, because {queue}: try again later or allow more time"
        )
        return QueueFullError(message, retry_after_s=self.expected_wait_s(now_s=now_s))

    @property
    def _is_idle(self) -> bool:
        return not len(self) and not self._running

    def _busy_s(self, now_s: float) -> float:
        return max(0.0, self._free_at_s - now_s) if self._running else 0.0

    def _check_place(self, lane: Lane, source: Hashable, now_s: float) -> None:
        behind = sum(queue.places for other, queue in self._lanes.items() if other >= lane)
        share, more = self._share_of(lane, source)
        if len(self) >= self._max_items + more or behind >= max(1.0, _SHARES[lane] * self._max_items) + more:
            message = f"the queue is full, {_are_waiting(len(self))}: try again later"
            raise QueueFullError(message, retry_after_s=self.expected_wait_s(now_s=now_s))
        of_source = 0 if source is None else self._lanes[lane].places_of(source)
        if of_source >= max(1.0, share * self._max_items):
            message = f"{_are_waiting(of_source)} from this client, and more may not: await an answer first"
            raise RateLimitedError(message, retry_after_s=self.expected_wait_s(now_s=now_s))

    def _share_of(self, lane: Lane, source: Hashable) -> tuple[float, int]:
        """Return which share of the places a source may fill, and how many there are for it beyond all."""
        if lane is not Lane.INTERACTIVE or source is None:
            return _SOURCE_SHARE, 0
        sources = self._lanes[lane].sources
        if source in sources:
            return max(_SOURCE_SHARE, 1 / len(sources)), 0
        return max(_SOURCE_SHARE, 1 / (1 + len(sources))), self._max_items // _LATECOMERS_SHARE

    def _is_in_time(self, item: Item[WorkT, ResultT]) -> bool:
        """Predict; but what an idle device is given costs nobody anything, and refutes a wrong prediction."""
        if self._is_idle:
            return True
        pace = self._paces[item.key.model]
        wait_s = self._wait_s(item.lane, item.admitted_s)
        wait_s += self._lanes[item.lane].work_until_s(item, self._paces)
        own_s = pace.predict(item.pixels)
        return item.admitted_s + _with_margin(wait_s - own_s, own_s, pace) <= item.deadline_s

    def _wait_s(self, lane: Lane, now_s: float) -> float:
        """Return how long the device is busy with what runs, and with the lanes that go first."""
        first = (queue.work_s(self._paces) for other, queue in self._lanes.items() if other < lane)
        return self._busy_s(now_s) + sum(first)

    def _next_batch(self, now_s: float, late: list[Item[WorkT, ResultT]]) -> Batch[WorkT, ResultT] | None:
        while (lane := self._next_lane(now_s)) is not None:
            if self._running and not self._may_be_staged(lane):
                return None
            items = self._form(self._lanes[lane], now_s, late)
            if items:
                return self._begin(items, lane, now_s)
        return None

    def _next_lane(self, now_s: float) -> Lane | None:
        lanes = [lane for lane in Lane if self._lanes[lane]]
        for lane in lanes:
            if now_s - self._passed_over_since_s[lane] > _PATIENCE_S.get(lane, math.inf):
                return lane
        return lanes[0] if lanes else None

    def _may_be_staged(self, lane: Lane) -> bool:
        queue = self._lanes[lane]
        return lane is not Lane.BULK and queue.has_full_batch(queue.leader().key)

    def _form(
        self, queue: LaneQueue[WorkT, ResultT], now_s: float, late: list[Item[WorkT, ResultT]]
    ) -> list[Item[WorkT, ResultT]]:
        starts_s = now_s + self._busy_s(now_s)
        leader = queue.leader()
        in_time = []
        for item in queue.mates(leader.key) if leader.key.full_batch > 1 else [leader]:
            if self._is_late(item, now_s, starts_s):
                self._remove(item)
                late.append(item)
            else:
                in_time.append(item)
        chosen = _choose(in_time, self._paces[leader.key.model], starts_s) if in_time else []
        for item in chosen:
            self._remove(item)
            queue.end_turn(item.source)
        return [item for item in chosen if item.claim()]

    def _is_late(self, item: Item[WorkT, ResultT], now_s: float, starts_s: float) -> bool:
        """Return whether an item will not be in time; the last one is tried: predictions may be wrong."""
        if now_s >= item.deadline_s:
            return True
        ready_s = starts_s + self._paces[item.key.model].predict(item.pixels)
        return ready_s > item.deadline_s and len(self) > 1

    def _begin(self, items: list[Item[WorkT, ResultT]], lane: Lane, now_s: float) -> Batch[WorkT, ResultT]:
        pixels = sum(item.pixels for item in items)
        expected_s = self._paces[items[0].key.model].predict(pixels)
        batch = Batch(tuple(items), lane, pixels, expected_s)
        self._free_at_s = now_s + self._busy_s(now_s) + expected_s
        self._running.append(batch)
        self._passed_over_since_s[lane] = now_s
        return batch

    def _remove(self, item: Item[WorkT, ResultT]) -> None:
        del self._waiting[item.future]
        self._lanes[item.lane].remove(item)


def _are_waiting(count: int) -> str:
    return "1 request is waiting" if count == 1 else f"{count} requests are waiting"


def _choose(
    items: Sequence[Item[WorkT, ResultT]], pace: LatencyModel, starts_s: float
) -> Sequence[Item[WorkT, ResultT]]:
    """Return the next batch of items that share a key: the first ones, as many as can all be in time.

    When that is no full batch, and those who are left out would be too late in the next one, somebody is lost
    anyway. Then the items with most time left go first if they make a larger batch, since more of them are
    answered in the same time; otherwise old items would keep batches small for as long as the overload lasts.
    """
    first = _as_many_as_fit(items, pace, starts_s)
    rest = items[len(first) : len(first) + items[0].key.full_batch]
    if not rest or len(first) == items[0].key.full_batch:
        return first
    ready_s = starts_s + sum(pace.predict(len(batch) * items[0].pixels) for batch in (first, rest))
    if ready_s <= min(item.deadline_s for item in rest):
        return first
    patient = sorted(items, key=lambda item: item.deadline_s, reverse=True)
    return max(first, _as_many_as_fit(patient, pace, starts_s), key=len)


def _as_many_as_fit(
    items: Sequence[Item[WorkT, ResultT]], pace: LatencyModel, starts_s: float
) -> Sequence[Item[WorkT, ResultT]]:
    """Return the longest beginning, at least one item, that is ready before the deadline of each."""
    until_s = math.inf
    full = items[: items[0].key.full_batch]
    for count, item in enumerate(full):
        until_s = min(until_s, item.deadline_s)
        if count and starts_s + pace.predict((count + 1) * item.pixels) > until_s:
            return items[:count]
    return full


def _with_margin(wait_s: float, own_s: float, pace: LatencyModel) -> float:
    """Return when an item will be done: deviations of the many durations before it add up as squares."""
    done_s = wait_s + own_s
    return done_s + (_SPREADS * pace.spread * own_s * math.sqrt(done_s / own_s) if own_s else 0.0)
