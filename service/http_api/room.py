"""Room for the bodies of requests: what many clients send at once does not fill the memory."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.requests import Request

from service.core.admission import MemoryBudget
from service.http_api.body import BodyLimits, declared_bytes

DEFAULT_MAX_BODY_BYTES_IN_FLIGHT = 512 * 1024 * 1024

_UNDECLARED_SHARE = 2


class BodyRoom:
    """Bounds the bytes of all bodies together; a request waits before any more of its body is received.

    A body that declares its length has to come at a pace. One that does not could hold the most that a body
    may have for as long as a request may take, so such have half of the room, apart from all others.

    Belongs to one event loop.

    Args:
        max_bytes: of all bodies.
        limits: of one.
    """

    def __init__(self, max_bytes: int, limits: BodyLimits) -> None:
        self._limits = limits
        undeclared = max_bytes // _UNDECLARED_SHARE
        self._undeclared = MemoryBudget(undeclared)
        self._declared = MemoryBudget(max_bytes - undeclared)

    @asynccontextmanager
    async def holding(self, request: Request, *, deadline_s: float) -> AsyncIterator[None]:
        """Wait for room for the body of a request; it is given back when the context is left.

        Args:
            request: whose body was not received yet.
            deadline_s: when nobody waits any more, on the clock of ``time.monotonic``.

        Raises:
            BusyError: there was no room in time.
        """
        declared = declared_bytes(request, self._limits)
        budget = self._undeclared if declared is None else self._declared
        num_bytes = self._limits.max_bytes if declared is None else declared
        place = await budget.acquire(num_bytes, timeout_s=deadline_s - time.monotonic())
        try:
            yield
        finally:
            budget.release(place)
