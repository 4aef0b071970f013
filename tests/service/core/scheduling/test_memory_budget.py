from __future__ import annotations

import asyncio
import random
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.core.errors import BusyError
from service.core.scheduling.memory_budget import MemoryBudget

PATIENCE_S = 30.0
BUDGET = 1600
SMALL = 100
"""The most that a small picture of this budget takes; 200 bytes are theirs, 1400 all that large ones get."""


async def settled() -> None:
    """Let every task run until it waits."""
    for _ in range(5):
        await asyncio.sleep(0)


def waiting(budget: MemoryBudget, num_bytes: int) -> asyncio.Task[object]:
    return asyncio.create_task(budget.acquire(num_bytes, timeout_s=PATIENCE_S))


async def is_refused(budget: MemoryBudget, num_bytes: int) -> bool:
    try:
        reservation = await budget.acquire(num_bytes, timeout_s=0)
    except BusyError:
        return True
    budget.release(reservation)
    return False


async def test_pictures_pass_while_there_is_room() -> None:
    budget = MemoryBudget(BUDGET)
    await budget.acquire(800, timeout_s=0)
    await budget.acquire(600, timeout_s=0)
    assert await is_refused(budget, 101)


async def test_who_finds_no_room_in_time_is_told_busy() -> None:
    budget = MemoryBudget(BUDGET)
    await budget.acquire(1000, timeout_s=0)
    with pytest.raises(BusyError):
        await budget.acquire(401, timeout_s=0.001)
    assert not await is_refused(budget, 400)


async def test_a_picture_waits_until_there_is_room() -> None:
    budget = MemoryBudget(BUDGET)
    held = await budget.acquire(1000, timeout_s=0)
    second = waiting(budget, 500)
    await settled()
    assert not second.done()
    budget.release(held)
    await second


async def test_a_large_picture_does_not_overtake_a_larger_one() -> None:
    budget = MemoryBudget(BUDGET)
    held = await budget.acquire(1000, timeout_s=0)
    larger, large = waiting(budget, 1400), waiting(budget, SMALL + 1)
    await settled()
    assert not large.done()
    budget.release(held)
    budget.release(await larger)
    await large


async def test_large_pictures_leave_room_for_small_ones() -> None:
    budget = MemoryBudget(BUDGET)
    for num_bytes in (700, 700):
        await budget.acquire(num_bytes, timeout_s=0)
    queue = [waiting(budget, 700) for _ in range(10)]
    await settled()
    assert not await is_refused(budget, SMALL)
    for _ in range(2):
        await budget.acquire(SMALL, timeout_s=0)
    assert await is_refused(budget, 1)
    for task in queue:
        task.cancel()


async def test_small_pictures_take_what_no_large_one_wants() -> None:
    budget = MemoryBudget(BUDGET)
    for _ in range(16):
        await budget.acquire(SMALL, timeout_s=0)
    assert await is_refused(budget, 1)


async def test_an_endless_line_of_small_pictures_does_not_keep_a_large_one_out() -> None:
    budget = MemoryBudget(BUDGET)
    held = [await budget.acquire(SMALL, timeout_s=0) for _ in range(16)]
    large = waiting(budget, 1400)
    await settled()
    stream = [waiting(budget, SMALL) for _ in range(50)]
    await settled()
    for reservation in held:
        budget.release(reservation)
        await settled()
    assert large.done()
    assert sum(task.done() for task in stream) == 2
    for task in stream:
        task.cancel()


async def test_a_picture_above_all_that_large_ones_get_is_the_only_large_one() -> None:
    budget = MemoryBudget(BUDGET)
    held = await budget.acquire(100_000, timeout_s=0)
    assert await is_refused(budget, SMALL + 1)
    assert not await is_refused(budget, SMALL)
    budget.release(held)
    assert not await is_refused(budget, SMALL + 1)


async def test_when_the_first_in_line_leaves_the_next_one_goes_ahead() -> None:
    budget = MemoryBudget(BUDGET)
    await budget.acquire(1000, timeout_s=0)
    large, next_one = waiting(budget, 1400), waiting(budget, 400)
    await settled()
    large.cancel()
    await next_one


async def test_room_granted_to_one_who_is_cancelled_in_that_moment_is_not_lost() -> None:
    budget = MemoryBudget(BUDGET)
    held = await budget.acquire(1400, timeout_s=0)
    second = waiting(budget, 1400)
    await settled()
    budget.release(held)
    second.cancel()
    await asyncio.wait([second])
    assert second.cancelled()
    assert not await is_refused(budget, 1400)


def test_threads_share_a_budget() -> None:
    budget, in_flight, most = MemoryBudget(BUDGET), 0, 0
    lock = threading.Lock()

    async def work(dice: random.Random) -> None:
        nonlocal in_flight, most
        for _ in range(300):
            num_bytes = dice.choice([dice.randint(1, SMALL), dice.randint(SMALL, 1400)])
            reservation = budget.take(num_bytes)
            if reservation is None and dice.random() < 0.2:
                continue
            if reservation is None:
                reservation = await budget.acquire(num_bytes, timeout_s=PATIENCE_S)
            with lock:
                in_flight += reservation.num_bytes
                most = max(most, in_flight)
            with lock:
                in_flight -= reservation.num_bytes
            budget.release(reservation)

    with ThreadPoolExecutor(4) as pool:
        for task in [pool.submit(asyncio.run, work(random.Random(seed))) for seed in range(4)]:
            task.result(PATIENCE_S)
    assert 0 < most <= BUDGET
    assert not budget.used_bytes


async def test_room_that_is_there_is_taken_at_once_but_not_before_those_who_wait() -> None:
    budget = MemoryBudget(BUDGET)
    first = budget.take(1000)
    assert first is not None
    assert budget.take(1000) is None
    waiting = asyncio.create_task(budget.acquire(1000))
    await asyncio.sleep(0)
    assert budget.take(SMALL + 1) is None
    budget.release(first)
    budget.release(await waiting)
    assert not budget.used_bytes


@given(st.integers(0, 2**32))
def test_the_budget_is_never_exceeded_never_leaks_and_all_who_wait_are_admitted(seed: int) -> None:
    asyncio.run(_play(random.Random(seed)))


async def _play(dice: random.Random) -> None:
    budget, in_flight = MemoryBudget(BUDGET), 0

    async def picture() -> None:
        nonlocal in_flight
        reservation = await budget.acquire(
            dice.choice([dice.randint(1, SMALL), dice.randint(SMALL, 2000)]),
            timeout_s=dice.choice([0, PATIENCE_S]),
        )
        in_flight += reservation.num_bytes
        assert in_flight <= BUDGET
        try:
            for _ in range(dice.randint(0, 3)):
                await asyncio.sleep(0)
        finally:
            in_flight -= reservation.num_bytes
            budget.release(reservation)

    tasks = [asyncio.create_task(picture()) for _ in range(20)]
    for task in tasks:
        await asyncio.sleep(0)
        if dice.random() < 0.3:
            task.cancel()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(
        outcome is None or isinstance(outcome, BusyError | asyncio.CancelledError) for outcome in outcomes
    )
    assert not await is_refused(budget, 1400)
    for _ in range(16):
        await budget.acquire(SMALL, timeout_s=0)
