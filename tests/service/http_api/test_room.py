"""Bodies wait for room, so that many large ones do not fill the memory."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack

import pytest
from fakes import PATIENCE_S
from starlette.requests import Request
from starlette.types import Message

from service.core.errors import BusyError, PayloadTooLargeError
from service.http_api.body import BodyLimits
from service.http_api.room import BodyRoom

LIMITS = BodyLimits(max_bytes=100)


async def _nothing() -> Message:
    raise AssertionError("the body is received before there is room")


def request(length: int | None) -> Request:
    headers = [] if length is None else [(b"content-length", str(length).encode())]
    return Request({"type": "http", "headers": headers}, _nothing)


def soon() -> float:
    return time.monotonic() + 0.05


def late() -> float:
    return time.monotonic() + PATIENCE_S


async def test_what_does_not_fit_waits_until_there_is_room() -> None:
    room = BodyRoom(600, LIMITS)  # 300 for those that say how long they are
    entered = asyncio.Event()

    async def third() -> None:
        async with room.holding(request(100), deadline_s=late()):
            entered.set()

    async with AsyncExitStack() as held:
        for _ in range(2):
            await held.enter_async_context(room.holding(request(100), deadline_s=late()))
        waiting = asyncio.create_task(third())
        with pytest.raises(BusyError):
            async with room.holding(request(100), deadline_s=soon()):
                pass
        assert not entered.is_set()
    await waiting
    assert entered.is_set()


async def test_those_who_do_not_say_how_long_they_are_wait_for_each_other_only() -> None:
    room = BodyRoom(600, LIMITS)
    async with AsyncExitStack() as held:
        for _ in range(2):
            await held.enter_async_context(room.holding(request(None), deadline_s=late()))
        with pytest.raises(BusyError):
            async with room.holding(request(None), deadline_s=soon()):
                pass
        async with room.holding(request(100), deadline_s=late()):
            pass


async def test_small_ones_pass_by_large_ones() -> None:
    room = BodyRoom(600, LIMITS)
    async with AsyncExitStack() as held:
        for _ in range(2):
            await held.enter_async_context(room.holding(request(100), deadline_s=late()))
        async with room.holding(request(10), deadline_s=late()):
            pass


async def test_a_body_that_says_it_is_too_large_is_refused_at_once() -> None:
    with pytest.raises(PayloadTooLargeError):
        async with BodyRoom(600, LIMITS).holding(request(101), deadline_s=late()):
            pass


async def test_room_is_given_back_whatever_happens() -> None:
    room = BodyRoom(600, LIMITS)
    for _ in range(10):
        with pytest.raises(RuntimeError):
            async with room.holding(request(None), deadline_s=late()):
                raise RuntimeError
