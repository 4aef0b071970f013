"""Utilization of a device."""

from __future__ import annotations

from collections import deque

_WINDOW_S = 10.0


class UtilizationMeter:
    """Measures the share of the last ten seconds in which a device was busy."""

    def __init__(self) -> None:
        self._batches: deque[tuple[float, float]] = deque()  # end and duration of each

    def add_batch(self, duration_s: float, *, now_s: float) -> None:
        """Add a batch that ends now."""
        self._batches.append((now_s, duration_s))
        self._forget_old(now_s)

    def ratio(self, *, now_s: float) -> float:
        """Return the busy share, 0..1."""
        self._forget_old(now_s)
        return min(1.0, sum(duration_s for _, duration_s in self._batches) / _WINDOW_S)

    def _forget_old(self, now_s: float) -> None:
        while self._batches and self._batches[0][0] <= now_s - _WINDOW_S:
            self._batches.popleft()
