"""What one key may ask for at the same time, and a second."""

from __future__ import annotations

import datetime as dt
import math
from typing import TYPE_CHECKING

from service.core.errors import RateLimitedError
from service.core.keys.access_key import AccessKey

if TYPE_CHECKING:
    from throttled import Throttled

_PERIOD_S = 1000
"""The library counts whole requests in whole seconds; so many make 0.001 requests a second possible."""


class KeyLimits:
    """Counts the requests of one key; not thread-safe: both frontends share an event loop.

    Args:
        key: its limits.
    """

    def __init__(self, key: AccessKey) -> None:
        self.key = key
        self._open = 0
        self._throttle = None if key.rate_per_s is None else _throttle(key.rate_per_s)

    def enter(self) -> None:
        """Begin a request; ``leave`` ends it.

        Raises:
            RateLimitedError: the key has its limit of requests, at the same time or a second.
        """
        key = self.key
        if key.concurrency is not None and self._open >= key.concurrency:
            raise RateLimitedError(f"the key {key.name} may have {key.concurrency} requests at the same time")
        if self._throttle is not None:
            result = self._throttle.limit(key.sha256)
            if result.limited:
                raise RateLimitedError(
                    f"the key {key.name} may send {key.rate_per_s:g} requests a second",
                    retry_after_s=result.state.retry_after,
                )
        self._open += 1

    def leave(self) -> None:
        """End a request."""
        self._open -= 1


def _throttle(rate_per_s: float) -> Throttled:
    """Return a meter of arrivals (GCRA), which lets a burst of one second pass."""
    # Imported here: 80 to 110 ms at the start, which only services with such a key spend.
    from throttled import MemoryStore, RateLimiterType, Throttled, per_duration  # noqa: PLC0415

    quota = per_duration(
        dt.timedelta(seconds=_PERIOD_S), round(_PERIOD_S * rate_per_s), burst=max(1, math.ceil(rate_per_s))
    )
    return Throttled(using=RateLimiterType.GCRA.value, quota=quota, store=MemoryStore())
