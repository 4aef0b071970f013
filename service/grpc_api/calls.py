"""What the services of the gRPC port share: edge, budget of received pictures, deadlines, drain."""

from __future__ import annotations

import asyncio
import time
from typing import TypeVar

from service.core.deadline import within
from service.core.errors import DrainingError, InvalidArgumentError, RequestTooSlowError
from service.core.scheduling.memory_budget import MemoryBudget
from service.grpc_api.edge import Context, GrpcEdge
from service.grpc_api.streams import MessageChannel, MessageT, next_message

ReceivedT = TypeVar("ReceivedT")

_ABOUT_TO_STOP = "the service is about to stop"


class Calls:
    """Receives calls and their messages.

    Args:
        edge: wraps each call.
        image_budget: of pictures that were received and are not answered yet.
        default_timeout_s: deadline of calls without one, in seconds from their arrival.
        max_timeout_s: longest deadline.
        receive_timeout_s: time from the head of a call to the end of its first message.

    Attributes:
        draining: set when the server stops.
    """

    def __init__(
        self,
        edge: GrpcEdge,
        image_budget: MemoryBudget,
        *,
        default_timeout_s: float,
        max_timeout_s: float,
        receive_timeout_s: float,
    ) -> None:
        self.edge = edge
        self.image_budget = image_budget
        self.draining = asyncio.Event()
        self._default_timeout_s = default_timeout_s
        self._max_timeout_s = max_timeout_s
        self._receive_timeout_s = receive_timeout_s

    def timeout_s(self, context: Context) -> float:
        """Return the time that the client waits for its answer, in seconds."""
        left_s = self.left_s(context)
        return self._default_timeout_s if left_s is None else left_s

    def left_s(self, context: Context) -> float | None:
        """Return the time until the deadline of a call, in seconds, at most the longest; None without."""
        left_s: float | None = context.time_remaining()
        return None if left_s is None else min(left_s, self._max_timeout_s)

    def deadline_s(self, context: Context) -> float:
        """Return the time after which the client needs no answer (``time.monotonic``, seconds)."""
        return time.monotonic() + self.timeout_s(context)

    async def first_message(self, context: MessageChannel | Context, kind: type[MessageT]) -> MessageT:
        """Return the first message of a call.

        Raises:
            RequestTooSlowError: it did not come in time.
            InvalidArgumentError: there is none, or it is of another kind.
        """
        limit_s = self._receive_timeout_s
        async with within(limit_s, lambda: _too_slow(limit_s)):
            message = await next_message(context, kind)
        if message is None:
            raise InvalidArgumentError("there is no message")
        return message

    async def next_message(self, context: Context, kind: type[MessageT]) -> MessageT | None:
        """Return the next message of a stream; None after the last one.

        Raises:
            InvalidArgumentError: it is of another kind.
            DrainingError: the service stops, and no message is here.
        """
        return await self._unless_draining(asyncio.create_task(next_message(context, kind)))

    async def first_of_stream(self, context: MessageChannel | Context, kind: type[MessageT]) -> MessageT:
        """Return the first message of a stream.

        Raises:
            RequestTooSlowError: it did not come in time.
            InvalidArgumentError: there is none, or it is of another kind.
            DrainingError: the service stops, and no message is here.
        """
        return await self._unless_draining(asyncio.create_task(self.first_message(context, kind)))

    async def _unless_draining(self, reading: asyncio.Task[ReceivedT]) -> ReceivedT:
        draining = asyncio.create_task(self.draining.wait())
        try:
            await asyncio.wait((reading, draining), return_when=asyncio.FIRST_COMPLETED)
            if not reading.done():
                raise DrainingError(_ABOUT_TO_STOP)
            return await reading
        finally:
            reading.cancel()
            draining.cancel()


def _too_slow(limit_s: float) -> RequestTooSlowError:
    return RequestTooSlowError(f"no message came within {limit_s:g} s (limits.receive_timeout_s)")
