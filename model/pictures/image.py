"""Decoding of untrusted bytes into upright RGB pixels; every picture of this project passes here.

Policy: the first bytes decide between JPEG (the first picture of an MPO), PNG and WebP. Size limits are
checked against the header, before any pixel is decoded. The first frame counts. EXIF orientation is applied,
all other metadata is dropped. 16-bit gray keeps its high byte, transparency is dropped, other modes become
RGB as Pillow converts them.

This is not ``Image.open(...).convert("RGB")``, because the bytes are hostile and several threads decode:

- Memory. That line peaks at 10 bytes a pixel. Here Pillow decodes into a buffer of this module, in which the
  pixels are then packed: 4 bytes a pixel, 3 for gray and palette pictures, 7 for pictures that are turned.
  libjpeg adds 2 to 8 for pictures in several scans; libwebp needs 12 in all. The header tells which.
- Warnings. ``warnings.catch_warnings`` changes the whole process, and two threads undo each other's filters.
  So the code of Pillow that warns (EXIF and MPO directories, odd APNG headers, bombs) is never reached.
- Time. Pillow parses markers and chunks in Python, and each scan of a JPEG visits all pixels: both end.

Axes: H height, W width, 3 = red green blue.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image, ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from model.errors import EmptyImageError, TooManyPixelsError, UndecodableImageError, UnsupportedImageError
from model.labels import UInt8Array
from model.pictures.preprocess import ImageSize

__all__ = ["ImageHeader", "ImageLimits", "decode_image", "peek_header"]

_JPEG_MAGIC = b"\xff\xd8\xff"
_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
_ANIMATION_CHUNKS = (b"acTL", b"fcTL", b"fdAT")
_START_OF_SCAN = b"\xff\xda\x00"  # marker and high byte of its length, which is at most 14

_MAX_SCANS = 100
"""Encoders write about 10. A scan of 49 Mpx takes 5 ms and only 76 bytes: 20 MiB could last 20 minutes."""

_MAX_READS = 1 << 18
"""Bound on Pillow's loops over markers and chunks, about a second; 20,000 text chunks take 60,000 reads."""

_BAND_ROWS = 32
"""Rows that are converted at a time, so that they stay in the processor's cache."""

_RGB_BYTES = 3
_COEFFICIENT_BYTES = 2
_WEBP_BYTES = 12
"""libwebp composes any picture like an animation, in two RGBA frames, and copies from a third."""

_PIXEL = np.dtype("V3")  # copying pixels instead of bytes halves the time of a quarter turn

_ORIENTATION_TAG = 0x0112
_EXIF_SHORT = 3
_RAW_PROFILE = "Raw profile type exif"
_XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')

# Orientation -> (step over stored rows, step over stored columns, rows and columns swapped afterwards).
_TURNS = {
    1: (1, 1, False),
    2: (1, -1, False),
    3: (-1, -1, False),
    4: (-1, 1, False),
    5: (1, 1, True),
    6: (-1, 1, True),
    7: (-1, -1, True),
    8: (1, -1, True),
}

# Pillow's mode -> mode of the buffer it is decoded into, and its bytes a pixel.
_STORAGE = {
    "1": ("L", 1),
    "L": ("L", 1),
    "P": ("P", 1),
    "I;16": ("I;16", 2),
    "LA": ("RGBX", 4),
    "RGB": ("RGBX", 4),
    "RGBA": ("RGBX", 4),
    "CMYK": ("CMYK", 4),
}


@dataclass(frozen=True)
class ImageLimits:
    """Largest picture that is decoded, by the size in its header.

    Args:
        max_pixels: height times width.
        max_side: the longer side, in pixels.
    """

    max_pixels: int = 50_000_000
    max_side: int = 16_384


DEFAULT_LIMITS = ImageLimits()


@dataclass(frozen=True)
class ImageHeader:
    """Size and memory need of a picture, known before it is decoded.

    Attributes:
        size: upright size.
        decode_bytes: largest memory of ``decode_image``, its result included.
        orientation: orientation of the stored pixels, 1..8 as EXIF counts.
    """

    size: ImageSize
    decode_bytes: int
    orientation: int = 1


def decode_image(data: bytes | memoryview, limits: ImageLimits = DEFAULT_LIMITS) -> UInt8Array:
    """Decode a JPEG, PNG or WebP picture; safe for hostile bytes and for many threads.

    Args:
        data: the whole file.
        limits: checked before any pixel is decoded.

    Returns:
        image_HW3: upright RGB, uint8, C-contiguous and writable.

    Raises:
        EmptyImageError: there are no bytes.
        UnsupportedImageError: the first bytes are those of another format.
        TooManyPixelsError: the header declares more pixels than ``limits``.
        UndecodableImageError: the file is damaged or incomplete.
    """
    return decode_with_orientation(data, limits)[0]


