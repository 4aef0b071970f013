"""The scheduler of a device: decides which items are admitted, go next, and expire. No thread, no clock.

No batch is delayed to fill it: while the device works, the next batch forms, and it starts when the device
is free. The oldest item goes first, except for a more urgent lane or another source's turn. So later items of
the same source cannot delay an item that was admitted.
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

_LANE_SHARES = {Lane.INTERACTIVE: 1.0, Lane.STREAM: 0.5, Lane.BULK: 0.25}
"""Share of the queue that a lane may fill together with the less urgent ones."""

_SOURCE_SHARE = 0.25
"""Share of the queue that one source may fill. An interactive source may fill its fair share, and all of the
queue while it is alone: one proxy may stand for all clients."""

_NEW_SOURCE_SHARE = 8
"""An eighth of the queue is added to it for interactive sources without an item: a source that filled the
queue while it was alone does not lock others out."""

_MARGIN_DEVIATIONS = 3.0
"""Average deviations by which a wait may exceed its estimate. On a device with 10 % noise at twofold
overload, with deadlines of five durations, 8 % of the admitted items came too late without this margin and
0.5 % with it, at the same number of results in time."""

_MAX_LANE_WAIT_S = {Lane.STREAM: 0.1, Lane.BULK: 1.0}
"""Time after which one batch of a less urgent lane goes first."""


@dataclass(frozen=True, eq=False)
class Batch(Generic[WorkT, ResultT]):
    """Items that go to the device together; they cannot be cancelled any more.

    Attributes:
        items: at least one, all of one key.
        lane: of all items.
        pixels: of all items, padding included.
        expected_s: estimated duration, in seconds; 0 = unknown.
    """

    items: tuple[Item[WorkT, ResultT], ...]
    lane: Lane
    pixels: int
    expected_s: float

    @property
    def key(self) -> BatchKey:
        """Key of all items."""
        return self.items[0].key


class Scheduler(Generic[WorkT, ResultT]):
    """Bounded queue that admits only items that can be answered in time, and forms batches of them.

    Each admitted item is answered exactly once: by the caller when it is in a batch, by the scheduler when it
    expires, or by cancelling its future.

    Refusing early saves the most work. ``reserve_items`` decides like ``admit_item`` when only the size of a
    picture is known; a reserved item is not refused later.

    Not thread-safe: its owner holds a lock around every call.

    Args:
        max_items: items that may wait; an eighth is added for interactive sources without an item.
    """

    def __init__(self, max_items: int = DEFAULT_MAX_WAITING) -> None:
        self._max_items = max_items
        self._lanes: dict[Lane, LaneQueue[WorkT, ResultT]] = {lane: LaneQueue() for lane in Lane}
        self._lane_waits_since_s = dict.fromkeys(Lane, 0.0)
        self._waiting: dict[Future[ResultT], Item[WorkT, ResultT]] = {}
        self._reserved: dict[Future[ResultT], Item[WorkT, ResultT]] = {}
        self._latencies: defaultdict[Hashable, LatencyModel] = defaultdict(LatencyModel)
        self._running: list[Batch[WorkT, ResultT]] = []
        self._free_at_s = 0.0

    def __len__(self) -> int:
        """Number of waiting and reserved items."""
        return len(self._waiting) + len(self._reserved)

    def expected_wait_s(self, *, now_s: float) -> float:
        """Return the estimated time until everything that runs and waits is done, in seconds."""
        return self._busy_s(now_s) + sum(queue.work_s(self._latencies) for queue in self._lanes.values())

    def check_early(
        self, lane: Lane, model: Hashable, *, now_s: float, deadline_s: float, source: Hashable = None
    ) -> None:
        """Refuse an item of unknown size if ``reserve_items`` would refuse the smallest recent size.

        Under overload, receiving a picture already takes time from the admitted ones.

        Args:
            lane: of the item.
            model: of its key.
            now_s: current time.
            deadline_s: of the item.
            source: of the item.

        Raises:
            QueueFullError: too many items wait, or they outlast the deadline.
            RateLimitedError: too many items of this source wait.
        """
        latency = self._latencies[model]
        wait_s = self._wait_s(lane, now_s) + self._lanes[lane].work_before_s(source, self._latencies)
        ready_s = now_s + _with_margin(wait_s, latency.least_s(), latency)
        self._check_capacity(lane, source, now_s)
        if not (self._is_idle or ready_s <= deadline_s):
            raise self._too_late(now_s)

    def reserve_items(self, items: Sequence[Item[WorkT, ResultT]]) -> None:
        """Reserve places in the queue for items that are not ready for the device yet, or for none of them.

        ``admit_item`` or ``withdraw`` must follow for each; cancelling the future is not enough.

        Args:
            items: one picture, or all tiles of one; of one key, lane and source.

        Raises:
            DeadlineExceededError: the deadline has passed.
            QueueFullError: too many items wait, or they outlast the deadline.
            RateLimitedError: too many items of this source wait.
        """
        is_idle = self._is_idle
        for number, item in enumerate(items):
            try:
                self._check(item, is_idle=is_idle)
            except (QueueFullError, RateLimitedError) as error:
                for reserved in items[:number]:
                    self.withdraw(reserved.future)
                if not number:
                    raise
                wait_s = self.expected_wait_s(now_s=item.admitted_s)
                raise type(error)(_too_few_places(number, len(items)), retry_after_s=wait_s) from None
            self._reserve(item)

    def admit_item(self, item: Item[WorkT, ResultT]) -> None:
        """Queue an item. A reserved one is not refused, one that was answered meanwhile is ignored.

        Raises:
            DeadlineExceededError: the deadline has passed.
            QueueFullError: too many items wait, or they outlast the deadline.
            RateLimitedError: too many items of this source wait.
        """
        queue = self._lanes[item.lane]
        if self._reserved.pop(item.future, None):
            queue.remove_reserved(item)
        elif not item.future.done():
            self._check(item, is_idle=self._is_idle)
        if item.future.done():
            return
        if not queue:
            self._lane_waits_since_s[item.lane] = item.admitted_s
        queue.add(item)
        self._waiting[item.future] = item

    def take_batch(self, *, now_s: float) -> Batch[WorkT, ResultT] | None:
        """Remove and start the items that the device should run next; None if there are none.

        Drops cancelled items, and those that can no longer be answered in time, which fail with
        ``DeadlineExceededError``. The caller runs the batch, answers its items, and calls ``finish_batch``.

        While a batch runs, a second one may be taken, so that the device need not wait for it to travel: only
        a full one, which no other item could join, and none of the bulk lane, before which others may come.
        """
        late: list[Item[WorkT, ResultT]] = []
        batch = self._next_batch(now_s, late)
        for item in late:  # last: callbacks of the future may call this object
            item.expire()
        return batch

    def finish_batch(
        self, batch: Batch[WorkT, ResultT], *, now_s: float, duration_s: float | None = None
    ) -> None:
        """Record that the device is done with a batch, or never will be.

        Args:
            batch: a result of ``take_batch``.
            now_s: current time.
            duration_s: time in which the device was busy with it, in seconds; None = not representative.
        """
        self._running.remove(batch)
        self._free_at_s = now_s + sum(other.expected_s for other in self._running)
        if duration_s is not None:
            self._latencies[batch.key.model].learn(pixels=batch.pixels, duration_s=duration_s)

    def requeue_items(self, items: Sequence[Item[WorkT, ResultT]]) -> None:
        """Queue items again, in front, that a worker had taken but not started when it died.

        The second time an item fails with ``NoWorkerError``. Requeued items cannot be cancelled, their
        deadlines hold, and they do not count against the capacity.
        """
        for item in reversed(items):
            if item.was_requeued:
                item.future.set_exception(NoWorkerError("two workers died before they began the request"))
            else:
                item.was_requeued = True
                self._lanes[item.lane].add_first(item)
                self._waiting[item.future] = item

    def withdraw(self, future: Future[ResultT]) -> None:
        """Remove the item of a future, and with it its pixels, if it waits or is reserved."""
        if item := self._waiting.get(future):
            self._remove(item)
        elif item := self._reserved.pop(future, None):
            self._lanes[item.lane].remove_reserved(item)

    def fail_all(self, error: Callable[[], ServiceError]) -> None:
        """Fail all waiting and reserved items.

        Args:
            error: makes the error of one item.
        """
        items = (*self._waiting.values(), *self._reserved.values())
        for item in items:
            self.withdraw(item.future)
        for item in items:
            if item.try_start():
                item.future.set_exception(error())

    def _reserve(self, item: Item[WorkT, ResultT]) -> None:
        self._lanes[item.lane].add_reserved(item)
        self._reserved[item.future] = item

    def _check(self, item: Item[WorkT, ResultT], *, is_idle: bool) -> None:
        """Refuse an item; an idle device tries it: that delays no other one and corrects the estimate."""
        now_s = item.admitted_s
        if now_s >= item.deadline_s:
            raise DeadlineExceededError("the deadline passed before the request was queued")
        self._check_capacity(item.lane, item.source, now_s)
        if not (is_idle or self._is_in_time(item)):
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

    def _check_capacity(self, lane: Lane, source: Hashable, now_s: float) -> None:
        share, extra = self._share_of(lane, source)
        num_items = sum(queue.num_items for other, queue in self._lanes.items() if other >= lane)
        lane_limit = max(1.0, _LANE_SHARES[lane] * self._max_items) + extra
        if len(self) >= self._max_items + extra or num_items >= lane_limit:
            message = f"the queue is full, {_are_waiting(len(self))}: try again later"
            raise QueueFullError(message, retry_after_s=self.expected_wait_s(now_s=now_s))
        of_source = 0 if source is None else self._lanes[lane].num_items_of[source]
        if of_source >= max(1.0, share * self._max_items):
            message = f"{_are_waiting(of_source)} from this client, and more may not: await an answer first"
            raise RateLimitedError(message, retry_after_s=self.expected_wait_s(now_s=now_s))

    def _share_of(self, lane: Lane, source: Hashable) -> tuple[float, int]:
        """Return the share of the queue that a source may fill, and how many items are allowed beyond it."""
        if lane is not Lane.INTERACTIVE or source is None:
            return _SOURCE_SHARE, 0
        sources = self._lanes[lane].num_items_of
        if source in sources:
            return max(_SOURCE_SHARE, 1 / len(sources)), 0
        return max(_SOURCE_SHARE, 1 / (1 + len(sources))), self._max_items // _NEW_SOURCE_SHARE

    def _is_in_time(self, item: Item[WorkT, ResultT]) -> bool:
        latency = self._latencies[item.key.model]
        wait_s = self._wait_s(item.lane, item.admitted_s)
        wait_s += self._lanes[item.lane].work_until_s(item, self._latencies)
        own_s = latency.predict(item.pixels)
        return item.admitted_s + _with_margin(wait_s - own_s, own_s, latency) <= item.deadline_s

    def _wait_s(self, lane: Lane, now_s: float) -> float:
        """Return how long the running batches and the more urgent lanes keep the device busy, in seconds."""
        urgent = (queue.work_s(self._latencies) for other, queue in self._lanes.items() if other < lane)
        return self._busy_s(now_s) + sum(urgent)

    def _next_batch(self, now_s: float, late: list[Item[WorkT, ResultT]]) -> Batch[WorkT, ResultT] | None:
        while (lane := self._next_lane(now_s)) is not None:
            if self._running and not self._may_follow_running(lane):
                return None
            items = self._form_batch(self._lanes[lane], now_s, late)
            if items:
                return self._start_batch(items, lane, now_s)
        return None

    def _next_lane(self, now_s: float) -> Lane | None:
        lanes = [lane for lane in Lane if self._lanes[lane]]
        for lane in lanes:
            if now_s - self._lane_waits_since_s[lane] > _MAX_LANE_WAIT_S.get(lane, math.inf):
                return lane
        return lanes[0] if lanes else None

    def _may_follow_running(self, lane: Lane) -> bool:
        queue = self._lanes[lane]
        return lane is not Lane.BULK and queue.has_full_batch(queue.first_item().key)

    def _form_batch(
        self, queue: LaneQueue[WorkT, ResultT], now_s: float, late: list[Item[WorkT, ResultT]]
    ) -> list[Item[WorkT, ResultT]]:
        starts_s = now_s + self._busy_s(now_s)
        first = queue.first_item()
        in_time = []
        for item in queue.items_of(first.key) if first.key.full_batch > 1 else [first]:
            if self._is_late(item, now_s, starts_s):
                self._remove(item)
                late.append(item)
            else:
                in_time.append(item)
        chosen = _choose(in_time, self._latencies[first.key.model], starts_s) if in_time else []
        for item in chosen:
            self._remove(item)
            queue.move_source_last(item.source)
        return [item for item in chosen if item.try_start()]

    def _is_late(self, item: Item[WorkT, ResultT], now_s: float, starts_s: float) -> bool:
        """Return whether an item will miss its deadline; the last item is tried: estimates may be wrong."""
        if now_s >= item.deadline_s:
            return True
        ready_s = starts_s + self._latencies[item.key.model].predict(item.pixels)
        return ready_s > item.deadline_s and len(self) > 1

    def _start_batch(
        self, items: list[Item[WorkT, ResultT]], lane: Lane, now_s: float
    ) -> Batch[WorkT, ResultT]:
        pixels = sum(item.pixels for item in items)
        expected_s = self._latencies[items[0].key.model].predict(pixels)
        batch = Batch(tuple(items), lane, pixels, expected_s)
        self._free_at_s = now_s + self._busy_s(now_s) + expected_s
        self._running.append(batch)
        self._lane_waits_since_s[lane] = now_s
        return batch

    def _remove(self, item: Item[WorkT, ResultT]) -> None:
        del self._waiting[item.future]
        self._lanes[item.lane].remove(item)


def _are_waiting(count: int) -> str:
    return "1 request is waiting" if count == 1 else f"{count} requests are waiting"


def _too_few_places(number: int, needed: int) -> str:
    return (
        f"the picture has {needed} tiles, and only {number} of them find a place in the queue and enough "
        "time: try again later, allow more time, or ask for less detail"
    )


def _choose(
    items: Sequence[Item[WorkT, ResultT]], latency: LatencyModel, starts_s: float
) -> Sequence[Item[WorkT, ResultT]]:
    """Return the next batch of items of one key: the first ones, as many as can all be in time.

    If that is no full batch and the others would be late in the next one, some items are lost in any case.
    Then the items with the most time left go first if they make a larger batch: more of them are answered in
    the same time. Otherwise old items would keep batches small for as long as the overload lasts.
    """
    first = _longest_in_time(items, latency, starts_s)
    rest = items[len(first) : len(first) + items[0].key.full_batch]
    if not rest or len(first) == items[0].key.full_batch:
        return first
    ready_s = starts_s + sum(latency.predict(len(batch) * items[0].pixels) for batch in (first, rest))
    if ready_s <= min(item.deadline_s for item in rest):
        return first
    by_time_left = sorted(items, key=lambda item: item.deadline_s, reverse=True)
    return max(first, _longest_in_time(by_time_left, latency, starts_s), key=len)


def _longest_in_time(
    items: Sequence[Item[WorkT, ResultT]], latency: LatencyModel, starts_s: float
) -> Sequence[Item[WorkT, ResultT]]:
    """Return the longest prefix, at least one item, that is done before the deadline of each item."""
    until_s = math.inf
    full = items[: items[0].key.full_batch]
    for count, item in enumerate(full):
        until_s = min(until_s, item.deadline_s)
        if count and starts_s + latency.predict((count + 1) * item.pixels) > until_s:
            return items[:count]
    return full


def _with_margin(wait_s: float, own_s: float, latency: LatencyModel) -> float:
    """Return when an item will be done; independent deviations of the durations before it add as squares."""
    done_s = wait_s + own_s
    return done_s + (
        _MARGIN_DEVIATIONS * latency.spread * own_s * math.sqrt(done_s / own_s) if own_s else 0.0
    )
