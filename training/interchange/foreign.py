"""The result of every reader of a foreign format: classes, pictures, and their labels.

Axes: H height, W width, 3 = red green blue.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

import numpy as np

from model.labels import ClassPalette, Color, UInt8Array
from model.pictures.preprocess import ImageSize
from training.errors import InterchangeError
from training.interchange.shapes import Region


class Uncovered(Enum):
    """The meaning of pixels that no shape covers."""

    BACKGROUND = "background"
    IGNORED = "ignore"
    IMPOSSIBLE = "impossible"  # the masks of the format say the class of every pixel


@dataclass(frozen=True)
class ForeignClass:
    """One class of a foreign data set.

    Args:
        name: as the format has it.
        color: as the format has it; None = it has none.
    """

    name: str
    color: Color | None = None


@dataclass(frozen=True)
class ReadOptions:
    """Choices of the user about the reading of any format.

    Args:
        classes: the classes, in place of those that the source lists.
        keep_empty: pictures without a shape are taken, as background.
        color_tolerance: a colour of no class is read as the nearest one if no channel differs by more than
            this.
    """

    classes: ClassPalette | None = None
    keep_empty: bool = False
    color_tolerance: int = 0


@dataclass(frozen=True)
class ClassIds:
    """The ids of the classes of the source.

    Args:
        palette: the classes of the result.
        ids: name in the source -> class id or ignore id.
        background: id of the pixels that no shape covers.
    """

    palette: ClassPalette
    ids: Mapping[str, int]
    background: int

    def id_of(self, name: str, where: str) -> int:
        """Return the id of a class.

        Args:
            name: as the source has it.
            where: file and shape, for the message.

        Raises:
            InterchangeError: the class is not one of the list.
        """
        try:
            return self.ids[name]
        except KeyError:
            raise InterchangeError(
                f"{where}: {name!r} is none of the classes: add it to the class list, or leave it out with "
                f"--ignore {name!r}"
            ) from None


class Labels(Protocol):
    """The labels of one picture, which can be drawn."""

    def own_size(self) -> ImageSize | None:
        """Return the size that a mask has; None = shapes can be drawn in any.

        Raises:
            InterchangeError: the mask is unreadable.
        """
        ...

    def ids(self, size: ImageSize, classes: ClassIds) -> UInt8Array:
        """Return ids_HW, uint8: class ids and the ignore id.

        Args:
            size: of the picture, as it was labelled.
            classes: names -> ids.

        Raises:
            InterchangeError: a shape or a mask is malformed; the message names file and shape.
        """
        ...


@dataclass(frozen=True)
class Shape:
    """One labelled region.

    Args:
        class_name: as the source has it.
        region: its pixels.
        where: file and shape, for messages.
    """

    class_name: str
    region: Region
    where: str


@dataclass(frozen=True)
class Shapes:
    """Labels that are drawn one shape after the other: later ones cover earlier ones.

    Args:
        shapes: in the order of drawing.
    """

    shapes: Sequence[Shape]

    def own_size(self) -> ImageSize | None:
        """Return None: shapes can be drawn in any size."""
        return None

    def ids(self, size: ImageSize, classes: ClassIds) -> UInt8Array:
        """Draw the shapes on the background.

        Args:
            size: of the picture, as it was labelled.
            classes: names -> ids.

        Raises:
            InterchangeError: a shape cannot be drawn, or its class is not in the list.
        """
        ids_HW = np.full(size.shape, classes.background, np.uint8)
        for shape in self.shapes:
            class_id = classes.id_of(shape.class_name, shape.where)
            try:
                shape.region.paint(ids_HW, class_id)
            except ValueError as error:
                raise InterchangeError(f"{shape.where}: {error}") from error
        return ids_HW


@dataclass(frozen=True)
class ForeignPicture:
    """One labelled picture.

    Args:
        name: of its file in the source; of an embedded picture the name to give it.
        origin: the file that says its labels, for messages.
        labels: can be drawn.
        split: ``train``, ``val`` or ``test``; "" = the source does not say.
        size: of the picture as it was labelled; None = the source does not say.
        embedded: returns the picture's bytes where an annotation holds them; None = ``name`` is a file.
    """

    name: str
    origin: str
    labels: Labels
    split: str = ""
    size: ImageSize | None = None
    embedded: Callable[[], bytes] | None = None


@dataclass(frozen=True)
class ForeignDataset:
    """All that a reader found.

    Args:
        classes: in the order of their ids.
        pictures: in any order.
        drawing_order: order of overlapping shapes, one sentence.
        uncovered: meaning of pixels that no shape covers; the user may change it.
        ignored: classes whose pixels the format itself does not count.
    """

    classes: Sequence[ForeignClass]
    pictures: Sequence[ForeignPicture]
    drawing_order: str
    uncovered: Uncovered = Uncovered.BACKGROUND
    ignored: frozenset[str] = frozenset()
