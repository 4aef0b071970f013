from __future__ import annotations

from typing import get_args

import pytest

from model.datasets.masks import MaskError
from model.datasets.orientation import ExifPolicy, OrientationError, describe_orientation, is_drawn_on_stored
from model.pictures.preprocess import ImageSize

WIDE, TALL, SQUARE = ImageSize(3, 4), ImageSize(4, 3), ImageSize(3, 3)


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_a_quarter_turn_is_recognised_by_the_size_of_the_labels(orientation: int) -> None:
    assert not is_drawn_on_stored(WIDE, WIDE, orientation, None)
    assert is_drawn_on_stored(TALL, WIDE, orientation, None)
    with pytest.raises(MaskError, match=r"labels are 3x3, their picture is 3x4, stored as 4x3 with EXIF"):
        is_drawn_on_stored(SQUARE, WIDE, orientation, None)


@pytest.mark.parametrize(
    ("size", "orientation"), [(WIDE, 2), (WIDE, 3), (WIDE, 4), *((SQUARE, o) for o in range(2, 9))]
)
def test_a_turn_that_keeps_the_size_is_decided_by_the_policy_alone(size: ImageSize, orientation: int) -> None:
    with pytest.raises(OrientationError, match=rf'EXIF orientation {orientation} .*\n    exif = "stored"'):
        is_drawn_on_stored(size, size, orientation, None)
    assert is_drawn_on_stored(size, size, orientation, "stored")
    assert not is_drawn_on_stored(size, size, orientation, "upright")


@pytest.mark.parametrize(
    ("policy", "labels", "right"), [("upright", TALL, "stored"), ("stored", WIDE, "upright")]
)
def test_labels_that_contradict_the_policy_are_told_the_other_one(
    policy: ExifPolicy, labels: ImageSize, right: str
) -> None:
    with pytest.raises(MaskError, match=rf'exif = "{right}"'):
        is_drawn_on_stored(labels, WIDE, 6, policy)


@pytest.mark.parametrize("policy", [None, *get_args(ExifPolicy)])
def test_a_picture_that_is_not_turned_has_labels_of_its_size(policy: ExifPolicy | None) -> None:
    assert not is_drawn_on_stored(WIDE, WIDE, 1, policy)
    with pytest.raises(MaskError, match=r"labels are 4x3, their picture is 3x4; save them at"):
        is_drawn_on_stored(TALL, WIDE, 1, policy)


def test_every_orientation_has_words() -> None:
    assert len({describe_orientation(orientation) for orientation in range(1, 9)}) == 8
