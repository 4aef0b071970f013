"""The connection of a client while its picture is answered: disconnects, and pieces of large answers."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

ResultT = TypeVar("ResultT")

PIECE_BYTES = 256 * 1024
"""Size of the pieces in which an answer is sent. A larger answer holds its share of the answer budget until
its last piece is sent."""


class PiecewiseResponse(Response):
    """A response that is sent in pieces, at the pace of the client; a small one is sent at once."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response."""
        if len(self.body) <= PIECE_BYTES:
            await super().__call__(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        for start in range(0, len(self.body), PIECE_BYTES):
            # A copy: a view would keep all of the answer until its last piece is sent.
            piece = bytes(self.body[start : start + PIECE_BYTES])
            more = start + PIECE_BYTES < len(self.body)
            await send({"type": "http.response.body", "body": piece, "more_body": more})


async def while_connected(receive: Receive, work: Coroutine[Any, Any, ResultT]) -> ResultT:
    """Await work, and cancel it when the client leaves.

    Args:
        receive: of a request; its body has been received.
        work: produces the answer.

    Raises:
        ClientDisconnect: the client left first.
    """
    task = asyncio.current_task()
    assert task is not None
    watch, cancelling = _Watch(task), task.cancelling()
    leaving = asyncio.create_task(_disconnected(receive))
    leaving.add_done_callback(watch.cancel)
    try:
        # In this task: another task would start, and report its end, one turn of the event loop later.
        return await work
    except asyncio.CancelledError:
        if watch.has_cancelled and task.cancelling() == cancelling + 1:  # no other cancellation came
            raise ClientDisconnect from None
        raise
    finally:
        watch.is_over = True
        leaving.cancel()
        if watch.has_cancelled:
            task.uncancel()
        # A failed task holds its error, which holds this frame, which would hold the task and its picture.
        del task, watch, leaving


@dataclass(eq=False)
class _Watch:
    """Cancels a task when another one ends first."""

    task: asyncio.Task[Any]
    is_over: bool = False
    has_cancelled: bool = False

    def cancel(self, watching: asyncio.Task[None]) -> None:
        if not self.is_over:
            self.has_cancelled = self.task.cancel()
        if not watching.cancelled():
            watching.exception()  # or asyncio would report that it was never retrieved


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
