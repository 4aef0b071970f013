"""The memory budget for the bodies of requests."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress

from starlette.requests import Request

from service.core.errors import BusyError
from service.core.scheduling.memory_budget import MemoryBudget
from service.http_api.segment.body import BodyLimits, Hold, declared_bytes

DEFAULT_MAX_BODY_BYTES_IN_FLIGHT = 512 * 1024 * 1024
DEFAULT_MAX_ANSWER_BYTES_IN_FLIGHT = 256 * 1024 * 1024

_RESTS_SHARE = 2
_MORE = 2


class BodyBudget:
    """Bounds the bytes of all bodies together. Without a reservation, no more of a body is received.

    A body reserves the bytes that have arrived, and at most as many again; a declared Content-Length alone
    reserves nothing. Bodies reserve one half of the budget step by step. When it is full, each body waits in
    line and reserves all that it may still send from the other half. A body with such a reservation does not
    wait again, so incomplete bodies never wait for each other.

    Belongs to one event loop.

    Args:
        max_bytes: of all bodies; each connection may hold one more piece while its body waits.
        limits: of one body.
    """

    def __init__(self, max_bytes: int, limits: BodyLimits) -> None:
        self._limits = limits
        rests = max_bytes // _RESTS_SHARE
        self._rests = MemoryBudget(rests)
        self._steps = MemoryBudget(max_bytes - rests)

    @asynccontextmanager
    async def holding(self, request: Request, *, deadline_s: float) -> AsyncIterator[Hold]:
        """Reserve memory for the body of a request until the context is left.

        Args:
            request: its body was not received yet.
            deadline_s: time after which the answer is no longer needed (``time.monotonic``, seconds).

        Yields:
            A function to await with the bytes so far, after each piece. It raises ``BusyError`` if the budget
            stays full until the deadline, or for as long as a body may take to arrive.

        Raises:
            PayloadTooLargeError: the body declares more bytes than one body may have.
        """
        declared = declared_bytes(request, self._limits)
        most = self._limits.max_bytes if declared is None else declared
        held = 0
        async with AsyncExitStack() as places:

            async def take(budget: MemoryBudget, num_bytes: int, timeout_s: float) -> None:
                nonlocal held
                place = await budget.acquire(num_bytes, timeout_s=timeout_s)
                places.callback(budget.release, place)
                held += num_bytes

            async def hold(received: int) -> None:
                if received > held:
                    with suppress(BusyError):
                        await take(self._steps, max(received, min(_MORE * received, most)) - held, 0.0)
                if received > held:
                    wait_s = min(deadline_s - time.monotonic(), self._limits.receive_timeout_s)
                    await take(self._rests, max(received, most) - held, wait_s)

            yield hold
