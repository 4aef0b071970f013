"""Values that files of several formats hold in the same way."""

from __future__ import annotations

import base64

from model.labels import Color
from model.pictures.preprocess import ImageSize
from training.errors import InterchangeError


def hex_color(text: str) -> Color | None:
    """Return the colour that ``#rrggbb`` means; None for any other text."""
    try:
        red, green, blue = bytes.fromhex(text.removeprefix("#"))
    except ValueError:
        return None
    return red, green, blue


def image_size(height: int, width: int, where: str) -> ImageSize:
    """Return a size that a file states.

    Raises:
        InterchangeError: a side is not positive.
    """
    try:
        return ImageSize(height, width)
    except ValueError as error:
        raise InterchangeError(f"{where}: {error}") from error


def base64_bytes(text: str, where: str) -> bytes:
    """Return the bytes that base64 text holds.

    Raises:
        InterchangeError: it is no such text.
    """
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:
        raise InterchangeError(f"{where}: not base64: {error}") from error
