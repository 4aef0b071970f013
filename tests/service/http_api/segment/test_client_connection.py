"""What happens to the work for a client that leaves."""

from __future__ import annotations

import asyncio
import weakref
from contextlib import suppress

import pytest
from fakes import PATIENCE_S, FakeEngine, no_garbage_collector
from starlette.requests import ClientDisconnect
from starlette.types import Message

from service.core.errors import InternalError
from service.http_api.segment.client_connection import while_connected


async def test_work_that_fails_keeps_nothing_alive() -> None:
    kept: list[weakref.ref[FakeEngine]] = []

    async def fail() -> None:
        something = FakeEngine()
        kept.append(weakref.ref(something))
        raise InternalError

    async def receive() -> Message:
        return await asyncio.get_running_loop().create_future()

    with no_garbage_collector():
        request = asyncio.create_task(while_connected(receive, fail()))
        await asyncio.wait([request])
        assert isinstance(request.exception(), InternalError)
        del request
        for _ in range(5):
            await asyncio.sleep(0)
        assert kept[0]() is None


async def test_who_cancels_a_request_is_not_taken_for_a_client_that_left() -> None:
    async def receive() -> Message:
        return await asyncio.get_running_loop().create_future()

    request = asyncio.create_task(while_connected(receive, asyncio.sleep(PATIENCE_S)))
    await asyncio.sleep(0.01)
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request


async def test_work_that_ends_while_the_client_leaves_is_cancelled_no_more() -> None:
    left: asyncio.Future[Message] = asyncio.get_running_loop().create_future()

    async def work() -> str:
        await asyncio.sleep(0.01)
        left.set_result({"type": "http.disconnect"})
        return "done"

    async def receive() -> Message:
        return await left

    assert await while_connected(receive, work()) == "done"
    await asyncio.sleep(0.01)  # would be cancelled, if this task were


@pytest.mark.parametrize("message", [{"type": "http.disconnect"}, OSError("broken")], ids=["left", "broken"])
async def test_work_is_cancelled_when_the_client_leaves_or_its_connection_breaks(
    message: Message | OSError,
) -> None:
    was_cancelled: list[bool] = []

    async def work() -> None:
        try:
            await asyncio.sleep(PATIENCE_S)
        except asyncio.CancelledError:
            was_cancelled.append(True)
            raise

    async def receive() -> Message:
        if isinstance(message, OSError):
            raise message
        return message

    with pytest.raises(ClientDisconnect):
        await while_connected(receive, work())
    assert was_cancelled == [True]
    assert (task := asyncio.current_task()) is not None
    assert not task.cancelling()


async def test_a_request_that_is_cancelled_while_its_client_leaves_is_cancelled() -> None:
    left: asyncio.Future[Message] = asyncio.get_running_loop().create_future()

    async def receive() -> Message:
        return await left

    request = asyncio.create_task(while_connected(receive, asyncio.sleep(PATIENCE_S)))
    await asyncio.sleep(0.01)
    left.set_result({"type": "http.disconnect"})
    await asyncio.sleep(0)  # the listening task ends
    await asyncio.sleep(0)  # and cancels the request
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request


async def test_work_that_makes_something_else_of_being_cancelled_leaves_the_request_as_it_was() -> None:
    async def work() -> str:
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(PATIENCE_S)
        return "done"

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    assert await while_connected(receive, work()) == "done"
    assert (task := asyncio.current_task()) is not None
    assert not task.cancelling()
