"""How much memory decoded pictures may take at once."""

from __future__ import annotations

import asyncio
from collections import deque

from service.core.errors import BusyError

DEFAULT_MAX_PIXELS_IN_FLIGHT = 100_000_000


class PixelBudget:
    """Pixels that may be in memory at the same time; who comes first is served first.

    Belongs to one event loop; nothing here may be called from another thread.

    Args:
        max_pixels: the budget of this process, in pixels of decoded pictures.
    """

    def __init__(self, max_pixels: int = DEFAULT_MAX_PIXELS_IN_FLIGHT) -> None:
        self._max_pixels = max_pixels
        self._free = max_pixels
        self._line: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def acquire(self, pixels: int, *, timeout_s: float) -> int:
        """Wait for room.

        Args:
            pixels: of one picture; one that is larger than the whole budget is admitted alone.
            timeout_s: how long to wait, in seconds.

        Returns:
            What to give back to ``release``.

        Raises:
            BusyError: there was no room in time.
        """
        pixels = min(pixels, self._max_pixels)
        if not self._line and pixels <= self._free:
            self._free -= pixels
            return pixels
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._line.append((pixels, turn))
        try:
            async with asyncio.timeout(timeout_s):
                await turn
        except BaseException as error:
            self._leave(pixels, turn)
            if isinstance(error, TimeoutError):
                raise BusyError("no memory for another picture is free") from None
            raise
        return pixels

    def release(self, pixels: int) -> None:
        """Give back what ``acquire`` returned; the next in line go ahead."""
        self._free += pixels
        self._advance()

    def _leave(self, pixels: int, turn: asyncio.Future[None]) -> None:
        if turn.cancelled():
            self._advance()
        else:
            self.release(pixels)  # the room was granted in the very moment in which the waiter left

    def _advance(self) -> None:
        while self._line:
            pixels, turn = self._line[0]
            if not turn.cancelled():
                if pixels > self._free:
                    return
                self._free -= pixels
                turn.set_result(None)
            self._line.popleft()
