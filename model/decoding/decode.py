"""Raw output -> class ids at the picture's own size, without K score planes of full size.

Axes: K classes, S pixel-shuffle factor (1 for bilinear heads), h w = padded size / stride,
R C = h*S w*S: the grid, whose points have one score per class, H W the picture's own size,
P pixels of a strip, 4 = a cell's corners: top left, top right, bottom left, bottom right.

``model.decoding.score_grid`` defines where an output pixel lies on the grid.

Between four grid points (in a *cell*) scores are blended bilinearly. The weights are never negative and add
up to one, so a class that is below another one at all four corners is below it everywhere between them.
Hence, exactly: a class that is the highest at all four corners is the highest inside. In all other cells only
those classes need arithmetic that are not below the same corner's winner at every corner: 3 of 19 in street
scenes.

numba compiles the kernels at their first use and keeps them on disk: ``warm_up``.
"""

from __future__ import annotations

import functools
from concurrent.futures import Executor
from pathlib import Path

import numpy as np

from model.artifacts.manifest import Upsample
from model.decoding.cells import IntArray, Winners, corner_winners, differ, split, unshuffled
from model.decoding.confidence import confidence
from model.decoding.kernels import compiled, in_bands, keep_kernels_in, part_of_kernel
from model.decoding.score_grid import Float32Array, grid_of, positions
from model.errors import ModelOutputError
from model.labels import UInt8Array
from model.pictures.preprocess import ImageSize

_BAND_PIXELS = 262_144
"""Pixels of one task in the executor: 0.1 to 0.2 ms of work, while a hand-over costs about 0.02 ms."""

_STRIP_PIXELS = 256
"""Pixels of a cell that are blended at once: enough for SIMD, and the scratch arrays fit the L1 cache."""

_ONE = np.float32(1)
_LOWEST = np.float32(-np.inf)


def labels(
    raw_Khw: Float32Array,
    *,
    upsample: Upsample,
    stride: int,
    padded: ImageSize,
    content: ImageSize,
    original: ImageSize,
    executor: Executor | None = None,
    out_HW: UInt8Array | None = None,
) -> UInt8Array:
    """Return the class with the highest score for each pixel of the picture as it was sent.

    The result equals up-sampling all scores to the padded size, taking the arg max over K and cropping. A
    reduced picture is decoded directly to its original size from the same scores. Of exactly equal scores the
    lowest class id wins, as in ``torch.argmax`` on a CPU.

    Args:
        raw_Khw: raw output for one picture, float32, finite; ``pixel_shuffle`` heads have K * stride**2
            channels in the order of ``torch.nn.PixelShuffle``.
        upsample: of the manifest.
        stride: pixels of the padded picture for each raw value along one side.
        padded: size of the network's input.
        content: its top left part with the picture, at most ``padded``.
        original: size of the labels: ``content``, or the picture's own size if it was reduced.
        executor: its threads share the rows; the calling thread must not be one of them. None = the calling
            thread does all. The GIL is released either way.
        out_HW: array for the labels, of size ``original``, uint8, C-contiguous; None = a new array.

    Returns:
        labels_HW of size ``original``, uint8, each in [0, K): ``out_HW`` if it was given.

    Raises:
        ModelOutputError: a score is not finite, or the shape of ``raw_Khw`` does not fit the other arguments.
        ValueError: ``content`` is larger than ``padded``.

    Source:
        Half-pixel and aligned coordinates as in ``torch.nn.functional.interpolate(mode="bilinear")``.
    """
    if content.height > padded.height or content.width > padded.width:
        raise ValueError(f"content {content} does not fit into {padded}")
    num_classes, factor, grid = grid_of(raw_Khw.shape, upsample=upsample, stride=stride, padded=padded)
    raw_KSShw = unshuffled(raw_Khw, num_classes, factor)
    winners_RC = _winners(raw_KSShw, grid, executor)
    labels_HW = np.empty(original.shape, np.uint8) if out_HW is None else out_HW
    if grid == padded and content == original:
        labels_HW[...] = winners_RC[: content.height, : content.width]
        return labels_HW
    rows_H, columns_W = positions(grid, upsample=upsample, padded=padded, content=content, original=original)

    def draw(first: int, last: int) -> None:
        band = slice(first, last)
        compiled(_draw_labels)(raw_KSShw, winners_RC, rows_H[band], columns_W, labels_HW[band])

    in_bands(draw, original, executor, band_pixels=_BAND_PIXELS)
    return labels_HW


