"""Pictures on local disks, in more formats than the service takes from a network.

JPEG, WebP and 8-bit PNG go through ``model.pictures.image``, so that a picture gets the same pixels here and
over a network. Pillow's readers decode the rest, as they are: they may warn, take more memory, and trust a
file more than bytes of strangers deserve.

Axes: H height, W width, 3 = red green blue.
"""

from __future__ import annotations

import sys
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from io import BytesIO
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile, ImageOps

from model.errors import (
    EmptyImageError,
    ImageError,
    TooManyPixelsError,
    UndecodableImageError,
    UnsupportedImageError,
)
from model.labels import UInt8Array
from model.pictures.image import DEFAULT_LIMITS, ImageLimits, decode_image

LOCAL_SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".tif", ".tiff", ".bmp"}) | {
    *(".dib", ".gif", ".avif", ".jp2", ".pbm", ".pgm", ".ppm", ".pnm")
}
"""Names of pictures that every installation decodes."""

HEIC_SUFFIXES = frozenset({".heic", ".heif"})
"""Names of pictures that need ``pillow-heif``."""

HEIC_EXTRA = "pip install 'bisenet-service[heic]'"

_READERS = ("AVIF", "BMP", "DIB", "GIF", "JPEG2000", "PNG", "PPM", "TIFF")
"""Pillow's readers that start no other program (as EPS does), for formats that cameras and scanners write."""

_KNOWN = "JPEG, PNG, WebP, TIFF, BMP, GIF, AVIF, JPEG 2000, PPM and HEIC"

_HEIC_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx"})
_SNIFFED_BYTES = 16  # read by Pillow to recognise a format
_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
_PNG_DEPTH_AT = 24

_FULL_BITS = 16
_LEAST_BITS = 8
_MAX_8_BIT = 255
_MAX_16_BIT = 65_535
_COLOUR_AXES = 3
_COLOURS_16 = ("RGB;16", "RGBX;16", "RGBA;16")

UInt16Array = npt.NDArray[np.uint16]

_pillow_warnings = threading.Lock()
"""Guards ``warnings.catch_warnings``, which changes the filters of all threads."""


@dataclass(frozen=True, eq=False)
class LocalImage:
    """A picture of a local file.

    Attributes:
        image_HW3: upright uint8 RGB.
        used_bits: bits of the largest value of a 16-bit picture, 0..16; None for other pictures.
        pictures: how many the file holds. ``image_HW3`` is the first one.
    """

    image_HW3: UInt8Array
    used_bits: int | None = None
    pictures: int = 1


def has_heic_reader() -> bool:
    """Return whether HEIC pictures can be decoded."""
    return _heic_reader() is not None


def decode_local_image(
    data: bytes, limits: ImageLimits = DEFAULT_LIMITS, *, bits: int = _FULL_BITS
) -> LocalImage:
    """Decode the first picture of a local file.

    Transparency is dropped. Of values with 16 bits, 8 are kept.

    Args:
        data: the whole file.
        limits: checked before any pixel is decoded.
        bits: how many bits of a 16-bit picture are in use, 8..16: the highest 8 of these are kept. A larger
            value counts as the largest one that has so many bits.

    Raises:
        EmptyImageError: there are no bytes.
        UnsupportedImageError: no reader knows the format.
        TooManyPixelsError: the picture is larger than ``limits``.
        UndecodableImageError: the file is damaged, or its pixels have more than 16 bits.
    """
    if not data:
        raise EmptyImageError("there are no bytes")
    if not _needs_pillow(data):
        return LocalImage(decode_image(data, limits))
    with _pillow_warnings, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return _decode(data, limits, bits)
        except ImageError:
            raise
        except Exception as error:  # a reader raises anything for a damaged file; the cause stays attached
            raise UndecodableImageError("the picture is damaged or incomplete") from error


def _needs_pillow(data: bytes) -> bool:
    if data.startswith(_PNG_MAGIC):
        return data[_PNG_DEPTH_AT : _PNG_DEPTH_AT + 1] == bytes([_FULL_BITS])
    is_webp = data.startswith(b"RIFF") and data[8:12] == b"WEBP"
    return not (is_webp or data.startswith(b"\xff\xd8\xff"))


