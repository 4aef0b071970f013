"""Closed and open loops of requests, and the figures of a load.

In a closed loop a slow answer delays the requests behind it, and their waiting is not measured. An open loop
sends at given times. Its latencies count from the intended time of sending: a service or a sender that stalls
shows in every request that it delays.

Source:
    Gil Tene, "How NOT to Measure Latency": coordinated omission; github.com/giltene/wrk2.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import numpy as np

from service.cli.bench.percentile import percentile

Send = Callable[[int], Awaitable[None]]
"""Sends the request of this number, from 0, and waits for its answer.

Raises:
    RefusedError: there is no answer.
"""

Clock = Callable[[], float]


class RefusedError(Exception):
    """A request was not answered; the message is the code of the error."""


@dataclass(frozen=True)
class RequestRecord:
    """One request.

    Attributes:
        intended_s: intended time of sending, on the clock of the load.
        ended_s: time at which the answer was complete, or the refusal.
        refusal: code of the refusal; None = it was answered.
    """

    intended_s: float
    ended_s: float
    refusal: str | None = None

    @property
    def latency_s(self) -> float:
        """Seconds from the intended time of sending to the end."""
        return self.ended_s - self.intended_s


async def closed_loop(
    send: Send, *, in_flight: int, seconds: float, clock: Clock = time.monotonic
) -> list[RequestRecord]:
    """Keep a number of requests under way: each answer is followed by the next request.

    Args:
        send: sends one request.
        in_flight: requests under way.
        seconds: no request begins later; each sender sends at least one.
        clock: seconds; not the event loop's own clock, which may count milliseconds only.
    """
    end_s = clock() + seconds
    records: list[RequestRecord] = []
    number = iter(range(1 << 62))

    async def keep_sending() -> None:
        while True:
            records.append(await _record(send, next(number), clock(), clock))
            if clock() >= end_s:
                return

    async with asyncio.TaskGroup() as senders:
        for _ in range(in_flight):
            senders.create_task(keep_sending())
    return records


async def open_loop(
    send: Send, *, arrivals_s: Sequence[float], clock: Clock = time.monotonic
) -> list[RequestRecord]:
    """Send requests at given times, whether or not earlier ones are answered.

    Args:
        send: sends one request.
        arrivals_s: times of sending, in seconds from now, ascending.
        clock: seconds; not the event loop's own clock, which may count milliseconds only.
    """
    began_s = clock()
    async with asyncio.TaskGroup() as requests:
        tasks = []
        for number, arrival_s in enumerate(arrivals_s):
            await asyncio.sleep(began_s + arrival_s - clock())
            tasks.append(requests.create_task(_record(send, number, began_s + arrival_s, clock)))
    return [task.result() for task in tasks]


def poisson_arrivals(*, rate: float, seconds: float, seed: int = 0) -> list[float]:
    """Return the times at which independent clients send, in seconds from the start, ascending.

    Args:
        rate: requests a second, on average.
        seconds: no request comes later.
        seed: equal seeds give equal times.
    """
    random = np.random.default_rng(seed)
    gaps_s = random.exponential(1 / rate, size=int(rate * seconds * 2) + 100)
    times_s = np.cumsum(gaps_s)
    return [float(time_s) for time_s in times_s[times_s < seconds]]


@dataclass(frozen=True)
class LoadFigures:
    """The figures of a load; latencies are those of answered requests, from the intended time of sending.

    Attributes:
        answered: number of answered requests.
        refused: number of refused requests by code.
        pictures_per_s: answered requests by the time from the first request to the last answer.
        p50_ms: of the latencies; None where there is no answer.
        p95_ms: of the latencies; None where the answers are too few.
        p99_ms: of the latencies; None where the answers are too few.
        max_ms: of the latencies; None where there is no answer.
    """

    answered: int
    refused: dict[str, int]
    pictures_per_s: float
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    max_ms: float | None

    def __str__(self) -> str:
        """Return a table."""
        shown = [self.p50_ms, self.p95_ms, self.p99_ms, self.max_ms]
        cells = ["-" if value is None else f"{value:.2f}" for value in shown]
        row = "{:>10}{:>12}{:>10}{:>10}{:>10}{:>10}"
        lines = [
            row.format("answered", "pictures/s", "p50 ms", "p95 ms", "p99 ms", "max ms"),
            row.format(self.answered, f"{self.pictures_per_s:.2f}", *cells),
        ]
        lines += [f"refused: {count} x {code}" for code, count in self.refused.items()]
        return "\n".join(lines)


def figures_of(records: Sequence[RequestRecord]) -> LoadFigures:
    """Return the figures of a load of at least one request."""
    latencies_ms = [1e3 * record.latency_s for record in records if record.refusal is None]
    took_s = max(record.ended_s for record in records) - min(record.intended_s for record in records)
    return LoadFigures(
        answered=len(latencies_ms),
        refused=refusals(records),
        pictures_per_s=round(len(latencies_ms) / took_s, 2) if took_s else 0.0,
        p50_ms=percentile(latencies_ms, 50),
        p95_ms=percentile(latencies_ms, 95),
        p99_ms=percentile(latencies_ms, 99),
        max_ms=round(max(latencies_ms), 3) if latencies_ms else None,
    )


def refusals(records: Sequence[RequestRecord]) -> dict[str, int]:
    """Return the number of refused requests by code."""
    return dict(Counter(record.refusal for record in records if record.refusal is not None))


async def _record(send: Send, number: int, intended_s: float, clock: Clock) -> RequestRecord:
    try:
        await send(number)
    except RefusedError as error:
        return RequestRecord(intended_s, clock(), str(error))
    return RequestRecord(intended_s, clock())
