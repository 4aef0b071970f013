"""How long to wait before a lost connection is opened again."""

from __future__ import annotations

from collections.abc import Callable
from random import uniform


class ReconnectBackoff:
    """Doubles the wait after each failure. The wait is random, so that clients do not return together.

    Args:
        first_s: longest wait after the first failure, in seconds.
        max_s: longest wait after any failure, in seconds.
        spread: returns a random number between its two arguments.

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
        """Return the seconds to wait after this failure.

        Args:
            retry_after_s: shortest wait that the service asks for, in seconds; at most ``max_s`` of it count.
        """
        ceiling_s, self._ceiling_s = self._ceiling_s, min(self._max_s, 2 * self._ceiling_s)
        return min(self._max_s, retry_after_s or 0.0) + self._spread(0.0, ceiling_s)

    def reset(self) -> None:
        """Forget the failures, after a success."""
        self._ceiling_s = self._first_s
