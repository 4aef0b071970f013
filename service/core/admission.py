"""How much memory pictures may take at once."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field

from service.core.deadline import within
from service.core.errors import BusyError

DEFAULT_MAX_PIXELS_IN_FLIGHT = 100_000_000
BYTES_PER_PIXEL_IN_FLIGHT = 7
"""A large JPEG or PNG that is answered with a mask takes 6, a WebP 12."""

_RESERVED_SHARE = 8
_SMALL_SHARE = 16


@dataclass(eq=False)
class Place:
    """Room for one picture, taken or waited for."""

    num_bytes: int
    granted: asyncio.Future[None]


@dataclass(eq=False)
class _Lane:
    """Pictures that share a limit; who comes first is served first."""

    max_bytes: int
    taken_bytes: int = 0
    line: deque[Place] = field(default_factory=deque)


class MemoryBudget:
    """Memory that may be taken at the same time, without large pictures keeping small ones out.

    Large pictures leave an eighth of the budget to small ones, each of which is at most a sixteenth. While a
    large one waits, small ones keep to that eighth, so that neither kind waits for ever for the other.

    Belongs to one event loop; nothing here may be called from another thread.

    Args:
        max_bytes: the budget of this process.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._reserved_bytes = max_bytes // _RESERVED_SHARE
        self._small_bytes = max_bytes // _SMALL_SHARE
        self._small = _Lane(max_bytes)
        self._large = _Lane(max_bytes - self._reserved_bytes)

    async def acquire(self, num_bytes: int, *, timeout_s: float) -> Place:
        """Wait for room.

        Args:
            num_bytes: that one picture needs; one that needs more than large pictures may have is admitted
                as the only large one.
            timeout_s: how long to wait, in seconds.

        Returns:
            What to give back to ``release``.

        Raises:
            BusyError: there was no room in time.
        """
        lane = self._lane_of(num_bytes)
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        place = Place(min(num_bytes, lane.max_bytes), turn)
        lane.line.append(place)
        self._advance()
        try:
            if not turn.done():
                async with within(timeout_s, BusyError, "no memory for another picture is free"):
                    await turn
        except BaseException:
            self._leave(place)
            raise
        return place

    def release(self, place: Place) -> None:
        """Give room back; the next in line go ahead."""
        self._lane_of(place.num_bytes).taken_bytes -= place.num_bytes
        self._advance()

    def _lane_of(self, num_bytes: int) -> _Lane:
        return self._small if num_bytes <= self._small_bytes else self._large

    def _leave(self, place: Place) -> None:
        if place.granted.cancelled():
            self._advance()
        else:
            self.release(place)  # the room was granted in the very moment in which the waiter left

    def _advance(self) -> None:
        self._advance_lane(self._large)
        self._advance_lane(self._small)

    def _advance_lane(self, lane: _Lane) -> None:
        while lane.line:
            place = lane.line[0]
            if not place.granted.cancelled():
                if not self._has_room(lane, place.num_bytes):
                    return
                lane.taken_bytes += place.num_bytes
                place.granted.set_result(None)
            lane.line.popleft()

    def _has_room(self, lane: _Lane, num_bytes: int) -> bool:
        yields = lane is self._small and bool(self._large.line)
        lane_bytes = self._reserved_bytes if yields else lane.max_bytes
        all_bytes = self._small.taken_bytes + self._large.taken_bytes
        return lane.taken_bytes + num_bytes <= lane_bytes and all_bytes + num_bytes <= self._max_bytes
