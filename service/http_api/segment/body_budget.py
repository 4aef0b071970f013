"""Room for the bodies of requests: what many clients send at once does not fill the memory."""

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
    """Bounds the bytes of all bodies together; of a body that has no room, no more is received.

    Room is taken by what has arrived, and at most for as much again: who only says how much he will send
    keeps nobody out. From one half of the room bodies take it step by step. When that half is full, each
    waits in line for the rest of what it may have, from the other half; whoever got that waits no more, so
    that bodies which are half here never wait for each other.

    Belongs to one event loop.

    Args:
        max_bytes: of all bodies; besides, of each connection what arrived while its body waits.
        limits: of one.
    """

    def __init__(self, max_bytes: int, limits: BodyLimits) -> None:
        self._limits = limits
        rests = max_bytes // _RESTS_SHARE
        self._rests = MemoryBudget(rests)
        self._steps = MemoryBudget(max_bytes - rests)

    @asynccontextmanager
    async def holding(self, request: Request, *, deadline_s: float) -> AsyncIterator[Hold]:
        """Hold room for the body of a request; it is given back when the context is left.

        Args:
            request: whose body was not received yet.
            deadline_s: when nobody waits any more, on the clock of ``time.monotonic``.

        Yields:
            What to await whenever more of the body has arrived, with its bytes so far. Raises ``BusyError``
            when there is no room before the deadline, or for as long as a body may take to arrive.

        Raises:
            PayloadTooLargeError: it declares more bytes than one body may have.
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
                    patience_s = min(deadline_s - time.monotonic(), self._limits.receive_timeout_s)
                    await take(self._rests, max(received, most) - held, patience_s)

            yield hold
