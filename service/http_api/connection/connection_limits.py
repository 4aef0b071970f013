"""How long a connection may take for what: slow clients cost a socket, and that not for long."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class ConnectionLimits:
    """What connections may cost.

    Args:
        max_connections: at the same time; more are refused, unless one has waited for ``idle_when_full_s``.
        head_timeout_s: from the connection, or the first byte of a later request, to the end of the head.
        idle_timeout_s: between two requests. Proxies keep connections to a server for 60 s as a rule; were it
            less here, now and then they would send a request into a connection that is just being closed.
        idle_when_full_s: between two requests, where somebody else needs the connection.
        rest_timeout_s: what the rest of a refused body may take.
        write_timeout_s: from the moment in which an answer waits for the client to that in which he has taken
            all of it.
        large_bytes_per_s: of an answer that is so large that this pace takes longer than ``write_timeout_s``.
        stall_timeout_s: a client that takes less than ``min_bytes_per_s`` for so long is cut off.
        min_bytes_per_s: of an answer.
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

    def patience_s(self, unsent: int) -> float:
        """Return how long a client may take for so many bytes."""
        return max(self.write_timeout_s, unsent / self.large_bytes_per_s)


class WriteWatch:
    """Cuts off a client that does not take its answer.

    Args:
        transport: of the connection.
        limits: of an answer.
        call_later: of the event loop.
        rest: how many bytes of the answer that is being sent the transport does not have yet.
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
        """Begin to watch if something waits to be sent, and nobody watches yet."""
        unsent = self._count_unsent()
        if self._timer is None and unsent:
            self._unsent = unsent
            self._checks_left = math.ceil(self._limits.patience_s(unsent) / self._limits.stall_timeout_s)
            self._timer = self._call_later(self._limits.stall_timeout_s, self._check)

    def look_again(self) -> None:
        """Begin anew: the client has taken nearly all, unless the answer goes on."""
        if not self._rest():
            self.stop()
            self.look()

    def stop(self) -> None:
        """Stop watching: the connection is gone."""
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
        if self._unsent > before:  # the next answer has begun, which waits for the client from now on
            self.look()
        elif self._checks_left <= 0 or before - self._unsent < due:
            self._transport.abort()
        else:
            self._timer = self._call_later(self._limits.stall_timeout_s, self._check)
