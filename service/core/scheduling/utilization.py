"""How busy a device is."""

from __future__ import annotations

from collections import deque

_WINDOW_S = 10.0


class UtilizationMeter:
    """Knows which share of the last ten seconds a device was busy."""

    def __init__(self) -> None:
        self._batches: deque[tuple[float, float]] = deque()  # when each ended, and how long it took

    def add(self, duration_s: float, *, now_s: float) -> None:
        """Take note of a batch that has just ended."""
        self._batches.append((now_s, duration_s))
        self._forget(now_s)

    def ratio(self, *, now_s: float) -> float:
        """Return the share, 0..1."""
        self._forget(now_s)
        return min(1.0, sum(duration_s for _, duration_s in self._batches) / _WINDOW_S)

    def _forget(self, now_s: float) -> None:
        while self._batches and self._batches[0][0] <= now_s - _WINDOW_S:
            self._batches.popleft()
