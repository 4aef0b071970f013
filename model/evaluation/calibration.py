"""How well the confidence of labels tells how often they are right.

Axes: H height, W width, 256 = confidences in 255ths.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from model.labels import UInt8Array

_LEVELS = 256
_FULL = _LEVELS - 1


def _no_pixels() -> npt.NDArray[np.int64]:
    return np.zeros(_LEVELS, np.int64)


@dataclass(frozen=True, eq=False)
class Calibration:
    """Counts of labelled pixels by confidence; those of several pictures add up.

    Attributes:
        pixels_256: pixels of each confidence.
        right_256: those of them whose label is the true one.
    """

    pixels_256: npt.NDArray[np.int64] = field(default_factory=_no_pixels)
    right_256: npt.NDArray[np.int64] = field(default_factory=_no_pixels)

    def __add__(self, other: Calibration) -> Calibration:
        """Return the counts of both."""
        return Calibration(self.pixels_256 + other.pixels_256, self.right_256 + other.right_256)

    @property
    def accuracy(self) -> float:
        """Share of right labels, 0..1; nan without pixels."""
        return float(self.right_256.sum() / self.pixels_256.sum())

    @property
    def mean_confidence(self) -> float:
        """Mean confidence, 0..1; nan without pixels."""
        return float(self.pixels_256 @ np.arange(_LEVELS) / (_FULL * self.pixels_256.sum()))

    def expected_error(self, bins: int = 15) -> float:
        """Return the expected calibration error: the mean distance of accuracy and confidence, 0..1.

        Args:
            bins: of equal width, over which confidences are averaged.

        Source:
            Guo et al., On Calibration of Modern Neural Networks (2017), equation 3.
        """
        confidences_256 = np.arange(_LEVELS) / _FULL
        bin_of_256 = np.minimum((confidences_256 * bins).astype(np.intp), bins - 1)
        sums = np.bincount(bin_of_256, confidences_256 * self.pixels_256, bins)
        right = np.bincount(bin_of_256, self.right_256, bins)
        return float(np.abs(right - sums).sum() / self.pixels_256.sum())


def calibration_of(
    truth_HW: UInt8Array, labels_HW: UInt8Array, confidence_HW: UInt8Array, *, num_classes: int
) -> Calibration:
    """Count the pixels of one picture.

    Args:
        truth_HW: class ids; pixels with another id are not counted.
        labels_HW: class ids that a model found.
        confidence_HW: probability of each label in 255ths.
        num_classes: K, the number of classes.
    """
    is_labelled_HW = truth_HW < num_classes
    confidences = confidence_HW[is_labelled_HW]
    right = confidences[truth_HW[is_labelled_HW] == labels_HW[is_labelled_HW]]
    return Calibration(
        np.bincount(confidences, minlength=_LEVELS).astype(np.int64),
        np.bincount(right, minlength=_LEVELS).astype(np.int64),
    )
