"""Sums of softmax over views, chips and scales -> labels, without K planes of full size in memory.

Raw scores have stride² times fewer values than full-size ones, 64 times fewer at stride 8, so all of a plan
are kept. The rest is computed band by band of the picture's rows; bands are independent, so threads share
them. One map of scores needs no sum, and arithmetic for few of its pixels only.

Axes: M views of a chip (as it is, mirrored), K classes, R C = the grid with one score per class and point,
H W = the picture's own size, T taps, Y X = rows and columns that come out, P pixels of a strip.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from model.artifacts.manifest import Upsample
from model.decoding.kernels import compiled, in_bands, part_of_kernel
from model.decoding.score_grid import Float32Array, axis_positions, grid_of
from model.errors import ModelOutputError
from model.evaluation.protocols import Chip, Pass, Plan, Summand
from model.evaluation.resampling import Taps, UInt32Array
from model.labels import MAX_CLASSES, UInt8Array
from model.pictures.preprocess import ImageSize, size_of

Int32Array = npt.NDArray[np.int32]

_BAND_SCORES = 1_250_000
"""Of a band of the picture, 5 MB; those of its canvas at scale 1.75 are another 15 MB, for each thread."""

_BAND_PIXELS = 131_072
"""Of a picture with one map of scores, where few pixels need arithmetic."""

_STRIP_PIXELS = 512
"""Pixels whose softmax is computed at once: with 19 classes they fit the L1 cache."""

_SOFTMAX, _EXP, _SCORE = range(3)
_MODES: dict[Summand, int] = {"softmax": _SOFTMAX, "exp": _EXP, "score": _SCORE}

_SEVERAL = np.uint8(MAX_CLASSES)
"""Instead of a class: grid points with different winners."""

_LOWEST = np.float32(-np.inf)
_ZERO = np.float32(0)
_ONE = np.float32(1)

# exp(v) = 2^n exp(r), n whole and |r| <= ln(2) / 2. Numba calls the C library for each np.exp; this is SIMD.
_LOWEST_EXPONENT = np.float32(-87)  # exp of less is no normal float32
_LOG2_E = np.float32(1.4426950408889634)
_TO_WHOLE = np.float32(3 << 22)  # a float32 of this size has no digits behind the point
_LN2_HIGH = np.float32(0.693359375)  # of few enough digits for n times it to be exact
_LN2_LOW = np.float32(0.6931471805599453 - 0.693359375)
_TAYLOR_7, _TAYLOR_6, _TAYLOR_5, _TAYLOR_4, _TAYLOR_3, _TAYLOR_2 = (
    np.float32(1 / math.factorial(order)) for order in range(7, 1, -1)
)
_EXPONENT_BIAS = np.float32(127)
_EXPONENT_STEP = np.float32(1 << 23)


def accumulate(
    plan: Plan,
    raw: Sequence[Float32Array],
    *,
    upsample: Upsample,
    stride: int,
    executor: Executor | None = None,
) -> UInt8Array:
    """Return the class with the highest sum in each pixel.

    Args:
        plan: the plan of the picture.
        raw: float32; for each pass raw_NKhw of its chips in order, each followed by its mirrored view if the
            plan flips.
        upsample: up-sampling of the head, from the manifest.
        stride: pixels of a padded chip per raw value along one side.
        executor: its threads share the rows; must not be the executor of the calling thread.

    Returns:
        labels_HW of the plan's size, uint8, each in [0, K).

    Raises:
        ModelOutputError: a score is not finite, or a raw output does not have the shape of its chips.
    """
    passes = [
        _pass_scores(plan, one, raw_NKhw, upsample=upsample, stride=stride)
        for one, raw_NKhw in zip(plan.passes, raw, strict=True)
    ]
    num_classes = passes[0].chips[0].grid_MKRC.shape[1]
    labels_HW = np.empty(plan.size.shape, np.uint8)
    if plan.single:
        _label_one_map(passes[0].chips[0], labels_HW, executor)
        return labels_HW

    def draw(first: int, last: int) -> None:
        sums_KHW = np.zeros((num_classes, last - first, plan.size.width), np.float32)
        for one in passes:
            _add_pass(one, first, last, sums_KHW)
        compiled(_pick_highest)(sums_KHW, labels_HW[first:last])

    in_bands(draw, plan.size, executor, band_pixels=_BAND_SCORES // num_classes)
    return labels_HW


@dataclass(frozen=True, eq=False)
class _ChipScores:
    """The scores of a chip, and the pixels that they belong to.

    Attributes:
        grid_MKRC: float32.
        rows: from the grid to rows of the target.
        columns: the same for columns, for each view; the mirrored view's run backwards.
        top: first row of the target that the chip covers.
        left: first column of the target that the chip covers.
    """

    grid_MKRC: Float32Array
    rows: Taps
    columns: tuple[Taps, ...]
    top: int = 0
    left: int = 0


@dataclass(frozen=True, eq=False)
class _PassScores:
    """The chips of one pass.

    Attributes:
        chips: their terms add up on the canvas, or on the picture where ``canvas`` is None.
        mode: the term that a chip adds.
        canvas: size of the canvas.
        rows: from canvas to picture.
        columns: from canvas to picture.
    """

    chips: tuple[_ChipScores, ...]
    mode: int
    canvas: ImageSize | None
    rows: Taps
    columns: Taps


def _pass_scores(
    plan: Plan, one: Pass, raw_NKhw: Float32Array, *, upsample: Upsample, stride: int
) -> _PassScores:
    # The canvas is cut back to the picture before it is resized: both are one table of taps.
    rows = Taps.resize(one.scaled.height, plan.size.height).shifted(one.top)
    columns = Taps.resize(one.scaled.width, plan.size.width).shifted(one.left)
    grids = _grids(raw_NKhw, one.chips[0].size.padded(), upsample=upsample, stride=stride)
    views = 2 if plan.flip else 1
    if len(grids) != views * len(one.chips):
        raise ModelOutputError(f"{len(grids)} raw outputs for {len(one.chips)} chips of {views} views")
    aligned = upsample == "bilinear_aligned"
    chips = [
        _chip_scores(chip, grids[index * views : (index + 1) * views], aligned=aligned)
        for index, chip in enumerate(one.chips)
    ]
    mode = _SCORE if plan.single else _MODES[plan.summand]
    if not plan.whole:
        return _PassScores(tuple(chips), mode, one.canvas, rows, columns)
    (chip,) = chips
    # A whole picture's scores are resized before the softmax: again one table of taps.
    resized_columns = tuple(columns.after(taps) for taps in chip.columns)
    return _PassScores(
        (replace(chip, rows=rows.after(chip.rows), columns=resized_columns),), mode, None, rows, columns
    )


def _grids(raw_NKhw: Float32Array, padded: ImageSize, *, upsample: Upsample, stride: int) -> Float32Array:
    """Return grid_NKRC: for bilinear heads the raw output itself."""
    num_classes, factor, grid = grid_of(raw_NKhw.shape[1:], upsample=upsample, stride=stride, padded=padded)
    if not np.isfinite(raw_NKhw).all():
        raise ModelOutputError("the raw output holds scores that are not finite")
    # PixelShuffle moves channel k*S*S + i*S + j of (y, x) to class k of (y*S + i, x*S + j).
    cells = raw_NKhw.reshape(-1, num_classes, factor, factor, *raw_NKhw.shape[2:])
    shape = (-1, num_classes, *grid.shape)
    return np.ascontiguousarray(cells.transpose(0, 1, 4, 2, 5, 3).reshape(shape), np.float32)


def _chip_scores(chip: Chip, grid_MKRC: Float32Array, *, aligned: bool) -> _ChipScores:
    padded, (rows, columns) = chip.size.padded(), grid_MKRC.shape[2:]
    row_taps = Taps.at(
        axis_positions(rows, padded.height, chip.size.height, chip.size.height, aligned=aligned), rows
    )
    column_taps = Taps.at(
        axis_positions(columns, padded.width, chip.size.width, chip.size.width, aligned=aligned), columns
    )
    views = (column_taps, column_taps.reversed())[: len(grid_MKRC)]
    return _ChipScores(grid_MKRC, row_taps, views, chip.top, chip.left)


def _label_one_map(chip: _ChipScores, labels_HW: UInt8Array, executor: Executor | None) -> None:
    """Write the highest class of each pixel of one map of scores."""
    grid_KRC = chip.grid_MKRC[0]
    winners_RC = np.empty(grid_KRC.shape[1:], np.uint8)

    def pick(first: int, last: int) -> None:
        compiled(_pick_highest)(grid_KRC[:, first:last], winners_RC[first:last])

    def draw(first: int, last: int) -> None:
        rows, columns = chip.rows.part(first, last), chip.columns[0]
        compiled(_draw_one_map)(
            grid_KRC,
            winners_RC,
            rows.sources_TX,
            rows.weights_TX,
            columns.sources_TX,
            columns.weights_TX,
            labels_HW[first:last],
        )

    in_bands(pick, size_of(winners_RC), executor, band_pixels=_BAND_SCORES // len(grid_KRC))
    in_bands(draw, size_of(labels_HW), executor, band_pixels=_BAND_PIXELS)


def _add_pass(one: _PassScores, first: int, last: int, sums_KHW: Float32Array) -> None:
    """Add the terms of a pass to the picture's rows [first, last)."""
    if one.canvas is None:
        _add_chip_rows(one.chips[0], first, one.mode, sums_KHW)
        return
    rows = one.rows.part(first, last)
    top, bottom = rows.span
    canvas_KYX = np.zeros((len(sums_KHW), bottom - top, one.canvas.width), np.float32)
    for chip in one.chips:
        _add_chip_rows(chip, top, one.mode, canvas_KYX)
    resized = _ChipScores(canvas_KYX[np.newaxis], rows.shifted(-top), (one.columns,))
    _add_chip_rows(resized, 0, _SCORE, sums_KHW)


