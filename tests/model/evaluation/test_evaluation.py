from __future__ import annotations

import dataclasses
import itertools
import json
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.errors import EvaluationError, LabelRangeError
from model.evaluation.comparison import Comparison
from model.evaluation.evaluation import (
    EvaluationContext,
    EvaluationReport,
    Evaluator,
    ScoredImage,
    SkippedImage,
)
from model.evaluation.metrics import confusion_matrix
from model.labels import ClassPalette

PALETTE = ClassPalette(("sky", "road", "car", "tree"), ((0, 0, 1), (0, 1, 0), (1, 0, 0), (1, 1, 0)))
CONTEXT = EvaluationContext(
    model="city@3",
    weights="ab" * 32,
    engine="openvino",
    device="cpu",
    processor="a processor",
    precision="bf16",
    protocol="ss",
    dataset="city",
    split="val",
    data_fingerprint="cd" * 32,
    versions={"numpy": "2"},
    command="bisenet evaluate",
)


def scored(index: int, *, hit: float = 0.5, seed: int | None = None) -> ScoredImage:
    numbers = np.random.default_rng(index if seed is None else seed)
    truth = numbers.integers(0, 3, (20, 30), np.uint8)
    guess = np.where(numbers.random(truth.shape) < hit, truth, numbers.integers(0, 3, truth.shape, np.uint8))
    truth[numbers.random(truth.shape) < 0.1] = 255
    return ScoredImage.of(index, f"val/{index}.png", truth, guess.astype(np.uint8), PALETTE)


def report_of(images: list[ScoredImage], context: EvaluationContext = CONTEXT) -> EvaluationReport:
    evaluator = Evaluator(PALETTE, total=len(images))
    for image in images:
        evaluator.add(image)
    return evaluator.report(context)


def test_a_picture_adds_its_confusion_matrix_without_the_zeros() -> None:
    truth, guess = np.array([[0, 0, 2], [2, 2, 255]], np.uint8), np.array([[0, 1, 2], [2, 2, 3]], np.uint8)
    image = ScoredImage.of(0, "a", truth, guess, PALETTE)
    assert (image.cells.tolist(), image.pixels.tolist()) == ([0, 1, 10], [1, 1, 3])
    np.testing.assert_array_equal(
        image.matrix(4).counts_KK, confusion_matrix(truth, guess, num_classes=4).counts_KK
    )
    with pytest.raises(LabelRangeError):
        ScoredImage.of(0, "a", truth + 4, guess, PALETTE)


@given(st.integers(0, 1000))
def test_a_picture_survives_json(index: int) -> None:
    image = scored(index)
    again = ScoredImage.from_json(json.loads(json.dumps(image.to_json())))
    assert again.to_json() == image.to_json()
    assert again.pixels.dtype == np.int64


@pytest.mark.parametrize(("cells", "pixels"), [([16], [1]), ([-1], [1]), ([0], [0]), ([0, 1], [1])])
def test_counts_that_fit_no_matrix_are_refused(cells: list[int], pixels: list[int]) -> None:
    broken = ScoredImage(0, "a.png", np.array(cells, np.int64), np.array(pixels, np.int64))
    with pytest.raises(EvaluationError, match=r"a\.png do not fit 4 classes"):
        Evaluator(PALETTE, total=1).add(broken)


@given(st.randoms(use_true_random=False))
@settings(max_examples=15)
def test_order_and_workers_leave_no_trace_in_the_report(shuffle: random.Random) -> None:
    images = [scored(index) for index in range(7)]
    wanted = json.dumps(report_of(images).to_json())
    shuffle.shuffle(images)
    assert json.dumps(report_of(images).to_json()) == wanted


