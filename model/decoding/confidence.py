"""Raw output and labels -> the probability of each pixel's label, for clients that ask for it.

Axes: K classes, S pixel-shuffle factor (1 for bilinear heads), h w = padded size / stride, R C = h*S w*S: the
grid, H W the picture's own size.

At a grid point the probabilities are the softmax of its scores. Between the points probabilities are blended
bilinearly, so those of all classes still add up to one, and the confidence of a pixel is that of its label.
The softmax is taken once for each grid point, not for each pixel: 1 of 64 at stride 8.
"""

from __future__ import annotations

import functools
import math
from concurrent.futures import Executor

import numpy as np

from model.artifacts.manifest import Upsample
from model.decoding.cells import IntArray, corner_winners, differ, split, unshuffled
from model.decoding.kernels import compiled, in_bands, part_of_kernel
from model.decoding.score_grid import Float32Array, grid_of, positions
from model.labels import UInt8Array
from model.pictures.preprocess import ImageSize

FULL = 255
"""The confidence 1 in a map of bytes."""

_BAND_POINTS = 4096
"""Grid points of one task in the executor: each takes K exponentials."""

_BAND_PIXELS = 262_144
_SCALE = np.float32(FULL)
_HALF = np.float32(0.5)


def confidence(
    raw_Khw: Float32Array,
    labels_HW: UInt8Array,
    *,
    upsample: Upsample,
    stride: int,
    padded: ImageSize,
    content: ImageSize,
    original: ImageSize,
    executor: Executor | None = None,
    out_HW: UInt8Array | None = None,
) -> UInt8Array:
    """Return the probability of each pixel's label, in 255ths.

    Args:
        raw_Khw: raw output for one picture, float32, finite.
        labels_HW: what ``model.decoding.decode.labels`` returned for the same arguments.
        upsample: of the manifest.
        stride: pixels of the padded picture for each raw value along one side.
        padded: size of the network's input.
        content: its top left part with the picture, at most ``padded``.
        original: size of the labels.
        executor: its threads share the rows; the calling thread must not be one of them. None = the calling
            thread does all. The GIL is released either way.
        out_HW: array for the result, of size ``original``, uint8, C-contiguous; None = a new array.

    Returns:
        confidence_HW of size ``original``, uint8, ``round(255 * probability)``: ``out_HW`` if it was given.

    Raises:
        ModelOutputError: the shape of ``raw_Khw`` does not fit the other arguments.
    """
    num_classes, factor, grid = grid_of(raw_Khw.shape, upsample=upsample, stride=stride, padded=padded)
    raw_KSShw = unshuffled(raw_Khw, num_classes, factor)
    winners_RC = np.empty(grid.shape, np.uint8)
    highest_RC = np.empty(grid.shape, np.float32)
    measure = functools.partial(compiled(_measure_points), raw_KSShw, winners_RC, highest_RC)
    in_bands(measure, grid, executor, band_pixels=_BAND_POINTS)
    rows_H, columns_W = positions(grid, upsample=upsample, padded=padded, content=content, original=original)
    confidence_HW = np.empty(original.shape, np.uint8) if out_HW is None else out_HW

    def draw(first: int, last: int) -> None:
        band = slice(first, last)
        compiled(_draw_confidence)(
            raw_KSShw, winners_RC, highest_RC, labels_HW[band], rows_H[band], columns_W, confidence_HW[band]
        )

    in_bands(draw, original, executor, band_pixels=_BAND_PIXELS)
    return confidence_HW


def _measure_points(
    raw_KSShw: Float32Array, winners_RC: UInt8Array, highest_RC: Float32Array, first: int, last: int
) -> None:
    """Write the class with the highest score, and its probability, at the points of rows [first, last)."""
    num_classes, factor, _, _, width = raw_KSShw.shape
    best_w = np.empty(width, np.float32)
    sums_w = np.empty(width, np.float32)
    ids_w = np.empty(width, np.uint8)
    for row in range(first, last):
        y, i = divmod(row, factor)
        for j in range(factor):
            best_w[:] = raw_KSShw[0, i, j, y]
            ids_w[:] = 0
            for k in range(1, num_classes):
                for x in range(width):
                    higher = raw_KSShw[k, i, j, y, x] > best_w[x]
                    best_w[x] = raw_KSShw[k, i, j, y, x] if higher else best_w[x]
                    ids_w[x] = k if higher else ids_w[x]
            sums_w[:] = 0
            for k in range(num_classes):
                for x in range(width):
                    sums_w[x] += math.exp(raw_KSShw[k, i, j, y, x] - best_w[x])
            winners_RC[row, j::factor] = ids_w
            highest_RC[row, j::factor] = np.float32(1) / sums_w