def _add_chip_rows(chip: _ChipScores, first: int, mode: int, sums_KYX: Float32Array) -> None:
    """Add the terms of a chip to the target's rows [first, first + Y), as far as it covers them."""
    height = chip.rows.sources_TX.shape[1]
    begin, end = (min(max(row - chip.top, 0), height) for row in (first, first + sums_KYX.shape[1]))
    if begin == end:
        return
    rows = chip.rows.part(begin, end)
    compiled(_add_chip)(
        chip.grid_MKRC,
        rows.sources_TX,
        rows.weights_TX,
        np.stack([taps.sources_TX for taps in chip.columns]),
        np.stack([taps.weights_TX for taps in chip.columns]),
        mode,
        sums_KYX,
        chip.top + begin - first,
        chip.left,
    )


def _add_chip(  # noqa: PLR0917 - kernels know no keywords
    grid_MKRC: Float32Array,
    rows_TY: UInt32Array,
    row_weights_TY: Float32Array,
    columns_MTX: UInt32Array,
    column_weights_MTX: Float32Array,
    mode: int,
    sums_KYX: Float32Array,
    top: int,
    left: int,
) -> None:
    """Add scores, or their softmax, or exp of the views' softmax, from row ``top`` and column ``left`` on.

    Each row is blended from the grid's rows first: that is 8 times shorter than the row that comes out.
    """
    views, num_classes, _, width = grid_MKRC.shape
    blended_KC = np.empty((views, num_classes, width), np.float32)
    scores_MKP = np.empty((views, num_classes, _STRIP_PIXELS), np.float32)
    best_P = np.empty(_STRIP_PIXELS, np.float32)
    total_P = np.empty(_STRIP_PIXELS, np.float32)
    bits_P = np.empty(_STRIP_PIXELS, np.int32)
    length = columns_MTX.shape[2]
    for y in range(rows_TY.shape[1]):
        for m in range(views):
            for k in range(num_classes):
                _blend_rows(grid_MKRC[m, k], rows_TY[:, y], row_weights_TY[:, y], blended_KC[m, k])
        for begin in range(0, length, _STRIP_PIXELS):
            count = min(_STRIP_PIXELS, length - begin)
            for m in range(views):
                for k in range(num_classes):
                    _sample(
                        blended_KC[m, k],
                        columns_MTX[m],
                        column_weights_MTX[m],
                        begin,
                        scores_MKP[m, k, :count],
                    )
                if mode != _SCORE:
                    _softmax(scores_MKP[m], count, best_P, total_P, bits_P)
            for k in range(num_classes):
                _add_views(scores_MKP[:, k], count)
                if mode == _EXP:
                    _exp(scores_MKP[0, k, :count], bits_P)
                _add(scores_MKP[0, k, :count], sums_KYX[k, top + y, left + begin : left + begin + count])


