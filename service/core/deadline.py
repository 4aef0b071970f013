"""A time limit whose error keeps no reference to the cancelled work."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from service.core.errors import ServiceError


@asynccontextmanager
async def within(timeout_s: float | None, error: Callable[[], ServiceError]) -> AsyncIterator[None]:
    """Cancel the body after a time, and raise an error of the service.

    The error has no cause and is made last: asyncio's own error refers to a frame, the frame to the task, and
    the task to the error. Such a cycle would keep a picture until the next garbage collection.

    Args:
        timeout_s: in seconds; 0 or less cancels at once, None never.
        error: makes the error.
    """
    is_late = False
    try:
        async with asyncio.timeout(timeout_s):
            yield
    except TimeoutError:
        is_late = True
    if is_late:
        raise error()
