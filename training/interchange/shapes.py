"""Regions that annotators draw, and how each becomes pixels.

Two rules are in use. Polygons of COCO, CVAT and Label Studio cover the pixels whose centres lie inside, as in
those programs' own exports. Shapes of labelme and Supervisely are drawn by Pillow, as labelme does: the
outline counts, too, which adds half a pixel on each side.

pycocotools also draws polygons and reads run lengths. It is not used for either: its C code (2.0.11) ends the
process on run lengths that are too long and on points that are far away, and returns unset memory for run
lengths that are too short.

Axes: H height, W width, P points, E edges, C crossings, 2 = x y.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from model.labels import UInt8Array
from model.pictures.preprocess import ImageSize

Points = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

_MAX_COORDINATE = 1e6
_MAX_POINTS = 100_000
_MAX_CROSSINGS = 20_000_000
"""Edges times the rows that each spans. Outlines of 10,000 points have 20,000; this many take a second."""

_ELLIPSE_POINTS = 96
_LEAST_POINTS = {"polygon": 3, "rectangle": 2, "circle": 2}


class Region(Protocol):
    """A part of a picture."""

    def paint(self, ids_HW: UInt8Array, class_id: int) -> None:
        """Give the pixels of the region a class.

        Args:
            ids_HW: of the whole picture, uint8; changed.
            class_id: 0..255.

        Raises:
            ValueError: the region is malformed, or belongs to a picture of another size.
        """
        ...


@dataclass(frozen=True, eq=False)
class Polygon:
    """The pixels whose centres lie inside a closed line, by the even-odd rule.

    Args:
        points_P2: float64; the centre of pixel (x, y) is (x + 0.5, y + 0.5).

    Raises:
        ValueError: fewer than three points, more than 100,000, or one that is not finite or far away.
    """

    points_P2: Points

    def __post_init__(self) -> None:
        """Refuse points that are no polygon."""
        _check_points(self.points_P2, least=3)

    def paint(self, ids_HW: UInt8Array, class_id: int) -> None:
        """Give the pixels inside a class.

        Args:
            ids_HW: of the whole picture, uint8; changed.
            class_id: 0..255.

        Raises:
            ValueError: the line winds too often.
        """
        height, width = ids_HW.shape
        left, top = np.clip(np.floor(self.points_P2.min(axis=0)), 0, (width, height)).astype(int).tolist()
        right, bottom = np.clip(np.ceil(self.points_P2.max(axis=0)), 0, (width, height)).astype(int).tolist()
        if left < right and top < bottom:
            inside_HW = _inside(self.points_P2 - (left, top), ImageSize(bottom - top, right - left))
            ids_HW[top:bottom, left:right][inside_HW] = class_id


@dataclass(frozen=True, eq=False)
class OutlinedShape:
    """A shape that Pillow draws, its outline included.

    Args:
        kind: ``polygon``; ``rectangle`` (two corners); ``circle`` (its centre and a point on it).
        points_P2: float64; the centre of pixel (x, y) is (x, y).
        holes: polygons that are cut out, their outlines included.

    Raises:
        ValueError: fewer points than the kind needs, more than 100,000, or one not finite or far away.
    """

    kind: Literal["polygon", "rectangle", "circle"]
    points_P2: Points
    holes: Sequence[Points] = ()

    def __post_init__(self) -> None:
        """Refuse points that are no such shape."""
        _check_points(self.points_P2, least=_LEAST_POINTS[self.kind])
        for hole_P2 in self.holes:
            _check_points(hole_P2, least=3)

    def paint(self, ids_HW: UInt8Array, class_id: int) -> None:
        """Give the pixels of the shape a class.

        Args:
            ids_HW: of the whole picture, uint8; changed.
            class_id: 0..255.
        """
        height, width = ids_HW.shape
        canvas = Image.new("L", (width, height))
        draw = ImageDraw.Draw(canvas)
        if self.kind == "polygon":
            draw.polygon(self.points_P2.reshape(-1).tolist(), fill=1, outline=1)
        elif self.kind == "rectangle":
            corners = [*self.points_P2[:2].min(axis=0), *self.points_P2[:2].max(axis=0)]
            draw.rectangle(corners, fill=1, outline=1)
        else:
            center, radius = self.points_P2[0], math.dist(self.points_P2[0], self.points_P2[1])
            draw.ellipse([*(center - radius), *(center + radius)], fill=1, outline=1)
        for hole_P2 in self.holes:
            draw.polygon(hole_P2.reshape(-1).tolist(), fill=0, outline=0)
        ids_HW[np.asarray(canvas) > 0] = class_id


@dataclass(frozen=True, eq=False)
class Bitmap:
    """A mask that covers a rectangle of the picture.

    Args:
        mask_HW: bool; true within the region.
        left: column of the mask's first pixel.
        top: row of the mask's first pixel.
    """

    mask_HW: BoolArray
    left: int = 0
    top: int = 0

    def paint(self, ids_HW: UInt8Array, class_id: int) -> None:
        """Give the pixels of the mask a class.

        Args:
            ids_HW: of the whole picture, uint8; changed.
            class_id: 0..255.

        Raises:
            ValueError: the mask does not lie within the picture.
        """
        height, width = self.mask_HW.shape
        bottom, right = self.top + height, self.left + width
        if min(self.left, self.top) < 0 or right > ids_HW.shape[1] or bottom > ids_HW.shape[0]:
            raise ValueError(
                f"a mask of {height}x{width} pixels at column {self.left}, row {self.top} "
                f"does not lie within {ids_HW.shape[0]}x{ids_HW.shape[1]} pixels"
            )
        ids_HW[self.top : bottom, self.left : right][self.mask_HW] = class_id


@dataclass(frozen=True)
class RunLengths:
    """A mask as the lengths of its runs, the first one outside.

    Args:
        counts: pixels of each run; together those of ``size``.
        size: of the mask.
        by_columns: the runs go down the columns, as in COCO, not along the rows, as in CVAT.
        left: column of the mask's first pixel.
        top: row of the mask's first pixel.
    """

    counts: Sequence[int]
    size: ImageSize
    by_columns: bool = False
    left: int = 0
    top: int = 0

    def paint(self, ids_HW: UInt8Array, class_id: int) -> None:
        """Give the pixels of the mask a class.

        Args:
            ids_HW: of the whole picture, uint8; changed.
            class_id: 0..255.

        Raises:
            ValueError: the runs do not add up, or the mask does not lie within the picture.
        """
        if min(self.counts, default=0) < 0 or sum(self.counts) != self.size.pixels:
            raise ValueError(f"run lengths do not add up to the {self.size} pixels of their mask")
        if self.size.pixels > ids_HW.size:
            raise ValueError(f"a mask of {self.size} pixels is larger than its picture")
        flat = np.repeat(np.arange(len(self.counts)) % 2 == 1, self.counts)
        height, width = self.size.shape
        mask_HW = flat.reshape(width, height).T if self.by_columns else flat.reshape(height, width)
        Bitmap(mask_HW, self.left, self.top).paint(ids_HW, class_id)


def coco_counts(text: str) -> list[int]:
    """Read the run lengths that COCO writes as text.

    Each number is a row of digits of 5 bits, the lowest first; a sixth bit says that another digit follows.
    From the fourth number on they are differences to the number before the last.

    Args:
        text: characters of 6 bits, counted from ``0``.

    Raises:
        ValueError: a character means nothing, or the last number is cut off.

    Source:
        ``rleFrString`` of the COCO API.
    """
    counts: list[int] = []
    value = shift = 0
    for digit in (ord(character) - ord("0") for character in text):
        if not 0 <= digit < 1 << 6:
            raise ValueError("run lengths hold a character that means nothing")
        value |= (digit & 0b11111) << shift
        shift += 5
        if digit & 0b100000:
            continue
        if digit & 0b10000:
            value -= 1 << shift
        counts.append(value + counts[-2] if len(counts) > 2 else value)  # noqa: PLR2004
        value = shift = 0
    if shift:
        raise ValueError("run lengths end within a number")
    return counts


def ellipse(center_2: Points, radii_2: Points, rotation: float) -> Points:
    """Return the outline of an ellipse as 96 points.

    Args:
        center_2: x and y.
        radii_2: across and down, before it is turned.
        rotation: clockwise, in degrees.
    """
    angle_P = np.arange(_ELLIPSE_POINTS) * (2 * math.pi / _ELLIPSE_POINTS)
    circle_P2 = np.stack([np.cos(angle_P), np.sin(angle_P)], axis=1)
    return turned(center_2 + circle_P2 * radii_2, center_2, rotation)


def turned(points_P2: Points, pivot_2: Points, rotation: float) -> Points:
    """Return the points turned around a pivot.

    Args:
        points_P2: x to the right, y down.
        pivot_2: x and y.
        rotation: clockwise, in degrees.
    """
    angle = math.radians(rotation)
    turn_22 = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    turned_P2: Points = (points_P2 - pivot_2) @ turn_22 + pivot_2
    return turned_P2


def _check_points(points_P2: Points, *, least: int) -> None:
    if points_P2.ndim != 2 or points_P2.shape[1] != 2:  # noqa: PLR2004
        raise ValueError("points are pairs of x and y")
    if not least <= len(points_P2) <= _MAX_POINTS:
        raise ValueError(f"{len(points_P2)} points, not {least}..{_MAX_POINTS}")
    if not (np.abs(points_P2) <= _MAX_COORDINATE).all():  # also false for NaN
        raise ValueError("a point is not finite, or far outside of the picture")


def _inside(points_P2: Points, size: ImageSize) -> BoolArray:
    """Return which pixels of a rectangle at the origin have their centre inside the line.

    In each row whose centre line an edge crosses, sides change at the first pixel whose centre is at or right
    of the crossing. A pixel is inside after an odd number of changes.
    """
    x_E, y_E = points_P2.T
    x_next_E, y_next_E = np.roll(points_P2, -1, axis=0).T
    first_E = np.clip(np.ceil(np.minimum(y_E, y_next_E) - 0.5), 0, size.height).astype(np.int64)
    end_E = np.clip(np.ceil(np.maximum(y_E, y_next_E) - 0.5), 0, size.height).astype(np.int64)
    rows_E = end_E - first_E
    if rows_E.sum() > _MAX_CROSSINGS:
        raise ValueError(f"the line crosses rows more than {_MAX_CROSSINGS} times")
    edge_C = np.repeat(np.arange(len(rows_E)), rows_E)
    row_C = np.arange(len(edge_C)) - np.repeat(np.cumsum(rows_E) - rows_E, rows_E) + first_E[edge_C]
    slope_C = (x_next_E - x_E)[edge_C] / (y_next_E - y_E)[edge_C]
    crossing_C = x_E[edge_C] + (row_C + 0.5 - y_E[edge_C]) * slope_C
    column_C = np.clip(np.ceil(crossing_C - 0.5), 0, size.width).astype(np.int64)
    changes_HW = np.zeros((size.height, size.width + 1), np.bool_)
    place, count = np.unique(row_C * (size.width + 1) + column_C, return_counts=True)
    changes_HW.reshape(-1)[place] = count % 2 == 1
    inside_HW: BoolArray = np.logical_xor.accumulate(changes_HW[:, :-1], axis=1)
    return inside_HW
