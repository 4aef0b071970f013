"""The grid's cells, as every pass over them needs them; parts of compiled kernels.

Axes: K classes, S pixel-shuffle factor (1 for bilinear heads), h w = padded size / stride, R C = h*S w*S: the
grid, whose points have one score per class; 4 = a cell's corners: top left, top right, bottom left, bottom
right.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from model.decoding.kernels import part_of_kernel
from model.decoding.score_grid import Float32Array
from model.labels import UInt8Array

IntArray = npt.NDArray[np.intp]
Winners = tuple[np.uint8, np.uint8, np.uint8, np.uint8]
"""The class with the highest score at each corner."""


def unshuffled(raw_Khw: Float32Array, num_classes: int, factor: int) -> Float32Array:
    """Return a view (K, S, S, h, w); PixelShuffle moves [k, i, j, y, x] to [k, y*S + i, x*S + j]."""
    shape = (num_classes, factor, factor, *raw_Khw.shape[1:])
    raw_KSShw = np.require(raw_Khw, np.float32, ("C", "A")).reshape(shape).view()
    raw_KSShw.setflags(write=False)  # one type for all callers: numba compiles again for read-only arrays
    return raw_KSShw


@part_of_kernel
def split(positions: Float32Array, grid: int) -> tuple[IntArray, IntArray, Float32Array]:
    """Return the cell of each position, the end of that cell's run, and the place in the cell, 0..1."""
    cells = np.empty(positions.size, np.intp)
    ends = np.empty(positions.size, np.intp)
    fractions = np.empty(positions.size, np.float32)
    end = positions.size
    for i in range(positions.size - 1, -1, -1):
        cells[i] = min(int(positions[i]), grid - 1)
        fractions[i] = positions[i] - np.float32(cells[i])
        if i < positions.size - 1 and cells[i] != cells[i + 1]:
            end = i + 1
        ends[i] = end
    return cells, ends, fractions


@part_of_kernel
def corner_winners(winners_RC: UInt8Array, row: int, column: int) -> Winners:
    """Return the winners at the corners of a cell; cells at the border end there."""
    below = min(row + 1, winners_RC.shape[0] - 1)
    beside = min(column + 1, winners_RC.shape[1] - 1)
    upper = winners_RC[row, column], winners_RC[row, beside]
    lower = winners_RC[below, column], winners_RC[below, beside]
    return *upper, *lower


@part_of_kernel
def differ(winners_4: Winners) -> bool:
    """Return whether two corners have different winners."""
    top_left, top_right, bottom_left, bottom_right = winners_4
    return bool(top_left != top_right or top_left != bottom_left or top_left != bottom_right)
