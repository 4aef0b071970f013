from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from model.errors import LabelRangeError, PaletteError
from model.labels import ClassPalette, LabelMap

PALETTE = ClassPalette(("road", "car", "7"), ((128, 64, 128), (0, 0, 142), (1, 2, 3)))
ids_of_the_palette = arrays(
    np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.sampled_from([0, 1, 2, 255])
)


@given(ids_of_the_palette)
def test_counts_are_the_pixels_of_each_id(ids_HW: np.ndarray) -> None:
    expected = [(ids_HW == value).sum() for value in range(256)]
    assert LabelMap(ids_HW, PALETTE).counts.tolist() == expected


@given(ids_of_the_palette)
def test_counts_do_not_depend_on_the_memory_layout(ids_HW: np.ndarray) -> None:
    turned = np.asfortranarray(ids_HW)
    assert (LabelMap(turned, PALETTE).counts == LabelMap(ids_HW, PALETTE).counts).all()


@pytest.mark.parametrize("stray", [3, 254])
def test_an_id_without_a_meaning_is_refused(stray: int) -> None:
    with pytest.raises(LabelRangeError, match=str(stray)):
        LabelMap(np.full((2, 3), stray, np.uint8), PALETTE)


@pytest.mark.parametrize("ids", [np.zeros((2, 2), np.int64), np.zeros((2, 2, 1), np.uint8)])
def test_a_label_map_is_uint8_with_two_axes(ids: np.ndarray) -> None:
    with pytest.raises(LabelRangeError):
        LabelMap(ids, PALETTE)


def test_keep_turns_the_other_classes_into_the_ignore_id() -> None:
    kept = LabelMap(np.array([[0, 1, 2, 255]], np.uint8), PALETTE).keep(frozenset({1}))
    assert kept.ids_HW.tolist() == [[255, 1, 255, 255]]


def test_a_class_is_found_by_name_before_it_is_found_by_id() -> None:
    assert (PALETTE.id_of("car"), PALETTE.id_of("1"), PALETTE.id_of("7")) == (1, 1, 2)


@pytest.mark.parametrize("unknown", ["bus", "3", "-1", "\N{SUPERSCRIPT TWO}", ""])
def test_an_unknown_class_is_named(unknown: str) -> None:
    with pytest.raises(PaletteError, match=repr(unknown)):
        PALETTE.id_of(unknown)


def test_the_colour_table_is_black_where_there_is_no_class() -> None:
    assert PALETTE.rgb_table[1].tolist() == [0, 0, 142]
    assert not PALETTE.rgb_table[3:].any()


@pytest.mark.parametrize(
    ("names", "colors", "ignore_id"),
    [
        ((), (), 255),
        (("a", "a"), ((0, 0, 0), (1, 1, 1)), 255),
        (("a", ""), ((0, 0, 0), (1, 1, 1)), 255),
        (("a", "b"), ((0, 0, 0),), 255),
        (("a", "b"), ((0, 0, 0), (0, 0, 0)), 255),
        (("a",), ((0, 0, 256),), 255),
        (("a", "b"), ((0, 0, 0), (1, 1, 1)), 1),
        (("a",), ((0, 0, 0),), 256),
    ],
)
def test_a_palette_is_one_to_one(
    names: tuple[str, ...], colors: tuple[tuple[int, int, int], ...], ignore_id: int
) -> None:
    with pytest.raises(PaletteError):
        ClassPalette(names, colors, ignore_id)
