"""The grid of the raw output, and the positions of a picture's pixels on it.

Axes: H W the picture's own size.

Along one axis, let ``grid`` be the number of grid points, and ``padded``, ``content`` and ``original`` the
sizes in pixels. Output pixel y of ``original`` has its centre, in padded pixels, at

    p = (y + 1/2) * content / original - 1/2       (p = y unless the picture was reduced)

and, with g kept within [0, grid - 1], on the grid at

    bilinear, pixel_shuffle    g = (p + 1/2) * grid / padded - 1/2       (g = p for pixel_shuffle)
    bilinear_aligned           g = p * (grid - 1) / (padded - 1)
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from model.artifacts.manifest import Upsample
from model.errors import ModelOutputError
from model.labels import MAX_CLASSES
from model.pictures.preprocess import ImageSize

Float32Array = npt.NDArray[np.float32]


def positions(
    grid: ImageSize, *, upsample: Upsample, padded: ImageSize, content: ImageSize, original: ImageSize
) -> tuple[Float32Array, Float32Array]:
    """Return the positions of the output pixels on the grid.

    Args:
        grid: number of points on each side.
        upsample: of the manifest.
        padded: size of the network's input.
        content: the part of it with the picture.
        original: size of the output.

    Returns:
        rows_H and columns_W, float32, from 0 to the side of the grid - 1/2.
    """
    aligned = upsample == "bilinear_aligned"
    rows_H = axis_positions(grid.height, padded.height, content.height, original.height, aligned=aligned)
    columns_W = axis_positions(grid.width, padded.width, content.width, original.width, aligned=aligned)
    return rows_H, columns_W


def grid_of(
    raw_shape: tuple[int, ...], *, upsample: Upsample, stride: int, padded: ImageSize
) -> tuple[int, int, ImageSize]:
    """Return the number of classes K, the pixel-shuffle factor S and the size of the grid of a raw output.

    Args:
        raw_shape: channels, h, w.
        upsample: of the manifest.
        stride: pixels of the padded picture for each raw value along one side.
        padded: size of the network's input.

    Raises:
        ModelOutputError: the shape does not fit the padded picture, or the channels are not a whole number of
            classes.
    """
    channels, *cells = raw_shape
    factor = stride if upsample == "pixel_shuffle" else 1
    num_classes, rest = divmod(channels, factor * factor)
    fits = [side * stride for side in cells] == [padded.height, padded.width]
    if not fits or rest or not 1 <= num_classes <= MAX_CLASSES:
        raise ModelOutputError(f"raw output {raw_shape} does not fit a {padded} picture at stride {stride}")
    height, width = cells
    return num_classes, factor, ImageSize(height * factor, width * factor)


def axis_positions(grid: int, padded: int, content: int, original: int, *, aligned: bool) -> Float32Array:
    """Return the positions of the output pixels on one axis of the grid.

    Args:
        grid: side of the grid, in points; the other three are in pixels.
        padded: side of the network's input.
        content: the part of it with the picture.
        original: side of the output.
        aligned: whether the corner pixels lie on the corner points (``bilinear_aligned``).

    Returns:
        float32, from 0 to grid - 1/2, of length ``original``.
    """
    # The scale and the position are rounded to float32, as torch's fused multiply-add rounds them: 256 points
    # from the origin, exact positions and scores would differ from torch's by up to 3e-5.
    steps, span = (grid - 1, max(padded - 1, 1)) if aligned else (grid, padded)
    scale = float(np.float32(steps * content / (span * original)))
    shift = 0.5 * float(np.float32(steps / span)) if aligned else 0.5
    positions: Float32Array = np.maximum((np.arange(original) + 0.5) * scale - shift, 0).astype(np.float32)
    return positions
