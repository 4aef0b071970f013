"""A few fixed validation pictures with their predicted labels, as one grid.

Axes: H height, W width, 3 = red green blue.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from model.labels import ClassPalette, UInt8Array
from model.networks.segmentation_network import Architecture, SegmentationNetwork
from training.data.pictures import PictureSource, iterate_pictures
from training.optimisation.precision import ComputeConfig
from training.run.validation import segment

SAMPLE_COUNT = 6
_TILE_WIDTH = 320
_GAP = 4
_WHITE = 255


def sample_indices(count: int) -> list[int]:
    """Return the indices of an even sample of ``count`` pictures."""
    chosen = min(count, SAMPLE_COUNT)
    return [count * place // chosen for place in range(chosen)]


def sample_grid(
    network: SegmentationNetwork,
    pictures: PictureSource,
    indices: Sequence[int],
    *,
    architecture: Architecture,
    palette: ClassPalette,
    compute: ComputeConfig,
) -> UInt8Array:
    """Draw one row a picture: the picture, its labels, and the predicted labels.

    Args:
        network: in evaluation mode, on the device of the pictures.
        pictures: with labels.
        indices: of the pictures to draw, at least one.
        architecture: of the network.
        palette: of the labels.
        compute: precision of the network.

    Returns:
        grid_HW3: uint8 RGB; rows may have different heights.
    """
    rows = []
    for image_HW3, label_HW in iterate_pictures(pictures, indices):
        guess_HW = segment(network, image_HW3, architecture=architecture, compute=compute)
        colors = (palette.rgb_table[label_HW.cpu().numpy()], palette.rgb_table[guess_HW])
        rows.append(_beside([_tile(picture) for picture in (image_HW3.cpu().numpy(), *colors)]))
    return np.concatenate(rows)


def write_picture(path: Path, image_HW3: UInt8Array) -> None:
    """Write a PNG, and make its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image_HW3).save(path)


def _tile(image_HW3: UInt8Array) -> UInt8Array:
    height, width = image_HW3.shape[:2]
    size = (_TILE_WIDTH, max(1, round(height * _TILE_WIDTH / width)))
    # Nearest: a colour between those of two classes could be that of a third one.
    return np.asarray(Image.fromarray(image_HW3).resize(size, Image.Resampling.NEAREST))


def _beside(tiles: Sequence[UInt8Array]) -> UInt8Array:
    gap = ((0, _GAP), (0, _GAP), (0, 0))
    return np.concatenate([np.pad(tile, gap, constant_values=_WHITE) for tile in tiles], axis=1)
