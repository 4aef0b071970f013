"""Load on something that answers pictures, in closed and open loops, and what came of it.

In a closed loop a slow answer delays the requests behind it, and nobody measures how long those would have
waited. An open loop sends whatever is answered, and latency counts from the moment at which a request was
meant to be sent: a stalled service, or a stalled sender, shows in every request that it delayed.

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

Send = Callable[[int], Awaitable[None]]
"""Has the request of this number, from 0, answered; raises ``RefusedError`` where there is no answer."""


Clock = Callable[[], float]


class RefusedError(Exception):
    """A request was not answered; the message is the code of the error."""


@dataclass(frozen=True)
class RequestRecord:
    """One request.

    Attributes:
        intended_s: when it was meant to be sent, on the clock of the load.
        ended_s: when its answer was complete, or its refusal.
        refusal: why there was no answer; None = there was.
    """

    intended_s: float
    ended_s: float
    refusal: str | None = None


async def closed_loop(
    send: Send, *, in_flight: int, seconds: float, clock: Clock = time.monotonic
) -> list[RequestRecord]:
    """Send a request for each one that was answered, for about ``seconds``.

    Args:
        send: has a request answered.
        in_flight: how many are under way all the time.
        seconds: no request begins later; each sender sends one at least.
        clock: tells seconds; not the event loop's own, which may tell milliseconds only.
    """
    end_s = clock() + seconds
    shots: list[RequestRecord] = []
    number = iter(range(1 << 62))

    async def keep_sending() -> None:
        while True:
            shots.append(await _shot(send, next(number), clock(), clock))
            if clock() >= end_s:
                return

    async with asyncio.TaskGroup() as senders:
        for _ in range(in_flight):
            senders.create_task(keep_sending())
    return shots


async def open_loop(
    send: Send, *, arrivals_s: Sequence[float], clock: Clock = time.monotonic
) -> list[RequestRecord]:
    """Send at given times, whatever is answered meanwhile.

    Args:
        send: has a request answered.
        arrivals_s: when, in seconds from now, ascending.
        clock: as for ``closed_loop``.
    """
    began_s = clock()
    async with asyncio.TaskGroup() as requests:
        tasks = []
        for number, arrival_s in enumerate(arrivals_s):
            await asyncio.sleep(began_s + arrival_s - clock())
            tasks.append(requests.create_task(_shot(send, number, began_s + arrival_s, clock)))
    return [task.result() for task in tasks]


def poisson_arrivals(*, rate: float, seconds: float, seed: int = 0) -> list[float]:
    """Return when independent clients send, in seconds from the start, ascending.

    Args:
        rate: requests a second, on average.
        seconds: no request comes later.
        seed: the same one gives the same times.
    """
    random = np.random.default_rng(seed)
    gaps_s = random.exponential(1 / rate, size=int(rate * seconds * 2) + 100)
    times_s = np.cumsum(gaps_s)
    return [float(time_s) for time_s in times_s[times_s < seconds]]


@dataclass(frozen=True)
class LoadFigures:
    """What a load came to.

    Attributes:
        answered: requests that were.
        refused: how many were not, by code.
        pictures_per_s: answered ones by the time from the first request to the last answer.
        p50_ms: of the latency of what was answered, from the intended time; None where nothing was.
        p95_ms: the same; None where the answers are too few.
        p99_ms: the same.
        max_ms: the same.
    """

    answered: int
    refused: dict[str, int]
    pictures_per_s: float
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    max_ms: float | None

    def __str__(self) -> str:
        """Return the table, for people."""
        shown = [self.p50_ms, self.p95_ms, self.p99_ms, self.max_ms]
        cells = ["-" if value is None else f"{value:.2f}" for value in shown]
        row = "{:>10}{:>12}{:>10}{:>10}{:>10}{:>10}"
        lines = [
            row.format("answered", "pictures/s", "p50 ms", "p95 ms", "p99 ms", "max ms"),
            row.format(self.answered, f"{self.pictures_per_s:.2f}", *cells),
        ]
        lines += [f"refused: {count} x {code}" for code, count in self.refused.items()]
        return "\n".join(lines)


def figures_of(shots: Sequence[RequestRecord]) -> LoadFigures:
    """Sum up a load.

    Args:
        shots: at least one.
    """
    answered = [shot for shot in shots if shot.refusal is None]
    latencies_ms = [1e3 * (shot.ended_s - shot.intended_s) for shot in answered]
    took_s = max(shot.ended_s for shot in shots) - min(shot.intended_s for shot in shots)
    return LoadFigures(
        answered=len(answered),
        refused=dict(Counter(shot.refusal for shot in shots if shot.refusal is not None)),
        pictures_per_s=round(len(answered) / took_s, 2) if took_s else 0.0,
        p50_ms=percentile(latencies_ms, 50),
        p95_ms=percentile(latencies_ms, 95),
        p99_ms=percentile(latencies_ms, 99),
        max_ms=round(max(latencies_ms), 3) if latencies_ms else None,
    )


def percentile(values: Sequence[float], percent: float) -> float | None:
    """Return a percentile; None where less than half a value lies above it: nothing is known of it then."""
    if len(values) * (1 - percent / 100) < 0.5:  # noqa: PLR2004 - the median of one value is that value
        return None
    return round(float(np.percentile(values, percent)), 3)


async def _shot(send: Send, number: int, intended_s: float, clock: Clock) -> RequestRecord:
    try:
        await send(number)
    except RefusedError as error:
        return RequestRecord(intended_s, clock(), str(error))
    return RequestRecord(intended_s, clock())