def test_every_picture_counts_once_and_none_is_forgotten() -> None:
    evaluator = Evaluator(PALETTE, total=3)
    evaluator.add(scored(0))
    evaluator.add(SkippedImage(2, "val/2.png", "broken"))
    for again in (0, 2):
        with pytest.raises(EvaluationError, match=f"picture {again} is counted twice"):
            evaluator.add(scored(again))
    for stranger in (-1, 3):
        with pytest.raises(EvaluationError, match=f"picture {stranger} is none of 3"):
            evaluator.add(SkippedImage(stranger, "x", "y"))
    with pytest.raises(EvaluationError, match="1 of 3 pictures are missing, first 1"):
        evaluator.report(CONTEXT)


def test_an_evaluation_of_nothing_is_none() -> None:
    evaluator = Evaluator(PALETTE, total=1)
    evaluator.add(SkippedImage(0, "val/0.png", "broken"))
    with pytest.raises(EvaluationError, match="none of 1 pictures"):
        evaluator.report(CONTEXT)


def test_the_report_says_what_was_scored_and_what_the_numbers_depend_on() -> None:
    evaluator = Evaluator(PALETTE, total=4)
    for index in (3, 0, 1):
        evaluator.add(scored(index))
    evaluator.add(SkippedImage(2, "val/2.png", "no PNG"))
    plain = evaluator.report(CONTEXT).to_json()
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert plain["images"] == 3
    assert plain["skipped"] == [{"index": 2, "name": "val/2.png", "reason": "no PNG"}]
    assert {key: plain[key] for key in ("model", "engine", "precision", "protocol", "data_fingerprint")} == {
        "model": "city@3",
        "engine": "openvino",
        "precision": "bf16",
        "protocol": "ss",
        "data_fingerprint": "cd" * 32,
    }
    assert [entry["index"] for entry in plain["per_image"]] == [0, 1, 3]
    assert plain["scores"]["classes_averaged"] == 3
    low, high = plain["scores"]["miou_interval"]
    assert low < plain["scores"]["miou"] < high
    tree = plain["classes"][3]
    assert (tree["name"], tree["pixels"], tree["iou"], tree["iou_interval"]) == ("tree", 0, None, None)
    assert sum(entry["share"] for entry in plain["classes"]) == pytest.approx(1)
    assert sum(itertools.chain(*plain["matrix"])) == plain["scores"]["pixels"]


def test_the_worst_pictures_come_first_and_those_without_truth_never() -> None:
    unscored = ScoredImage(3, "val/3.png", np.zeros(0, np.int64), np.zeros(0, np.int64))
    report = report_of([scored(0, hit=0.9), scored(1, hit=0.1), scored(2, hit=0.5), unscored])
    assert [one.index for one in report.worst(2)] == [1, 2]
    assert [one.index for one in report.worst(9)] == [1, 2, 0]


class TestComparison:
    def test_the_difference_of_each_class_has_an_interval_of_its_own(self) -> None:
        first = report_of([scored(index, hit=0.5) for index in range(9)])
        second = report_of([scored(index, hit=0.8) for index in range(9)])
        comparison = Comparison(first, second)
        miou = comparison.miou
        assert miou.change == pytest.approx((second.matrix.miou or 0) - (first.matrix.miou or 0))
        assert miou.interval is not None
        assert miou.change is not None
        assert 0 < miou.interval.low < miou.change < miou.interval.high
        tree = comparison.classes[3]
        assert (tree.name, tree.first, tree.change, tree.interval) == ("tree", None, None, None)
        plain = comparison.to_json()
        assert json.loads(json.dumps(plain, allow_nan=False)) == plain
        assert [entry["name"] for entry in plain["differences"]] == ["mIoU", *PALETTE.names]

    def test_only_what_was_scored_on_the_same_pictures_compares(self) -> None:
        report = report_of([scored(0), scored(1)])
        other_data = dataclasses.replace(CONTEXT, data_fingerprint="0")
        for other in (report_of([scored(0)]), report_of([scored(0), scored(1)], other_data)):
            with pytest.raises(EvaluationError, match="different pictures"):
                Comparison(report, other)
        renamed = dataclasses.replace(PALETTE, names=("sky", "road", "car", "bush"))
        with pytest.raises(EvaluationError, match="different classes"):
            Comparison(report, dataclasses.replace(report, palette=renamed))
