"""When to try again after a connection was lost."""

from __future__ import annotations

from collections.abc import Callable
from random import uniform


class ReconnectBackoff:
    """Doubles the wait after each failure, and spreads it, so that clients do not come back together.

    Args:
        first_s: longest wait after the first failure.
        max_s: longest wait ever.
        spread: returns a number between its two arguments.

    Source:
        "Full jitter" of Brooker, "Exponential Backoff and Jitter" (2015).
    """

    def __init__(
        self,
        *,
        first_s: float = 0.2,
        max_s: float = 10.0,
        spread: Callable[[float, float], float] = uniform,
    ) -> None:
        self._first_s = first_s
        self._max_s = max_s
        self._spread = spread
        self._ceiling_s = first_s

    def next_s(self, retry_after_s: float | None = None) -> float:
        """Return how long to wait now.

        Args:
            retry_after_s: the service's own advice; it is not asked earlier.
        """
        ceiling_s, self._ceiling_s = self._ceiling_s, min(self._max_s, 2 * self._ceiling_s)
        return min(self._max_s, retry_after_s or 0.0) + self._spread(0.0, ceiling_s)

    def reset(self) -> None:
        """Begin anew, after a success."""
        self._ceiling_s = self._first_s
