"""A time limit that keeps nothing alive of the work that it ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from service.core.errors import ServiceError


@asynccontextmanager
async def within(timeout_s: float | None, error: Callable[[], ServiceError]) -> AsyncIterator[None]:
    """Cancel the body when it takes too long, and raise an error of the service instead.

    The error has no cause and is made last: asyncio's own holds a frame, which holds the task, which in the
    end holds the error. Such a circle would keep a picture until the garbage collector comes by.

    Args:
        timeout_s: in seconds; 0 or less gives up at once, None never.
        error: makes the error to be raised.
    """
    is_late = False
    try:
        async with asyncio.timeout(timeout_s):
            yield
    except TimeoutError:
        is_late = True
    if is_late:
        raise error()
