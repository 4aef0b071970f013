"""Axes: K classes, h w = padded size / stride, H W = the picture's own size."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from model.artifacts.manifest import Upsample
from model.decoding import decode
from model.decoding.decode import labels
from model.decoding.kernels import compiled
from model.decoding.score_grid import axis_positions
from model.errors import ModelOutputError
from model.labels import MAX_CLASSES, UInt8Array
from model.pictures.preprocess import ImageSize

Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]
ScoreKind = Literal["smooth", "noise", "ties", "near_ties", "huge", "tiny"]

MARGIN = 1e-5
"""Share of the largest score by which a class may be better and still not be chosen."""


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

    def labels(self) -> UInt8Array:
        return labels(
            self.raw_Khw,
            upsample=self.upsample,
            stride=self.stride,
            padded=self.padded,
            content=self.content,
            original=self.original,
        )


_SCORES: dict[ScoreKind, Callable[[np.random.Generator, tuple[int, ...]], npt.NDArray[np.floating]]] = {
    "smooth": lambda rng, shape: np.cumsum(np.cumsum(rng.standard_normal(shape), 1), 2),
    "noise": lambda rng, shape: rng.standard_normal(shape),
    "ties": lambda rng, shape: rng.integers(-1, 2, shape).astype(np.float64),
    "near_ties": lambda rng, shape: rng.standard_normal(shape[1:]) + 3e-5 * rng.standard_normal(shape),
    "huge": lambda rng, shape: rng.choice([-3e38, -1e30, 0.0, 1.0, 3e38], shape),
    "tiny": lambda rng, shape: rng.standard_normal(shape) * 1e-30,
}


def scores_of(kind: ScoreKind, seed: int, shape: tuple[int, ...]) -> Float32Array:
    return _SCORES[kind](np.random.default_rng(seed), shape).astype(np.float32)


def sizes(longest: int) -> st.SearchStrategy[ImageSize]:
    side = st.integers(1, longest)
    return st.builds(ImageSize, side, side)


@st.composite
def cases(draw: st.DrawFn, *, reduced: bool, filled: bool = False) -> Case:
    upsample: Upsample = draw(st.sampled_from(get_args(Upsample)))
    stride = draw(st.sampled_from([1, 2, 4, 8, 16, 32]))
    content = draw(sizes(70))
    if filled:
        content = content.padded()
    padded = content.padded()
    enlarged = st.builds(ImageSize, st.integers(content.height, 300), st.integers(content.width, 300))
    original = draw(enlarged) if reduced else content
    channels = draw(st.integers(1, 7)) * (stride**2 if upsample == "pixel_shuffle" else 1)
    shape = channels, padded.height // stride, padded.width // stride
    kind: ScoreKind = draw(st.sampled_from(get_args(ScoreKind)))
    raw_Khw = scores_of(kind, draw(st.integers(0, 2**32 - 1)), shape)
    return Case(raw_Khw, upsample, stride, padded, content, original)


def torch_scores(raw_Khw: Float32Array, size: ImageSize, *, aligned: bool = False) -> Float64Array:
    up = functional.interpolate(
        torch.from_numpy(raw_Khw)[None], (size.height, size.width), mode="bilinear", align_corners=aligned
    )
    return up[0].double().numpy()


def shuffled(case: Case) -> Float32Array:
    if case.upsample != "pixel_shuffle":
        return case.raw_Khw
    planes_KHW: Float32Array = torch.nn.PixelShuffle(case.stride)(torch.from_numpy(case.raw_Khw)).numpy()
    return planes_KHW


def assert_best(labels_HW: UInt8Array, scores_KHW: Float64Array, raw_Khw: Float32Array) -> None:
    """Each pixel's class scores as high as the best one, but for MARGIN."""
    assert labels_HW.shape == scores_KHW.shape[1:]
    assert labels_HW.max() < scores_KHW.shape[0]
    chosen_HW = np.take_along_axis(scores_KHW, labels_HW[None].astype(np.intp), 0)[0]
    behind_HW = scores_KHW.max(0) - chosen_HW
    assert behind_HW.max() <= MARGIN * np.abs(raw_Khw).max()


@settings(deadline=None, max_examples=200)
@given(case=cases(reduced=False))
def test_labels_are_those_of_torch_for_any_head_stride_and_size(case: Case) -> None:
    scores_KHW = torch_scores(shuffled(case), case.padded, aligned=case.upsample == "bilinear_aligned")
    cropped_KHW = scores_KHW[:, : case.content.height, : case.content.width]
    assert_best(case.labels(), cropped_KHW, case.raw_Khw)


@settings(deadline=None, max_examples=100)
@given(case=cases(reduced=True, filled=True).filter(lambda case: case.upsample != "bilinear_aligned"))
def test_a_reduced_picture_without_padding_is_one_interpolation_of_torch(case: Case) -> None:
    assert_best(case.labels(), torch_scores(shuffled(case), case.original), case.raw_Khw)


