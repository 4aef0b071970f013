"""What waits in front of a device, lane by lane: whose turn it is, and how much there is to do."""

from __future__ import annotations

import math
from collections import Counter, defaultdict, deque
from collections.abc import Collection, Hashable, Mapping
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


class Lane(IntEnum):
    """What goes first when more waits than the device can do; the lowest number goes first."""

    INTERACTIVE = 0
    STREAM = 1
    BULK = 2


@dataclass(frozen=True)
class BatchLimits:
    """How much an engine is given at once.

    Args:
        max_items: pictures in a batch; 1 where a batch gains nothing, as on a CPU.
        max_pixels: of all pictures of a batch together, padding included; a single larger one is no batch
            and goes all the same.
    """

    max_items: int = 1
    max_pixels: int = 1 << 62


@dataclass(frozen=True)
class BatchKey:
    """What the items of one batch have in common.

    Args:
        model: the version and the kind of answer; all that has an equal one takes equally long per pixel.
        size: of the padded pictures.
        limits: of the engine that runs them.
    """

    model: Hashable
    size: ImageSize
    limits: BatchLimits = BatchLimits()

    @property
    def full_batch(self) -> int:
        """How many items make a full batch."""
        return max(1, min(self.limits.max_items, self.limits.max_pixels // self.size.pixels))

    def alone(self) -> BatchKey:
        """Return the key of an item that shares its batch with no other."""
        return replace(self, limits=BatchLimits())


@dataclass(eq=False)
class Item(Generic[WorkT, ResultT]):
    """One piece of work that somebody waits for.

    Args:
        work: what the worker needs; opaque here.
        key: what it may share a batch with.
        admitted_s: when it came, on the clock of the batcher's ``now_s``; of one with a reserved place,
            first when that was asked for, and then when it was ready to wait.
        deadline_s: when nobody waits for it any more, on the same clock.
        lane: how urgent it is compared with others.
        source: who sent it; inside a lane the sources take turns. None = nobody in particular: all of these
            together count as one.
        pictures: of ``key.size``, that it consists of; they are not torn apart.
        span: of its request; None = the request is not traced.
        future: where the answer goes; cancelling it withdraws the item.
        was_requeued: a worker died before it began this item.
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

    def claim(self) -> bool:
        """Begin the item, so that it can not be cancelled any more; False when it has been cancelled."""
        return self.future.running() or self.future.set_running_or_notify_cancel()

    def expire(self) -> None:
        """Answer that the time is up, unless the item has been cancelled."""
        if self.claim():
            self.future.set_exception(
                DeadlineExceededError("the deadline passed while the request was queued")
            )


@dataclass
class _Load:
    """Work of one model; whole numbers, so that nothing is left over after any number of changes."""

    pixels: int = 0
    batches: int = 0


_Line = dict[BatchKey, deque[Item[WorkT, ResultT]]]
"""What waits of one source, by key; who came first is first."""


class LaneQueue(Generic[WorkT, ResultT]):
    """What waits in one lane. Sources take turns; of one source, who came first is first."""

    def __init__(self) -> None:
        self._lines: dict[Hashable, _Line[WorkT, ResultT]] = {}  # in the order of their turns
        self._per_source: Counter[Hashable] = Counter()
        self._per_key: Counter[BatchKey] = Counter()
        self._loads: defaultdict[Hashable, _Load] = defaultdict(_Load)  # by model
        self._places = 0
        self._length = 0

    def __len__(self) -> int:
        """Items that wait."""
        return self._length

    @property
    def places(self) -> int:
        """Items that wait or will."""
        return self._places

    @property
    def sources(self) -> Collection[Hashable]:
        """Of whom items wait or will."""
        return self._per_source

    def places_of(self, source: Hashable) -> int:
        """Return how many items of a source wait or will."""
        return self._per_source[source]

    def has_full_batch(self, key: BatchKey) -> bool:
        """Return whether enough items of a key wait."""
        return sum(len(line.get(key, ())) for line in self._lines.values()) >= key.full_batch

    def reserve(self, item: Item[WorkT, ResultT]) -> None:
        """Count an item that will wait."""
        self._count(item, 1)

    def release(self, item: Item[WorkT, ResultT]) -> None:
        """Forget an item that will not wait after all, or does so now."""
        self._count(item, -1)

    def add(self, item: Item[WorkT, ResultT]) -> None:
        """Let an item wait behind those of its source."""
        self._line(item).append(item)
        self._count(item, 1)
        self._length += 1

    def put_back(self, item: Item[WorkT, ResultT]) -> None:
        """Let an item that was taken wait before those of its source."""
        self._line(item).appendleft(item)
        self._count(item, 1)
        self._length += 1

    def remove(self, item: Item[WorkT, ResultT]) -> None:
        """Forget an item that waits; its source keeps its turn, for a newer frame may follow the older."""
        line = self._lines[item.source]
        line[item.key].remove(item)
        if not line[item.key]:
            del line[item.key]
        self._count(item, -1)
        self._length -= 1
        if not self._length:
            self._lines.clear()

    def end_turn(self, source: Hashable) -> None:
        """Let all other sources go before this one."""
        line = self._lines.pop(source, None)
        if line:
            self._lines[source] = line

    def leader(self) -> Item[WorkT, ResultT]:
        """Return the oldest item of the source whose turn it is; only while something waits."""
        while not (line := next(iter(self._lines.values()))):
            del self._lines[next(iter(self._lines))]
        return min((items[0] for items in line.values()), key=lambda item: item.admitted_s)

    def mates(self, key: BatchKey) -> list[Item[WorkT, ResultT]]:
        """Return what may share a batch: one item of each source in turn, then the next of each."""
        lines = [line[key] for line in self._lines.values() if key in line]
        return [item for turn in zip_longest(*lines) for item in turn if item is not None]

    def work_s(self, paces: Mapping[Hashable, LatencyModel]) -> float:
        """Return how long all that waits or will wait keeps the device busy."""
        return sum(
            paces[model].predict(load.pixels, batches=load.batches) for model, load in self._loads.items()
        )

    def work_until_s(self, item: Item[WorkT, ResultT], paces: Mapping[Hashable, LatencyModel]) -> float:
        """Return how long the device will be busy until it has done an item that is not counted yet.

        Of other sources counts what their turns allow: as many items as this one's source would have. Behind
        a full batch, the item's own will be full too when it leaves: others join it until then.
        """
        waiting, limit = self._per_key[item.key], item.key.full_batch
        pictures = limit - waiting % limit if waiting >= limit > 1 else item.pictures
        batches = 0 if waiting % limit else 1
        own_s = paces[item.key.model].predict(pictures * item.key.size.pixels, batches=batches)
        return own_s + self.work_before_s(item.source, paces)

    def work_before_s(self, source: Hashable, paces: Mapping[Hashable, LatencyModel]) -> float:
        """Return how long the device will be busy with this lane before the next item of a source."""
        return self.work_s(paces) * self._share_before(source)

    def _share_before(self, source: Hashable) -> float:
        turns = self._per_source[source] + 1
        return sum(min(waiting, turns) for waiting in self._per_source.values()) / max(1, self._places)

    def _line(self, item: Item[WorkT, ResultT]) -> deque[Item[WorkT, ResultT]]:
        return self._lines.setdefault(item.source, {}).setdefault(item.key, deque())

    def _count(self, item: Item[WorkT, ResultT], step: int) -> None:
        waiting, limit = self._per_key[item.key], item.key.full_batch
        load = self._loads[item.key.model]
        load.pixels += step * item.pixels
        load.batches += math.ceil((waiting + step) / limit) - math.ceil(waiting / limit)
        self._places += step
        self._per_key[item.key] += step
        self._per_source[item.source] += step
        if step < 0:
            self._forget_nothings(item)

    def _forget_nothings(self, item: Item[WorkT, ResultT]) -> None:
        if not self._per_key[item.key]:
            del self._per_key[item.key]
        if not self._per_source[item.source]:
            del self._per_source[item.source]
        if not self._loads[item.key.model].pixels:
            del self._loads[item.key.model]
