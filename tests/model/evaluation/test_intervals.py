"""Axes: N pictures, K classes, 3 = pixels that hit, pixels of the truth, pixels of the guess."""

from __future__ import annotations

import numpy as np
import pytest

from model.evaluation import intervals as module
from model.evaluation.intervals import Interval, bootstrap, paired_bootstrap
from model.evaluation.metrics import ConfusionMatrix, Int64Array


def tallies(seed: int, pictures: int = 30, *, hit: float = 0.7) -> Int64Array:
    random = np.random.default_rng(seed)
    rows = []
    for _ in range(pictures):
        counts = random.integers(0, 100, (3, 3))
        counts[np.diag_indices(3)] += random.integers(0, int(1000 * hit), 3)
        matrix = ConfusionMatrix(counts.astype(np.int64))
        rows.append([matrix.hits_K, matrix.truth_K, matrix.guess_K])
    return np.array(rows)


def score(tallies_N3K: Int64Array) -> float:
    hits, truth, guess = tallies_N3K.sum(axis=0)
    return float((hits / (truth + guess - hits)).mean())


def test_the_interval_holds_the_score_and_is_that_of_plain_resampling() -> None:
    data = tallies(0)
    found = bootstrap(data).miou
    assert found is not None
    assert found.low < score(data) < found.high
    random = np.random.default_rng(1)
    plain = [score(data[random.integers(0, len(data), len(data))]) for _ in range(2000)]
    low, high = np.quantile(plain, [0.025, 0.975])
    assert found.low == pytest.approx(low, abs=0.1 * (high - low))
    assert found.high == pytest.approx(high, abs=0.1 * (high - low))


def test_the_same_pictures_have_the_same_interval_to_the_last_bit() -> None:
    assert bootstrap(tallies(0)) == bootstrap(tallies(0))


def test_blocks_are_no_part_of_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = bootstrap(tallies(0))
    monkeypatch.setattr(module, "_BLOCK", 333)
    assert bootstrap(tallies(0)) == whole


def test_a_single_picture_leaves_nothing_to_draw() -> None:
    data = tallies(0, pictures=1)
    found = bootstrap(data)
    assert found.miou is not None
    assert found.miou.low == found.miou.high == pytest.approx(score(data))


def test_absent_classes_that_count_as_zero_pull_the_interval_down_with_the_mean() -> None:
    data = tallies(0)
    data[:, :, 2] = 0
    present, every = bootstrap(data), bootstrap(data, absent_as_zero=True)
    assert present.miou is not None
    assert every.miou is not None
    assert every.miou.low == pytest.approx(present.miou.low * 2 / 3, abs=1e-3)
    assert (present.iou[2], every.iou[2]) == (None, Interval(0, 0))
    same = paired_bootstrap(data, data, absent_as_zero=True)
    assert same.miou == Interval(0, 0)


def test_a_class_that_is_in_no_picture_has_no_interval() -> None:
    data = tallies(0)
    data[:, :, 1] = 0
    found = bootstrap(data)
    assert found.iou[1] is None
    assert found.iou[0] is not None
    assert bootstrap(np.zeros_like(data)).miou is None


def test_a_class_of_a_single_picture_is_left_out_of_the_means_of_resamples_without_it() -> None:
    data = tallies(0, pictures=5)
    data[1:, :, 2] = 0
    data[0, :, 2] = 10, 10, 10
    found = bootstrap(data)
    assert found.iou[2] == Interval(1.0, 1.0)


def test_equal_results_differ_by_nothing_and_better_ones_by_more() -> None:
    first, second = tallies(0), tallies(0)
    assert paired_bootstrap(first, second).miou == Interval(0.0, 0.0)
    second[:, 0] += (second[:, 1] - second[:, 0]) // 2
    better = paired_bootstrap(first, second)
    assert better.miou is not None
    assert better.miou.low > 0
    assert better.miou.excludes_zero


def test_pairing_sees_what_two_intervals_hide() -> None:
    first = tallies(0)
    second = first.copy()
    second[:, 0] += np.minimum(5, second[:, 1] - second[:, 0])
    alone, paired = bootstrap(second).miou, paired_bootstrap(first, second).miou
    assert alone is not None
    assert paired is not None
    assert alone.low < score(first)
    assert paired.excludes_zero
