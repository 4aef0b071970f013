"""What the published evaluators do, written down straight, one picture after the other: an oracle in torch.

Nothing here is shared with ``model``. A network is a function from normalised pictures (N, 3, H, W) of sides
that are multiples of 32 to full-size scores (N, K, H, W). Axes: N images, K classes, H W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

Network = Callable[[Tensor], Tensor]
SINGLE = (1.0,)
MULTIPLE = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)


def started(image: Tensor, short_side: int) -> Tensor:
    """``eval_start_shortside``: what happens to a picture before anything else."""
    height, width = image.shape[2:]
    if height < width:
        size = (short_side, int(short_side / height * width))
    else:
        size = (int(short_side / width * height), short_side)
    return functional.interpolate(image, size, mode="bilinear", align_corners=False)


def whole_probabilities(
    network: Network,
    image: Tensor,
    *,
    scales: tuple[float, ...],
    flip: bool,
    rounded: bool = True,
    short_side: int | None = None,
) -> Tensor:
    """Protocols ``ss`` and ``msf``: sums of softmax at the labels' size."""
    label_size = image.shape[2:]
    image = image if short_side is None else started(image, short_side)
    height, width = image.shape[2:]
    total = torch.zeros(())
    for scale in scales:
        size = (int(scale * height), int(scale * width))
        if rounded:
            size = (math.ceil(size[0] / 32) * 32, math.ceil(size[1] / 32) * 32)
        scaled = functional.interpolate(image, size, mode="bilinear", align_corners=True)
        scores = network(scaled)
        scores = functional.interpolate(scores, label_size, mode="bilinear", align_corners=True)
        total = total + scores.softmax(dim=1)
        if flip:
            scores = network(scaled.flip(3)).flip(3)
            scores = functional.interpolate(scores, label_size, mode="bilinear", align_corners=True)
            total = total + scores.softmax(dim=1)
    return total


def chip_probabilities(
    network: Network,
    image: Tensor,
    *,
    scales: tuple[float, ...],
    flip: bool,
    crop: int,
    advance: float = 2 / 3,
    always_exp: bool = False,
    short_side: int | None = None,
) -> Tensor:
    """Protocols ``ssc`` and ``mscf``: sums over overlapping chips of each scale, then over scales."""
    label_size = image.shape[2:]
    image = image if short_side is None else started(image, short_side)
    height, width = image.shape[2:]
    total = torch.zeros(())
    for scale in scales:
        size = (int(scale * height), int(scale * width))
        scaled = functional.interpolate(image, size, mode="bilinear", align_corners=True)
        padded_size = (max(size[0], crop), max(size[1], crop))
        top, left = (padded_size[0] - size[0]) // 2, (padded_size[1] - size[1]) // 2
        padded = torch.zeros(1, 3, *padded_size)
        padded[:, :, top : top + size[0], left : left + size[1]] = scaled
        sums = _over_chips(network, padded, crop, advance, flip=flip, always_exp=always_exp)
        sums = sums[:, :, top : top + size[0], left : left + size[1]]
        total = total + functional.interpolate(sums, label_size, mode="bilinear", align_corners=True)
    return total


def _over_chips(
    network: Network, padded: Tensor, crop: int, advance: float, *, flip: bool, always_exp: bool
) -> Tensor:
    height, width = padded.shape[2:]
    stride = math.ceil(crop * advance)
    rows = math.ceil((height - crop) / stride) + 1
    columns = math.ceil((width - crop) / stride) + 1
    sums: Tensor | None = None
    for row in range(rows):
        for column in range(columns):
            bottom, right = min(stride * row + crop, height), min(stride * column + crop, width)
            chip = padded[:, :, bottom - crop : bottom, right - crop : right]
            probabilities = network(chip).softmax(dim=1)
            if flip:
                probabilities = probabilities + network(chip.flip(3)).flip(3).softmax(dim=1)
            if flip or always_exp:
                probabilities = probabilities.exp()
            if sums is None:
                sums = torch.zeros(1, probabilities.shape[1], height, width)
            sums[:, :, bottom - crop : bottom, right - crop : right] += probabilities
    assert sums is not None
    return sums


def slide_scores(network: Network, image: Tensor, *, crop: int, stride: int) -> Tensor:
    """mmsegmentation's sliding window: scores averaged by how many chips saw a pixel."""
    height, width = image.shape[2:]
    rows = max(height - crop + stride - 1, 0) // stride + 1
    columns = max(width - crop + stride - 1, 0) // stride + 1
    sums: Tensor | None = None
    counts = torch.zeros(1, 1, height, width)
    for row in range(rows):
        for column in range(columns):
            bottom, right = min(row * stride + crop, height), min(column * stride + crop, width)
            top, left = max(bottom - crop, 0), max(right - crop, 0)
            scores = network(image[:, :, top:bottom, left:right])
            if sums is None:
                sums = torch.zeros(1, scores.shape[1], height, width)
            sums[:, :, top:bottom, left:right] += scores
            counts[:, :, top:bottom, left:right] += 1
    assert sums is not None
    return sums / counts


def published_iou(counts: Tensor) -> Tensor:
    """The published metric as it stands: one is added to the union, so an absent class counts as 0."""
    counts = counts.double()
    hits = counts.diagonal()
    return hits / (counts.sum(dim=0) + counts.sum(dim=1) - hits + 1)


def older_iou(counts: Tensor) -> Tensor:
    """The published metric of the older programs: NaN for a class that is absent."""
    counts = counts.double()
    hits = counts.diagonal()
    return hits / (counts.sum(dim=0) + counts.sum(dim=1) - hits)
