"""What users are told of pictures and films that are not as they should be."""

from __future__ import annotations

import numpy as np
import pytest

from model.pictures.local_image import LocalImage
from model.pictures.preprocess import ImageSize
from service.cli.notes import damage_note, picture_notes

IMAGE_HW3 = np.zeros((4, 6, 3), np.uint8)
SIZE = ImageSize(4, 6)


def test_an_ordinary_picture_needs_no_note() -> None:
    assert picture_notes(LocalImage(IMAGE_HW3), 16, SIZE) == []
    assert picture_notes(LocalImage(IMAGE_HW3, used_bits=16), 16, SIZE) == []


@pytest.mark.parametrize(("used_bits", "advice"), [(3, 8), (8, 8), (10, 10), (12, 12), (14, 14)])
def test_a_dark_picture_of_16_bits_is_told_with_the_way_out(used_bits: int, advice: int) -> None:
    (note,) = picture_notes(LocalImage(IMAGE_HW3, used_bits), 16, SIZE)
    assert note.startswith(f"{used_bits} of 16 bits are in use")
    assert f"--bits {advice} " in note


@pytest.mark.parametrize(("used_bits", "bits"), [(0, 16), (15, 16), (12, 12), (10, 12)])
def test_a_black_bright_or_stretched_picture_needs_no_note(used_bits: int, bits: int) -> None:
    assert picture_notes(LocalImage(IMAGE_HW3, used_bits), bits, SIZE) == []


def test_values_that_a_stretch_cuts_off_are_told() -> None:
    (note,) = picture_notes(LocalImage(IMAGE_HW3, used_bits=14), 12, SIZE)
    assert note == "14 bits are in use: values of more than 12 bits are cut off"


def test_further_pictures_of_a_file_and_a_reduction_are_told() -> None:
    first, second = picture_notes(LocalImage(IMAGE_HW3, pictures=3), 16, ImageSize(2, 3))
    assert first.startswith("the file holds 3 pictures")
    assert "--tile" in second


@pytest.mark.parametrize(("packets", "start"), [(1, "1 damaged packet was"), (2, "2 damaged packets were")])
def test_damage_is_told_in_good_grammar(packets: int, start: str) -> None:
    assert damage_note(packets).startswith(start)
