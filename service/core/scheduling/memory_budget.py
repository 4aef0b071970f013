"""Budget for the memory of pictures that are in the process at the same time."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
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
    """Memory for one picture.

    Attributes:
        num_bytes: size.
        waiter: done when the memory is granted; None if it was granted at once.
        is_granted: whether the memory may be used.
    """

    num_bytes: int
    waiter: asyncio.Future[None] | None = None
    is_granted: bool = False


@dataclass(eq=False)
class _Lane:
    """Pictures that share a limit; those that wait are granted in the order of arrival."""

    max_bytes: int
    used_bytes: int = 0
    waiting: deque[MemoryReservation] = field(default_factory=deque)


class MemoryBudget:
    """Grants memory up to a limit; thread-safe.

    Neither large nor small pictures starve: large ones leave an eighth of the budget to small ones, each of
    which is at most a sixteenth. While a large one waits, small ones use that eighth only.

    Args:
        max_bytes: the limit.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._reserved_bytes = max_bytes // _RESERVED_SHARE
        self._small_bytes = max_bytes // _SMALL_SHARE
        self._small = _Lane(max_bytes)
        self._large = _Lane(max_bytes - self._reserved_bytes)
        self._lock = threading.Lock()

    def take(self, num_bytes: int) -> MemoryReservation | None:
        """Return memory if it is free and no other picture of the kind waits for it, else None.

        Args:
            num_bytes: for one picture; above the limit of large ones it is granted as the only large one.

        Returns:
            The argument of ``release``.
        """
        lane = self._lane_of(num_bytes)
        reservation = MemoryReservation(min(num_bytes, lane.max_bytes), is_granted=True)
        with self._lock:
            if lane.waiting or not self._fits(lane, reservation.num_bytes):
                return None
            lane.used_bytes += reservation.num_bytes
        return reservation

    async def acquire(self, num_bytes: int, *, timeout_s: float | None = None) -> MemoryReservation:
        """Wait for memory.

        Args:
            num_bytes: for one picture; above the limit of large ones it is granted as the only large one.
            timeout_s: longest wait, in seconds; None = no limit.

        Returns:
            The argument of ``release``.

        Raises:
            BusyError: the time is over.
        """
        if (reservation := self.take(num_bytes)) is not None:
            return reservation
        lane = self._lane_of(num_bytes)
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        reservation = MemoryReservation(min(num_bytes, lane.max_bytes), waiter)
        with self._lock:
            lane.waiting.append(reservation)
            granted = self._grant()
        _wake(granted)
        try:
            async with within(timeout_s, lambda: BusyError("no memory for another picture is free")):
                await waiter
        except BaseException:
            self.release(reservation)
            raise
        return reservation

    def release(self, reservation: MemoryReservation) -> None:
        """Give memory back, or stop waiting for it."""
        lane = self._lane_of(reservation.num_bytes)
        with self._lock:
            if reservation.is_granted:
                lane.used_bytes -= reservation.num_bytes
            else:
                lane.waiting.remove(reservation)
            if not (self._small.waiting or self._large.waiting):
                return
            granted = self._grant()
        _wake(granted)

    @property
    def used_bytes(self) -> int:
        """Granted memory."""
        return self._small.used_bytes + self._large.used_bytes

    def _lane_of(self, num_bytes: int) -> _Lane:
        return self._small if num_bytes <= self._small_bytes else self._large

    def _grant(self) -> list[MemoryReservation]:
        """Grant what fits now; return the reservations whose waiters are to be woken."""
        return [*self._grant_lane(self._large), *self._grant_lane(self._small)]

    def _grant_lane(self, lane: _Lane) -> list[MemoryReservation]:
        granted = []
        while lane.waiting and self._fits(lane, lane.waiting[0].num_bytes):
            reservation = lane.waiting.popleft()
            lane.used_bytes += reservation.num_bytes
            reservation.is_granted = True
            granted.append(reservation)
        return granted

    def _fits(self, lane: _Lane, num_bytes: int) -> bool:
        yields = lane is self._small and bool(self._large.waiting)
        lane_bytes = self._reserved_bytes if yields else lane.max_bytes
        is_in_budget = self.used_bytes + num_bytes <= self._max_bytes
        return is_in_budget and lane.used_bytes + num_bytes <= lane_bytes


def _wake(granted: list[MemoryReservation]) -> None:
    for waiter in (reservation.waiter for reservation in granted):
        assert waiter is not None
        with suppress(RuntimeError):  # its loop is closed
            waiter.get_loop().call_soon_threadsafe(_set_done, waiter)


def _set_done(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
