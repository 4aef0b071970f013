"""How good label maps are: one matrix of counts, and the scores that follow from it.

Axes: K classes, H height, W width; in counts_KK the row is the truth, the column the guess.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from model.errors import LabelRangeError
from model.labels import IGNORE_ID, UInt8Array

Int64Array = npt.NDArray[np.int64]
Float64Array = npt.NDArray[np.float64]

_IDS = 256
# bincount widens its input to int64; in pieces that copy stays in the cache: 5.9 instead of 8.6 ms for
# 2 x 1024 x 2048 pixels of random labels, one core.
_PIECE_PIXELS = 262_144


@dataclass(frozen=True, eq=False)
class ConfusionMatrix:
    """How many pixels of each true class were given each class; parts merge by addition.

    Args:
        counts_KK: int64, pixels; row = truth, column = guess.
    """

    counts_KK: Int64Array

    def __post_init__(self) -> None:
        """Refuse what cannot be counts: floats lose pixels from 2^24 (float32) on."""
        counts = self.counts_KK
        if counts.dtype != np.int64 or counts.ndim != 2 or counts.shape[0] != counts.shape[1]:  # noqa: PLR2004
            raise ValueError(f"counts must be int64 KxK, not {counts.dtype} {counts.shape}")

    @classmethod
    def zeros(cls, num_classes: int) -> ConfusionMatrix:
        """Return the matrix of no pixels at all: the neutral element of addition."""
        return cls(np.zeros((num_classes, num_classes), np.int64))

    def __add__(self, other: ConfusionMatrix) -> ConfusionMatrix:
        """Return the matrix of both sets of pixels together."""
        if self.counts_KK.shape != other.counts_KK.shape:
            raise ValueError(f"matrices of {self.num_classes} and {other.num_classes} classes do not add up")
        return ConfusionMatrix(self.counts_KK + other.counts_KK)

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.counts_KK)

    @property
    def iou(self) -> tuple[float | None, ...]:
        """Intersection over union of each class, 0..1; None where neither truth nor guess has it.

        Source:
            IoU = TP / (TP + FP + FN) over the whole set (Everingham et al. 2010; Cordts et al. 2016).
        """
        hits = self.counts_KK.diagonal()
        unions = self.counts_KK.sum(axis=0) + self.counts_KK.sum(axis=1) - hits
        return tuple(
            int(hit) / int(union) if union else None for hit, union in zip(hits, unions, strict=True)
        )

    @property
    def miou(self) -> float | None:
        """Mean of ``iou`` over the classes that occur, 0..1; None when no pixel was scored."""
        present = [value for value in self.iou if value is not None]
        return sum(present) / len(present) if present else None

    @property
    def pixel_accuracy(self) -> float | None:
        """Share of the scored pixels that were given their class, 0..1; None when there are none."""
        total = int(self.counts_KK.sum())
        return int(self.counts_KK.trace()) / total if total else None


def confusion_matrix(
    truth_HW: UInt8Array, guess_HW: UInt8Array, *, num_classes: int, ignore_id: int = IGNORE_ID
) -> ConfusionMatrix:
    """Count, for each true class, which classes its pixels were given.

    Args:
        truth_HW: annotated class ids, uint8; ``ignore_id`` pixels are not scored.
        guess_HW: predicted class ids, uint8, same shape; any leading axes are fine.
        num_classes: K; ids in [0, K) are classes.
        ignore_id: the id of pixels without a class, outside [0, K).

    Raises:
        LabelRangeError: arrays are not uint8 of one shape, or a scored pixel carries an id outside [0, K).
    """
    if truth_HW.shape != guess_HW.shape or {truth_HW.dtype, guess_HW.dtype} != {np.dtype(np.uint8)}:
        raise LabelRangeError(
            f"truth and guess must be uint8 of one shape, not {truth_HW.dtype} {truth_HW.shape}"
            f" and {guess_HW.dtype} {guess_HW.shape}"
        )
    counts = _pair_counts(truth_HW.reshape(-1), guess_HW.reshape(-1))
    counts[ignore_id] = 0
    counts_KK = counts[:num_classes, :num_classes]
    if counts_KK.sum() != counts.sum():
        raise LabelRangeError(_outside(counts, num_classes))
    return ConfusionMatrix(np.ascontiguousarray(counts_KK))


def _pair_counts(truth: UInt8Array, guess: UInt8Array) -> Int64Array:
    """Count all 256 x 256 pairs of bytes: no masks, and strangers fall into rows of their own."""
    counts = np.zeros(_IDS * _IDS, np.int64)
    for start in range(0, truth.size, _PIECE_PIXELS):
        piece = slice(start, start + _PIECE_PIXELS)
        pairs = truth[piece].astype(np.uint16)
        pairs *= np.uint16(_IDS)
        pairs += guess[piece]
        counts += np.bincount(pairs, minlength=_IDS * _IDS)
    return counts.reshape(_IDS, _IDS)


def _outside(counts: Int64Array, num_classes: int) -> str:
    truth_ids = num_classes + np.flatnonzero(counts[num_classes:].any(axis=1))
    guess_ids = num_classes + np.flatnonzero(counts[:num_classes, num_classes:].any(axis=0))
    return (
        f"scored pixels carry ids outside [0, {num_classes}): "
        f"truth {truth_ids.tolist()}, guess {guess_ids.tolist()}"
    )