def _decode(data: bytes, limits: ImageLimits, bits: int) -> LocalImage:
    picture = _opened(data)
    width, height = picture.size
    if width * height > limits.max_pixels or max(width, height) > limits.max_side:
        raise TooManyPixelsError(
            f"{height}x{width}: {limits.max_pixels} pixels and {limits.max_side} pixels a side are allowed"
        )
    pictures = int(getattr(picture, "n_frames", 1))
    values = _values_16(picture, data)
    if values is None:
        return LocalImage(np.array(_upright(picture).convert("RGB")), pictures=pictures)
    used_bits = int(values.max()).bit_length()
    bytes_HW = np.minimum(values >> (bits - _LEAST_BITS), _MAX_8_BIT).astype(np.uint8)
    image_HW3 = bytes_HW if bytes_HW.ndim == _COLOUR_AXES else np.repeat(bytes_HW[..., np.newaxis], 3, axis=2)
    return LocalImage(image_HW3, used_bits, pictures)


def _opened(data: bytes) -> ImageFile.ImageFile:
    """Open a file with the reader that knows its first bytes; nothing is decoded yet.

    ``Image.open`` would refuse pictures that the limits allow: it has a limit of its own.
    """
    if data[4:8] == b"ftyp" and data[8:12] in _HEIC_BRANDS:
        reader = _heic_reader()
        if reader is None:
            raise UnsupportedImageError(f"HEIC pictures need an extra: {HEIC_EXTRA}")
        return reader(BytesIO(data))
    Image.init()
    for name in _READERS:
        factory, accepts = Image.OPEN[name]
        # A reader that lacks its library answers with a sentence.
        if accepts is not None and accepts(data[:_SNIFFED_BYTES]) is True:
            return factory(BytesIO(data), "")
    raise UnsupportedImageError(f"the first bytes are not those of a picture: known are {_KNOWN}")


def _heic_reader() -> Callable[[BytesIO], ImageFile.ImageFile] | None:
    try:
        reader: Callable[[BytesIO], ImageFile.ImageFile] = import_module("pillow_heif").HeifImageFile
    except ImportError:
        return None
    return reader


def _upright(picture: Image.Image) -> Image.Image:
    return ImageOps.exif_transpose(picture)


def _values_16(picture: ImageFile.ImageFile, data: bytes) -> UInt16Array | None:
    """Return the values of a picture with more than 8 bits, HW or HW3; None for other pictures."""
    if picture.mode == "F":
        raise UndecodableImageError(
            "the pixels are floating-point numbers: save the picture with 8 or 16 bits"
        )
    if picture.mode == "I":
        values_HW = np.asarray(_upright(picture))
        if values_HW.min() < 0 or values_HW.max() > _MAX_16_BIT:
            raise UndecodableImageError("the pixels have 32 bits: save the picture with 8 or 16 bits")
        return values_HW.astype(np.uint16)
    if picture.mode.startswith("I;16"):
        return np.asarray(_upright(picture)).astype(np.uint16)
    if not picture.tile or not all(_raw_mode(tile).startswith(_COLOURS_16) for tile in picture.tile):
        return None
    # Of 16-bit colours Pillow keeps one byte. Read with the other byte order, it keeps the other one.
    other = _opened(data)
    other.tile = [_with_other_byte_order(tile) for tile in other.tile]
    high_HW3, low_HW3 = (np.asarray(_upright(each).convert("RGB"), np.uint16) for each in (picture, other))
    values_HW3: UInt16Array = high_HW3 << np.uint16(8) | low_HW3
    return values_HW3


def _raw_mode(tile: Any) -> str:
    return str(tile.args[0] if isinstance(tile.args, tuple) else tile.args)


def _with_other_byte_order(tile: Any) -> Any:
    raw_mode = _raw_mode(tile)
    native = "L" if sys.byteorder == "little" else "B"
    order = native if raw_mode.endswith("N") else raw_mode[-1]
    other = raw_mode[:-1] + {"L": "B", "B": "L"}[order]
    return tile._replace(args=(other, *tile.args[1:]) if isinstance(tile.args, tuple) else other)
