"""Items that wait for a device in one lane: their order, and the work they make."""

from __future__ import annotations

import math
from collections import Counter, defaultdict, deque
from collections.abc import Hashable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from enum import IntEnum
from itertools import zip_longest
from typing import Generic, TypeVar

from model.pictures.preprocess import ImageSize
from service.core.errors import DeadlineExceededError
from service.core.scheduling.latency_model import LatencyModel
from service.spans import RequestSpan

WorkT = TypeVar("WorkT")
ResultT = TypeVar("ResultT")

LatencyModels = Mapping[Hashable, LatencyModel]
"""Latency model by ``BatchKey.model``."""


class Lane(IntEnum):
    """Level of urgency; the lowest number goes first."""

    INTERACTIVE = 0
    STREAM = 1
    BULK = 2


@dataclass(frozen=True)
class BatchLimits:
    """Size limits of a batch.

    Args:
        max_items: pictures in a batch; 1 where a batch gains nothing, as on a CPU.
        max_pixels: of all pictures of a batch, padding included; a larger picture runs alone.
    """

    max_items: int = 1
    max_pixels: int = 1 << 62


@dataclass(frozen=True)
class BatchKey:
    """The properties that all items of one batch share.

    Args:
        model: version and kind of result; items with equal ones share a latency model.
        size: of the padded pictures.
        limits: of a batch.
    """

    model: Hashable
    size: ImageSize
    limits: BatchLimits = BatchLimits()

    @property
    def full_batch(self) -> int:
        """Number of items in a full batch."""
        return max(1, min(self.limits.max_items, self.limits.max_pixels // self.size.pixels))

    def alone(self) -> BatchKey:
        """Return the key of an item that shares its batch with no other."""
        return replace(self, limits=BatchLimits())


@dataclass(eq=False)
class Item(Generic[WorkT, ResultT]):
    """One unit of work that a client waits for.

    Args:
        work: opaque here.
        key: decides which items may share a batch.
        admitted_s: arrival, on the scheduler's clock; of a reserved item first the time of the reservation,
            then the time at which it became ready for the device.
        deadline_s: time after which the result is no longer needed, on the same clock.
        lane: how urgent it is.
        source: client or stream that sent it; sources of a lane are served in turn. None counts as one.
        pictures: number of pictures of ``key.size`` in it; they stay together.
        span: of its request; None = the request is not traced.
        future: receives the result; cancelling it withdraws the item.
        was_requeued: a worker died before it started the item.
    """

    work: WorkT
    key: BatchKey
    admitted_s: float
    deadline_s: float
    lane: Lane = Lane.INTERACTIVE
    source: Hashable = None
    pictures: int = 1
    span: RequestSpan | None = None
    future: Future[ResultT] = field(default_factory=Future)
    was_requeued: bool = False

    def __post_init__(self) -> None:
        """Count the pixels once."""
        self.pixels = self.pictures * self.key.size.pixels

    def try_start(self) -> bool:
        """Mark the item as running, so that it cannot be cancelled; False if it was cancelled before."""
        return self.future.running() or self.future.set_running_or_notify_cancel()

    def expire(self) -> None:
        """Answer that the deadline has passed, unless the item was cancelled."""
        if self.try_start():
            self.future.set_exception(
                DeadlineExceededError("the deadline passed while the request was queued")
            )


@dataclass
class _Work:
    """Work for one model; integers, so that additions and subtractions leave no rest."""

    pixels: int = 0
    batches: int = 0


_SourceItems = dict[BatchKey, deque[Item[WorkT, ResultT]]]
"""Waiting items of one source by key, oldest first."""


class LaneQueue(Generic[WorkT, ResultT]):
    """The items of one lane. Sources are served in turn; the items of one source in the order of arrival.

    Attributes:
        num_items: number of waiting and reserved items; to be read only.
        num_items_of: the same by source; has no source without an item; to be read only.
    """

    def __init__(self) -> None:
        self._by_source: dict[Hashable, _SourceItems[WorkT, ResultT]] = {}  # the next source first
        self.num_items_of: Counter[Hashable] = Counter()
        self._per_key: Counter[BatchKey] = Counter()
        self._work: defaultdict[Hashable, _Work] = defaultdict(_Work)  # by model
        self.num_items = 0
        self._length = 0

    def __len__(self) -> int:
        """Number of waiting items."""
        return self._length

    def has_full_batch(self, key: BatchKey) -> bool:
        """Return whether the waiting items of a key make a full batch."""
        return sum(len(items.get(key, ())) for items in self._by_source.values()) >= key.full_batch

    def add_reserved(self, item: Item[WorkT, ResultT]) -> None:
        """Count an item that will wait later."""
        self._count(item, 1)

    def remove_reserved(self, item: Item[WorkT, ResultT]) -> None:
        """Stop counting a reserved item."""
        self._count(item, -1)

    def add(self, item: Item[WorkT, ResultT]) -> None:
        """Add an item behind those of its source."""
        self._items_like(item).append(item)
        self._count(item, 1)
        self._length += 1

    def add_first(self, item: Item[WorkT, ResultT]) -> None:
        """Add an item in front of those of its source."""
        self._items_like(item).appendleft(item)
        self._count(item, 1)
        self._length += 1

    def remove(self, item: Item[WorkT, ResultT]) -> None:
        """Remove a waiting item; its source keeps its turn, since a newer frame may replace an older one."""
        of_source = self._by_source[item.source]
        of_source[item.key].remove(item)
        if not of_source[item.key]:
            del of_source[item.key]
        self._count(item, -1)
        self._length -= 1
        if not self._length:
            self._by_source.clear()

    def move_source_last(self, source: Hashable) -> None:
        """Serve all other sources before this one."""
        items = self._by_source.pop(source, None)
        if items:
            self._by_source[source] = items

    def first_item(self) -> Item[WorkT, ResultT]:
        """Return the oldest item of the next source; only while items wait."""
        while not (items := next(iter(self._by_source.values()))):
            del self._by_source[next(iter(self._by_source))]
        return min((of_key[0] for of_key in items.values()), key=lambda item: item.admitted_s)

    def items_of(self, key: BatchKey) -> list[Item[WorkT, ResultT]]:
        """Return the waiting items of a key: one of each source in turn, then the next one of each."""
        by_source = [items[key] for items in self._by_source.values() if key in items]
        return [item for turn in zip_longest(*by_source) for item in turn if item is not None]

    def work_s(self, latencies: LatencyModels) -> float:
        """Return how long waiting and reserved items keep the device busy, in seconds."""
        return sum(
            latencies[model].predict(work.pixels, batches=work.batches) for model, work in self._work.items()
        )

    def work_until_s(self, item: Item[WorkT, ResultT], latencies: LatencyModels) -> float:
        """Return how long this lane keeps the device busy until a new item is done, in seconds.

        Of other sources as many items count as their turns allow. Behind a full batch, the batch of the new
        item is taken as full, since others join it until it starts.
        """
        waiting, limit = self._per_key[item.key], item.key.full_batch
        pictures = limit - waiting % limit if waiting >= limit > 1 else item.pictures
        batches = 0 if waiting % limit else 1
        own_s = latencies[item.key.model].predict(pictures * item.key.size.pixels, batches=batches)
        return own_s + self.work_before_s(item.source, latencies)

    def work_before_s(self, source: Hashable, latencies: LatencyModels) -> float:
        """Return how long this lane keeps the device busy before a new item of a source, in seconds."""
        return self.work_s(latencies) * self._share_before(source)

    def _share_before(self, source: Hashable) -> float:
        turns = self.num_items_of[source] + 1
        return sum(min(count, turns) for count in self.num_items_of.values()) / max(1, self.num_items)

    def _items_like(self, item: Item[WorkT, ResultT]) -> deque[Item[WorkT, ResultT]]:
        return self._by_source.setdefault(item.source, {}).setdefault(item.key, deque())

    def _count(self, item: Item[WorkT, ResultT], step: int) -> None:
        count, limit = self._per_key[item.key], item.key.full_batch
        work = self._work[item.key.model]
        work.pixels += step * item.pixels
        work.batches += math.ceil((count + step) / limit) - math.ceil(count / limit)
        self.num_items += step
        self._per_key[item.key] += step
        self.num_items_of[item.source] += step
        if step < 0:
            self._delete_zeros(item)

    def _delete_zeros(self, item: Item[WorkT, ResultT]) -> None:
        if not self._per_key[item.key]:
            del self._per_key[item.key]
        if not self.num_items_of[item.source]:
            del self.num_items_of[item.source]
        if not self._work[item.key.model].pixels:
            del self._work[item.key.model]
