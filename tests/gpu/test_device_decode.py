"""Decoding on the device equals decoding on the CPU.

Without a GPU Triton's interpreter runs the kernel, where Triton is installed. The axes are those of
``model.decoding.decode``.
"""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch

from model.artifacts.manifest import Upsample
from model.decoding import decode
from model.pictures.preprocess import ImageSize

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    os.environ.setdefault("TRITON_INTERPRET", "1")

pytest.importorskip("triton", reason="Triton is not installed")

from model.decoding import decode_cuda  # noqa: E402

STRIDE = 8
CLEAR = 1e-5

SIZES = [
    ((64, 96), (64, 96), (64, 96)),
    ((64, 96), (61, 90), (61, 90)),
    ((64, 96), (60, 96), (101, 162)),
    ((32, 32), (1, 1), (1, 1)),
]


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    ("upsample", "num_classes"), [("bilinear", 19), ("bilinear_aligned", 5), ("pixel_shuffle", 3)]
)
def test_labels_are_those_of_the_cpu(
    upsample: Upsample,
    num_classes: int,
    channels_last: bool,  # noqa: FBT001
    sizes: tuple[tuple[int, int], ...],
) -> None:
    padded, content, original = (ImageSize(*size) for size in sizes)
    num_channels = num_classes * (STRIDE**2 if upsample == "pixel_shuffle" else 1)
    shape = (num_channels, padded.height // STRIDE, padded.width // STRIDE)
    raw_Khw = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    device_raw_Khw = torch.from_numpy(raw_Khw).to(DEVICE)
    if channels_last:
        device_raw_Khw = device_raw_Khw.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    wanted_HW, got_HW = (
        module.labels(
            raw, upsample=upsample, stride=STRIDE, padded=padded, content=content, original=original
        )
        for module, raw in ((decode, raw_Khw), (decode_cuda, device_raw_Khw))
    )
    assert got_HW.shape == wanted_HW.shape
    assert (got_HW.cpu().numpy() != wanted_HW).mean() <= CLEAR


@pytest.mark.parametrize("far", ["class", "row", "column"])
def test_scores_that_lie_further_apart_than_32_bits_count_are_found(far: str) -> None:
    steps = {"class": 64, "row": 8, "column": 1} | {far: 2**30 + 64}
    # 4 GiB, of which a CPU touches a few pages.
    room = torch.empty(2 * (2**30 + 64) + 1024, dtype=torch.float16, device=DEVICE)
    raw_Khw = room.as_strided((3, 3, 3), tuple(steps.values()))
    scores_Khw = torch.randn(3, 3, 3, generator=torch.Generator().manual_seed(0)).half().to(DEVICE)
    raw_Khw.copy_(scores_Khw)
    size = ImageSize(24, 24)
    apart, close = (
        decode_cuda.labels(raw, upsample="bilinear", stride=STRIDE, padded=size, content=size, original=size)
        for raw in (raw_Khw, scores_Khw)
    )
    assert torch.equal(apart, close)


def test_half_scores_decode_as_the_same_numbers_in_full() -> None:
    raw_Khw = torch.randn(7, 8, 8, generator=torch.Generator().manual_seed(0)).half().to(DEVICE)
    size = ImageSize(64, 64)
    half, full = (
        decode_cuda.labels(raw, upsample="bilinear", stride=STRIDE, padded=size, content=size, original=size)
        for raw in (raw_Khw, raw_Khw.float())
    )
    assert torch.equal(half, full)


def test_scores_that_are_not_finite_are_told_apart_by_picture() -> None:
    raw_NKhw = torch.zeros(3, 2, 4, 4)
    raw_NKhw[1, 0, 3, 3] = torch.nan
    raw_NKhw[2, 1, 0, 0] = torch.inf
    assert decode_cuda.are_finite(raw_NKhw.to(DEVICE)).tolist() == [True, False, False]
