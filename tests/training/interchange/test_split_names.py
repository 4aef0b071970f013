from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.interchange.split_names import divide, named_split, split_of, split_of_list


@pytest.mark.parametrize(
    ("word", "split"),
    [
        ("train", "train"),
        ("Training", "train"),
        ("train2017", "train"),
        ("val_labels", "val"),
        ("valid", "val"),
        ("Validation", "val"),
        ("testannot", "test"),
        ("trainer", ""),
        ("values", ""),
        ("trainval", ""),
        ("my-train", ""),
        ("default", ""),
        ("", ""),
    ],
)
def test_words_mean_splits(word: str, split: str) -> None:
    assert named_split(word) == split


def test_the_deepest_folder_that_names_a_split_counts() -> None:
    assert split_of("train/val/a.jpg") == "val"
    assert split_of("train/city/a.jpg") == "train"
    assert split_of("images/train.jpg") == ""
    assert split_of_list("annotations/instances_val2017.json") == "val"
    assert split_of_list("test/_annotations.coco.json") == "test"
    assert split_of_list("annotations.xml") == ""


@given(st.sets(st.text(max_size=9), max_size=40), st.floats(0, 1), st.randoms(use_true_random=False))
def test_pictures_are_divided_alike_in_any_order_with_both_sides_filled(
    names: set[str], share: float, random: object
) -> None:
    listed = sorted(names)
    chosen = divide(listed, share)
    random.shuffle(listed)  # type: ignore[attr-defined]
    assert divide(listed, share) == chosen
    assert chosen <= names
    if len(names) > 1:
        assert 1 <= len(chosen) < len(names)
        assert abs(len(chosen) - share * len(names)) <= 1


def test_a_new_picture_moves_few_others() -> None:
    names = [f"{k}.jpg" for k in range(200)]
    assert len(divide(names, 0.1) ^ divide([*names, "new.jpg"], 0.1)) <= 2
