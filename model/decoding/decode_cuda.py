"""Decoding on an NVIDIA GPU: raw output -> class ids, in one Triton kernel.

Axes: N pictures, K classes, S pixel-shuffle factor (1 for bilinear heads), h w = padded size / stride,
R C = h*S w*S: the grid, H W the picture's own size, P pixels of a tile.

It computes the function of ``model.decoding.decode.labels``. ``model.decoding.score_grid`` defines where an
output pixel lies on the grid. Every pixel blends the scores of all classes: that is cheap on a GPU, while the
shortcut of the CPU would need branches.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from model.artifacts.manifest import Upsample
from model.decoding.confidence_torch import positions_on
from model.decoding.score_grid import grid_of
from model.pictures.preprocess import ImageSize

_TILE_PIXELS = 256
"""Pixels of one row: two for each thread of a block of four warps."""


def labels(
    raw_Khw: Tensor,
    *,
    upsample: Upsample,
    stride: int,
    padded: ImageSize,
    content: ImageSize,
    original: ImageSize,
) -> Tensor:
    """Enqueue decoding; return the class with the highest score for each pixel of the picture as it was sent.

    The scores must be finite: ``are_finite``.

    Args:
        raw_Khw: raw output for one picture on a GPU, f32, f16 or bf16, with any strides.
        upsample: of the manifest.
        stride: pixels of the padded picture for each raw value along one side.
        padded: size of the network's input.
        content: its top left part with the picture, at most ``padded``.
        original: size of the labels: ``content``, or the picture's own size if it was reduced.

    Returns:
        labels_HW of size ``original``, uint8, each in [0, K), on the same device: equal to the labels of
        ``model.decoding.decode`` wherever the two highest scores differ by more than rounding.

    Raises:
        ModelOutputError: the shape of ``raw_Khw`` does not fit the other arguments.
    """
    num_classes, factor, grid = grid_of(tuple(raw_Khw.shape), upsample=upsample, stride=stride, padded=padded)
    rows_H, columns_W = positions_on(
        raw_Khw.device, grid, upsample=upsample, padded=padded, content=content, original=original
    )
    labels_HW = torch.empty(original.shape, dtype=torch.uint8, device=raw_Khw.device)
    _draw_labels[(triton.cdiv(original.width, _TILE_PIXELS), original.height)](
        raw_Khw,
        *raw_Khw.stride(),
        rows_H,
        columns_W,
        labels_HW,
        grid.height,
        grid.width,
        original.width,
        NUM_CLASSES=num_classes,
        FACTOR=factor,
        TILE=_TILE_PIXELS,
    )
    return labels_HW


def are_finite(raw_NKhw: Tensor) -> Tensor:
    """Return for each picture whether all its scores are finite: bool of shape (N,) on the same device."""
    return torch.isfinite(raw_NKhw).flatten(1).all(1)


@triton.jit
def _draw_labels(
    raw_ptr,
    class_step,
    row_step,
    column_step,
    rows_ptr,
    columns_ptr,
    labels_ptr,
    grid_height,
    grid_width,
    width,
    NUM_CLASSES: tl.constexpr,
    FACTOR: tl.constexpr,
    TILE: tl.constexpr,
):
    y = tl.program_id(1)
    x_P = tl.program_id(0) * TILE + tl.arange(0, TILE)
    inside_P = x_P < width

    row = tl.load(rows_ptr + y)
    top = tl.minimum(row.to(tl.int32), grid_height - 1)
    bottom = tl.minimum(top + 1, grid_height - 1)
    down = row - top.to(tl.float32)

    column_P = tl.load(columns_ptr + x_P, mask=inside_P, other=0.0)
    left_P = tl.minimum(column_P.to(tl.int32), grid_width - 1)
    right_P = tl.minimum(left_P + 1, grid_width - 1)
    across_P = column_P - left_P.to(tl.float32)

    # PixelShuffle moves channel k*S*S + i*S + j of (y, x) to class k of (y*S + i, x*S + j). There is a score
    # for each pixel and each class: more than 32 bits can index in a large picture.
    above = (top // FACTOR).to(tl.int64) * row_step + (top % FACTOR).to(tl.int64) * FACTOR * class_step
    below = (bottom // FACTOR).to(tl.int64) * row_step + (bottom % FACTOR).to(tl.int64) * FACTOR * class_step
    before_P = (left_P // FACTOR).to(tl.int64) * column_step + (left_P % FACTOR).to(tl.int64) * class_step
    beside_P = (right_P // FACTOR).to(tl.int64) * column_step + (right_P % FACTOR).to(tl.int64) * class_step

    best_P = tl.full((TILE,), float("-inf"), tl.float32)
    ids_P = tl.zeros((TILE,), tl.uint8)
    class_ptr = raw_ptr
    for k in range(NUM_CLASSES):
        top_left_P = tl.load(class_ptr + above + before_P, mask=inside_P, other=0.0).to(tl.float32)
        top_right_P = tl.load(class_ptr + above + beside_P, mask=inside_P, other=0.0).to(tl.float32)
        bottom_left_P = tl.load(class_ptr + below + before_P, mask=inside_P, other=0.0).to(tl.float32)
        bottom_right_P = tl.load(class_ptr + below + beside_P, mask=inside_P, other=0.0).to(tl.float32)
        score_P = (
            (1 - down) * (1 - across_P) * top_left_P
            + (1 - down) * across_P * top_right_P
            + down * (1 - across_P) * bottom_left_P
            + down * across_P * bottom_right_P
        )
        higher_P = score_P > best_P
        best_P = tl.where(higher_P, score_P, best_P)
        ids_P = tl.where(higher_P, k, ids_P).to(tl.uint8)
        class_ptr += tl.cast(class_step, tl.int64) * FACTOR * FACTOR
    tl.store(labels_ptr + y * width + x_P, ids_P, mask=inside_P)
