"""Scores of label maps, from a confusion matrix.

Axes: K classes, H height, W width; in counts_KK the row is the truth, the column the guess.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from model.errors import LabelRangeError
from model.labels import IGNORE_ID, UInt8Array

__all__ = ["ConfusionMatrix", "confusion_matrix"]

Int64Array = npt.NDArray[np.int64]
Scores = tuple[float | None, ...]
"""One score a class, 0..1; None: the class does not occur and counts in no mean."""

_IDS = 256
# bincount copies anything but int64. Pieces stay in the cache, and no allocation is large enough for the
# system to take it back and fault it in again (480x360 pixels: 0.4 instead of 1.3 ms).
_PIECE_PIXELS = 32_768


@dataclass(frozen=True, eq=False)
class ConfusionMatrix:
    """Number of pixels of each true class that were given each class; matrices add up.

    Args:
        counts_KK: int64, pixels; row = truth, column = guess.
        absent_as_zero: add 1 to the union of each class, as the original BiSeNet code does: then a class that
            occurs nowhere has an IoU of 0 and counts in the mean.
    """

    counts_KK: Int64Array
    absent_as_zero: bool = False

    def __post_init__(self) -> None:
        """Refuse arrays that are no counts: float32 loses pixels above 2^24."""
        counts = self.counts_KK
        if counts.dtype != np.int64 or counts.ndim != 2 or counts.shape[0] != counts.shape[1]:  # noqa: PLR2004
            raise ValueError(f"counts must be int64 KxK, not {counts.dtype} {counts.shape}")

    @classmethod
    def zeros(cls, num_classes: int) -> ConfusionMatrix:
        """Return the matrix of no pixels."""
        return cls(np.zeros((num_classes, num_classes), np.int64))

    def __add__(self, other: ConfusionMatrix) -> ConfusionMatrix:
        """Return the matrix of both sets of pixels together."""
        if self.counts_KK.shape != other.counts_KK.shape:
            raise ValueError(f"matrices of {self.num_classes} and {other.num_classes} classes do not add up")
        return ConfusionMatrix(self.counts_KK + other.counts_KK, self.absent_as_zero)

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.counts_KK)

    @property
    def hits_K(self) -> Int64Array:
        """True positives of each class, in pixels."""
        return self.counts_KK.diagonal()

    @property
    def truth_K(self) -> Int64Array:
        """Scored pixels whose truth is each class."""
        truth_K: Int64Array = self.counts_KK.sum(axis=1)
        return truth_K

    @property
    def guess_K(self) -> Int64Array:
        """Scored pixels that were given each class."""
        guess_K: Int64Array = self.counts_KK.sum(axis=0)
        return guess_K

    @property
    def pixels(self) -> int:
        """Scored pixels of all classes."""
        return int(self.counts_KK.sum())

    @property
    def iou(self) -> Scores:
        """Intersection over union of each class, 0..1; None where neither truth nor guess has it.

        Source:
            IoU = TP / (TP + FP + FN) over the whole set (Everingham et al. 2010; Cordts et al. 2016). With
            ``absent_as_zero`` TP / (TP + FP + FN + 1): github.com/CoinCheung/BiSeNet, tools/evaluate.py.
        """
        return _ratios(self.hits_K, self.truth_K + self.guess_K - self.hits_K + self.absent_as_zero)

    @property
    def precision(self) -> Scores:
        """TP / (TP + FP) of each class, 0..1; None where it is never predicted."""
        return _ratios(self.hits_K, self.guess_K)

    @property
    def recall(self) -> Scores:
        """TP / (TP + FN) of each class, 0..1; None where the truth does not have it."""
        return _ratios(self.hits_K, self.truth_K)

    @property
    def f1(self) -> Scores:
        """2 TP / (2 TP + FP + FN) of each class, 0..1; None where neither truth nor guess has it."""
        return _ratios(2 * self.hits_K, self.truth_K + self.guess_K)

    @property
    def miou(self) -> float | None:
        """Mean of ``iou`` over the classes that occur, 0..1; None when no pixel was scored."""
        return _mean(self.iou)

    @property
    def mean_recall(self) -> float | None:
        """Mean of ``recall`` over the classes of the truth, 0..1; None when no pixel was scored."""
        return _mean(self.recall)

    @property
    def mean_f1(self) -> float | None:
        """Mean of ``f1`` over the classes that occur, 0..1; None when no pixel was scored."""
        return _mean(self.f1)

    @property
    def frequency_weighted_iou(self) -> float | None:
        """Mean of ``iou`` weighted by each class's share of the truth, 0..1; None when no pixel was scored.

        Source:
            Long, Shelhamer, Darrell 2015.
        """
        weighted = [
            int(n) * value for n, value in zip(self.truth_K, self.iou, strict=True) if value is not None
        ]
        return sum(weighted) / self.pixels if self.pixels else None

    @property
    def pixel_accuracy(self) -> float | None:
        """Share of the scored pixels that were given their class, 0..1; None when there are none."""
        return int(self.hits_K.sum()) / self.pixels if self.pixels else None

    @property
    def classes_averaged(self) -> int:
        """Number of classes in the mean: those that truth or guess has, or all with ``absent_as_zero``."""
        return sum(value is not None for value in self.iou)

    @property
    def absent(self) -> tuple[int, ...]:
        """The classes that neither truth nor guess has."""
        return tuple(np.flatnonzero(self.truth_K + self.guess_K == 0).tolist())


def _ratios(shares_K: Int64Array, wholes_K: Int64Array) -> Scores:
    return tuple(
        int(share) / int(whole) if whole else None for share, whole in zip(shares_K, wholes_K, strict=True)
    )


def _mean(scores: Scores) -> float | None:
    present = [score for score in scores if score is not None]
    return sum(present) / len(present) if present else None


def confusion_matrix(
    truth_HW: UInt8Array, guess_HW: UInt8Array, *, num_classes: int, ignore_id: int = IGNORE_ID
) -> ConfusionMatrix:
    """Count the pixels of each pair of true and predicted class.

    Args:
        truth_HW: annotated class ids, uint8; ``ignore_id`` pixels are not scored.
        guess_HW: predicted class ids, uint8, same shape; any leading axes are fine.
        num_classes: K; ids in [0, K) are classes.
        ignore_id: the id of pixels without a class, outside [0, K).

    Raises:
        LabelRangeError: the arrays are not uint8 of one shape, or a scored pixel has an id outside [0, K).
    """
    if truth_HW.shape != guess_HW.shape or {truth_HW.dtype, guess_HW.dtype} != {np.dtype(np.uint8)}:
        raise LabelRangeError(
            f"truth and guess must be uint8 of one shape, not {truth_HW.dtype} {truth_HW.shape}"
            f" and {guess_HW.dtype} {guess_HW.shape}"
        )
    counts = _pair_counts(truth_HW.reshape(-1) - np.uint8(ignore_id), guess_HW.reshape(-1))
    ids = np.arange(num_classes)
    counts_KK = counts[(ids - ignore_id) % _IDS, :num_classes]
    if counts_KK.sum() != counts[1:].sum():
        raise LabelRangeError(_outside(np.roll(counts, ignore_id, axis=0), num_classes, ignore_id))
    return ConfusionMatrix(counts_KK)


def _pair_counts(rows: UInt8Array, columns: UInt8Array) -> Int64Array:
    """Count all 256 x 256 pairs of bytes; ids that are no classes have rows and columns of their own.

    Rows start at the ignore id, which wraps 255 around to 0: fewer bins cover the pairs that occur.
    """
    counts = np.zeros(_IDS * _IDS, np.int64)
    short = np.empty(_PIECE_PIXELS, np.uint16)  # a quarter of the traffic of int64
    wide = np.empty(_PIECE_PIXELS, np.intp)
    for start in range(0, rows.size, _PIECE_PIXELS):
        piece = slice(start, start + _PIECE_PIXELS)
        pairs = short[: rows[piece].size]
        np.left_shift(rows[piece], 8, out=pairs, dtype=np.uint16)
        np.bitwise_or(pairs, columns[piece], out=pairs)
        wide[: pairs.size] = pairs
        found = np.bincount(wide[: pairs.size])
        counts[: found.size] += found
    return counts.reshape(_IDS, _IDS)


def _outside(counts: Int64Array, num_classes: int, ignore_id: int) -> str:
    counts[ignore_id] = 0
    truth_ids = num_classes + np.flatnonzero(counts[num_classes:].any(axis=1))
    guess_ids = num_classes + np.flatnonzero(counts[:num_classes, num_classes:].any(axis=0))
    return (
        f"scored pixels carry ids outside [0, {num_classes}): "
        f"truth {truth_ids.tolist()}, guess {guess_ids.tolist()}"
    )
