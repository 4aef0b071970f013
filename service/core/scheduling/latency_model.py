"""Duration of a batch on a device, estimated from measured durations: pure arithmetic, no clock."""

from __future__ import annotations

from collections import deque

_WINDOW = 16
"""Durations kept per batch size; older ones say little about the present speed."""

_TRIMMED = 4
"""Longest and shortest durations of a full window that do not count: pauses of the machine, first runs."""

_MAX_SIZES = 24

_DECAY = 0.95
_MIN_WEIGHT = 1e-3
"""Weight of a size in the fit: multiplied by ``_DECAY`` per later measurement, never below ``_MIN_WEIGHT``.

Under light load all batches have one size, and only old measurements tell what a larger batch costs.
"""

_MIN_SMOOTHING = 0.02
"""Weight of the newest deviation once there are many."""

_MAX_EXTRAPOLATION = 4
"""Batches beyond this multiple of the largest measured size are estimated like that multiple.

The fixed cost hides in the duration of tiny pictures: one of 16x16, as a health check sends it, takes about a
700th of the time of one of 2048x2048, which has 4,096 times its pixels after padding.
"""

_OUTDATED = 0.4
"""A batch that takes less than this share of its estimate shows that the estimate is out of date.

With 30 % noise (log-normal) one batch in a thousand is that quick by chance.
"""


class LatencyModel:
    """Estimates durations as ``per_pixel_s * pixels + per_batch_s``, fitted to recent measurements.

    A size that was measured itself has its own estimate, the trimmed mean of its recent durations. Slow
    outliers are pauses and do not count. A fast one counts at once, for all sizes: see ``learn``.

    Attributes:
        spread: mean deviation of durations from their estimate, as a share of the estimate, 0..1.
    """

    def __init__(self) -> None:
        self._durations_s: dict[int, deque[float]] = {}  # by pixels of a batch; the latest size comes last
        self._typical_s: dict[int, float] = {}
        self._measured_at: dict[int, int] = {}
        self._measurements = 0
        self._per_pixel_s = 0.0
        self._per_batch_s = 0.0
        self.spread = 0.0
        self._deviations = 0

    def learn(self, *, pixels: int, duration_s: float) -> None:
        """Add a measured batch.

        A duration below 40 % of the estimate ends a slow time, for example foreign load on the processor: it
        replaces the duration of this size, and limits the estimates of all other sizes.

        Args:
            pixels: of all pictures of the batch, padding included.
            duration_s: time in which the device was busy with it, in seconds.
        """
        if duration_s < _OUTDATED * self.predict(pixels):
            self._forget_slow_durations(pixels, duration_s)
        self._add_deviation(pixels, duration_s)
        window_s = self._durations_s.pop(pixels, None) or deque(maxlen=_WINDOW)
        window_s.append(duration_s)
        self._durations_s[pixels] = window_s
        self._typical_s[pixels] = _trimmed_mean(window_s)
        self._measurements += 1
        self._measured_at[pixels] = self._measurements
        if len(self._durations_s) > _MAX_SIZES:
            self._forget_size(next(iter(self._durations_s)))
        self._fit()

    def predict(self, pixels: int, *, batches: int = 1) -> float:
        """Return the duration of ``batches`` batches with ``pixels`` pixels together, in seconds.

        0 before any measurement. Batches more than four times as large as the largest measured one are
        estimated like the fourfold: too short rather than too long.

        Args:
            pixels: of all pictures of the batches, padding included.
            batches: 0 = the pixels join a batch that is counted already.
        """
        if batches == 1 and pixels in self._typical_s:
            return self._typical_s[pixels]
        known_pixels = max(1, batches) * _MAX_EXTRAPOLATION * max(self._typical_s, default=0)
        return self._per_pixel_s * min(pixels, known_pixels) + self._per_batch_s * batches

    def least_s(self) -> float:
        """Return the time that the smallest measured batch adds to a larger one, in seconds; 0 = unknown."""
        return self._per_pixel_s * min(self._typical_s, default=0)

    def _add_deviation(self, pixels: int, duration_s: float) -> None:
        if pixels in self._typical_s:
            self._deviations += 1
            newest = min(1.0, abs(duration_s / self._typical_s[pixels] - 1.0))
            weight = max(_MIN_SMOOTHING, 1 / self._deviations)
            self.spread += weight * (newest - self.spread)

    def _forget_slow_durations(self, pixels: int, duration_s: float) -> None:
        """Forget a size, and cut the estimates of the others to what its duration allows.

        A batch of fewer pixels takes no longer, one of k times the pixels at most k times as long. The limit
        is 2.5 times that, because large pictures miss caches. Deviations start anew as well.
        """
        if pixels in self._durations_s:
            self._forget_size(pixels)
            self.spread, self._deviations = 0.0, 0
        for other, typical_s in self._typical_s.items():
            limit_s = duration_s * max(1.0, other / pixels) / _OUTDATED
            if typical_s > limit_s:
                self._typical_s[other] = limit_s
                self._durations_s[other] = deque([limit_s], maxlen=_WINDOW)

    def _forget_size(self, pixels: int) -> None:
        for by_size in (self._durations_s, self._typical_s, self._measured_at):
            del by_size[pixels]

    def _fit(self) -> None:
        """Fit the line by weighted least squares; through the origin while there is one size alone."""
        weights = {
            pixels: max(_MIN_WEIGHT, _DECAY ** (self._measurements - at))
            for pixels, at in self._measured_at.items()
        }
        total = sum(weights.values())
        mean_pixels = sum(w * pixels for pixels, w in weights.items()) / total
        mean_s = sum(w * self._typical_s[pixels] for pixels, w in weights.items()) / total
        slope = mean_s / mean_pixels
        if len(weights) > 1:
            covariance = sum(
                w * (x - mean_pixels) * (self._typical_s[x] - mean_s) for x, w in weights.items()
            )
            variance = sum(w * (x - mean_pixels) ** 2 for x, w in weights.items())
            slope = min(slope, max(0.0, covariance / variance))
        self._per_pixel_s = slope
        self._per_batch_s = mean_s - slope * mean_pixels


def _trimmed_mean(durations_s: deque[float]) -> float:
    """Return the mean without the extremes; of three, the middle one."""
    cut = min(_TRIMMED, (len(durations_s) - 1) // 2)
    kept_s = sorted(durations_s)[cut : len(durations_s) - cut]
    return sum(kept_s) / len(kept_s)
