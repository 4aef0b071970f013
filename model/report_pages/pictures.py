"""Pictures of a report: a photo, label maps in the colours of their classes, and where two of them differ.

Axes: H height, W width, 3 = red green blue.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from model.labels import ClassPalette, UInt8Array
from model.report_pages.markup import Markup, tag

MAX_SIDE = 640
"""Longer side of a picture in a report, in pixels."""

_QUALITY = 85
_EQUAL, _WRONG, _UNSCORED = range(3)
_DIFFERENCE_COLORS = ((236, 238, 241), (194, 51, 77), (120, 126, 134))


@dataclass(frozen=True)
class Tile:
    """One picture of a row.

    Attributes:
        what: for example ``truth``; stands below the picture.
        source: address of the picture.
    """

    what: str
    source: str


def row(name: str, note: str, tiles: Sequence[Tile], *, id_: str | None = None) -> Markup:
    """Return pictures that belong together, side by side.

    Args:
        name: name of the photo.
        note: text beside the name; may be empty.
        tiles: the pictures.
        id_: of the element, for links.
    """
    drawn = (
        tag("figure", tag("img", src=one.source, alt=f"{one.what} of {name}"), tag("figcaption", one.what))
        for one in tiles
    )
    title = tag("h3", name, " ", tag("span", note, class_="hint"))
    return tag("div", title, tag("div", *drawn, class_="tiles"), class_="pictures", id=id_)


def photo_jpeg(image_HW3: UInt8Array, side: int = MAX_SIDE) -> bytes:
    """Return a photo as JPEG, its longer side at most ``side`` pixels."""
    image = Image.fromarray(image_HW3)
    image.thumbnail((side, side))
    return _encoded(image, "JPEG", quality=_QUALITY)


def labels_png(ids_HW: UInt8Array, palette: ClassPalette, side: int = MAX_SIDE) -> bytes:
    """Return class ids as a PNG in the colours of their classes; ids without a class are black."""
    return _indexed(ids_HW, palette.rgb_table.tobytes(), side)


def difference_png(
    truth_HW: UInt8Array, guess_HW: UInt8Array, palette: ClassPalette, side: int = MAX_SIDE
) -> bytes:
    """Return a PNG: light where the guess is right, red where it is wrong, grey where nothing is scored."""
    kinds_HW = np.where(truth_HW == guess_HW, np.uint8(_EQUAL), np.uint8(_WRONG))
    kinds_HW[truth_HW == palette.ignore_id] = _UNSCORED
    return _indexed(kinds_HW, bytes(value for color in _DIFFERENCE_COLORS for value in color), side)


def data_url(content: bytes) -> str:
    """Return a JPEG or PNG as an address that holds it."""
    kind = "png" if content.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _indexed(ids_HW: UInt8Array, table: bytes, side: int) -> bytes:
    image = Image.fromarray(ids_HW).convert("P")
    image.putpalette(table)
    # Nearest: a colour between those of two classes could be that of a third one.
    image.thumbnail((side, side), Image.Resampling.NEAREST)
    return _encoded(image, "PNG")


def _encoded(image: Image.Image, kind: str, **options: int) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()