def _draw_confidence(  # noqa: PLR0917 - compiled: numba passes no keywords
    raw_KSShw: Float32Array,
    winners_RC: UInt8Array,
    highest_RC: Float32Array,
    labels_HW: UInt8Array,
    row_positions_H: Float32Array,
    column_positions_W: Float32Array,
    confidence_HW: UInt8Array,
) -> None:
    """Write the confidence of the output pixels at these positions on the grid.

    Each row of cells gets the blended highest probabilities. Cells with different winners follow.
    """
    rows_H, row_ends_H, down_H = split(row_positions_H, winners_RC.shape[0])
    columns_W, column_ends_W, across_W = split(column_positions_W, winners_RC.shape[1])
    upper_W = np.empty(columns_W.size, np.float32)
    lower_W = np.empty(columns_W.size, np.float32)
    corners_K4 = np.empty((raw_KSShw.shape[0], 4), np.float32)
    cells_K = np.zeros(
        raw_KSShw.shape[0], np.intp
    )  # number of the mixed cell that each row of corners_K4 is of
    cell = 0
    top = 0
    while top < rows_H.size:
        row, bottom = rows_H[top], row_ends_H[top]
        _blend_across(highest_RC[row], columns_W, across_W, upper_W)
        _blend_across(highest_RC[min(row + 1, highest_RC.shape[0] - 1)], columns_W, across_W, lower_W)
        for y in range(top, bottom):
            _blend_down(upper_W, lower_W, down_H[y], confidence_HW[y])
        left = 0
        while left < columns_W.size:
            column, right = columns_W[left], column_ends_W[left]
            if differ(corner_winners(winners_RC, row, column)):
                cell += 1
                for y in range(top, bottom):
                    for x in range(left, right):
                        label = labels_HW[y, x]
                        if cells_K[label] != cell:
                            cells_K[label] = cell
                            _gather_probabilities(
                                raw_KSShw, winners_RC, highest_RC, row, column, label, corners_K4[label]
                            )
                        confidence_HW[y, x] = _blended(corners_K4[label], down_H[y], across_W[x])
            left = right
        top = bottom


@part_of_kernel
def _blend_across(
    highest_C: Float32Array, columns_W: IntArray, across_W: Float32Array, line_W: Float32Array
) -> None:
    for x in range(columns_W.size):
        before, beside = columns_W[x], min(columns_W[x] + 1, highest_C.size - 1)
        line_W[x] = highest_C[before] + across_W[x] * (highest_C[beside] - highest_C[before])


@part_of_kernel
def _blend_down(
    upper_W: Float32Array, lower_W: Float32Array, down: np.float32, confidence_W: UInt8Array
) -> None:
    for x in range(upper_W.size):
        blend = upper_W[x] + down * (lower_W[x] - upper_W[x])
        confidence_W[x] = np.uint8(np.int32(blend * _SCALE + _HALF))  # by way of 32 bits: SIMD


@part_of_kernel
def _gather_probabilities(  # noqa: PLR0917 - compiled: numba passes no keywords
    raw_KSShw: Float32Array,
    winners_RC: UInt8Array,
    highest_RC: Float32Array,
    row: int,
    column: int,
    label: int,
    corners_4: Float32Array,
) -> None:
    """Write the probability of a class at the corners of a cell."""
    factor = raw_KSShw.shape[1]
    for corner in range(4):
        down, across = divmod(corner, 2)
        r = min(row + down, winners_RC.shape[0] - 1)
        c = min(column + across, winners_RC.shape[1] - 1)
        y, i = divmod(r, factor)
        x, j = divmod(c, factor)
        behind = raw_KSShw[label, i, j, y, x] - raw_KSShw[winners_RC[r, c], i, j, y, x]
        corners_4[corner] = highest_RC[r, c] * math.exp(behind)


@part_of_kernel
def _blended(corners_4: Float32Array, down: np.float32, across: np.float32) -> np.uint8:
    upper = corners_4[0] + across * (corners_4[1] - corners_4[0])
    lower = corners_4[2] + across * (corners_4[3] - corners_4[2])
    return np.uint8(np.int32((upper + down * (lower - upper)) * _SCALE + _HALF))
