"""Time limits of connections: a slow client holds a socket for a bounded time."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class ConnectionLimits:
    """Limits of connections; all times in seconds.

    Args:
        max_connections: at the same time. Further ones are refused, unless a connection has been idle for
            ``idle_when_full_s``.
        head_timeout_s: from the connection, or the first byte of a later request, to the end of the head.
        idle_timeout_s: between two requests. Longer than the 60 s for which proxies usually keep connections:
            otherwise they sometimes send a request into a connection that is being closed.
        idle_when_full_s: between two requests, when another client needs the connection.
        rest_timeout_s: for the rest of a refused body.
        write_timeout_s: from the time at which an answer waits for the client until it has taken all.
        large_bytes_per_s: pace for an answer that takes longer than ``write_timeout_s`` at this pace.
        stall_timeout_s: a client that takes less than ``min_bytes_per_s`` for this time is cut off.
        min_bytes_per_s: lowest pace of an answer.
    """

    max_connections: int = 2048
    head_timeout_s: float = 10.0
    idle_timeout_s: float = 75.0
    idle_when_full_s: float = 10.0
    rest_timeout_s: float = 10.0
    write_timeout_s: float = 60.0
    stall_timeout_s: float = 10.0
    min_bytes_per_s: int = 8192
    large_bytes_per_s: int = 256 * 1024

    def allowed_s(self, unsent: int) -> float:
        """Return the time in which a client must take this many bytes, in seconds."""
        return max(self.write_timeout_s, unsent / self.large_bytes_per_s)


class WriteWatch:
    """Cuts off a client that does not take its answer.

    Args:
        transport: of the connection.
        limits: of an answer.
        call_later: of the event loop.
        rest: returns the bytes of the current answer that the transport does not have yet.
    """

    def __init__(
        self,
        transport: asyncio.Transport,
        limits: ConnectionLimits,
        call_later: Callable[[float, Callable[[], None]], asyncio.TimerHandle],
        rest: Callable[[], int],
    ) -> None:
        self._transport = transport
        self._limits = limits
        self._call_later = call_later
        self._rest = rest
        self._timer: asyncio.TimerHandle | None = None
        self._unsent = 0
        self._checks_left = 0

    def look(self) -> None:
        """Start watching if bytes wait to be sent."""
        unsent = self._count_unsent()
        if self._timer is None and unsent:
            self._unsent = unsent
            self._checks_left = math.ceil(self._limits.allowed_s(unsent) / self._limits.stall_timeout_s)
            self._timer = self._call_later(self._limits.stall_timeout_s, self._check)

    def look_again(self) -> None:
        """Start again: the client has taken nearly all that was there."""
        if not self._rest():
            self.stop()
            self.look()

    def stop(self) -> None:
        """Stop watching a closed connection."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _count_unsent(self) -> int:
        return self._transport.get_write_buffer_size() + self._rest()

    def _check(self) -> None:
        self._timer = None
        before, self._unsent = self._unsent, self._count_unsent()
        self._checks_left -= 1
        due = self._limits.min_bytes_per_s * self._limits.stall_timeout_s
        if not self._unsent:
            return
        if self._unsent > before:  # the next answer has begun; its time starts now
            self.look()
        elif self._checks_left <= 0 or before - self._unsent < due:
            self._transport.abort()
        else:
            self._timer = self._call_later(self._limits.stall_timeout_s, self._check)
