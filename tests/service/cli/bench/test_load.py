from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import Any

import numpy as np
import pytest

from service.cli.bench.load import (
    RefusedError,
    RequestRecord,
    closed_loop,
    figures_of,
    open_loop,
    poisson_arrivals,
)


class _NoWaiting(selectors.DefaultSelector):
    """Lets no time pass but that of a virtual clock."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        self.now_s += timeout or 0.0
        return super().select(0)


def virtually(main: Callable[[Callable[[], float]], Coroutine[Any, Any, Any]]) -> Any:
    """Run a coroutine under a clock that jumps to whatever comes next."""
    selector = _NoWaiting()
    loop = asyncio.SelectorEventLoop(selector)
    loop.time = lambda: selector.now_s  # type: ignore[method-assign]
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        return runner.run(main(loop.time))


def test_a_closed_loop_keeps_that_many_requests_under_way() -> None:
    under_way, seen = 0, []

    async def send(number: int) -> None:
        nonlocal under_way
        under_way += 1
        seen.append((number, under_way))
        await asyncio.sleep(1)
        under_way -= 1

    records = virtually(lambda clock: closed_loop(send, in_flight=3, seconds=3.5, clock=clock))
    assert [number for number, _ in seen] == list(range(12))
    assert max(count for _, count in seen) == 3
    assert {record.latency_s for record in records} == {1.0}


def test_a_closed_loop_sends_at_least_once() -> None:
    async def send(_: int) -> None:
        await asyncio.sleep(1)

    assert len(virtually(lambda clock: closed_loop(send, in_flight=2, seconds=0, clock=clock))) == 2


def test_an_open_loop_counts_what_a_stalled_service_makes_others_wait() -> None:
    one_at_a_time = asyncio.Lock()

    async def send(number: int) -> None:
        async with one_at_a_time:
            await asyncio.sleep(10 if number == 0 else 1)

    records = virtually(lambda clock: open_loop(send, arrivals_s=[0.0, 1.0, 2.0], clock=clock))
    assert [record.latency_s for record in records] == pytest.approx([10, 10, 10])


def test_an_open_loop_counts_what_a_stalled_sender_delays() -> None:
    async def main(clock: Callable[[], float]) -> list[RequestRecord]:
        skipped = iter([0.0])

        async def send(_: int) -> None:
            await asyncio.sleep(0)

        def late_clock() -> float:  # five seconds pass between the first look at the clock and the second
            return clock() + (next(skipped, 5.0))

        return await open_loop(send, arrivals_s=[0.0, 2.0], clock=late_clock)

    records = virtually(main)
    assert [record.latency_s for record in records] == pytest.approx([5, 3])


def test_refusals_are_counted_by_their_code_and_have_no_latency() -> None:
    async def send(number: int) -> None:
        await asyncio.sleep(1)
        if number % 2:
            raise RefusedError("queue_full")

    records = virtually(lambda clock: open_loop(send, arrivals_s=[0.0, 0.0, 1.0, 3.0], clock=clock))
    figures = figures_of(records)
    assert (figures.answered, figures.refused) == (2, {"queue_full": 2})
    assert figures.pictures_per_s == 0.5
    assert (figures.p50_ms, figures.max_ms) == (1000, 1000)
    assert "refused: 2 x queue_full" in str(figures)


def test_a_defect_of_the_sender_ends_the_load() -> None:
    async def send(_: int) -> None:
        raise ValueError

    with pytest.raises(ExceptionGroup):
        virtually(lambda clock: closed_loop(send, in_flight=1, seconds=0, clock=clock))


def test_arrivals_are_those_of_independent_clients() -> None:
    arrivals_s = poisson_arrivals(rate=50, seconds=200, seed=1)
    gaps_s = np.diff(arrivals_s)
    assert arrivals_s == sorted(arrivals_s)
    assert 0 < arrivals_s[0] < arrivals_s[-1] < 200
    assert len(arrivals_s) == pytest.approx(10_000, rel=0.05)
    assert gaps_s.std() == pytest.approx(gaps_s.mean(), rel=0.05)  # exponential
    assert arrivals_s == poisson_arrivals(rate=50, seconds=200, seed=1)
    assert arrivals_s != poisson_arrivals(rate=50, seconds=200, seed=2)


def test_nothing_answered_has_no_latency() -> None:
    figures = figures_of([RequestRecord(0.0, 1.0, "busy")])
    assert (figures.answered, figures.p50_ms, figures.max_ms) == (0, None, None)
