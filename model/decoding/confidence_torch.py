"""The probability of each pixel's label, computed by torch where the raw output is: on a GPU.

Axes: K classes, h w = padded size / stride, R C the grid, H W the picture's own size.

It computes the function of ``model.decoding.confidence``.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from model.artifacts.manifest import Upsample
from model.decoding.confidence import FULL
from model.decoding.score_grid import grid_of, positions
from model.pictures.preprocess import ImageSize


def confidence(
    raw_Khw: Tensor,
    labels_HW: Tensor,
    *,
    upsample: Upsample,
    stride: int,
    padded: ImageSize,
    content: ImageSize,
    original: ImageSize,
) -> Tensor:
    """Enqueue the probability of each pixel's label.

    Args:
        raw_Khw: raw output for one picture, f32, f16 or bf16, finite, with any strides.
        labels_HW: what ``labels`` returned for the same arguments.
        upsample: of the manifest.
        stride: pixels of the padded picture for each raw value along one side.
        padded: size of the network's input.
        content: its top left part with the picture, at most ``padded``.
        original: size of the labels.

    Returns:
        confidence_HW of size ``original``, uint8, on the same device: equal to that of
        ``model.decoding.confidence`` but for rounding.

    Raises:
        ModelOutputError: the shape of ``raw_Khw`` does not fit the other arguments.
    """
    _, factor, grid = grid_of(tuple(raw_Khw.shape), upsample=upsample, stride=stride, padded=padded)
    probabilities_KRC = torch.nn.functional.pixel_shuffle(raw_Khw.float(), factor).softmax(0)
    rows_H, columns_W = positions_on(
        raw_Khw.device, grid, upsample=upsample, padded=padded, content=content, original=original
    )
    top_H1, left_W = rows_H.long()[:, None], columns_W.long()
    bottom_H1, right_W = (top_H1 + 1).clamp(max=grid.height - 1), (left_W + 1).clamp(max=grid.width - 1)
    down_H1, across_W = rows_H[:, None] - top_H1, columns_W - left_W
    ids_HW = labels_HW.long()

    def line(rows_H1: Tensor) -> Tensor:
        before_HW = probabilities_KRC[ids_HW, rows_H1, left_W]
        return before_HW.lerp(probabilities_KRC[ids_HW, rows_H1, right_W], across_W)

    return line(top_H1).lerp(line(bottom_H1), down_H1).mul(FULL).round().to(torch.uint8)


@functools.lru_cache(maxsize=64)
def positions_on(
    device: torch.device,
    grid: ImageSize,
    *,
    upsample: Upsample,
    padded: ImageSize,
    content: ImageSize,
    original: ImageSize,
) -> tuple[Tensor, Tensor]:
    """Return ``model.decoding.score_grid.positions`` on a device; kept there for the sizes that came last."""
    rows_H, columns_W = positions(grid, upsample=upsample, padded=padded, content=content, original=original)
    return torch.from_numpy(rows_H).to(device), torch.from_numpy(columns_W).to(device)
