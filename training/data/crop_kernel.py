"""The kernel that cuts one crop on a CPU: sample, mix colours, round to bytes, in one pass over the crop.

Axes: H height, W width of a crop, h w of its picture, 3 = red green blue.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from model.decoding.kernels import compiled, part_of_kernel
from model.labels import UInt8Array

Float32Array = npt.NDArray[np.float32]
Int32Array = npt.NDArray[np.int32]

Window = Sequence[int]
"""Top, left, height and width in whole pixels."""

Mix = Sequence[float]
"""Gain, saturation and offset: a colour c becomes gain (s c + (1 - s) luma) + offset."""

_RED, _GREEN, _BLUE = 0.299, 0.587, 0.114  # ITU-R BT.601


def cut_crop(
    image_hw3: UInt8Array,
    label_hw: UInt8Array,
    source: Window,
    target: Window,
    mix: Mix,
    *,
    flip: bool,
    image_3HW: UInt8Array,
    label_HW: UInt8Array,
) -> None:
    """Sample a window of a picture into a window of a crop; the rest of the crop stays as it is.

    Colours are blended bilinearly, labels taken from the nearest pixel.

    Args:
        image_hw3: uint8 RGB.
        label_hw: uint8, same size.
        source: window in the picture.
        target: window in the crop, before the crop is mirrored.
        mix: change of the colours.
        flip: mirror the crop.
        image_3HW: uint8, written to: planes.
        label_HW: uint8, written to.
    """
    left = label_HW.shape[1] - target[1] - target[3] if flip else target[1]
    rows, columns = slice(target[0], target[0] + target[2]), slice(left, left + target[3])
    seen = slice(source[0], source[0] + source[2]), slice(source[1], source[1] + source[3])
    positions = (np.arange(target[3], dtype=np.float32) + np.float32(0.5)) * np.float32(source[3] / target[3])
    if flip:
        positions = positions[::-1].copy()
    compiled(_cut)(
        image_hw3[seen],
        label_hw[seen],
        positions,
        np.array(mix, np.float32),
        image_3HW[:, rows, columns],
        label_HW[rows, columns],
    )


def _cut(  # noqa: PLR0917 - kernels take no keywords
    image_hw3: UInt8Array,
    label_hw: UInt8Array,
    positions_W: Float32Array,
    mix: Float32Array,
    image_3HW: UInt8Array,
    label_HW: UInt8Array,
) -> None:
    height, width = label_hw.shape
    rows, columns = label_HW.shape
    left_W = np.empty(columns, np.int32)
    right_W = np.empty(columns, np.int32)
    nearest_W = np.empty(columns, np.int32)
    share_W = np.empty(columns, np.float32)
    for column in range(columns):
        position = positions_W[column]
        nearest_W[column] = min(np.int32(position), width - 1)
        inner = min(max(position - np.float32(0.5), np.float32(0)), np.float32(width - 1))
        left_W[column] = np.int32(inner)
        right_W[column] = min(left_W[column] + 1, width - 1)
        share_W[column] = inner - np.float32(left_W[column])
    # The picture rows above and below a row of the crop, blended along the width; the next row keeps some.
    blended = np.empty((2, 3, columns), np.float32)
    held = np.full(2, -1, np.int64)
    scale = np.float32(height) / np.float32(rows)
    for row in range(rows):
        position = (np.float32(row) + np.float32(0.5)) * scale
        nearest = min(np.int64(position), height - 1)
        for column in range(columns):
            label_HW[row, column] = label_hw[nearest, nearest_W[column]]
        inner = min(max(position - np.float32(0.5), np.float32(0)), np.float32(height - 1))
        top = np.int64(inner)
        bottom = min(top + 1, height - 1)
        for wanted in (top, bottom):
            if held[wanted & 1] != wanted:
                _blend(image_hw3[wanted], left_W, right_W, share_W, blended[wanted & 1])
                held[wanted & 1] = wanted
        _mix(blended[top & 1], blended[bottom & 1], inner - np.float32(top), mix, image_3HW[:, row])


@part_of_kernel
def _blend(
    image_w3: UInt8Array,
    left_W: Int32Array,
    right_W: Int32Array,
    share_W: Float32Array,
    blended_3W: Float32Array,
) -> None:
    for column in range(len(left_W)):
        left, right, share = left_W[column], right_W[column], share_W[column]
        for channel in range(3):
            one = np.float32(image_w3[left, channel])
            other = np.float32(image_w3[right, channel])
            blended_3W[channel, column] = one + (other - one) * share


@part_of_kernel
def _mix(
    above_3W: Float32Array, below_3W: Float32Array, share: np.float32, mix: Float32Array, image_3W: UInt8Array
) -> None:
    color, gray = mix[0] * mix[1], mix[0] * (np.float32(1) - mix[1])
    offset = mix[2] + np.float32(0.5)  # rounds
    for column in range(above_3W.shape[1]):
        red = above_3W[0, column] + (below_3W[0, column] - above_3W[0, column]) * share
        green = above_3W[1, column] + (below_3W[1, column] - above_3W[1, column]) * share
        blue = above_3W[2, column] + (below_3W[2, column] - above_3W[2, column]) * share
        luma = np.float32(_RED) * red + np.float32(_GREEN) * green + np.float32(_BLUE) * blue
        base = gray * luma + offset
        image_3W[0, column] = np.uint8(min(max(color * red + base, np.float32(0)), np.float32(255)))
        image_3W[1, column] = np.uint8(min(max(color * green + base, np.float32(0)), np.float32(255)))
        image_3W[2, column] = np.uint8(min(max(color * blue + base, np.float32(0)), np.float32(255)))
