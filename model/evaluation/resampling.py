"""Bilinear resampling along one axis at a time, in float32: tables of taps, and pictures of another size.

Axes: H W the size that comes out, T taps (source positions that an output position is a weighted sum of),
X output positions along one axis, 3 = red green blue.
"""

from __future__ import annotations

from concurrent.futures import Executor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from model.decoding.kernels import compiled, in_bands, part_of_kernel
from model.decoding.score_grid import Float32Array, axis_positions
from model.labels import UInt8Array
from model.pictures.preprocess import ImageSize, size_of

UInt32Array = npt.NDArray[np.uint32]
PixelArray = UInt8Array | Float32Array

_BAND_PIXELS = 131_072
_ONE = np.float32(1)


@dataclass(frozen=True, eq=False)
class Taps:
    """Each output position of an axis as a weighted sum of source positions.

    Attributes:
        sources_TX: uint32, inside the source; at least two taps, which may coincide.
        weights_TX: float32; each column adds up to one, none is negative.
    """

    sources_TX: UInt32Array
    weights_TX: Float32Array

    @classmethod
    def at(cls, positions_X: Float32Array, side: int) -> Taps:
        """Blend the two neighbours of each position.

        Args:
            positions_X: float32, 0..side - 1/2; positions behind the last source position take its value.
            side: length of the source.
        """
        first_X = np.minimum(positions_X.astype(np.int64), side - 1)
        across_X = positions_X - first_X.astype(np.float32)
        sources_TX = np.stack([first_X, np.minimum(first_X + 1, side - 1)])
        return cls(sources_TX.astype(np.uint32), np.stack([_ONE - across_X, across_X]))

    @classmethod
    def resize(cls, source: int, target: int, *, aligned: bool = True) -> Taps:
        """Resize an axis bilinearly.

        Args:
            source: its length.
            target: its new length.
            aligned: the first and the last position stay where they are; else pixels have an extent, half of
                which lies outside (torch's ``align_corners=False``).
        """
        return cls.at(axis_positions(source, target, target, target, aligned=aligned), source)

    def after(self, first: Taps) -> Taps:
        """Return this table after another one, as one table: ``first`` computes the source of this one.

        Taps of neighbours overlap, so two taps after two are often three, not four.
        """
        sources = first.sources_TX[:, self.sources_TX].astype(np.int64)
        weights = first.weights_TX[:, self.sources_TX].astype(np.float64) * self.weights_TX
        base_X = sources.min(axis=(0, 1))
        spread = max(2, int((sources - base_X).max()) + 1)
        sums_TX = np.array(
            [np.where(sources - base_X == t, weights, 0).sum(axis=(0, 1)) for t in range(spread)]
        )
        sources_TX = np.minimum(base_X + np.arange(spread)[:, None], sources.max(axis=(0, 1)))
        return Taps(sources_TX.astype(np.uint32), sums_TX.astype(np.float32))

    def part(self, first: int, last: int) -> Taps:
        """Return the taps of output positions [first, last)."""
        return Taps(self.sources_TX[:, first:last].copy(), self.weights_TX[:, first:last].copy())

    def reversed(self) -> Taps:
        """Return the taps of a mirrored axis."""
        return Taps(self.sources_TX[:, ::-1].copy(), self.weights_TX[:, ::-1].copy())

    def shifted(self, offset: int) -> Taps:
        """Return the same taps on a source that begins ``offset`` positions earlier."""
        return Taps((self.sources_TX.astype(np.int64) + offset).astype(np.uint32), self.weights_TX)

    @property
    def span(self) -> tuple[int, int]:
        """The source positions in use: [first, last)."""
        return int(self.sources_TX.min()), int(self.sources_TX.max()) + 1


def resized(
    image_HW3: UInt8Array,
    size: ImageSize,
    executor: Executor | None = None,
    *,
    start: ImageSize | None = None,
) -> Float32Array:
    """Resize a picture, bilinear with aligned corners, without rounding to whole values.

    Equals ``torch.nn.functional.interpolate(mode="bilinear", align_corners=True)`` of the float32 pixels, but
    for the last bits.

    Args:
        image_HW3: uint8.
        size: wanted.
        executor: its threads share the rows.
        start: size that the picture is resized to before, with ``align_corners=False``.

    Returns:
        float32 of 0..255.
    """
    source = size_of(image_HW3)
    start = start or source
    rows = _resize_taps(source.height, start.height, size.height)
    columns = _resize_taps(source.width, start.width, size.width)
    resized_HW3 = np.empty((size.height, size.width, 3), np.float32)
    pixels_HW3 = np.ascontiguousarray(image_HW3).view()
    pixels_HW3.setflags(write=False)  # one type, so one compiled kernel

    def draw(first: int, last: int) -> None:
        band = rows.part(first, last)
        compiled(_resize_rows)(
            pixels_HW3,
            band.sources_TX,
            band.weights_TX,
            columns.sources_TX,
            columns.weights_TX,
            resized_HW3[first:last],
        )

    in_bands(draw, size, executor, band_pixels=_BAND_PIXELS)
    return resized_HW3


def _resize_taps(source: int, start: int, target: int) -> Taps:
    """Return both resizings of an axis as one table."""
    second = Taps.resize(start, target)
    return second if start == source else second.after(Taps.resize(source, start, aligned=False))


def _resize_rows(  # noqa: PLR0917 - kernels know no keywords
    image_HW3: UInt8Array,
    rows_TH: UInt32Array,
    row_weights_TH: Float32Array,
    columns_TW: UInt32Array,
    column_weights_TW: Float32Array,
    resized_HW3: Float32Array,
) -> None:
    blended_W3 = np.empty(image_HW3.shape[1:], np.float32)
    for y in range(resized_HW3.shape[0]):
        upper, lower = row_weights_TH[0, y], row_weights_TH[1, y]
        _blend_bytes(image_HW3[rows_TH[0, y]], image_HW3[rows_TH[1, y]], upper, lower, blended_W3)
        for t in range(2, rows_TH.shape[0]):
            _add_bytes(image_HW3[rows_TH[t, y]], row_weights_TH[t, y], blended_W3)
        for x in range(resized_HW3.shape[1]):
            left, right = columns_TW[0, x], columns_TW[1, x]
            for c in range(3):
                resized_HW3[y, x, c] = (
                    column_weights_TW[0, x] * blended_W3[left, c]
                    + column_weights_TW[1, x] * blended_W3[right, c]
                )
        for t in range(2, columns_TW.shape[0]):
            for x in range(resized_HW3.shape[1]):
                for c in range(3):
                    resized_HW3[y, x, c] += column_weights_TW[t, x] * blended_W3[columns_TW[t, x], c]


@part_of_kernel
def _blend_bytes(
    upper_W3: UInt8Array, lower_W3: UInt8Array, upper: np.float32, lower: np.float32, out_W3: Float32Array
) -> None:
    for x in range(out_W3.shape[0]):
        for c in range(3):
            out_W3[x, c] = upper * np.float32(upper_W3[x, c]) + lower * np.float32(lower_W3[x, c])


@part_of_kernel
def _add_bytes(row_W3: UInt8Array, weight: np.float32, out_W3: Float32Array) -> None:
    for x in range(out_W3.shape[0]):
        for c in range(3):
            out_W3[x, c] += weight * np.float32(row_W3[x, c])
