"""Everything that can happen to a scheduler, at random, in virtual time, under the eyes of a referee."""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from functools import partial

from benchmarks.simulation import NEVER_S, Clock
from model.pictures.preprocess import ImageSize
from service.core.errors import (
    DeadlineExceededError,
    DrainingError,
    InternalError,
    NoWorkerError,
    QueueFullError,
    RateLimitedError,
    ServiceError,
)
from service.core.scheduling.scheduler import Batch, BatchKey, BatchLimits, Item, Lane, Scheduler

PLACES = {Lane.INTERACTIVE: 1.0, Lane.STREAM: 0.5, Lane.BULK: 0.25}
SOURCE_PLACES = 0.25
LATECOMERS = 8
PATIENCE_S = {Lane.INTERACTIVE: float("inf"), Lane.STREAM: 0.1, Lane.BULK: 1.0}
SOURCES = (None, None, "a", "b", "c")
LANES = (Lane.INTERACTIVE, Lane.INTERACTIVE, Lane.STREAM, Lane.BULK)
SIZES = (ImageSize(32, 32), ImageSize(64, 96), ImageSize(512, 1024))

SimItem = Item[int, int]
SimBatch = Batch[int, int]


class Referee(Scheduler[int, int]):
    """The scheduler, and after each call whether it has kept the rules.

    Args:
        max_items: how many may wait.
        is_calm: no deadline is ever in danger, so that the order can be checked to the letter.
    """

    def __init__(self, max_items: int, *, is_calm: bool) -> None:
        super().__init__(max_items)
        self.present: list[SimItem] = []  # admitted, not taken; in the order of arrival
        self.answers: Counter[SimItem] = Counter()
        self._times_requeued: Counter[SimItem] = Counter()
        self._is_calm = is_calm
        self._passed_since_s = dict.fromkeys(Lane, 0.0)
        self._leaders_since: defaultdict[tuple[Lane, Hashable], set[Hashable]] = defaultdict(set)

    def reserve_items(self, items: Sequence[SimItem]) -> None:
        """Reserve; an idle device refuses no item."""
        is_idle = not len(self) and not self._running
        try:
            super().reserve_items(items)
        except (QueueFullError, RateLimitedError):
            assert not is_idle, "refused although the device is idle"
            raise
        for item in items:
            item.future.add_done_callback(lambda _, item=item: self.answers.update([item]))

    def admit_item(self, item: SimItem) -> None:
        """Admit; an idle device refuses no item, reservations are kept, and no more wait than may."""
        is_idle = not len(self) and not self._running
        was_reserved = item.future in self._reserved
        begins_lane = not self._lanes[item.lane]
        try:
            super().admit_item(item)
        except (QueueFullError, RateLimitedError):
            assert not is_idle, "refused although the device is idle"
            assert not was_reserved, "refused although there was a place"
            raise
        if item.future.done():
            return
        if begins_lane:
            self._passed_since_s[item.lane] = item.admitted_s
        if not any((other.lane, other.source) == (item.lane, item.source) for other in self._open()):
            self._leaders_since[item.lane, item.source].clear()
        self.present.append(item)
        if was_reserved:
            return
        item.future.add_done_callback(lambda _: self.answers.update([item]))
        if not self.requeued:  # otherwise what was taken before may wait as well
            self._check_places(item)

    def take_batch(self, *, now_s: float) -> SimBatch | None:
        """Take; the batch is one, it is the right one, and nothing is left lying."""
        batch = super().take_batch(now_s=now_s)
        if batch is None:
            assert self._running or not self._open(), "the device is free, but nothing was taken"
            return None
        for item in batch.items:
            self.present.remove(item)
            assert item.future.running(), "an item of the batch is not begun"
            assert now_s < item.deadline_s, "begun after its deadline"
        self._check_unity(batch)
        self._check_lane(batch, now_s)
        if self._is_calm:
            self._check_order(batch)
            self._check_turns(batch)
        self._check_books()
        return batch

    def requeue_items(self, items: Sequence[SimItem]) -> None:
        """Requeue; what waits again stands in front."""
        for item in items:
            self._times_requeued[item] += 1
        super().requeue_items(items)
        again = [item for item in items if not item.future.done()]
        assert all(self._times_requeued[item] == 1 for item in again), "requeued for a second time"
        self.present[:0] = again

    def fail_all(self, failure: Callable[[], ServiceError]) -> None:
        """Abandon; nothing is left."""
        super().fail_all(failure)
        assert not self._open()
        assert len(self) == 0

    def check_empty(self) -> None:
        """Everything was answered once, and nothing is remembered of it."""
        assert not self._open()
        assert not self._running
        assert set(self.answers.values()) <= {1}, "answered twice"
        assert len(self) == 0 == self.expected_wait_s(now_s=0.0)
        for queue in self._lanes.values():
            assert not any([queue._by_source, queue._per_key, queue.num_items_of, queue._work, len(queue)])

    @property
    def requeued(self) -> int:
        """How often an item was requeued."""
        return self._times_requeued.total()

    def _check_places(self, item: SimItem) -> None:
        capacity = max(1, self._max_items)
        behind = [other for other in self._open() if other.lane >= item.lane]
        mine = [other for other in behind if (other.lane, other.source) == (item.lane, item.source)]
        more, share = 0, SOURCE_PLACES
        if item.lane is Lane.INTERACTIVE:
            more = capacity // LATECOMERS
            share = max(share, 1 / len(self._lanes[item.lane].num_items_of))
        assert len(self._open()) <= len(self) <= capacity + more
        assert len(behind) <= math.ceil(PLACES[item.lane] * capacity) + more, "a lane fills others' places"
        if item.source is not None:
            assert len(mine) <= math.ceil(share * capacity), "a source fills the places of others"

    def _check_books(self) -> None:
        for lane, queue in self._lanes.items():
            counted = (*self._waiting.values(), *self._reserved.values())
            waiting = [item for item in counted if item.lane is lane]
            pixels: Counter[Hashable] = Counter()
            batches: Counter[Hashable] = Counter()
            for item in waiting:
                pixels[item.key.model] += item.pixels
            for key, count in Counter(item.key for item in waiting).items():
                batches[key.model] += math.ceil(count / key.full_batch)
            assert {model: load.pixels for model, load in queue._work.items()} == pixels
            assert {model: load.batches for model, load in queue._work.items()} == batches

    def _open(self) -> list[SimItem]:
        self.present = [item for item in self.present if not item.future.done()]
        return self.present

    def _check_unity(self, batch: SimBatch) -> None:
        assert {(item.key, item.lane) for item in batch.items} == {(batch.key, batch.lane)}
        assert len(batch.items) == 1 or len(batch.items) <= batch.key.limits.max_items
        assert len(batch.items) == 1 or batch.pixels <= batch.key.limits.max_pixels
        assert batch.pixels == sum(item.pixels for item in batch.items)

    def _check_lane(self, batch: SimBatch, now_s: float) -> None:
        waited_s = {lane: now_s - since_s for lane, since_s in self._passed_since_s.items()}
        lanes = {item.lane for item in self._open()}
        if any(lane < batch.lane for lane in lanes):
            assert waited_s[batch.lane] > PATIENCE_S[batch.lane], "a more urgent lane was passed over"
        for lane in lanes:
            if lane > batch.lane and waited_s[lane] > PATIENCE_S[lane]:
                assert waited_s[batch.lane] > PATIENCE_S[batch.lane], "a lane was passed over for too long"
        self._passed_since_s[batch.lane] = now_s

    def _check_order(self, batch: SimBatch) -> None:
        lane = [item for item in self._open() if item.lane is batch.lane]
        leader = batch.items[0]
        older = [item for item in lane if item.admitted_s < leader.admitted_s]
        assert all(item.source != leader.source for item in older), "the leader is not its source's oldest"
        left = [item for item in lane if item.key == batch.key]
        taken = Counter(item.source for item in batch.items)
        for item in batch.items:
            mine = [other.admitted_s for other in (*batch.items, *left) if other.source == item.source]
            assert mine == sorted(mine), "overtaken by a younger one"
        for item in left:
            assert max(taken.values()) <= taken[item.source] + 1, "a source filled the batch of others"

    def _check_turns(self, batch: SimBatch) -> None:
        leader = batch.items[0].source
        served = {item.source for item in batch.items}
        waiting = {item.source for item in self._open() if item.lane is batch.lane}
        for source in {*SOURCES}:
            leaders = self._leaders_since[batch.lane, source]
            if source in served or source not in waiting:
                leaders.clear()
            else:
                assert leader not in leaders, "a source had a second turn before another's first"
                leaders.add(leader)


