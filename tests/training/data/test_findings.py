from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
from dataset_folders import IMAGES_AND_LABELS, truth, write_dataset

from model.datasets.dataset import DatasetSpec, LabeledImages
from model.errors import DatasetError
from training.data.findings import (
    describe_notes,
    describe_problems,
    refuse_problems,
    report_dataset,
    skip_hint,
)
from training.data.inspection import inspect_split
from training.data.split_facts import BrokenPair, SplitFacts, TurnedPicture


@pytest.fixture
def split(tmp_path: Path) -> LabeledImages:
    top = 'missing_label = "road"'
    file = write_dataset(tmp_path, [truth()] * 3, split=IMAGES_AND_LABELS, top=top)
    return LabeledImages(DatasetSpec.from_toml(file), "train")


@pytest.fixture
def facts(split: LabeledImages) -> SplitFacts:
    return inspect_split(split, workers=1)


def with_broken(facts: SplitFacts, *pairs: BrokenPair) -> SplitFacts:
    return dataclasses.replace(facts, broken=dict(enumerate(pairs)))


def test_a_sound_split_has_no_problems_and_no_notes(split: LabeledImages, facts: SplitFacts) -> None:
    assert describe_problems(facts, split.spec) == []
    assert describe_notes(facts, split) == []
    refuse_problems([facts], split.spec)


def test_pairs_with_one_reason_are_one_problem(split: LabeledImages, facts: SplitFacts) -> None:
    torn = [BrokenPair(f"{number}.jpg", "torn") for number in range(12)]
    found = describe_problems(with_broken(facts, *torn, BrokenPair("x.jpg", "missing")), split.spec)
    assert found == [
        f"{', '.join(f'{number}.jpg' for number in range(10))} and 2 more: torn",
        "x.jpg: missing",
    ]


def test_values_of_all_label_files_are_explained_together(split: LabeledImages, facts: SplitFacts) -> None:
    strange = with_broken(facts, BrokenPair("1.png", "ids [9]", (0, 9)), BrokenPair("2.png", "ids [7]", (7,)))
    (problem,) = describe_problems(strange, split.spec)
    assert problem.startswith("1.png, 2.png: ids [7, 9] are outside [0, 2)")
    assert "    7 = 255\n    9 = 255" in problem


def test_a_run_is_refused_with_the_first_ten_problems(split: LabeledImages, facts: SplitFacts) -> None:
    many = with_broken(facts, *(BrokenPair(f"{number}.jpg", f"torn {number}") for number in range(12)))
    with pytest.raises(DatasetError, match=r"problems in the data set: 12\n  0\.jpg: torn 0\n") as error:
        refuse_problems([many], split.spec)
    assert "9.jpg" in str(error.value)
    assert "10.jpg" not in str(error.value)


def test_leaving_broken_pairs_out_is_proposed_only_where_it_helps(facts: SplitFacts) -> None:
    torn = BrokenPair("1.jpg", "torn")
    assert "1 broken pair can be left out" in skip_hint([with_broken(facts, torn)])
    assert skip_hint([facts]) == ""
    assert skip_hint([with_broken(facts, torn, torn, torn)]) == ""
    assert skip_hint([dataclasses.replace(with_broken(facts, torn), flaws=["one class"])]) == ""


def test_decisions_of_the_reader_are_noted_by_name(split: LabeledImages, facts: SplitFacts) -> None:
    turned = {0: TurnedPicture(6, with_labels=True), 1: TurnedPicture(3, with_labels=False)}
    found = describe_notes(
        dataclasses.replace(facts, turned=turned, unlabelled=[2], nearest_pixels=12), split
    )
    drawn = "the labels were drawn on the"
    quarter = "EXIF orientation 6 (turned by 90 degrees)"
    assert found == [
        f"EXIF orientation 3 (turned by 180 degrees) of images/1.jpg: {drawn} upright pixels",
        f"{quarter} of images/0.jpg: {drawn} stored pixels, and are turned, too",
        "no labels, so that all is road, on 1 of 3: images/2.jpg",
        "0.52 % of the pixels have no colour of a class and are given the nearest one",
    ]


def test_the_report_suggests_weights_of_the_classes_that_occur(
    split: LabeledImages, facts: SplitFacts
) -> None:
    found = report_dataset([facts], [split])
    share = float(truth().mean())
    road = found["classes"][1]
    assert road["share"] == pytest.approx(share)
    assert road["weight"] == pytest.approx(1 / math.log(1.1 + share), abs=1e-4)
    assert found["splits"][0]["unseen"] == []
    assert (found["problems"], found["splits"][0]["broken"]) == (0, 0)