def warm_up(cache_folder: Path | None = None) -> None:
    """Load the compiled kernels, or compile and keep them, so that no request waits for a compiler.

    Call it once, before the first ``labels``: then numba keeps the folder that it chose. No further
    compilation follows, because every call of ``labels`` has the same argument types.

    Args:
        cache_folder: folder of compiled kernels. Machine code is loaded from it, so only its owner may be
            able to write there. None = the value of ``NUMBA_CACHE_DIR`` when numba was imported, else
            ``__pycache__`` beside this file, else numba's folder in the user's cache. A process with a
            read-only root and no home needs a folder.

    Raises:
        RuntimeError: numba found no folder that it can write to.
    """
    if cache_folder is not None:
        keep_kernels_in(cache_folder)
    two, three = ImageSize(2, 2), ImageSize(3, 3)
    raw_Khw = np.zeros((1, 2, 2), np.float32)
    labels_HW = labels(raw_Khw, upsample="bilinear", stride=1, padded=two, content=two, original=three)
    confidence(raw_Khw, labels_HW, upsample="bilinear", stride=1, padded=two, content=two, original=three)


def _winners(raw_KSShw: Float32Array, grid: ImageSize, executor: Executor | None) -> UInt8Array:
    winners_RC = np.empty((grid.height, grid.width), np.uint8)
    pick = functools.partial(compiled(_pick_winners), raw_KSShw, winners_RC)
    if not all(in_bands(pick, grid, executor, band_pixels=_BAND_PIXELS)):
        raise ModelOutputError("the raw output holds scores that are not finite")
    return winners_RC


def _pick_winners(raw_KSShw: Float32Array, winners_RC: UInt8Array, first: int, last: int) -> bool:
    """Write the class with the highest score at each grid point of rows [first, last).

    Returns whether all scores are finite.
    """
    num_classes, factor, _, _, width = raw_KSShw.shape
    best_w = np.empty(width, np.float32)
    ids_w = np.empty(width, np.uint8)
    flaws_w = np.zeros(width, np.float32)
    for row in range(first, last):
        y, i = divmod(row, factor)
        for j in range(factor):
            best_w[:] = _LOWEST
            ids_w[:] = 0
            for k in range(num_classes):
                _keep_higher(raw_KSShw[k, i, j, y], np.uint8(k), best_w, ids_w, flaws_w)
            winners_RC[row, j::factor] = ids_w
    return not np.isnan(flaws_w).any()


@part_of_kernel
def _keep_higher(
    scores_w: Float32Array, k: np.uint8, best_w: Float32Array, ids_w: UInt8Array, flaws_w: Float32Array
) -> None:
    """Write class k where its score is the highest so far; flaws become nan where it is not finite."""
    for x in range(scores_w.size):
        score = scores_w[x]
        flaws_w[x] += score - score  # 0, or nan where the score is not finite
        higher = score > best_w[x]
        best_w[x] = score if higher else best_w[x]
        ids_w[x] = k if higher else ids_w[x]


def _draw_labels(
    raw_KSShw: Float32Array,
    winners_RC: UInt8Array,
    row_positions_H: Float32Array,
    column_positions_W: Float32Array,
    labels_HW: UInt8Array,
) -> None:
    """Write the labels of the output pixels at these positions on the grid.

    Each row of cells gets the winners of its upper left corners. Cells with different winners follow.
    """
    corners_K4 = np.empty((raw_KSShw.shape[0], 4), np.float32)
    candidates_K = np.empty(raw_KSShw.shape[0], np.uint8)
    weights_4P = np.empty((4, _STRIP_PIXELS), np.float32)
    best_P = np.empty(_STRIP_PIXELS, np.float32)
    ids_P = np.empty(_STRIP_PIXELS, np.uint8)
    rows_H, row_ends_H, down_H = split(row_positions_H, winners_RC.shape[0])
    columns_W, column_ends_W, across_W = split(column_positions_W, winners_RC.shape[1])
    top = 0
    while top < rows_H.size:
        row, bottom = rows_H[top], row_ends_H[top]
        _draw_winners(winners_RC[row], columns_W, labels_HW[top:bottom])
        left = 0
        while left < columns_W.size:
            column, right = columns_W[left], min(column_ends_W[left], left + _STRIP_PIXELS)
            winners_4 = corner_winners(winners_RC, row, column)
            if differ(winners_4):
                _gather_corners(raw_KSShw, row, column, corners_K4)
                count = _find_candidates(corners_K4, winners_4, candidates_K)
                height = _STRIP_PIXELS // (right - left)
                for y in range(top, bottom, height):
                    end = min(y + height, bottom)
                    pixels = _weigh_corners(down_H[y:end], across_W[left:right], weights_4P)
                    _pick_highest_blend(corners_K4, candidates_K[:count], weights_4P, best_P[:pixels], ids_P)
                    _copy(ids_P, labels_HW[y:end, left:right])
            left = right
        top = bottom