class Chaos:
    """A world in which a seed decides who comes when, who gives up, what fails, and who dies.

    Args:
        seed: decides everything.
    """

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)
        rng = self._rng
        self._is_calm = rng.random() < 0.3
        self._clock = Clock()
        self.referee = Referee(rng.choice((1, 3, 16, 64)), is_calm=self._is_calm)
        self._depth = rng.choice((1, 2))
        self._limits = [BatchLimits(rng.choice((1, 2, 8)), rng.choice((5000, 1 << 30))) for _ in range(2)]
        self._costs_s: dict[Hashable, tuple[float, float]] = {
            model: (rng.uniform(0, 0.02), rng.uniform(1e-9, 1e-7)) for model in range(2)
        }
        self._failing = rng.choice((0.0, 0.0, 0.1))
        self._dying = rng.choice((0.0, 0.0, 0.1, 0.4))
        self._cancelling = rng.choice((0.0, 0.2))
        self._load = rng.choice((0.5, 1.0, 4.0))
        self._given: deque[SimBatch] = deque()  # to the worker; the first one is executing
        self._worker = 0  # counts them; what was planned for a dead one does not happen
        self._is_alive = True
        self._is_draining = False
        self._admitted: list[SimItem] = []
        self._begun: Counter[SimItem] = Counter()

    def run(self, *, requests: int) -> None:
        """Let everything happen; an AssertionError says which rule was broken."""
        arrival_s = 0.0
        for number in range(requests):
            self._clock.at(arrival_s, partial(self._arrive, number))
            if self._rng.random() < 0.7:  # otherwise another one comes at the same time
                arrival_s += self._rng.expovariate(self._load / 0.02)
        if self._rng.random() < 0.3:
            self._clock.at(self._rng.uniform(0, arrival_s), self._drain)
        if self._rng.random() < 0.2:
            self._clock.at(self._rng.uniform(0, arrival_s), self._abandon)
        self._clock.run()
        self.referee.check_empty()
        assert all(self.referee.answers[item] == 1 for item in self._admitted), "admitted, but not answered"
        for item in self._admitted:
            self._check_answer(item)

    def _check_answer(self, item: SimItem) -> None:
        began = self._begun[item]
        assert began <= 1, "executed twice"
        if item.future.cancelled():
            assert not began, "executed although it was cancelled"
            return
        failure = item.future.exception(timeout=0)
        if failure is None:
            assert began, "answered but never executed"
            assert item.future.result() == item.work, "somebody else's answer"
        elif isinstance(failure, (DeadlineExceededError, DrainingError)):
            assert not began, "given up after it was executed"
            assert not self._is_calm or isinstance(failure, DrainingError), "late although there was time"
        else:
            assert isinstance(failure, (InternalError, NoWorkerError)), failure

    def _arrive(self, number: int) -> None:
        if self._is_draining:
            return
        rng, now_s = self._rng, self._clock.now_s
        model = rng.randrange(2)
        key = BatchKey(model, rng.choice(SIZES), self._limits[model])
        timeout_s = NEVER_S if self._is_calm else rng.choice((-0.001, 0.02, 0.1, 0.5, 30.0))
        item = SimItem(
            number, key, now_s, now_s + timeout_s, lane=rng.choice(LANES), source=rng.choice(SOURCES)
        )
        is_ready = rng.random() < 0.5
        try:
            if is_ready:
                self.referee.admit_item(item)
            else:
                self.referee.reserve_items([item])
        except (QueueFullError, RateLimitedError):
            return
        except DeadlineExceededError:
            assert timeout_s < 0
            return
        self._admitted.append(item)
        item.future.add_done_callback(self._hear)
        if rng.random() < self._cancelling:
            self._clock.at(now_s + rng.expovariate(1 / 0.05), item.future.cancel)
        if not is_ready:
            becomes = item.future.cancel if rng.random() < 0.1 else partial(self._get_ready, item)
            self._clock.at(now_s + rng.expovariate(1 / 0.02), becomes)
        self._feed()

    def _get_ready(self, item: SimItem) -> None:
        item.admitted_s = self._clock.now_s
        self.referee.admit_item(item)
        self._feed()

    def _hear(self, future: Future[int]) -> None:
        if self._is_calm:
            self.referee.withdraw(future)
        else:  # the news takes its time from thread to thread
            heard_s = self._clock.now_s + self._rng.choice((0.0, 0.001, 0.05))
            self._clock.at(heard_s, partial(self.referee.withdraw, future))

    def _feed(self) -> None:
        assert len(self.referee._running) == len(self._given)
        while self._is_alive and len(self._given) < self._depth:
            batch = self.referee.take_batch(now_s=self._clock.now_s)
            if batch is None:
                return
            self._given.append(batch)
            if len(self._given) == 1:
                self._execute()

    def _execute(self) -> None:
        batch = self._given[0]
        self._begun.update(batch.items)
        per_batch_s, per_pixel_s = self._costs_s[batch.key.model]
        duration_s = (per_batch_s + per_pixel_s * batch.pixels) * self._rng.lognormvariate(0, 0.1)
        if self._rng.random() < 0.02:
            duration_s *= 20
        self._clock.at(self._clock.now_s + duration_s, partial(self._done, self._worker, duration_s))
        if self._rng.random() < self._dying:
            dies_s = self._clock.now_s + duration_s * self._rng.random()
            self._clock.at(dies_s, partial(self._die, self._worker))

    def _done(self, worker: int, duration_s: float) -> None:
        if worker != self._worker:
            return
        batch = self._given.popleft()
        if self._given:
            self._execute()
        has_failed = self._rng.random() < self._failing
        learnt_s = None if has_failed else duration_s
        self.referee.finish_batch(batch, now_s=self._clock.now_s, duration_s=learnt_s)
        for item in batch.items:
            if has_failed:
                item.future.set_exception(InternalError("inference failed"))
            else:
                item.future.set_result(item.work)
        self._feed()

    def _die(self, worker: int) -> None:
        if worker != self._worker:
            return
        self._worker += 1
        self._is_alive = False
        executing, *staged = self._given
        self._given.clear()
        for batch in (executing, *staged):
            self.referee.finish_batch(batch, now_s=self._clock.now_s)
        for batch in reversed(staged):
            self.referee.requeue_items(batch.items)
        for item in executing.items:
            item.future.set_exception(NoWorkerError("the worker died"))
        self._clock.at(self._clock.now_s + self._rng.uniform(0, 1), self._restart)

    def _restart(self) -> None:
        self._is_alive = True
        self._feed()

    def _drain(self) -> None:
        self._is_draining = True

    def _abandon(self) -> None:
        self._is_draining = True
        self.referee.fail_all(lambda: DrainingError("no time is left"))