def decode_with_orientation(
    data: bytes | memoryview, limits: ImageLimits = DEFAULT_LIMITS
) -> tuple[UInt8Array, int]:
    """Decode a picture and say how it was stored.

    Args:
        data: the whole file.
        limits: checked before any pixel is decoded.

    Returns:
        image_HW3: as ``decode_image`` returns it.
        orientation: 1..8 as EXIF counts; ``turn_upright`` applies it to an array of the stored size.

    Raises:
        ImageError: as ``decode_image``.
    """
    picture = _open(bytes(data), limits)
    orientation = _orientation(picture)
    return _upright_pixels(picture, orientation), orientation


def turn_upright(stored_HW: UInt8Array, orientation: int) -> UInt8Array:
    """Return an array that was drawn on the stored pixels of a picture as it lies on the upright ones.

    Args:
        stored_HW: one value a stored pixel; further axes are kept.
        orientation: 1..8 as EXIF counts.
    """
    row_step, column_step, is_swapped = _TURNS[orientation]
    turned = stored_HW[::row_step, ::column_step]
    return np.ascontiguousarray(turned.swapaxes(0, 1) if is_swapped else turned)


def stored_size(upright: ImageSize, orientation: int) -> ImageSize:
    """Return the size of a picture as its file stores it; given the stored size, return the upright one."""
    _, _, is_swapped = _TURNS[orientation]
    return ImageSize(upright.width, upright.height) if is_swapped else upright


def peek_header(data: bytes | memoryview, limits: ImageLimits = DEFAULT_LIMITS) -> ImageHeader:
    """Return the size and the memory need of a picture without decoding it.

    Args:
        data: the whole file.
        limits: largest picture.

    Raises:
        ImageError: the header is that of no picture within the limits.
    """
    picture = _open(bytes(data), limits)
    width, height = picture.size
    orientation = _orientation(picture)
    depth = max(_STORAGE[picture.mode][1], _RGB_BYTES)
    moving_bytes = depth if orientation == 1 else depth + _RGB_BYTES
    return ImageHeader(
        size=stored_size(ImageSize(height, width), orientation),
        decode_bytes=height * width * max(moving_bytes, depth + picture.library_bytes()),
        orientation=orientation,
    )


class _PictureFile(ImageFile.ImageFile):
    """A picture that Pillow decodes into ``canvas``, a buffer of this module."""

    canvas: Image.Image

    def library_bytes(self) -> int:
        """Return the memory that the library below Pillow holds while it decodes, in bytes a pixel."""
        return 0

    def load_prepare(self) -> None:
        """Give Pillow the canvas where it would allocate."""
        self.im = self.canvas.im
        super().load_prepare()


class _Jpeg(_PictureFile, JpegImageFile):
    def library_bytes(self) -> int:
        """Count all coefficients where another scan follows the one at which parsing stopped."""
        file = self.fp
        assert isinstance(file, BytesIO)
        has_more_scans = file.getvalue().find(_START_OF_SCAN, file.tell()) >= 0
        return _COEFFICIENT_BYTES * len(self.getbands()) if has_more_scans else 0

    def getexif(self) -> Image.Exif:
        """Return nothing: Pillow reads EXIF for the resolution alone, and warns of anything odd in it."""
        return Image.Exif()


class _Png(_PictureFile, PngImageFile):
    pass


class _WebP(_PictureFile, WebPImageFile):
    def library_bytes(self) -> int:
        """Count the frames beside the one that becomes the picture."""
        return _WEBP_BYTES - _STORAGE[self.mode][1]

    def load_prepare(self) -> None:
        """Release two RGBA frames of libwebp before the pixels are copied from the third."""
        self._decoder = None
        super().load_prepare()


class _BoundedReads(BytesIO):
    """A file that ends the parsing of too many tiny pieces."""

    reads_left = _MAX_READS

    def read(self, size: int | None = -1, /) -> bytes:
        """Read bytes, at most ``_MAX_READS`` times."""
        self.reads_left -= 1
        if self.reads_left < 0:
            raise OSError(f"more than {_MAX_READS} pieces")
        return super().read(size)


def _open(data: bytes, limits: ImageLimits) -> _PictureFile:
    if not data:
        raise EmptyImageError("there are no bytes")
    if data.startswith(_JPEG_MAGIC):
        reader: type[_PictureFile] = _Jpeg
        if data.count(_START_OF_SCAN) > _MAX_SCANS:
            raise UndecodableImageError(f"the picture has more than {_MAX_SCANS} scans")
    elif data.startswith(_PNG_MAGIC):
        reader = _Png
        data = _without_animation(data)
    elif data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        reader = _WebP
    else:
        raise UnsupportedImageError("the first bytes are not those of a JPEG, PNG or WebP file")
    with _library_errors():
        picture = reader(_BoundedReads(data))
    _check_limits(picture, limits)
    return picture


def _without_animation(png: bytes) -> bytes:
    """Return an APNG without its animation: its default picture remains."""
    if b"acTL" not in png:
        return png
    start = len(_PNG_MAGIC)
    kept = bytearray(png[:start])
    while start + 8 <= len(png):
        length, kind = struct.unpack_from(">I4s", png, start)
        end = start + 12 + length  # length and kind before the data, a checksum after it
        if kind not in _ANIMATION_CHUNKS:
            kept += png[start:end]
        start = end
    return bytes(kept)


