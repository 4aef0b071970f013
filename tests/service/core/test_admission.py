from __future__ import annotations

import asyncio
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.core.admission import PixelBudget
from service.core.errors import BusyError

PATIENCE_S = 30.0


async def settled() -> None:
    """Let every task run until it waits."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_pictures_pass_while_there_is_room() -> None:
    budget = PixelBudget(100)
    assert await budget.acquire(60, timeout_s=0) == 60
    assert await budget.acquire(40, timeout_s=0) == 40


async def test_who_finds_no_room_in_time_is_told_busy() -> None:
    budget = PixelBudget(100)
    await budget.acquire(60, timeout_s=0)
    with pytest.raises(BusyError):
        await budget.acquire(41, timeout_s=0)


async def test_a_picture_waits_until_there_is_room() -> None:
    budget = PixelBudget(100)
    held = await budget.acquire(60, timeout_s=0)
    waiting = asyncio.ensure_future(budget.acquire(50, timeout_s=PATIENCE_S))
    await settled()
    assert not waiting.done()
    budget.release(held)
    assert await waiting == 50


async def test_a_small_picture_does_not_overtake_a_large_one() -> None:
    budget = PixelBudget(100)
    held = await budget.acquire(60, timeout_s=0)
    large = asyncio.ensure_future(budget.acquire(90, timeout_s=PATIENCE_S))
    await settled()
    small = asyncio.ensure_future(budget.acquire(1, timeout_s=PATIENCE_S))
    await settled()
    assert not small.done()
    budget.release(held)
    assert await large == 90
    assert await small == 1


async def test_a_picture_above_the_whole_budget_is_admitted_alone() -> None:
    budget = PixelBudget(100)
    held = await budget.acquire(1000, timeout_s=0)
    with pytest.raises(BusyError):
        await budget.acquire(1, timeout_s=0)
    budget.release(held)
    assert await budget.acquire(1, timeout_s=0) == 1


async def test_when_the_first_in_line_leaves_the_next_one_goes_ahead() -> None:
    budget = PixelBudget(100)
    await budget.acquire(60, timeout_s=0)
    large = asyncio.ensure_future(budget.acquire(90, timeout_s=PATIENCE_S))
    await settled()
    small = asyncio.ensure_future(budget.acquire(40, timeout_s=PATIENCE_S))
    await settled()
    large.cancel()
    assert await small == 40


async def test_room_granted_to_one_who_is_cancelled_in_that_moment_is_not_lost() -> None:
    budget = PixelBudget(100)
    held = await budget.acquire(100, timeout_s=0)
    waiting = asyncio.ensure_future(budget.acquire(100, timeout_s=PATIENCE_S))
    await settled()
    budget.release(held)
    waiting.cancel()
    await asyncio.wait([waiting])
    assert waiting.cancelled()
    assert await budget.acquire(100, timeout_s=0) == 100


@given(st.integers(0, 2**32))
def test_the_budget_is_never_exceeded_and_never_leaks(seed: int) -> None:
    asyncio.run(_play(random.Random(seed)))


async def _play(dice: random.Random) -> None:
    budget, in_flight = PixelBudget(100), 0

    async def picture() -> None:
        nonlocal in_flight
        pixels = await budget.acquire(dice.randint(1, 120), timeout_s=dice.choice([0, PATIENCE_S]))
        in_flight += pixels
        assert in_flight <= 100
        try:
            for _ in range(dice.randint(0, 3)):
                await asyncio.sleep(0)
        finally:
            in_flight -= pixels
            budget.release(pixels)

    tasks = [asyncio.ensure_future(picture()) for _ in range(12)]
    for task in tasks:
        await asyncio.sleep(0)
        if dice.random() < 0.3:
            task.cancel()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(
        outcome is None or isinstance(outcome, BusyError | asyncio.CancelledError) for outcome in outcomes
    )
    assert await budget.acquire(100, timeout_s=0) == 100
