from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from model.pictures.preprocess import ImageSize, PreprocessSpec, size_of

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


@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 2000))
def test_a_reduced_picture_is_pillows_box_first_over_rows_then_over_columns(
    height: int, width: int, limit: int
) -> None:
    image_HW3 = np.random.default_rng(height * 300 + width).integers(0, 256, (height, width, 3), np.uint8)
    prepared = PreprocessSpec(mean=(0, 0, 0), max_infer_pixels=limit).prepare(image_HW3)
    size, box = prepared.content, Image.Resampling.BOX
    picture = Image.fromarray(image_HW3)
    expected = picture.resize((size.width, height), box).resize((size.width, size.height), box)
    reduced_HW3 = prepared.pixels_HW3[: size.height, : size.width]
    np.testing.assert_array_equal(reduced_HW3, np.asarray(expected))
    at_once = np.asarray(picture.resize((size.width, size.height), box))
    assert np.abs(reduced_HW3.astype(int) - at_once).max() <= 1


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_reducing_a_picture_takes_less_than_two_more_bytes_a_pixel() -> None:
    run = subprocess.run([sys.executable, "-c", MEASURE_PEAK], capture_output=True, check=True)
    assert int(run.stdout) <= 2 * 6000 * 6000


MEASURE_PEAK = """
import numpy as np
from model.pictures.preprocess import PreprocessSpec
def status(key):
    return int(open("/proc/self/status").read().split(key)[1].split()[0]) * 1024
image_HW3 = np.ones((6000, 6000, 3), np.uint8)
before = status("VmRSS:")
PreprocessSpec(mean=(0, 0, 0)).prepare(image_HW3)
print(status("VmHWM:") - before)
"""


@pytest.mark.parametrize(("height", "width"), [(0, 1), (1, 0), (-1, 5)])
def test_an_empty_size_is_refused(height: int, width: int) -> None:
    with pytest.raises(ValueError, match="at least 1x1"):
        ImageSize(height, width)
