"""Pictures as a run can decode them, and their labels as they lie on the upright picture."""

from __future__ import annotations

import io
from typing import NamedTuple

from PIL import Image

from model.errors import UnsupportedImageError
from model.labels import UInt8Array
from model.pictures.image import ImageHeader, peek_header, stored_size, turn_upright
from model.pictures.local_image import decode_local_image
from training.errors import InterchangeError
from training.interchange.foreign import ClassIds, ForeignPicture

CONVERTED = "pictures of another format that were written as PNG"
TURNED = "pictures that EXIF turns, with labels that were drawn on the stored pixels and turned along"
ASSUMED_UPRIGHT = "pictures that EXIF mirrors or turns by 180 degrees, with labels taken as drawn upright"

_SUFFIXES = {b"\xff\xd8\xff": ".jpg", b"\x89PN": ".png", b"RIF": ".webp"}
_NOT_TURNED = 1


class TrainablePicture(NamedTuple):
    """A picture that a run can decode.

    Attributes:
        data: the file.
        header: of the file.
        suffix: of its format.
        note: ``CONVERTED`` or "".
    """

    data: bytes
    header: ImageHeader
    suffix: str
    note: str


def trainable_picture(data: bytes) -> TrainablePicture:
    """Return JPEG, PNG and WebP as they are, and other pictures as upright PNG.

    Args:
        data: the whole file.

    Raises:
        ImageError: nothing can read it, or it is too large.
    """
    note = ""
    try:
        header = peek_header(data)
    except UnsupportedImageError:
        png = io.BytesIO()
        Image.fromarray(decode_local_image(data).image_HW3).save(png, "PNG")
        data, note = png.getvalue(), CONVERTED
        header = peek_header(data)
    return TrainablePicture(data, header, _SUFFIXES[data[:3]], note)


def upright_ids(picture: ForeignPicture, header: ImageHeader, classes: ClassIds) -> tuple[UInt8Array, str]:
    """Draw the labels of a picture; those of one that EXIF turns may be of its stored pixels.

    Args:
        picture: has the labels and the size on which they were drawn.
        header: of the picture.
        classes: names -> ids.

    Returns:
        ids_HW: uint8, of the upright size.
        note: ``TURNED``, ``ASSUMED_UPRIGHT`` or "".

    Raises:
        InterchangeError: the labels are of another size, or malformed.
    """
    drawn_on = picture.size or picture.labels.own_size() or header.size
    stored = stored_size(header.size, header.orientation)
    if drawn_on == header.size:
        is_open = stored == header.size and header.orientation != _NOT_TURNED
        return picture.labels.ids(header.size, classes), ASSUMED_UPRIGHT if is_open else ""
    if drawn_on == stored:
        return turn_upright(picture.labels.ids(stored, classes), header.orientation), TURNED
    raise InterchangeError(
        f"{picture.origin}: was drawn on {drawn_on} pixels, but {picture.name} has {header.size}: restore "
        "that picture, or export the labels again"
    )
