"""Confidence intervals of scores over the choice of pictures.

Axes: N pictures, K classes, B resamples; 3 = pixels that hit, pixels of the truth, pixels of the guess.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from model.evaluation.metrics import Int64Array

__all__ = ["Interval", "Intervals", "bootstrap", "paired_bootstrap"]

Float64Array = npt.NDArray[np.float64]

RESAMPLES = 1000
CONFIDENCE = 0.95
_SEED = 20_250
_BLOCK = 64  # resamples at a time: their IoU of 255 classes is 130 kB


@dataclass(frozen=True)
class Interval:
    """The range of a score with a probability of ``CONFIDENCE``."""

    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether other pictures would very likely show a difference of the same sign."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Intervals:
    """Intervals of the mean and of each class; None where there is no score."""

    miou: Interval | None
    iou: tuple[Interval | None, ...]


def bootstrap(tallies_N3K: Int64Array, *, absent_as_zero: bool = False) -> Intervals:
    """Return the confidence intervals of mIoU and IoU, by drawing the pictures again with replacement.

    Counts are integers below 2^53, so the same pictures give the same bits on every machine.

    Args:
        tallies_N3K: int64, pixels of each picture: hits, truth and guess of each class.
        absent_as_zero: add 1 to each union (``ConfusionMatrix``).

    Source:
        Percentile method of Efron and Tibshirani (1993), over whole pictures because the pixels of one
        picture are not independent.
    """
    return _intervals(np.concatenate(list(_resampled_iou(tallies_N3K, absent_as_zero=absent_as_zero))))


def paired_bootstrap(
    first_N3K: Int64Array, second_N3K: Int64Array, *, absent_as_zero: bool = False
) -> Intervals:
    """Return the confidence intervals of second - first, where both score the same drawn pictures.

    Args:
        first_N3K: int64, pixels of each picture: hits, truth and guess of each class.
        second_N3K: of the same pictures in the same order.
        absent_as_zero: add 1 to each union (``ConfusionMatrix``).
    """
    resampled = [_resampled_iou(one, absent_as_zero=absent_as_zero) for one in (first_N3K, second_N3K)]
    pairs = zip(*resampled, strict=True)
    return _intervals(np.concatenate([second - first for first, second in pairs]))


def _resampled_iou(tallies_N3K: Int64Array, *, absent_as_zero: bool) -> Iterator[Float64Array]:
    """Yield, for blocks of resamples, the mean IoU and the IoU of each class: shape (block, 1 + K)."""
    count, _, num_classes = tallies_N3K.shape
    flat = tallies_N3K.reshape(count, 3 * num_classes).astype(np.float64)
    random = np.random.default_rng(_SEED)
    for first in range(0, RESAMPLES, _BLOCK):
        block = min(_BLOCK, RESAMPLES - first)
        drawn = random.multinomial(count, np.full(count, 1 / count), size=block)
        hits, truth, guess = np.moveaxis((drawn @ flat).reshape(block, 3, num_classes), 1, 0)
        unions = truth + guess - hits + absent_as_zero
        iou = np.divide(hits, unions, out=np.full_like(hits, np.nan), where=unions > 0)
        present = np.maximum((unions > 0).sum(axis=1), 1)
        mean = np.nansum(iou, axis=1) / present
        mean[~(unions > 0).any(axis=1)] = np.nan
        yield np.column_stack([mean, iou])


def _intervals(samples: Float64Array) -> Intervals:
    miou, *iou = (_interval(column[~np.isnan(column)]) for column in samples.T)
    return Intervals(miou, tuple(iou))


def _interval(values: Float64Array) -> Interval | None:
    if not values.size:
        return None
    low, high = np.quantile(values, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(float(low), float(high))
