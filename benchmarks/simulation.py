"""A scheduler and a device under a virtual clock: time jumps from event to event."""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from model.pictures.preprocess import ImageSize
from service.core.errors import QueueFullError, RateLimitedError
from service.core.scheduling.scheduler import (
    DEFAULT_MAX_WAITING,
    Batch,
    BatchKey,
    BatchLimits,
    Item,
    Lane,
    Scheduler,
)

NEVER_S = 1e9
ALONE = BatchKey("model", ImageSize(512, 1024))
BATCHED = BatchKey("model", ImageSize(512, 1024), BatchLimits(max_items=16))


class Clock:
    """Runs planned actions in the order of their times; at equal times, in the order of planning."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._plans: list[tuple[float, int, Callable[[], object]]] = []
        self._numbers = itertools.count()

    def at(self, time_s: float, action: Callable[[], object]) -> None:
        """Plan an action."""
        heapq.heappush(self._plans, (time_s, next(self._numbers), action))

    def run(self) -> None:
        """Run all actions, including those that are planned meanwhile."""
        while self._plans:
            self.now_s, _, action = heapq.heappop(self._plans)
            action()


@dataclass(frozen=True, eq=False)
class Request:
    """A request for one picture.

    Attributes:
        arrival_s: time of its arrival.
        service_s: time for which it keeps a device busy that runs one picture at a time.
        timeout_s: its deadline, from its arrival.
        key: requests of equal keys may share a batch.
        lane: level of urgency.
        source: client or stream; sources of a lane take turns.
    """

    arrival_s: float
    service_s: float = 0.02
    timeout_s: float = NEVER_S
    key: BatchKey = ALONE
    lane: Lane = Lane.INTERACTIVE
    source: Hashable = None


@dataclass(eq=False)
class Outcome:
    """The outcome of a request.

    Attributes:
        request: the request.
        is_admitted: whether it was not refused at once.
        ready_s: time of its answer; None = it was not answered.
    """

    request: Request
    is_admitted: bool = False
    ready_s: float | None = None

    @property
    def latency_s(self) -> float:
        """Time from its arrival to its answer; infinite without an answer."""
        return float("inf") if self.ready_s is None else self.ready_s - self.request.arrival_s

    @property
    def is_in_time(self) -> bool:
        """Whether it was answered before its deadline."""
        return self.latency_s <= self.request.timeout_s


Duration = Callable[[Sequence[Request]], float]
"""Returns the time for which a batch keeps a device busy, in seconds."""


def one_by_one(requests: Sequence[Request]) -> float:
    """Return the time of a device whose batches take as long as their pictures one by one."""
    return sum(request.service_s for request in requests)


def ten_plus_two(requests: Sequence[Request]) -> float:
    """Return 10 + 2n ms: the time of a device that is much faster with batches."""
    return 0.010 + 0.002 * len(requests)


class Device:
    """Takes batches from a scheduler and runs them one after the other.

    Args:
        clock: of the simulation.
        scheduler: has the waiting requests.
        duration_s: returns the time of a batch.
        depth: batches that the device has at the same time; the first of them runs.
    """

    def __init__(
        self,
        clock: Clock,
        scheduler: Scheduler[Outcome, None],
        duration_s: Duration,
        *,
        depth: int = 1,
    ) -> None:
        self._clock = clock
        self._scheduler = scheduler
        self._duration_s = duration_s
        self._depth = depth
        self._given: deque[Batch[Outcome, None]] = deque()

    def feed(self) -> None:
        """Take batches until ``depth`` is reached."""
        while len(self._given) < self._depth:
            batch = self._scheduler.take_batch(now_s=self._clock.now_s)
            if batch is None:
                return
            self._given.append(batch)
            if len(self._given) == 1:
                self._run(batch)

    def _run(self, batch: Batch[Outcome, None]) -> None:
        duration_s = self._duration_s([item.work.request for item in batch.items])
        self._clock.at(self._clock.now_s + duration_s, partial(self._done, batch, duration_s))

    def _done(self, batch: Batch[Outcome, None], duration_s: float) -> None:
        self._given.popleft()
        if self._given:
            self._run(self._given[0])
        self._scheduler.finish_batch(batch, now_s=self._clock.now_s, duration_s=duration_s)
        for item in batch.items:
            item.work.ready_s = self._clock.now_s
            item.future.set_result(None)
        self.feed()


def serve(
    requests: Sequence[Request],
    duration_s: Duration = one_by_one,
    *,
    depth: int = 1,
    max_items: int = DEFAULT_MAX_WAITING,
    scheduler: Scheduler[Outcome, None] | None = None,
) -> list[Outcome]:
    """Run requests through a scheduler and a device; return the outcome of each.

    Args:
        requests: in any order.
        duration_s: returns the time of a batch.
        depth: batches that the device has at the same time.
        max_items: requests that may wait.
        scheduler: one that has learned the times of the device; None = a new one.
    """
    clock = Clock()
    scheduler = scheduler or Scheduler(max_items)
    device = Device(clock, scheduler, duration_s, depth=depth)
    outcomes = [Outcome(request) for request in requests]

    def arrive(outcome: Outcome) -> None:
        asked = outcome.request
        item: Item[Outcome, None] = Item(
            outcome, asked.key, clock.now_s, clock.now_s + asked.timeout_s, asked.lane, asked.source
        )
        try:
            scheduler.admit_item(item)
        except (QueueFullError, RateLimitedError):
            return
        outcome.is_admitted = True
        device.feed()

    for outcome in outcomes:
        clock.at(outcome.request.arrival_s, partial(arrive, outcome))
    clock.run()
    return outcomes


def poisson_arrivals(rng: np.random.Generator, *, rate: float, count: int) -> list[float]:
    """Return the arrival times of independent requests, ``rate`` a second on average."""
    arrivals_s: list[float] = np.cumsum(rng.exponential(1 / rate, count)).tolist()
    return arrivals_s


def open_loop(seed: int, *, load: float, count: int, noise: float, timeout_s: float) -> list[Request]:
    """Return requests for a device that takes 20 ms for each.

    Args:
        seed: of arrivals and service times.
        load: arrivals in the time of one request.
        count: number of requests.
        noise: standard deviation of the logarithm of the service times.
        timeout_s: of each request.
    """
    rng = np.random.default_rng(seed)
    arrivals_s = poisson_arrivals(rng, rate=load / 0.02, count=count)
    services_s = 0.02 * rng.lognormal(0.0, noise, count)
    return [
        Request(arrival_s, service_s, timeout_s)
        for arrival_s, service_s in zip(arrivals_s, services_s.tolist(), strict=True)
    ]


def ideal_fifo(requests: Sequence[Request]) -> list[float]:
    """Return the latencies of an ideal device, which runs requests one by one in the given order.

    It knows the time of each request, and refuses at once those that would be late.
    """
    free_s = 0.0
    latencies_s = []
    for request in requests:
        ready_s = max(free_s, request.arrival_s) + request.service_s
        if ready_s <= request.arrival_s + request.timeout_s:
            free_s = ready_s
            latencies_s.append(ready_s - request.arrival_s)
    return latencies_s