def _draw_one_map(  # noqa: PLR0917 - kernels know no keywords
    grid_KRC: Float32Array,
    winners_RC: UInt8Array,
    rows_TY: UInt32Array,
    row_weights_TY: Float32Array,
    columns_TX: UInt32Array,
    column_weights_TX: Float32Array,
    labels_YX: UInt8Array,
) -> None:
    """Write the highest class of each pixel, with arithmetic only where its grid points differ.

    Weights are never negative, so a class that is highest at all points with a weight is highest in between.
    """
    blended_KC = np.empty((grid_KRC.shape[0], grid_KRC.shape[2]), np.float32)
    winners_C = np.empty(grid_KRC.shape[2], np.uint8)
    for y in range(labels_YX.shape[0]):
        for x in range(winners_C.size):
            winners_C[x] = _common(winners_RC[:, x], rows_TY[:, y], row_weights_TY[:, y])
        blended = False
        for x in range(labels_YX.shape[1]):
            columns_T, weights_T = columns_TX[:, x], column_weights_TX[:, x]
            label = _common(winners_C, columns_T, weights_T)
            if label == _SEVERAL:
                if not blended:
                    for k in range(blended_KC.shape[0]):
                        _blend_rows(grid_KRC[k], rows_TY[:, y], row_weights_TY[:, y], blended_KC[k])
                    blended = True
                label = _highest(blended_KC, columns_T, weights_T)
            labels_YX[y, x] = label


