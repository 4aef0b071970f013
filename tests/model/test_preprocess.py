from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.preprocess import ImageSize, PreprocessSpec, size_of

SPEC = PreprocessSpec(mean=(0.5, 0.25, 0.1), max_infer_pixels=64 * 64)
sides = st.integers(1, 200)


@given(sides, sides)
def test_padding_reaches_the_next_multiple_of_32_and_nowhere_more(height: int, width: int) -> None:
    padded = ImageSize(height, width).padded()
    assert padded.height % 32 == padded.width % 32 == 0
    assert 0 <= padded.height - height < 32
    assert 0 <= padded.width - width < 32


@given(st.integers(1, 20_000), st.integers(1, 20_000), st.integers(1, 10**6))
def test_a_reduced_size_fits_and_is_as_large_as_the_aspect_allows(
    height: int, width: int, limit: int
) -> None:
    size = ImageSize(height, width)
    reduced = size.reduced_to(limit)
    assert reduced.pixels <= limit
    assert reduced.height <= height
    assert reduced.width <= width
    if size.pixels > limit and min(reduced.height, reduced.width) > 1:
        assert (reduced.height + 1) * (reduced.width + 1) > limit * 0.99


@given(st.integers(1, 64), st.integers(1, 64))
def test_a_picture_stands_top_left_and_the_rest_has_the_mean_colour(height: int, width: int) -> None:
    image_HW3 = np.random.default_rng(height * 100 + width).integers(0, 256, (height, width, 3), np.uint8)
    prepared = SPEC.prepare(image_HW3)
    assert (prepared.pixels_HW3[:height, :width] == image_HW3).all()
    assert (prepared.pixels_HW3[height:] == (128, 64, 26)).all()
    assert (prepared.pixels_HW3[:, width:] == (128, 64, 26)).all()
    assert prepared.content == prepared.original == size_of(image_HW3)


def test_a_large_picture_is_reduced_by_area_and_remembers_its_size() -> None:
    image_HW3 = np.zeros((128, 128, 3), np.uint8)
    image_HW3[::2] = 200
    prepared = SPEC.prepare(image_HW3)
    assert (prepared.content, prepared.original) == (ImageSize(64, 64), ImageSize(128, 128))
    assert (prepared.pixels_HW3 == 100).all()


@pytest.mark.parametrize(("height", "width"), [(0, 1), (1, 0), (-1, 5)])
def test_an_empty_size_is_refused(height: int, width: int) -> None:
    with pytest.raises(ValueError, match="at least 1x1"):
        ImageSize(height, width)
