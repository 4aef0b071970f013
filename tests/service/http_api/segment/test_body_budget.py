"""Bodies have room as they arrive: many large ones do not fill the memory, nor silent ones the room."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
from fakes import PATIENCE_S
from starlette.requests import Request
from starlette.types import Message

from service.core.errors import BusyError, PayloadTooLargeError
from service.http_api.segment.body import BodyLimits, Hold
from service.http_api.segment.body_budget import BodyBudget

LIMITS = BodyLimits(max_bytes=100)


async def _nothing() -> Message:
    raise AssertionError("the room receives nothing itself")


def request(length: int | None) -> Request:
    headers = [] if length is None else [(b"content-length", str(length).encode())]
    return Request({"type": "http", "headers": headers}, _nothing)


def soon() -> float:
    return time.monotonic() + 0.05


def late() -> float:
    return time.monotonic() + PATIENCE_S


@asynccontextmanager
async def full(room: BodyBudget, count: int) -> AsyncIterator[list[AsyncExitStack]]:
    """Hold some bodies of 100 bytes that are all here."""
    async with AsyncExitStack() as all_of_them:
        held = [await all_of_them.enter_async_context(AsyncExitStack()) for _ in range(count)]
        for stack in held:
            hold = await stack.enter_async_context(room.holding(request(100), deadline_s=late()))
            await hold(100)
        yield held


async def test_what_does_not_fit_waits_until_there_is_room() -> None:
    room = BodyBudget(600, LIMITS)
    async with full(room, 4) as held, room.holding(request(100), deadline_s=late()) as hold:
        waiting = asyncio.create_task(hold_all(hold))
        async with room.holding(request(100), deadline_s=soon()) as too_late:
            with pytest.raises(BusyError):
                await too_late(100)
        assert not waiting.done()
        await held[-1].aclose()
        await waiting


async def hold_all(hold: Hold) -> None:
    await hold(100)


@pytest.mark.parametrize("length", [100, None])
async def test_a_declared_length_alone_reserves_nothing(length: int | None) -> None:
    room = BodyBudget(600, LIMITS)
    async with AsyncExitStack() as held:
        for _ in range(500):
            silent = await held.enter_async_context(room.holding(request(length), deadline_s=late()))
            await silent(0)
        async with full(room, 4):
            pass


async def test_who_sends_little_holds_little() -> None:
    room = BodyBudget(600, LIMITS)
    async with AsyncExitStack() as held:
        for _ in range(100):
            slow = await held.enter_async_context(room.holding(request(100), deadline_s=late()))
            await slow(1)
        async with full(room, 3):
            pass


async def test_a_body_waits_for_memory_no_longer_than_it_may_take_to_arrive() -> None:
    room = BodyBudget(600, BodyLimits(max_bytes=100, receive_timeout_s=0.01))
    async with full(room, 4), room.holding(request(100), deadline_s=late()) as hold:
        with pytest.raises(BusyError):
            await hold(100)


@pytest.mark.parametrize("seed", range(20))
async def test_bodies_that_are_half_here_do_not_wait_for_each_other(seed: int) -> None:
    rng = random.Random(seed)
    room = BodyBudget(600, LIMITS)

    async def send() -> None:
        async with room.holding(request(rng.choice((100, 100, None))), deadline_s=late()) as hold:
            received = 0
            while received < 100:
                received = min(100, received + rng.randrange(1, 40))
                await hold(received)
                await asyncio.sleep(0)

    async with asyncio.timeout(PATIENCE_S / 2):
        await asyncio.gather(*(send() for _ in range(50)))


async def test_small_ones_pass_by_large_ones() -> None:
    room = BodyBudget(600, LIMITS)
    async with full(room, 4), room.holding(request(10), deadline_s=late()) as hold:
        await hold(10)


async def test_a_body_that_says_it_is_too_large_is_refused_at_once() -> None:
    with pytest.raises(PayloadTooLargeError):
        async with BodyBudget(600, LIMITS).holding(request(101), deadline_s=late()):
            pass


async def test_room_is_given_back_whatever_happens() -> None:
    async def fail(room: BodyBudget) -> None:
        async with room.holding(request(None), deadline_s=late()) as hold:
            await hold(60)
            raise RuntimeError

    room = BodyBudget(600, LIMITS)
    for _ in range(20):
        with pytest.raises(RuntimeError):
            await fail(room)