@part_of_kernel
def _common(winners: UInt8Array, sources_T: UInt32Array, weights_T: Float32Array) -> np.uint8:
    """Return the one class that wins at all sources that count, else ``_SEVERAL``."""
    common: np.uint8 = winners[sources_T[weights_T.argmax()]]
    for t in range(sources_T.size):
        if weights_T[t] > _ZERO and winners[sources_T[t]] != common:
            return _SEVERAL
    return common


@part_of_kernel
def _highest(blended_KC: Float32Array, columns_T: UInt32Array, weights_T: Float32Array) -> np.uint8:
    best, label = _LOWEST, np.uint8(0)
    for k in range(blended_KC.shape[0]):
        score = weights_T[0] * blended_KC[k, columns_T[0]] + weights_T[1] * blended_KC[k, columns_T[1]]
        for t in range(2, columns_T.size):
            score += weights_T[t] * blended_KC[k, columns_T[t]]
        if score > best:
            best, label = score, np.uint8(k)
    return label


@part_of_kernel
def _blend_rows(
    grid_RC: Float32Array, rows_T: UInt32Array, weights_T: Float32Array, blended_C: Float32Array
) -> None:
    blended_C[:] = _ZERO
    for t in range(rows_T.size):
        row_C, weight = grid_RC[rows_T[t]], weights_T[t]
        for x in range(blended_C.size):
            blended_C[x] += weight * row_C[x]


