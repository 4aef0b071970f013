"""Axes: N views, K classes, h w = padded size / stride, H W = the picture's own size."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import get_args

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from model.artifacts.manifest import Upsample
from model.decoding.kernels import compiled
from model.errors import ModelOutputError
from model.evaluation import score_sums
from model.evaluation.protocols import Plan, Protocol, find_protocol, make_plan
from model.evaluation.score_sums import accumulate
from model.pictures.preprocess import ImageSize

Float32Array = npt.NDArray[np.float32]
STRIDE = 8
CROP = 64


def small(name: str) -> Protocol:
    protocol = find_protocol(name)
    return protocol.with_crop(CROP) if protocol.crop else protocol


def raw_for(plan: Plan, num_classes: int, upsample: Upsample) -> list[Float32Array]:
    random = np.random.default_rng(0)
    channels = num_classes * (STRIDE**2 if upsample == "pixel_shuffle" else 1)
    raw = []
    for one in plan.passes:
        padded = one.chips[0].size.padded()
        shape = (len(one.chips) * (1 + plan.flip), channels, padded.height // STRIDE, padded.width // STRIDE)
        raw.append(random.normal(scale=3, size=shape).astype(np.float32))
    return raw


def full_size(raw: Tensor, size: ImageSize, upsample: Upsample) -> Tensor:
    """Score every pixel of padded chips, and cut the padding off."""
    if upsample == "pixel_shuffle":
        scores = functional.pixel_shuffle(raw, STRIDE)
    else:
        aligned = upsample == "bilinear_aligned"
        scores = functional.interpolate(raw, scale_factor=STRIDE, mode="bilinear", align_corners=aligned)
    return scores[:, :, : size.height, : size.width]


def sums_by_torch(plan: Plan, raw: list[Float32Array], upsample: Upsample) -> Tensor:
    """Do what a plan says with planes of full size."""
    total = torch.zeros(())
    size = (plan.size.height, plan.size.width)
    views = 1 + plan.flip
    for one, raw_NKhw in zip(plan.passes, raw, strict=True):
        scores = full_size(torch.from_numpy(raw_NKhw), one.chips[0].size, upsample)
        scores[views - 1 :: views] = scores[views - 1 :: views].flip(3) if plan.flip else scores
        if plan.whole:
            scores = functional.interpolate(scores, size, mode="bilinear", align_corners=True)
        values = scores if plan.summand == "score" else scores.softmax(dim=1)
        values = sum(values[view::views] for view in range(views))
        values = values.exp() if plan.summand == "exp" else values
        if plan.whole:
            total = total + values[0]
            continue
        canvas = torch.zeros(values.shape[1], one.canvas.height, one.canvas.width)
        for chip, value in zip(one.chips, values, strict=True):
            bottom, right = chip.top + chip.size.height, chip.left + chip.size.width
            canvas[:, chip.top : bottom, chip.left : right] += value
        bottom, right = one.top + one.scaled.height, one.left + one.scaled.width
        cut = canvas[None, :, one.top : bottom, one.left : right]
        total = total + functional.interpolate(cut, size, mode="bilinear", align_corners=True)[0]
    return total


def check_by_torch(plan: Plan, raw: list[Float32Array], upsample: Upsample) -> None:
    sums_KHW = sums_by_torch(plan, raw, upsample)
    top = sums_KHW.topk(2, dim=0).values
    clear_HW = ((top[0] - top[1]) > 1e-4).numpy()
    labels_HW = accumulate(plan, raw, upsample=upsample, stride=STRIDE)
    assert clear_HW.mean() > 0.99
    np.testing.assert_array_equal(labels_HW[clear_HW], sums_KHW.argmax(dim=0).numpy()[clear_HW])


@pytest.mark.parametrize("upsample", get_args(Upsample))
@pytest.mark.parametrize("name", ["ss", "ss-old", "msf", "ssc", "ssc-old", "mscf", "slide"])
def test_labels_are_those_of_planes_of_full_size(name: str, upsample: Upsample) -> None:
    plan = make_plan(small(name), ImageSize(75, 110))
    raw = raw_for(plan, 5, upsample)
    check_by_torch(plan, raw, upsample)


def test_threads_share_the_rows_and_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = make_plan(small("mscf"), ImageSize(75, 110))
    raw = raw_for(plan, 5, "bilinear")
    # Scores that leave ties to rounding: a sum in another order would show.
    raw = [np.round(one) for one in raw]
    whole = accumulate(plan, raw, upsample="bilinear", stride=STRIDE)
    monkeypatch.setattr(score_sums, "_BAND_SCORES", 7 * 110 * 5)
    with ThreadPoolExecutor(3) as executor:
        shared = accumulate(plan, raw, upsample="bilinear", stride=STRIDE, executor=executor)
    np.testing.assert_array_equal(shared, whole)


@pytest.mark.parametrize("upsample", get_args(Upsample))
def test_areas_of_one_class_are_named_without_arithmetic_and_their_borders_with_it(
    upsample: Upsample,
) -> None:
    plan = make_plan(find_protocol("ss"), ImageSize(150, 220))
    (noise_NKhw,) = raw_for(plan, 5, upsample)
    random = np.random.default_rng(1)
    areas_hw = np.kron(random.integers(0, 5, (4, 4)), np.ones((5, 7), np.int64))
    height, width = noise_NKhw.shape[2:]
    cells = len(noise_NKhw[0]) // 5
    votes_Khw = np.eye(5)[areas_hw[:height, :width]].transpose(2, 0, 1).repeat(cells, axis=0)
    raw = [(0.5 * noise_NKhw + 12 * votes_Khw).astype(np.float32)]
    check_by_torch(plan, raw, upsample)


def test_every_plan_runs_the_same_kernels() -> None:
    for name in ("ss", "msf", "mscf", "slide"):
        plan = make_plan(small(name), ImageSize(40, 70))
        accumulate(plan, raw_for(plan, 3, "bilinear"), upsample="bilinear", stride=STRIDE)
    for kernel in (score_sums._add_chip, score_sums._pick_highest, score_sums._draw_one_map):
        assert len(compiled(kernel).signatures) == 1


def test_a_picture_wider_than_a_strip_and_of_many_classes() -> None:
    plan = make_plan(find_protocol("msf"), ImageSize(33, 1100))
    plan = replace(plan, passes=plan.passes[2:3])
    raw = raw_for(plan, 255, "bilinear")
    sums_KHW = sums_by_torch(plan, raw, "bilinear")
    labels_HW = accumulate(plan, raw, upsample="bilinear", stride=STRIDE)
    assert (labels_HW == sums_KHW.argmax(dim=0).numpy()).mean() > 0.999


def test_scores_of_any_size_have_a_softmax() -> None:
    # exp of less than -87 is no normal float32, and exp of 1000 none at all.
    plan = make_plan(find_protocol("msf"), ImageSize(32, 32))
    raw = [np.zeros_like(one) for one in raw_for(plan, 3, "bilinear")]
    for one in raw:
        one[:, 0], one[:, 1], one[:, 2] = -1e30, 1000, 1e30
    labels_HW = accumulate(plan, raw, upsample="bilinear", stride=STRIDE)
    assert (labels_HW == 2).all()


def test_the_exponential_is_right_to_two_units_of_the_last_place() -> None:
    values = np.concatenate([np.linspace(-87, 2, 20_001), [-0.0, 0.0]]).astype(np.float32)
    ours = values.copy()
    score_sums._exp(ours, np.empty(values.size, np.int32))
    exact = np.exp(values.astype(np.float64))
    assert (np.abs(ours - exact) / np.spacing(exact.astype(np.float32))).max() < 2
    lowest = np.full(1, -1e30, np.float32)
    score_sums._exp(lowest, np.empty(1, np.int32))
    assert 0 <= lowest[0] < 1e-37


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_scores_that_are_no_numbers_are_refused(value: float) -> None:
    plan = make_plan(find_protocol("msf"), ImageSize(32, 32))
    raw = raw_for(plan, 3, "bilinear")
    raw[3][1, 2, 0, 0] = value
    with pytest.raises(ModelOutputError, match="not finite"):
        accumulate(plan, raw, upsample="bilinear", stride=STRIDE)


def test_raw_output_that_does_not_fit_the_plan_is_refused() -> None:
    plan = make_plan(find_protocol("msf"), ImageSize(32, 32))
    raw = raw_for(plan, 3, "bilinear")
    with pytest.raises(ModelOutputError, match="does not fit"):
        accumulate(plan, [one[:, :, 1:] for one in raw], upsample="bilinear", stride=STRIDE)
    with pytest.raises(ModelOutputError, match="1 raw outputs for 1 chips of 2 views"):
        accumulate(plan, [one[:1] for one in raw], upsample="bilinear", stride=STRIDE)