@part_of_kernel
def _draw_winners(winners_C: UInt8Array, columns_W: IntArray, labels_HW: UInt8Array) -> None:
    for x in range(columns_W.size):
        labels_HW[0, x] = winners_C[columns_W[x]]
    for y in range(1, labels_HW.shape[0]):
        labels_HW[y] = labels_HW[0]


@part_of_kernel
def _gather_corners(raw_KSShw: Float32Array, row: int, column: int, corners_K4: Float32Array) -> None:
    num_classes, factor, _, height, width = raw_KSShw.shape
    top, i_top = divmod(row, factor)
    left, j_left = divmod(column, factor)
    bottom, i_bottom = divmod(min(row + 1, height * factor - 1), factor)
    right, j_right = divmod(min(column + 1, width * factor - 1), factor)
    for k in range(num_classes):
        corners_K4[k, 0] = raw_KSShw[k, i_top, j_left, top, left]
        corners_K4[k, 1] = raw_KSShw[k, i_top, j_right, top, right]
        corners_K4[k, 2] = raw_KSShw[k, i_bottom, j_left, bottom, left]
        corners_K4[k, 3] = raw_KSShw[k, i_bottom, j_right, bottom, right]


@part_of_kernel
def _find_candidates(corners_K4: Float32Array, winners_4: Winners, candidates_K: UInt8Array) -> int:
    """Write the classes, ascending, that are not below one winner at every corner; returns their number."""
    count = 0
    for k in range(corners_K4.shape[0]):
        is_below = False
        for winner in winners_4:
            is_below |= (
                (corners_K4[k, 0] < corners_K4[winner, 0])
                & (corners_K4[k, 1] < corners_K4[winner, 1])
                & (corners_K4[k, 2] < corners_K4[winner, 2])
                & (corners_K4[k, 3] < corners_K4[winner, 3])
            )
        candidates_K[count] = k
        count += not is_below
    return count


@part_of_kernel
def _weigh_corners(down_H: Float32Array, across_W: Float32Array, weights_4P: Float32Array) -> int:
    """Write the corners' weights for each pixel of a strip, row by row; returns the number of pixels."""
    p = 0
    for down in down_H:
        for across in across_W:
            weights_4P[0, p] = (_ONE - down) * (_ONE - across)
            weights_4P[1, p] = (_ONE - down) * across
            weights_4P[2, p] = down * (_ONE - across)
            weights_4P[3, p] = down * across
            p += 1
    return p


@part_of_kernel
def _pick_highest_blend(
    corners_K4: Float32Array,
    candidates: UInt8Array,
    weights_4P: Float32Array,
    best_P: Float32Array,
    ids_P: UInt8Array,
) -> None:
    """Write the candidate with the highest blend of corner scores for each of ``best_P.size`` pixels."""
    for p in range(best_P.size):
        best_P[p] = _LOWEST
        ids_P[p] = candidates[0]  # remains where blends of the lowest floats overflow
    for k in candidates:
        scores_4 = corners_K4[k, 0], corners_K4[k, 1], corners_K4[k, 2], corners_K4[k, 3]
        for p in range(best_P.size):
            score = (
                weights_4P[0, p] * scores_4[0]
                + weights_4P[1, p] * scores_4[1]
                + weights_4P[2, p] * scores_4[2]
                + weights_4P[3, p] * scores_4[3]
            )
            higher = score > best_P[p]
            best_P[p] = score if higher else best_P[p]
            ids_P[p] = k if higher else ids_P[p]


@part_of_kernel
def _copy(ids_P: UInt8Array, labels_HW: UInt8Array) -> None:
    p = 0
    for y in range(labels_HW.shape[0]):
        for x in range(labels_HW.shape[1]):
            labels_HW[y, x] = ids_P[p]
            p += 1
