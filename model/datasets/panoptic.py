"""Label maps in the panoptic format of COCO: one segment for each class of a picture.

Axes: H height, W width, 3 = red green blue.

Source:
    The description of the format: a segment's number is red + 256 green + 65536 blue; 0 means none. Segments
    and categories have the number of their class plus 1.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from model.labels import ClassPalette, UInt8Array


def categories(palette: ClassPalette) -> list[dict[str, Any]]:
    """Return the entries of ``categories``, one for each class."""
    classes = enumerate(zip(palette.names, palette.colors, strict=True), 1)
    return [{"id": one, "name": name, "color": color, "isthing": 0} for one, (name, color) in classes]


def segment_numbers(label_HW: UInt8Array, palette: ClassPalette) -> UInt8Array:
    """Return the picture of the segments, uint8 HW3.

    Args:
        label_HW: class ids and the ignore id, uint8.
        palette: of the ids.
    """
    segments_HW3 = np.zeros((*label_HW.shape, 3), np.uint8)
    segments_HW3[..., 0] = np.where(label_HW == palette.ignore_id, 0, label_HW + 1)
    return segments_HW3


def segments(label_HW: UInt8Array, palette: ClassPalette) -> list[dict[str, Any]]:
    """Return the entries of ``segments_info``, one for each class that occurs.

    Args:
        label_HW: class ids and the ignore id, uint8.
        palette: of the ids.
    """
    ids = (class_id for class_id in range(palette.num_classes) if (label_HW == class_id).any())
    return [_segment(label_HW == class_id, class_id) for class_id in ids]


def _segment(is_inside_HW: npt.NDArray[np.bool_], class_id: int) -> dict[str, Any]:
    rows, columns = np.nonzero(is_inside_HW)
    left, top, right, bottom = (int(end) for end in (columns.min(), rows.min(), columns.max(), rows.max()))
    return {
        "id": class_id + 1,
        "category_id": class_id + 1,
        "area": int(rows.size),
        "bbox": [left, top, right - left + 1, bottom - top + 1],
        "iscrowd": 0,
    }