@part_of_kernel
def _sample(
    blended_C: Float32Array,
    columns_TX: UInt32Array,
    weights_TX: Float32Array,
    begin: int,
    scores_P: Float32Array,
) -> None:
    end = begin + scores_P.size
    left_P, right_P = columns_TX[0, begin:end], columns_TX[1, begin:end]
    shares_P, other_shares_P = weights_TX[0, begin:end], weights_TX[1, begin:end]
    for p in range(scores_P.size):
        scores_P[p] = shares_P[p] * blended_C[left_P[p]] + other_shares_P[p] * blended_C[right_P[p]]
    for t in range(2, columns_TX.shape[0]):
        columns_P, weights_P = columns_TX[t, begin:end], weights_TX[t, begin:end]
        for p in range(scores_P.size):
            scores_P[p] += weights_P[p] * blended_C[columns_P[p]]


@part_of_kernel
def _softmax(
    scores_KP: Float32Array, count: int, best_P: Float32Array, total_P: Float32Array, bits_P: Int32Array
) -> None:
    best_P[:count] = _LOWEST
    total_P[:count] = _ZERO
    for k in range(scores_KP.shape[0]):
        for p in range(count):
            best_P[p] = max(best_P[p], scores_KP[k, p])
    for k in range(scores_KP.shape[0]):
        for p in range(count):
            scores_KP[k, p] = scores_KP[k, p] - best_P[p]
        _exp(scores_KP[k, :count], bits_P)
        for p in range(count):
            total_P[p] += scores_KP[k, p]
    for p in range(count):
        total_P[p] = _ONE / total_P[p]
    for k in range(scores_KP.shape[0]):
        for p in range(count):
            scores_KP[k, p] *= total_P[p]


@part_of_kernel
def _exp(values_P: Float32Array, bits_P: Int32Array) -> None:
    """Replace values of at most 2 by their exponential, to within two units of the last place."""
    powers_P = bits_P.view(np.float32)
    for p in range(values_P.size):
        value = max(values_P[p], _LOWEST_EXPONENT)
        whole = (value * _LOG2_E + _TO_WHOLE) - _TO_WHOLE
        r = (value - whole * _LN2_HIGH) - whole * _LN2_LOW
        series = ((_TAYLOR_7 * r + _TAYLOR_6) * r + _TAYLOR_5) * r + _TAYLOR_4
        values_P[p] = (((series * r + _TAYLOR_3) * r + _TAYLOR_2) * r + _ONE) * r + _ONE
        bits_P[p] = np.int32((whole + _EXPONENT_BIAS) * _EXPONENT_STEP)
    for p in range(values_P.size):
        values_P[p] *= powers_P[p]


@part_of_kernel
def _add_views(scores_MP: Float32Array, count: int) -> None:
    for m in range(1, scores_MP.shape[0]):
        _add(scores_MP[m, :count], scores_MP[0, :count])


@part_of_kernel
def _add(values_P: Float32Array, sums_P: Float32Array) -> None:
    for p in range(values_P.size):
        sums_P[p] += values_P[p]


def _pick_highest(sums_KHW: Float32Array, labels_HW: UInt8Array) -> None:
    best_W = np.empty(labels_HW.shape[1], np.float32)
    for y in range(labels_HW.shape[0]):
        best_W[:] = _LOWEST
        for k in range(sums_KHW.shape[0]):
            for x in range(best_W.size):
                higher = sums_KHW[k, y, x] > best_W[x]
                best_W[x] = sums_KHW[k, y, x] if higher else best_W[x]
                labels_HW[y, x] = np.uint8(k) if higher else labels_HW[y, x]
