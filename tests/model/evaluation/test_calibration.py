"""Axes: H height, W width."""

from __future__ import annotations

import numpy as np
import pytest

from model.evaluation.calibration import Calibration, calibration_of


def test_confidence_that_is_right_as_often_as_it_says_has_no_error() -> None:
    confidence_HW = np.full((1, 5), 204, np.uint8)  # 0.8
    truth_HW = np.array([[0, 1, 2, 3, 0]], np.uint8)
    labels_HW = np.array([[0, 1, 2, 3, 4]], np.uint8)
    found = calibration_of(truth_HW, labels_HW, confidence_HW, num_classes=5)
    assert (found.accuracy, found.mean_confidence) == pytest.approx((0.8, 0.8))
    assert found.expected_error() == pytest.approx(0)


def test_the_error_is_the_distance_in_each_bin_weighted_by_its_pixels() -> None:
    random = np.random.default_rng(0)
    confidence_HW = random.integers(0, 256, (40, 50), np.uint8)
    truth_HW = random.integers(0, 3, (40, 50), np.uint8)
    labels_HW = random.integers(0, 3, (40, 50), np.uint8)
    p, right = confidence_HW.ravel() / 255, (truth_HW == labels_HW).ravel()
    expected = 0.0
    for low in range(15):
        inside = (p >= low / 15) & ((p < (low + 1) / 15) | (low == 14))
        expected += inside.mean() * abs(right[inside].mean() - p[inside].mean())
    found = calibration_of(truth_HW, labels_HW, confidence_HW, num_classes=3)
    assert found.expected_error(bins=15) == pytest.approx(expected)


def test_pixels_without_a_class_are_not_counted_and_pictures_add_up() -> None:
    truth_HW = np.array([[0, 255]], np.uint8)
    sure_HW = np.full((1, 2), 255, np.uint8)
    right = calibration_of(truth_HW, np.array([[0, 0]], np.uint8), sure_HW, num_classes=2)
    wrong = calibration_of(truth_HW, np.array([[1, 0]], np.uint8), sure_HW, num_classes=2)
    both = right + wrong + Calibration()
    assert both.pixels_256.sum() == 2
    assert (both.accuracy, both.expected_error()) == (0.5, 0.5)
