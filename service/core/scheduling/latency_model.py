"""How long a device takes, learnt from how long it took: pure arithmetic, no clock."""

from __future__ import annotations

from collections import deque

_WINDOW = 16
"""Durations remembered a size of batch: the pace of a minute ago says little."""

_OUTLIERS = 4
"""So many at each end of a window do not count: pauses of the machine, the first run of a size."""

_MAX_SIZES = 24
_FADING = 0.95
_FAINTEST = 1e-3

_SLOWEST_SMOOTHING = 0.02
"""Weight of the newest deviation, once there are many."""


class LatencyModel:
    """Duration of a batch as ``a * pixels + b``, where a and b follow what was measured lately.

    For a size of batch that was measured itself, its own typical duration counts instead: no device is a
    straight line.
    """

    def __init__(self) -> None:
        self._durations_s: dict[int, deque[float]] = {}  # by pixels of a batch; the latest size comes last
        self._typical_s: dict[int, float] = {}
        self._learnt_at: dict[int, int] = {}
        self._learnt = 0
        self._per_pixel_s = 0.0
        self._per_batch_s = 0.0
        self._deviation = 0.0
        self._deviations = 0

    def learn(self, *, pixels: int, duration_s: float) -> None:
        """Take note of how long the device was busy with a batch.

        Args:
            pixels: of all its pictures together, padding included.
            duration_s: in seconds.
        """
        self._note_deviation(pixels, duration_s)
        window_s = self._durations_s.pop(pixels, None) or deque(maxlen=_WINDOW)
        window_s.append(duration_s)
        self._durations_s[pixels] = window_s
        self._typical_s[pixels] = _trimmed_mean(window_s)
        self._learnt += 1
        self._learnt_at[pixels] = self._learnt
        self._forget_the_oldest()
        self._fit()

    def predict(self, pixels: int, *, batches: int = 1) -> float:
        """Return how long so many pixels in so many batches take, in seconds; 0 before anything is known."""
        if batches == 1 and pixels in self._typical_s:
            return self._typical_s[pixels]
        return self._per_pixel_s * pixels + self._per_batch_s * batches

    def least_s(self) -> float:
        """Return what the smallest batch measured lately adds to a longer one; 0 before any was."""
        return self._per_pixel_s * min(self._typical_s, default=0)

    @property
    def spread(self) -> float:
        """How far durations are off their prediction on average, as a share of it."""
        return self._deviation

    def _note_deviation(self, pixels: int, duration_s: float) -> None:
        """Average how far, as a share of it, durations lie from what sizes measured before made expect."""
        if pixels in self._typical_s:
            self._deviations += 1
            newest = min(1.0, abs(duration_s / self._typical_s[pixels] - 1.0))
            weight = max(_SLOWEST_SMOOTHING, 1 / self._deviations)
            self._deviation += weight * (newest - self._deviation)

    def _forget_the_oldest(self) -> None:
        if len(self._durations_s) > _MAX_SIZES:
            oldest = next(iter(self._durations_s))
            for memory in (self._durations_s, self._typical_s, self._learnt_at):
                del memory[oldest]

    def _fit(self) -> None:
        """Weighted least squares over the typical durations.

        What was measured long ago fades, but never quite: under light load all batches are of one size, and
        only old ones tell what a larger one would cost. Of one size alone, duration goes with pixels.
        """
        weights = {
            pixels: max(_FAINTEST, _FADING ** (self._learnt - at)) for pixels, at in self._learnt_at.items()
        }
        total = sum(weights.values())
        mean_pixels = sum(w * pixels for pixels, w in weights.items()) / total
        mean_s = sum(w * self._typical_s[pixels] for pixels, w in weights.items()) / total
        spread = sum(w * (pixels - mean_pixels) ** 2 for pixels, w in weights.items())
        slope = mean_s / mean_pixels
        if len(weights) > 1:
            slant = sum(w * (x - mean_pixels) * (self._typical_s[x] - mean_s) for x, w in weights.items())
            slope = min(slope, max(0.0, slant / spread))
        self._per_pixel_s = slope
        self._per_batch_s = mean_s - slope * mean_pixels


def _trimmed_mean(durations_s: deque[float]) -> float:
    """Return the mean without the extremes; of three, the middle one."""
    cut = min(_OUTLIERS, (len(durations_s) - 1) // 2)
    kept_s = sorted(durations_s)[cut : len(durations_s) - cut]
    return sum(kept_s) / len(kept_s)
