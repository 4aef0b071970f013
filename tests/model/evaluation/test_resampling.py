"""Axes: H W the size that comes out, T taps, X output positions, S source positions."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from model.decoding.kernels import compiled
from model.evaluation.resampling import Taps, _resize_rows, resized
from model.labels import UInt8Array
from model.pictures.preprocess import ImageSize

SIDES = st.integers(1, 90)


def matrix_of(taps: Taps, side: int) -> npt.NDArray[np.float64]:
    matrix_XS = np.zeros((taps.sources_TX.shape[1], side))
    for sources_X, weights_X in zip(taps.sources_TX, taps.weights_TX, strict=True):
        np.add.at(matrix_XS, (np.arange(len(sources_X)), sources_X), weights_X)
    return matrix_XS


def picture(height: int, width: int) -> UInt8Array:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


@given(height=SIDES, width=SIDES, new_height=SIDES, new_width=SIDES)
@settings(max_examples=40)
def test_a_picture_is_resized_as_by_torch(height: int, width: int, new_height: int, new_width: int) -> None:
    image_HW3 = picture(height, width)
    planes = torch.from_numpy(image_HW3).permute(2, 0, 1)[None].float()
    wanted = functional.interpolate(planes, (new_height, new_width), mode="bilinear", align_corners=True)
    ours_HW3 = resized(image_HW3, ImageSize(new_height, new_width))
    np.testing.assert_allclose(ours_HW3, wanted[0].permute(1, 2, 0).numpy(), atol=2e-3)


@given(height=SIDES, width=SIDES, middle=SIDES, new_height=SIDES, new_width=SIDES)
@settings(max_examples=40)
def test_a_picture_is_resized_twice_as_by_torch(
    height: int, width: int, middle: int, new_height: int, new_width: int
) -> None:
    image_HW3, start = picture(height, width), ImageSize(middle, new_width)
    planes = torch.from_numpy(image_HW3).permute(2, 0, 1)[None].float()
    begun = functional.interpolate(planes, start.shape, mode="bilinear", align_corners=False)
    wanted = functional.interpolate(begun, (new_height, new_width), mode="bilinear", align_corners=True)
    ours_HW3 = resized(image_HW3, ImageSize(new_height, new_width), start=start)
    np.testing.assert_allclose(ours_HW3, wanted[0].permute(1, 2, 0).numpy(), atol=5e-3)


def test_threads_change_nothing_and_any_memory_layout_is_one_kernel() -> None:
    image_HW3 = picture(500, 640)
    size = ImageSize(700, 611)
    alone = resized(image_HW3, size)
    with ThreadPoolExecutor(2) as executor:
        np.testing.assert_array_equal(resized(image_HW3, size, executor), alone)
    read_only = image_HW3.copy()
    read_only.setflags(write=False)
    strided = np.ascontiguousarray(image_HW3.transpose(1, 0, 2)).transpose(1, 0, 2)
    for same in (read_only, strided):
        np.testing.assert_array_equal(resized(same, size), alone)
    assert len(compiled(_resize_rows).signatures) == 1


@given(source=SIDES, middle=SIDES, target=SIDES)
def test_two_steps_in_one_are_the_product_of_both(source: int, middle: int, target: int) -> None:
    first, second = Taps.resize(source, middle), Taps.resize(middle, target)
    both = second.after(first)
    np.testing.assert_allclose(
        matrix_of(both, source), matrix_of(second, middle) @ matrix_of(first, source), atol=1e-6
    )
    assert both.sources_TX.max() < source


def test_neighbours_of_an_enlarged_axis_share_taps() -> None:
    # A head at stride 8, enlarged 8 times and then resized a little: three taps, where two times two is four.
    enlarged = Taps.at(np.maximum((np.arange(384, dtype=np.float32) + 0.5) / 8 - 0.5, 0), 48)
    assert Taps.resize(384, 360).after(enlarged).sources_TX.shape == (3, 360)


@given(source=SIDES, target=SIDES, offset=st.integers(0, 5))
def test_weights_add_up_to_one_and_stay_inside(source: int, target: int, offset: int) -> None:
    taps = Taps.resize(source, target)
    np.testing.assert_allclose(taps.weights_TX.sum(axis=0), 1, atol=1e-6)
    assert (taps.weights_TX >= 0).all()
    assert taps.span[1] <= source
    assert taps.shifted(offset).span == tuple(side + offset for side in taps.span)


def test_a_mirrored_axis_runs_backwards() -> None:
    taps = Taps.resize(5, 9)
    np.testing.assert_array_equal(matrix_of(taps.reversed(), 5), matrix_of(taps, 5)[::-1])


@pytest.mark.parametrize(("first", "last"), [(0, 3), (4, 9)])
def test_a_part_is_that_part(first: int, last: int) -> None:
    taps = Taps.resize(5, 9)
    np.testing.assert_array_equal(matrix_of(taps.part(first, last), 5), matrix_of(taps, 5)[first:last])
