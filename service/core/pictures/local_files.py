"""Files of pictures in folders and buckets: which of them are read, how, and the names of their masks."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import PurePath

from model.errors import ImageError, TooManyPixelsError
from model.pictures.image import ImageLimits
from model.pictures.local_image import (
    HEIC_EXTRA,
    HEIC_SUFFIXES,
    LOCAL_SUFFIXES,
    LocalImage,
    decode_local_image,
    has_heic_reader,
)
from service.core.pictures.picture import IMAGE_ERRORS

FILM_SUFFIXES = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ogv", ".webm"}) | {
    *(".3gp", ".flv", ".m2ts", ".mts", ".ts", ".wmv")
}
"""Names of films."""

HIDDEN = "hidden"
"""The kind of files whose names begin with a dot."""

FULL_BITS = 16
"""Bits of 16-bit pictures that are in use, where nothing else is known."""


def readable_suffixes() -> frozenset[str]:
    """Return the suffixes of the pictures that this installation decodes."""
    return LOCAL_SUFFIXES | HEIC_SUFFIXES if has_heic_reader() else LOCAL_SUFFIXES


def other_kind(name: str, suffixes: frozenset[str]) -> str | None:
    """Return the kind of a file that is not read, for people, by its name; None for a picture.

    Args:
        name: of the file, without folders.
        suffixes: of pictures that are decoded.
    """
    suffix = PurePath(name).suffix.lower()
    if name.startswith("."):
        return HIDDEN
    if suffix in suffixes:
        return None
    if suffix in HEIC_SUFFIXES:
        return f"{suffix} ({HEIC_EXTRA})"
    if suffix in FILM_SUFFIXES:
        return f"{suffix} (name each film as an input of its own)"
    return os.fsencode(suffix).decode(errors="replace") or "without suffix"


def not_taken_line(not_taken: Mapping[str, int]) -> str:
    """Return the counts of files that are not read as one line, empty when there are none."""
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(not_taken.items()))
    return f"not taken: {kinds}" if kinds else ""


def mask_path(picture: PurePath) -> PurePath:
    """Return the path of a picture's mask: the same folders and stem."""
    return picture.with_name(f"{picture.stem}.png")


def read_picture(data: bytes, limits: ImageLimits, *, bits: int = FULL_BITS) -> LocalImage:
    """Decode a picture of a local file.

    Args:
        data: the whole file.
        limits: checked before any pixel is decoded.
        bits: of a 16-bit picture that are in use, 8..16.

    Raises:
        EmptyBodyError: there are no bytes.
        UnsupportedMediaError: no reader knows the format.
        TooManyPixelsError: the picture is larger than the limits.
        UndecodableImageError: the picture is damaged.
    """
    try:
        return decode_local_image(data, limits, bits=bits)
    except ImageError as error:
        advice = ""
        if isinstance(error, TooManyPixelsError):
            advice = ": raise limits.max_pixels or limits.max_side (BISENET_LIMITS__MAX_PIXELS=...)"
        raise IMAGE_ERRORS[type(error)](f"{error}{advice}") from error