@contextmanager
def _library_errors() -> Iterator[None]:
    """Raise an error of this project in place of any error of a parser, without its text."""
    try:
        yield
    except Image.DecompressionBombError as error:
        raise TooManyPixelsError("the header declares too many pixels") from error
    except Exception as error:  # parsers raise anything on hostile bytes; the cause stays attached
        raise UndecodableImageError("the picture is damaged or incomplete") from error


def _check_limits(picture: _PictureFile, limits: ImageLimits) -> None:
    width, height = picture.size
    if width * height > limits.max_pixels:
        raise TooManyPixelsError(f"{height}x{width} pixels are more than {limits.max_pixels}")
    if max(width, height) > limits.max_side:
        raise TooManyPixelsError(f"{height}x{width}: no side may exceed {limits.max_side} pixels")
    if picture.mode not in _STORAGE:
        raise UndecodableImageError(f"pixels of kind {picture.mode!r} are not supported")


def _orientation(picture: _PictureFile) -> int:
    """Return the orientation 1..8 of EXIF, else of XMP; 1 where it is absent, unreadable or out of range."""
    orientation = _exif_orientation(_exif(picture.info))
    if orientation is None:
        orientation = _xmp_orientation(picture.info)
    return orientation if orientation in _TURNS else 1


def _exif(info: Mapping[Any, Any]) -> bytes:
    """Return the EXIF block that Pillow found, or that ImageMagick wrote as hexadecimal text into a PNG.

    Types are checked because a text chunk of a PNG puts any string under any key.
    """
    block = info.get("exif")
    if not isinstance(block, bytes):
        text = info.get(_RAW_PROFILE)
        block = _from_hex("".join(text.split("\n")[3:])) if isinstance(text, str) else b""
    return block.removeprefix(b"Exif\0\0")


def _from_hex(text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError:
        return b""


def _exif_orientation(tiff: bytes) -> int | None:
    """Return the value of the tag; 0 where its type is not SHORT, None where there is no such tag.

    Source:
        CIPA DC-008 (Exif 2.32), tag 0x0112 of the first directory.
    """
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        return None
    try:
        (directory,) = struct.unpack_from(f"{order}I", tiff, 4)
        (entries,) = struct.unpack_from(f"{order}H", tiff, directory)
        for start in range(directory + 2, directory + 2 + 12 * entries, 12):
            tag, kind, _, value = struct.unpack_from(f"{order}HHIH", tiff, start)
            if tag == _ORIENTATION_TAG:
                return value if kind == _EXIF_SHORT else 0
    except struct.error:  # an offset points outside the data
        pass
    return None


def _xmp_orientation(info: Mapping[Any, Any]) -> int | None:
    packet = info.get("xmp")
    found = _XMP_ORIENTATION.search(packet) if isinstance(packet, bytes) else None
    return int(found[1]) if found else None


def _upright_pixels(picture: _PictureFile, orientation: int) -> UInt8Array:
    """Decode into the end of a buffer, then convert to RGB at its start, or in another array to turn.

    Band by band, the 3 bytes a pixel that are written end before the stored bytes that are not yet read.
    """
    width, height = picture.size
    pixels = height * width
    mode, depth = _STORAGE[picture.mode]
    # Zeros because a file may leave pixels out. The pages cost nothing until they are touched.
    buffer = np.zeros(max(depth, 3) * pixels, np.uint8)
    stored = buffer[buffer.size - depth * pixels :]
    picture.canvas = Image.frombuffer(mode, (width, height), stored, "raw", mode, 0, 1)
    with _library_errors():
        picture.load()
    assert picture.im is picture.canvas.im
    if orientation == 1:
        image_HW3 = buffer[: 3 * pixels].reshape(height, width, 3)
    else:
        upright = stored_size(ImageSize(height, width), orientation)
        image_HW3 = np.empty((upright.height, upright.width, 3), np.uint8)
    _convert_to_rgb(picture.canvas, _as_stored(image_HW3, orientation))
    return image_HW3


def _as_stored(image_HW3: UInt8Array, orientation: int) -> UInt8Array:
    """Return a view of an upright picture with its pixels in the order of the file."""
    row_step, column_step, swapped = _TURNS[orientation]
    if swapped:
        image_HW3 = image_HW3.swapaxes(0, 1)
    return image_HW3[::row_step, ::column_step]


def _convert_to_rgb(canvas: Image.Image, target_HW3: UInt8Array) -> None:
    """Convert to RGB; each band is copied from the canvas before its place is overwritten."""
    width, height = canvas.size
    for top in range(0, height, _BAND_ROWS):
        bottom = min(top + _BAND_ROWS, height)
        band = np.frombuffer(_rgb_bytes(canvas.crop((0, top, width, bottom))), _PIXEL)
        target_HW3[top:bottom].view(_PIXEL)[..., 0] = band.reshape(bottom - top, width)


def _rgb_bytes(band: Image.Image) -> bytes:
    if band.mode == "RGBX":
        return band.tobytes("raw", "RGB")
    if band.mode == "I;16":
        band = Image.fromarray((np.asarray(band) >> 8).astype(np.uint8))
    return band.convert("RGB").tobytes()
