"""Reads projects of Supervisely: ``meta.json``, and for each picture a file in ``ann``.

Source:
    The format description in the documentation of Supervisely.
"""

from __future__ import annotations

import contextlib
import posixpath
import zlib
from collections.abc import Iterator
from functools import partial

import numpy as np
from PIL import Image

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
from training.interchange.shapes import OutlinedShape, Points, Region
from training.interchange.source import Source
from training.interchange.split_names import named_split, split_of
from training.interchange.tally import Tally
from training.interchange.values import base64_bytes, hex_color, image_size

_META = "meta.json"
_ANNOTATIONS = "ann"
_MAX_BITMAP_BYTES = 64 << 20


class _Class(Record):
    title: str
    color: str = ""


class _Tag(Record):
    name: str


class _Meta(Record):
    classes: list[_Class]


class _Size(Record):
    height: int
    width: int


class _Points(Record):
    exterior: list[tuple[float, float]]
    interior: tuple[list[tuple[float, float]], ...] = ()


class _Bitmap(Record):
    data: str
    origin: tuple[int, int]


class _Object(Record):
    classTitle: str
    geometryType: str
    points: _Points | None = None
    bitmap: _Bitmap | None = None


class _File(Record):
    size: _Size
    objects: list[_Object]
    tags: tuple[_Tag, ...] = ()


def read_supervisely(source: Source, left_out: Tally, options: ReadOptions) -> ForeignDataset:
    """Read a project of Supervisely.

    The split of a picture is the one that its data set, or one of its tags, is named after.

    Args:
        source: holds ``meta.json``, and for each picture ``DATASET/img/NAME`` and ``DATASET/ann/NAME.json``.
        left_out: counts the records that are not taken.
        options: further choices of the user.

    Raises:
        InterchangeError: it is no such project, or a file is malformed.
    """
    metas = [name for name in source.names if posixpath.basename(name) == _META]
    files = [
        name
        for name in source.with_suffix(".json")
        if posixpath.basename(posixpath.dirname(name)) == _ANNOTATIONS
    ]
    if not metas or not files:
        raise InterchangeError(
            f"there is no project of Supervisely: {_META}, and JSON files in folders {_ANNOTATIONS}"
        )
    meta = parse(_Meta, source.read(metas[0]), metas[0])
    reader = _Reader(source, left_out, keep_empty=options.keep_empty)
    return ForeignDataset(
        classes=[ForeignClass(one.title, hex_color(one.color)) for one in meta.classes],
        pictures=[picture for name in files if (picture := reader.picture(name)) is not None],
        drawing_order="later objects of a file lie above earlier ones",
    )


class _Reader:
    def __init__(self, source: Source, left_out: Tally, *, keep_empty: bool) -> None:
        self._source = source
        self._left_out = left_out
        self._keep_empty = keep_empty

    def picture(self, name: str) -> ForeignPicture | None:
        """Return the picture of one file, if it is taken."""
        file = parse(_File, self._source.read(name), name)
        folder, file_name = posixpath.split(name)
        said = posixpath.join(posixpath.dirname(folder), "img", posixpath.splitext(file_name)[0])
        picture = said if said in self._source else self._source.find(posixpath.basename(said), near=name)
        shapes = Shapes(list(self._shapes(file, name)))
        if picture is None:
            self._left_out.add("pictures that are missing", name)
        elif not shapes.shapes and not self._keep_empty:
            self._left_out.add("pictures without an object", name, file=picture)
        else:
            size = image_size(file.size.height, file.size.width, name)
            return ForeignPicture(picture, name, shapes, _split(file, name), size)
        return None

    def _shapes(self, file: _File, name: str) -> Iterator[Shape]:
        for number, one in enumerate(file.objects, 1):
            where = f"{name}, object {number} ({one.classTitle})"
            try:
                region = _region(one, where)
            except ValueError as error:
                raise InterchangeError(f"{where}: {error}") from error
            if region is None:
                self._left_out.add(f"objects of kind {one.geometryType}, which have no area", where)
            else:
                yield Shape(one.classTitle, region, where)


def _region(one: _Object, where: str) -> Region | None:
    if one.geometryType == "bitmap" and one.bitmap is not None:
        left, top = one.bitmap.origin
        return EncodedBitmap(partial(_decoded_bitmap, one.bitmap.data, where), left=left, top=top)
    if one.points is None:
        return None
    exterior_P2, *holes = (_points(points) for points in (one.points.exterior, *one.points.interior))
    if one.geometryType == "polygon":
        return OutlinedShape("polygon", exterior_P2, holes)
    return OutlinedShape("rectangle", exterior_P2) if one.geometryType == "rectangle" else None


def _decoded_bitmap(text: str, where: str) -> Image.Image:
    """Decode the PNG file of an object, which may be compressed once more; of RGBA the opacity counts."""
    data = base64_bytes(text, where)
    with contextlib.suppress(zlib.error):  # where it is not compressed once more
        data = zlib.decompressobj().decompress(data, _MAX_BITMAP_BYTES)
    mask = decode_mask(data, where, None)
    return mask.getchannel("A") if mask.mode == "RGBA" else mask


def _points(points: list[tuple[float, float]]) -> Points:
    return np.array(points, np.float64).reshape(-1, 2)


def _split(file: _File, name: str) -> str:
    return split_of(name) or next((split for tag in file.tags if (split := named_split(tag.name))), "")
