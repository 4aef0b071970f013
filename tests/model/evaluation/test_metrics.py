from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from evaluation_programs import published_iou
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.classification import (
    MulticlassConfusionMatrix,
    MulticlassF1Score,
    MulticlassJaccardIndex,
    MulticlassPrecision,
    MulticlassRecall,
)

from model.errors import LabelRangeError
from model.evaluation.metrics import ConfusionMatrix, confusion_matrix
from model.labels import UInt8Array

ROOT = Path(__file__).parents[3]


def label_maps(seed: int, classes: int, size: tuple[int, ...]) -> tuple[UInt8Array, UInt8Array]:
    random = np.random.default_rng(seed)
    truth = random.integers(0, classes, size, np.uint8)
    guess = np.where(random.random(size) < 0.5, truth, random.integers(0, classes, size, np.uint8))
    truth[random.random(size) < 0.2] = 255
    return truth, guess.astype(np.uint8)


@given(
    seed=st.integers(0, 2**32),
    classes=st.integers(2, 30),
    height=st.integers(1, 20),
    width=st.integers(1, 20),
)
@settings(deadline=None)
def test_counts_are_those_of_torchmetrics(seed: int, classes: int, height: int, width: int) -> None:
    truth, guess = label_maps(seed, classes, (height, width))
    ours = confusion_matrix(truth, guess, num_classes=classes)
    oracle = MulticlassConfusionMatrix(classes, ignore_index=255)
    wanted = oracle(torch.from_numpy(guess).long(), torch.from_numpy(truth).long())
    assert ours.counts_KK.tolist() == wanted.tolist()


def test_miou_and_accuracy_are_those_of_torchmetrics() -> None:
    truth, guess = label_maps(1, 11, (64, 64))
    truth[truth == 4] = 255  # a class that is only guessed
    guess[guess == 7] = 0
    truth[truth == 7] = 255  # a class that is nowhere
    matrix = confusion_matrix(truth, guess, num_classes=11)
    oracle = MulticlassJaccardIndex(11, ignore_index=255)
    assert matrix.miou == pytest.approx(
        float(oracle(torch.from_numpy(guess), torch.from_numpy(truth))), abs=1e-6
    )
    scored = truth != 255
    assert matrix.pixel_accuracy == (truth == guess)[scored].mean()


def adversarial_split() -> list[tuple[UInt8Array, UInt8Array]]:
    """Return label maps of 11 classes: one is only guessed, one is nowhere, and each has a mix of its own."""
    pairs = []
    for seed in range(6):
        truth, guess = label_maps(seed, 11, (40, 50))
        truth[:20][truth[:20] == seed] = 1
        truth[truth == 4] = 255
        guess[guess == 7] = 0
        truth[truth == 7] = 255
        pairs.append((truth, guess))
    return pairs


def test_the_cityscapes_evaluator_agrees_to_the_last_digit(tmp_path: Path) -> None:
    pytest.importorskip("cityscapesscripts", reason="installed by make test, not by the extra")
    from cityscapes_evaluator import cityscapes_scores  # noqa: PLC0415

    pairs = adversarial_split()
    ours = sum((confusion_matrix(*pair, num_classes=11) for pair in pairs), ConfusionMatrix.zeros(11))
    miou, counts = cityscapes_scores(tmp_path, pairs, 11)
    assert ours.counts_KK.tolist() == counts
    assert ours.miou == miou
    assert ours.classes_averaged == 10


def test_torchmetrics_agrees_to_the_last_digit_of_its_float32() -> None:
    pairs = adversarial_split()
    ours = sum((confusion_matrix(*pair, num_classes=11) for pair in pairs), ConfusionMatrix.zeros(11))
    oracles = {
        "iou": MulticlassJaccardIndex(11, ignore_index=255, average="none"),
        "f1": MulticlassF1Score(11, ignore_index=255, average="none"),
        "precision": MulticlassPrecision(11, ignore_index=255, average="none"),
        "recall": MulticlassRecall(11, ignore_index=255, average="none"),
    }
    for name, oracle in oracles.items():
        for truth, guess in pairs:
            oracle.update(torch.from_numpy(guess).long(), torch.from_numpy(truth).long())
        wanted = oracle.compute().tolist()
        scores = getattr(ours, name)  # where there is none, the oracle has its zero_division
        assert [np.float32(score or 0) for score in scores] == wanted, name
        assert scores[7] is None


