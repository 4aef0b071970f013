"""Giving up after a while without keeping what was given up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from service.core.errors import ServiceError


@asynccontextmanager
async def within(timeout_s: float, error: type[ServiceError], message: str) -> AsyncIterator[None]:
    """Cancel the body when it takes too long, and raise an error of the service instead.

    That error has no cause and is made last: asyncio's own holds a frame, which holds the task, which in the
    end holds the error. Such a circle would keep a picture until the garbage collector comes by.

    Args:
        timeout_s: none left, or less than none, gives up at once.
        error: to be raised.
        message: what it says.
    """
    is_late = False
    try:
        async with asyncio.timeout(timeout_s):
            yield
    except TimeoutError:
        is_late = True
    if is_late:
        raise error(message)