def blend_matrix(grid: int, padded: int, content: int, original: int, *, aligned: bool) -> Float64Array:
    """Weights (original, grid): the scores at each original pixel's centre, by the definition, in float64."""
    centers = (np.arange(original) + 0.5) * content / original - 0.5
    steps = (grid - 1) / (padded - 1) if padded > 1 else 0.0
    positions = centers * steps if aligned else (centers + 0.5) * grid / padded - 0.5
    distances = np.abs(np.clip(positions, 0, grid - 1)[:, None] - np.arange(grid))
    return np.maximum(0.0, 1.0 - distances)


@settings(deadline=None, max_examples=100)
@given(case=cases(reduced=True))
def test_a_reduced_picture_is_read_at_the_centres_of_its_original_pixels(case: Case) -> None:
    aligned = case.upsample == "bilinear_aligned"
    planes_KRC = shuffled(case)
    _, height, width = planes_KRC.shape
    down = blend_matrix(
        height, case.padded.height, case.content.height, case.original.height, aligned=aligned
    )
    across = blend_matrix(width, case.padded.width, case.content.width, case.original.width, aligned=aligned)
    assert_best(case.labels(), down @ planes_KRC.astype(np.float64) @ across.T, case.raw_Khw)


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize(("grid", "size"), [(1, 7), (64, 512), (60, 777), (512, 9999)])
def test_weights_are_those_of_torch_to_the_last_bit(grid: int, size: int, *, aligned: bool) -> None:
    unit_vectors = np.eye(grid, dtype=np.float32)[:, :, None]
    expected_KH = torch_scores(unit_vectors, ImageSize(size, 1), aligned=aligned)[:, :, 0]
    positions = axis_positions(grid, size, size, size, aligned=aligned)
    cells = positions.astype(np.intp)
    fractions = positions - cells.astype(np.float32)
    got_KH = np.zeros((grid, size), np.float32)
    got_KH[cells, np.arange(size)] = np.float32(1) - fractions
    got_KH[np.minimum(cells + 1, grid - 1), np.arange(size)] += fractions
    np.testing.assert_array_equal(got_KH, expected_KH)


@pytest.mark.parametrize("upsample", get_args(Upsample))
def test_the_lowest_class_wins_where_scores_are_equal(upsample: Upsample) -> None:
    stride, num_classes = 8, 6
    size = ImageSize(64, 96)
    channels = stride**2 if upsample == "pixel_shuffle" else 1
    twins_hw = scores_of("smooth", 1, (1, channels, 8, 12))
    rival_hw = scores_of("smooth", 2, (1, channels, 8, 12))
    order = [rival_hw - 1e3, twins_hw, rival_hw, twins_hw, rival_hw, twins_hw]
    raw_Khw = np.concatenate(order).reshape(num_classes * channels, 8, 12)
    got_HW = labels(raw_Khw, upsample=upsample, stride=stride, padded=size, content=size, original=size)
    assert set(np.unique(got_HW)) == {1, 2}


@pytest.mark.parametrize("num_classes", [1, MAX_CLASSES])
def test_one_class_and_the_most_classes_are_decoded(num_classes: int) -> None:
    size = ImageSize(40, 50)
    raw_Khw = scores_of("noise", 3, (num_classes, 8, 8))
    padded = size.padded()
    got_HW = labels(raw_Khw, upsample="bilinear", stride=8, padded=padded, content=size, original=size)
    assert_best(got_HW, torch_scores(raw_Khw, padded)[:, :40, :50], raw_Khw)


@pytest.mark.parametrize("extreme", [np.finfo(np.float32).max, np.finfo(np.float32).min])
def test_the_most_extreme_scores_still_become_class_ids(extreme: float) -> None:
    raw_Khw = np.full((3, 4, 4), extreme, np.float32)
    raw_Khw[2, ::2, 1::2] = np.nextafter(np.float32(extreme), np.float32(0))
    raw_Khw[1, 1::2, ::2] = np.nextafter(np.float32(extreme), np.float32(0))
    square = ImageSize(32, 32)
    original = ImageSize(777, 1111)
    got_HW = labels(raw_Khw, upsample="bilinear", stride=8, padded=square, content=square, original=original)
    assert got_HW.max() < 3


def test_blends_that_overflow_name_the_lowest_candidate() -> None:
    corners_K4 = np.full((3, 4), np.finfo(np.float32).min)
    weights_4P = np.full((4, 2), np.nextafter(np.float32(0.25), np.float32(1)))
    best_P, ids_P = np.zeros(2, np.float32), np.full(2, 99, np.uint8)
    with np.errstate(over="ignore"):
        decode._pick_highest_blend(corners_K4, np.array([1, 2], np.uint8), weights_4P, best_P, ids_P)
    assert ids_P.tolist() == [1, 1]


