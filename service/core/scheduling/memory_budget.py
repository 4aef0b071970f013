"""How much memory pictures may take at once."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from service.core.deadline import within
from service.core.errors import BusyError

DEFAULT_MAX_PIXELS_IN_FLIGHT = 100_000_000
BYTES_PER_PIXEL_IN_FLIGHT = 7
"""A large JPEG or PNG that is answered with a mask takes 6, a WebP 12."""

_RESERVED_SHARE = 8
_SMALL_SHARE = 16


@dataclass(eq=False)
class MemoryReservation:
    """Room for one picture, taken or waited for.

    Attributes:
        num_bytes: how much.
        granted: called in any thread when the room that was waited for is there; does not block.
        is_taken: whether the room is there.
    """

    num_bytes: int
    granted: Callable[[], None] | None = None
    is_taken: bool = False


@dataclass(eq=False)
class _Lane:
    """Pictures that share a limit; who comes first is served first."""

    max_bytes: int
    taken_bytes: int = 0
    line: deque[MemoryReservation] = field(default_factory=deque)


class MemoryBudget:
    """Memory that may be taken at the same time, without large pictures keeping small ones out.

    Large pictures leave an eighth of the budget to small ones, each of which is at most a sixteenth. While a
    large one waits, small ones keep to that eighth, so that neither kind waits for ever for the other.

    Thread-safe.

    Args:
        max_bytes: the budget of this process.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._reserved_bytes = max_bytes // _RESERVED_SHARE
        self._small_bytes = max_bytes // _SMALL_SHARE
        self._small = _Lane(max_bytes)
        self._large = _Lane(max_bytes - self._reserved_bytes)
        self._lock = threading.Lock()

    def take(self, num_bytes: int) -> MemoryReservation | None:
        """Take room if it is there now and nobody waits for it; None = it is not.

        Args:
            num_bytes: what one picture needs; one that needs more than large pictures may have is admitted
                as the only large one.

        Returns:
            The argument of ``release``.
        """
        lane = self._lane_of(num_bytes)
        place = MemoryReservation(min(num_bytes, lane.max_bytes), is_taken=True)
        with self._lock:
            if lane.line or not self._has_room(lane, place.num_bytes):
                return None
            lane.taken_bytes += place.num_bytes
        return place

    async def acquire(self, num_bytes: int, *, timeout_s: float | None = None) -> MemoryReservation:
        """Wait for room.

        Args:
            num_bytes: what one picture needs.
            timeout_s: how long to wait, in seconds; None = for ever.

        Returns:
            The argument of ``release``.

        Raises:
            BusyError: there was no room in time.
        """
        if (place := self.take(num_bytes)) is not None:
            return place
        lane = self._lane_of(num_bytes)
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        place = MemoryReservation(min(num_bytes, lane.max_bytes), lambda: _wake(turn))
        with self._lock:
            lane.line.append(place)
            granted = self._advance()
        _grant(granted)
        try:
            async with within(timeout_s, lambda: BusyError("no memory for another picture is free")):
                await turn
        except BaseException:
            self.release(place)
            raise
        return place

    def release(self, place: MemoryReservation) -> None:
        """Give room back, or leave the line; the next ones go ahead."""
        lane = self._lane_of(place.num_bytes)
        with self._lock:
            if place.is_taken:
                lane.taken_bytes -= place.num_bytes
            else:
                lane.line.remove(place)
            if not (self._small.line or self._large.line):
                return
            granted = self._advance()
        _grant(granted)

    @property
    def taken_bytes(self) -> int:
        """How much is taken now."""
        return self._small.taken_bytes + self._large.taken_bytes

    def _lane_of(self, num_bytes: int) -> _Lane:
        return self._small if num_bytes <= self._small_bytes else self._large

    def _advance(self) -> list[MemoryReservation]:
        return [*self._advance_lane(self._large), *self._advance_lane(self._small)]

    def _advance_lane(self, lane: _Lane) -> list[MemoryReservation]:
        granted = []
        while lane.line and self._has_room(lane, lane.line[0].num_bytes):
            place = lane.line.popleft()
            lane.taken_bytes += place.num_bytes
            place.is_taken = True
            granted.append(place)
        return granted

    def _has_room(self, lane: _Lane, num_bytes: int) -> bool:
        yields = lane is self._small and bool(self._large.line)
        lane_bytes = self._reserved_bytes if yields else lane.max_bytes
        is_in_budget = self.taken_bytes + num_bytes <= self._max_bytes
        return is_in_budget and lane.taken_bytes + num_bytes <= lane_bytes


def _grant(places: list[MemoryReservation]) -> None:
    for place in places:
        assert place.granted is not None
        place.granted()


def _wake(turn: asyncio.Future[None]) -> None:
    with suppress(RuntimeError):  # its loop is closed, and nobody waits any more
        turn.get_loop().call_soon_threadsafe(_settle, turn)


def _settle(turn: asyncio.Future[None]) -> None:
    if not turn.done():
        turn.set_result(None)