def test_means_are_over_the_classes_that_have_a_score() -> None:
    matrix = ConfusionMatrix(np.array([[6, 2, 0, 1], [0, 2, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]))
    assert matrix.recall == (6 / 9, 1.0, None, None)
    assert matrix.precision == (1.0, 2 / 4, None, 0.0)
    assert matrix.mean_recall == (6 / 9 + 1) / 2
    assert matrix.f1 == (12 / 15, 4 / 6, None, 0.0)
    assert matrix.mean_f1 == (12 / 15 + 4 / 6) / 3
    assert matrix.frequency_weighted_iou == pytest.approx((9 * 6 / 9 + 2 * 2 / 4) / 11)
    assert matrix.classes_averaged == 3
    assert matrix.pixels == 11


def test_more_than_2_to_the_24_pixels_in_one_cell_are_counted_one_by_one() -> None:
    # A float32 matrix, as the published evaluators have, stops at 16,777,216.
    zeros = np.zeros((1 << 12, 1 << 12), np.uint8)
    one = np.zeros((1, 3), np.uint8)
    total = confusion_matrix(zeros, zeros, num_classes=2)
    for _ in range(3):
        total += confusion_matrix(one, one, num_classes=2)
    assert total.counts_KK.tolist() == [[2**24 + 9, 0], [0, 0]]


def test_a_class_that_occurs_nowhere_has_no_iou_and_does_not_count() -> None:
    matrix = ConfusionMatrix(np.array([[6, 2, 0], [0, 2, 0], [0, 0, 0]]))
    assert matrix.iou == (6 / 8, 2 / 4, None)
    assert matrix.miou == (6 / 8 + 2 / 4) / 2
    assert matrix.pixel_accuracy == 8 / 10


@given(seed=st.integers(0, 2**32))
def test_counting_absent_classes_as_zero_is_the_arithmetic_of_the_original_code(seed: int) -> None:
    truth, guess = label_maps(seed, 6, (9, 11))
    truth[truth == 4] = 255  # a class that is only guessed
    guess[guess == 5] = 0
    truth[truth == 5] = 255  # a class that is nowhere
    plain = confusion_matrix(truth, guess, num_classes=6)
    matrix = ConfusionMatrix(plain.counts_KK, absent_as_zero=True)
    wanted = published_iou(torch.from_numpy(matrix.counts_KK))
    assert matrix.iou == pytest.approx(wanted.tolist())
    assert matrix.miou == pytest.approx(float(wanted.nanmean()))
    shares = torch.from_numpy(matrix.truth_K) / matrix.pixels
    assert matrix.frequency_weighted_iou == pytest.approx(float((wanted * shares).sum()))
    assert (matrix.classes_averaged, matrix.iou[5]) == (6, 0)
    assert plain.iou[5] is None
    assert plain.classes_averaged == 6 - len(plain.absent) < 6
    assert (matrix + matrix).absent_as_zero


def test_no_pixel_at_all_has_no_score() -> None:
    matrix = confusion_matrix(np.full((3, 3), 255, np.uint8), np.zeros((3, 3), np.uint8), num_classes=2)
    assert matrix.iou == (None, None)
    assert matrix.miou is None
    assert matrix.mean_recall is None
    assert matrix.mean_f1 is None
    assert matrix.frequency_weighted_iou is None
    assert matrix.classes_averaged == 0
    assert matrix.pixel_accuracy is None


@given(seed=st.integers(0, 2**32), cuts=st.lists(st.integers(0, 400), max_size=6))
def test_parts_add_up_to_the_whole_in_any_order(seed: int, cuts: list[int]) -> None:
    truth, guess = label_maps(seed, 5, (400,))
    borders = [0, *sorted(cuts), 400]
    parts = [confusion_matrix(truth[a:b], guess[a:b], num_classes=5) for a, b in itertools.pairwise(borders)]
    whole = confusion_matrix(truth, guess, num_classes=5).counts_KK.tolist()
    for ordered in (parts, parts[::-1]):
        assert sum(ordered, ConfusionMatrix.zeros(5)).counts_KK.tolist() == whole


@pytest.mark.parametrize(("truth_id", "guess_id"), [(3, 0), (0, 3), (0, 255), (254, 1)])
def test_an_id_that_is_no_class_is_named(truth_id: int, guess_id: int) -> None:
    truth, guess = np.zeros((2, 4, 4), np.uint8)
    truth[1, 1], guess[1, 1] = truth_id, guess_id
    with pytest.raises(LabelRangeError, match=str(max(truth_id, guess_id))):
        confusion_matrix(truth, guess, num_classes=3)


def test_what_is_guessed_where_nothing_is_scored_does_not_matter() -> None:
    truth, guess = np.zeros((2, 2, 2), np.uint8)
    truth[0, 0], guess[0, 0] = 9, 200
    matrix = confusion_matrix(truth, guess, num_classes=3, ignore_id=9)
    assert matrix.counts_KK.sum() == 3


def test_arrays_that_are_no_two_label_maps_are_refused() -> None:
    ids = np.zeros((4, 4), np.uint8)
    others: list[Any] = [ids[:2], ids.astype(np.int64)]
    for other in others:
        with pytest.raises(LabelRangeError, match="uint8 of one shape"):
            confusion_matrix(ids, other, num_classes=2)


def test_counts_are_integers_and_square() -> None:
    wrong: list[Any] = [np.zeros((2, 2), np.float32), np.zeros((2, 3), np.int64), np.zeros(4, np.int64)]
    for counts in wrong:
        with pytest.raises(ValueError, match="int64 KxK"):
            ConfusionMatrix(counts)
    with pytest.raises(ValueError, match="do not add up"):
        ConfusionMatrix.zeros(2) + ConfusionMatrix.zeros(3)


def test_scoring_needs_no_torch() -> None:
    program = "import sys, model.evaluation.metrics, model.datasets.dataset; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 0