@pytest.mark.parametrize("upsample", get_args(Upsample))
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_score_that_is_not_finite_is_refused_wherever_it_is(upsample: Upsample, value: float) -> None:
    channels = 3 * (64 if upsample == "pixel_shuffle" else 1)
    padded = ImageSize(64, 32)
    for channel, y, x in [(0, 0, 0), (channels - 1, 7, 3), (1, 4, 2)]:
        raw_Khw = scores_of("noise", 4, (channels, 8, 4))
        raw_Khw[channel, y, x] = value
        with pytest.raises(ModelOutputError, match="not finite"):
            labels(
                raw_Khw,
                upsample=upsample,
                stride=8,
                padded=padded,
                content=ImageSize(33, 1),
                original=ImageSize(33, 1),
            )


@pytest.mark.parametrize(
    ("shape", "upsample"),
    [
        ((3, 4, 5), "bilinear"),
        ((3, 5, 4), "bilinear"),
        ((0, 4, 4), "bilinear"),
        ((256, 4, 4), "bilinear"),
        ((1, 3, 4, 4), "bilinear_aligned"),
        ((65, 4, 4), "pixel_shuffle"),
        ((19, 4, 4), "pixel_shuffle"),
    ],
)
def test_raw_output_of_another_shape_is_refused(shape: tuple[int, ...], upsample: Upsample) -> None:
    square = ImageSize(32, 32)
    raw = np.zeros(shape, np.float32)
    with pytest.raises(ModelOutputError, match=r"does not fit a 32x32 picture at stride 8"):
        labels(raw, upsample=upsample, stride=8, padded=square, content=square, original=square)


def test_content_larger_than_the_padded_picture_is_refused() -> None:
    square, wide = ImageSize(32, 32), ImageSize(32, 33)
    raw_Khw = np.zeros((2, 4, 4), np.float32)
    with pytest.raises(ValueError, match="32x33"):
        labels(raw_Khw, upsample="bilinear", stride=8, padded=square, content=wide, original=wide)


@pytest.mark.parametrize("upsample", get_args(Upsample))
def test_bands_on_an_executor_change_nothing(upsample: Upsample) -> None:
    padded, content, original = ImageSize(608, 704), ImageSize(607, 699), ImageSize(1001, 1203)
    raw_Khw = scores_of("noise", 5, (64, 76, 88))
    with ThreadPoolExecutor(2) as executor:
        for size in (content, original):
            alone_HW = Case(raw_Khw, upsample, 8, padded, content, size).labels()
            shared_HW = labels(
                raw_Khw,
                upsample=upsample,
                stride=8,
                padded=padded,
                content=content,
                original=size,
                executor=executor,
            )
            np.testing.assert_array_equal(shared_HW, alone_HW)


def test_no_array_that_a_caller_may_hold_is_compiled_for_again() -> None:
    square = ImageSize(64, 64)
    plain = scores_of("noise", 6, (4, 8, 8))
    read_only = plain.copy()
    read_only.setflags(write=False)
    unaligned = np.frombuffer(b"\0" + plain.tobytes(), np.float32, offset=1).reshape(plain.shape)
    strided = np.ascontiguousarray(plain.transpose(2, 1, 0)).transpose(2, 1, 0)
    expected_HW = Case(plain, "bilinear", 8, square, square, square).labels()
    for raw_Khw in (read_only, unaligned, strided):
        got_HW = Case(raw_Khw, "bilinear", 8, square, square, square).labels()
        np.testing.assert_array_equal(got_HW, expected_HW)
    Case(scores_of("noise", 7, (64, 8, 8)), "pixel_shuffle", 8, square, square, square).labels()
    for kernel in (decode._pick_winners, decode._draw_labels):
        assert len(compiled(kernel).signatures) == 1


_WARM_UP_WITHOUT_TORCH = """
import sys
from pathlib import Path
sys.modules["torch"] = None
from model.decoding import decode
from model.decoding.kernels import compiled
decode.warm_up(Path(sys.argv[1]))
for kernel in (decode._pick_winners, decode._draw_labels):
    print(sum(compiled(kernel).stats.cache_hits.values()))
"""


def test_a_second_process_loads_the_kernels_that_the_first_one_kept_and_needs_no_torch(
    tmp_path: Path,
) -> None:
    command = [sys.executable, "-c", _WARM_UP_WITHOUT_TORCH, str(tmp_path)]
    root = Path(decode.__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    runs = [
        subprocess.run(command, env=environment, check=True, capture_output=True, text=True) for _ in range(2)
    ]
    assert [run.stdout.split() for run in runs] == [["0", "0"], ["1", "1"]]
    assert list(tmp_path.rglob("*.nbi")), "numba keeps its kernels elsewhere"
