"""A few fixed validation pictures with their predicted labels, and the crops of the first step.

Axes: N crops, H height, W width, 3 = red green blue.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from model.evaluation.evaluation import ScoredImage
from model.evaluation.report import ShownImage, picture_files
from model.labels import ClassPalette, UInt8Array
from model.networks.segmentation_network import Architecture, SegmentationNetwork
from model.report_pages.pictures import labels_png, photo_jpeg
from training.data.pictures import PictureSource, iterate_pictures
from training.optimisation.precision import ComputeConfig
from training.run.validation import segment

SAMPLE_COUNT = 6
CROP_COUNT = 8
_TILE_WIDTH = 320
_GAP = 4
_WHITE = 255


def sample_indices(count: int) -> list[int]:
    """Return the indices of an even sample of ``count`` pictures."""
    chosen = min(count, SAMPLE_COUNT)
    return [count * place // chosen for place in range(chosen)]


def label_samples(
    network: SegmentationNetwork,
    pictures: PictureSource,
    indices: Sequence[int],
    *,
    architecture: Architecture,
    palette: ClassPalette,
    compute: ComputeConfig,
) -> list[ShownImage]:
    """Label and score pictures, for people to look at.

    Args:
        network: in evaluation mode, on the device of the pictures.
        pictures: with labels.
        indices: of the pictures.
        architecture: of the network.
        palette: of the labels.
        compute: precision of the network.
    """
    shown = []
    pairs = zip(indices, iterate_pictures(pictures, indices), strict=True)
    for index, (image_HW3, label_HW) in pairs:
        guess_HW = segment(network, image_HW3, architecture=architecture, compute=compute)
        name, truth_HW = pictures.names[index], label_HW.cpu().numpy()
        scored = ScoredImage.of(index, name, truth_HW, guess_HW, palette)
        miou = scored.matrix(palette.num_classes).miou
        shown.append(ShownImage(name, miou or 0.0, image_HW3.cpu().numpy(), truth_HW, guess_HW))
    return shown


def draw_grid(shown: Sequence[ShownImage], palette: ClassPalette) -> UInt8Array:
    """Draw one row a picture: the picture, its labels, and the predicted labels.

    Args:
        shown: at least one picture.
        palette: of the labels.

    Returns:
        grid_HW3: uint8 RGB; rows may have different heights.
    """
    table = palette.rgb_table
    rows = [(one.image_HW3, table[one.truth_HW], table[one.guess_HW]) for one in shown]
    return np.concatenate([_beside([_tile(picture) for picture in row]) for row in rows])


def write_samples(
    folder: Path, shown: Sequence[ShownImage], palette: ClassPalette, step: int
) -> list[dict[str, Any]]:
    """Write the pictures of a step as files of their own.

    Args:
        folder: of the samples; made if it is missing.
        shown: the pictures.
        palette: of the labels.
        step: finished steps, in the names of the files that change with it.

    Returns:
        Name, mIoU and files of each picture, as the log keeps them.

    Raises:
        OSError: a file cannot be written.
    """
    told = []
    for place, one in enumerate(shown):
        contents = picture_files(one, palette)
        changing = ("prediction", "difference")
        files = {
            what: _file(f"sample-{place}" + f"-step-{step:08d}" * (what in changing), what, data)
            for what, data in contents.items()
        }
        _write_files(folder, {files[what]: data for what, data in contents.items()})
        told.append({"name": one.name, "miou": one.miou, "files": files})
    return told


def write_crops(
    folder: Path, names: Sequence[str], images_NHW3: Tensor, labels_NHW: Tensor, palette: ClassPalette
) -> list[dict[str, Any]]:
    """Write augmented crops with their labels as files.

    Args:
        folder: of the samples; made if it is missing.
        names: of the pictures that the crops are cut from.
        images_NHW3: uint8 RGB.
        labels_NHW: uint8 class ids or the ignore id.
        palette: of the labels.

    Returns:
        Name and files of each of the first crops, as the log keeps them.

    Raises:
        OSError: a file cannot be written.
    """
    told = []
    for place, name in enumerate(names[:CROP_COUNT]):
        contents = {
            "crop": photo_jpeg(images_NHW3[place].cpu().numpy(), _TILE_WIDTH),
            "labels": labels_png(labels_NHW[place].cpu().numpy(), palette, _TILE_WIDTH),
        }
        files = {what: _file(f"crop-{place}", what, data) for what, data in contents.items()}
        _write_files(folder, {files[what]: data for what, data in contents.items()})
        told.append({"name": name, "files": files})
    return told


def write_picture(path: Path, image_HW3: UInt8Array) -> None:
    """Write a PNG, and make its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image_HW3).save(path)


def _file(stem: str, what: str, data: bytes) -> str:
    suffix = "png" if data.startswith(b"\x89PNG") else "jpg"
    return f"{stem}-{what}.{suffix}"


def _write_files(folder: Path, contents: dict[str, bytes]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in contents.items():
        (folder / name).write_bytes(data)


def _tile(image_HW3: UInt8Array) -> UInt8Array:
    height, width = image_HW3.shape[:2]
    size = (_TILE_WIDTH, max(1, round(height * _TILE_WIDTH / width)))
    # Nearest: a colour between those of two classes could be that of a third one.
    return np.asarray(Image.fromarray(image_HW3).resize(size, Image.Resampling.NEAREST))


def _beside(tiles: Sequence[UInt8Array]) -> UInt8Array:
    gap = ((0, _GAP), (0, _GAP), (0, 0))
    return np.concatenate([np.pad(tile, gap, constant_values=_WHITE) for tile in tiles], axis=1)
