"""Axes: K classes, h w = padded size / stride, R C the grid, H W the picture's own size."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import get_args

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from model.artifacts.manifest import Upsample
from model.decoding import decode
from model.decoding.confidence import confidence
from model.decoding.confidence_torch import confidence as torch_confidence
from model.decoding.score_grid import positions
from model.errors import ModelOutputError
from model.labels import UInt8Array
from model.pictures.preprocess import ImageSize

Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]


@pytest.fixture(scope="module", autouse=True)
def _kernels() -> None:
    decode.warm_up()


@dataclass(frozen=True)
class Case:
    raw_Khw: Float32Array
    upsample: Upsample
    stride: int
    padded: ImageSize
    content: ImageSize
    original: ImageSize

    @property
    def geometry(self) -> dict[str, object]:
        return {name: getattr(self, name) for name in ("upsample", "stride", "padded", "content", "original")}

    def labels(self) -> UInt8Array:
        return decode.labels(self.raw_Khw, **self.geometry)  # type: ignore[arg-type]

    def confidence(self, **more: object) -> UInt8Array:
        return confidence(self.raw_Khw, self.labels(), **self.geometry, **more)  # type: ignore[arg-type]


def sides(least: int, most: int) -> st.SearchStrategy[ImageSize]:
    side = st.integers(least, most)
    return st.builds(ImageSize, side, side)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    upsample: Upsample = draw(st.sampled_from(get_args(Upsample)))
    stride = draw(st.sampled_from([1, 4, 8, 32]))
    content = draw(sides(1, 70))
    padded = content.padded()
    is_reduced = draw(st.booleans())
    original = draw(sides(70, 200)) if is_reduced else content
    channels = draw(st.integers(1, 7)) * (stride**2 if upsample == "pixel_shuffle" else 1)
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    noise = random.standard_normal((channels, padded.height // stride, padded.width // stride))
    strength = draw(st.sampled_from([0.0, 1.0, 5.0, 1e30]))
    return Case((strength * noise).astype(np.float32), upsample, stride, padded, content, original)


def grid_probabilities(case: Case) -> Float64Array:
    """Softmax over the classes at each grid point: probabilities_KRC."""
    scores = torch.from_numpy(case.raw_Khw).double()
    if case.upsample == "pixel_shuffle":
        scores = functional.pixel_shuffle(scores, case.stride)
    probabilities_KRC: Float64Array = torch.softmax(scores, 0).numpy()
    return probabilities_KRC


def expected(case: Case) -> Float64Array:
    """Blend the probabilities of all classes, and take that of each pixel's label."""
    probabilities_KRC = grid_probabilities(case)
    grid = ImageSize(*probabilities_KRC.shape[1:])
    rows_H, columns_W = positions(
        grid, upsample=case.upsample, padded=case.padded, content=case.content, original=case.original
    )
    top_H, left_W = rows_H.astype(int), columns_W.astype(int)
    bottom_H = np.minimum(top_H + 1, grid.height - 1)
    right_W = np.minimum(left_W + 1, grid.width - 1)
    down_H1, across_W = (rows_H - top_H)[:, None], columns_W - left_W
    upper = (1 - across_W) * probabilities_KRC[:, top_H][:, :, left_W]
    upper += across_W * probabilities_KRC[:, top_H][:, :, right_W]
    lower = (1 - across_W) * probabilities_KRC[:, bottom_H][:, :, left_W]
    lower += across_W * probabilities_KRC[:, bottom_H][:, :, right_W]
    blended_KHW = (1 - down_H1) * upper + down_H1 * lower
    chosen: Float64Array = np.take_along_axis(blended_KHW, case.labels()[None].astype(np.intp), 0)[0]
    return chosen


@given(cases())
@settings(max_examples=150, deadline=None)
def test_the_confidence_of_a_pixel_is_the_blended_probability_of_its_label(case: Case) -> None:
    found_HW = case.confidence()
    assert found_HW.shape == case.original.shape
    assert np.abs(found_HW - 255 * expected(case)).max() <= 0.51


@given(cases())
@settings(max_examples=50, deadline=None)
def test_torch_finds_the_same_confidence(case: Case) -> None:
    raw, labels = torch.from_numpy(case.raw_Khw), torch.from_numpy(case.labels())
    found_HW = torch_confidence(raw, labels, **case.geometry)  # type: ignore[arg-type]
    assert found_HW.dtype == torch.uint8
    assert np.abs(found_HW.numpy() - 255 * expected(case)).max() <= 0.51


def test_probabilities_are_blended_where_torch_puts_them() -> None:
    random = np.random.default_rng(5)
    size = ImageSize(64, 96)
    raw_Khw = 3 * random.standard_normal((4, 8, 12)).astype(np.float32)
    case = Case(raw_Khw, "bilinear", 8, size, size, size)
    planes = torch.from_numpy(grid_probabilities(case))[None]
    up_KHW = functional.interpolate(planes, size.shape, mode="bilinear")[0].numpy()
    chosen_HW = np.take_along_axis(up_KHW, case.labels()[None].astype(np.intp), 0)[0]
    assert np.abs(case.confidence() - 255 * chosen_HW).max() <= 0.51


def test_equal_scores_give_each_class_its_share_and_one_class_alone_is_certain() -> None:
    size = ImageSize(32, 32)
    even = Case(np.zeros((5, 4, 4), np.float32), "bilinear", 8, size, size, size)
    alone = Case(np.zeros((1, 4, 4), np.float32), "bilinear", 8, size, size, size)
    assert set(even.confidence().flat) == {51}
    assert set(alone.confidence().flat) == {255}


def test_threads_and_a_given_array_change_nothing() -> None:
    random = np.random.default_rng(6)
    size = ImageSize(1024, 512)
    raw_Khw = 3 * random.standard_normal((4, 128, 64)).astype(np.float32)
    case = Case(raw_Khw, "bilinear", 8, size, size, size)
    out_HW = np.empty(size.shape, np.uint8)
    with ThreadPoolExecutor(2) as executor:
        assert case.confidence(executor=executor, out_HW=out_HW) is out_HW
    assert np.array_equal(out_HW, case.confidence())


def test_a_raw_output_of_another_size_is_refused() -> None:
    size = ImageSize(64, 64)
    case = Case(np.zeros((3, 4, 4), np.float32), "bilinear", 8, size, size, size)
    with pytest.raises(ModelOutputError, match="does not fit a 64x64 picture"):
        confidence(case.raw_Khw, np.zeros(size.shape, np.uint8), **case.geometry)  # type: ignore[arg-type]
