"""Reads the JSON files of labelme: one for each picture.

Source:
    ``labelme.utils.shapes_to_label``, which draws the shapes in their order.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from functools import partial
from typing import Literal

import numpy as np

from model.pictures.preprocess import ImageSize
from training.errors import InterchangeError
from training.interchange.color_masks import EncodedBitmap, decode_mask
from training.interchange.foreign import (
    ForeignClass,
    ForeignDataset,
    ForeignPicture,
    ReadOptions,
    Shape,
    Shapes,
)
from training.interchange.json_files import Record, parse
from training.interchange.shapes import OutlinedShape, Region
from training.interchange.source import Source
from training.interchange.split_names import split_of
from training.interchange.tally import Tally
from training.interchange.values import base64_bytes, image_size

_IGNORED = "__ignore__"
_OUTLINED: dict[str, Literal["polygon", "rectangle", "circle"]] = {
    "polygon": "polygon",
    "oriented_rectangle": "polygon",
    "rectangle": "rectangle",
    "circle": "circle",
}


class _Shape(Record):
    label: str
    points: list[tuple[float, float]]
    shape_type: str | None = "polygon"
    mask: str | None = None


class _File(Record):
    shapes: list[_Shape]
    imagePath: str = ""
    imageData: str | None = None
    imageHeight: int | None = None
    imageWidth: int | None = None


def read_labelme(source: Source, left_out: Tally, options: ReadOptions) -> ForeignDataset:
    """Read the JSON files of labelme.

    Args:
        source: holds them and their pictures; where a picture is missing, the copy in its JSON file is taken.
        left_out: counts the records that are not taken.
        options: further choices of the user.

    Raises:
        InterchangeError: there is no such file, or one is malformed.
    """
    reader = _Reader(source, left_out, keep_empty=options.keep_empty)
    pictures = [picture for name in source.with_suffix(".json") for picture in reader.pictures(name)]
    if not reader.files:
        raise InterchangeError("there is no JSON file of labelme, with the key shapes")
    return ForeignDataset(
        classes=[ForeignClass(name) for name in sorted(reader.labels)],
        pictures=pictures,
        drawing_order="later shapes of a file lie above earlier ones",
        ignored=frozenset({_IGNORED}),
    )


class _Reader:
    def __init__(self, source: Source, left_out: Tally, *, keep_empty: bool) -> None:
        self._source = source
        self._left_out = left_out
        self._keep_empty = keep_empty
        self.labels: set[str] = set()
        self.files = 0

    def pictures(self, name: str) -> Iterator[ForeignPicture]:
        """Yield the picture of one file, if it is taken."""
        data = self._source.read(name)
        if b'"shapes"' not in data:
            self._left_out.add("JSON files of another program", name)
            return
        file = parse(_File, data, name)
        self.files += 1
        shapes = list(self._shapes(file, name))
        split = split_of(name)
        picture = self._source.find(file.imagePath, near=name, split=split) if file.imagePath else None
        if not shapes and not self._keep_empty:
            self._left_out.add("pictures without a shape", name, file=picture)
        elif picture is not None:
            yield ForeignPicture(picture, name, Shapes(shapes), split, _size(file, name))
        elif file.imageData:
            called, embedded = posixpath.splitext(name)[0], partial(_embedded, self._source, name)
            yield ForeignPicture(called, name, Shapes(shapes), split, _size(file, name), embedded)
        else:
            self._left_out.add("pictures that are missing", f"{name}: {file.imagePath!r}")

    def _shapes(self, file: _File, name: str) -> Iterator[Shape]:
        for number, shape in enumerate(file.shapes, 1):
            where = f"{name}, shape {number} ({shape.label})"
            region = _region(shape, where)
            if region is None:
                self._left_out.add(f"shapes of kind {shape.shape_type}, which have no area", where)
            else:
                self.labels.add(shape.label)
                yield Shape(shape.label, region, where)


def _region(shape: _Shape, where: str) -> Region | None:
    points_P2 = np.array(shape.points, np.float64).reshape(-1, 2)
    kind = shape.shape_type or "polygon"
    try:
        if kind == "mask":
            return _bitmap(shape, where)
        return OutlinedShape(_OUTLINED[kind], points_P2) if kind in _OUTLINED else None
    except ValueError as error:
        raise InterchangeError(f"{where}: {error}") from error


def _bitmap(shape: _Shape, where: str) -> Region:
    if not shape.mask or not shape.points:
        raise ValueError("a shape of kind mask needs a mask and its first corner")
    left, top = (int(value) for value in shape.points[0])
    load = partial(decode_mask, base64_bytes(shape.mask, where), where, None)
    return EncodedBitmap(load, left=left, top=top)


def _embedded(source: Source, name: str) -> bytes:
    """Return the picture that a file holds."""
    return base64_bytes(parse(_File, source.read(name), name).imageData or "", name)


def _size(file: _File, name: str) -> ImageSize | None:
    if file.imageHeight is None or file.imageWidth is None:
        return None
    return image_size(file.imageHeight, file.imageWidth, name)
