"""Masks whose pixels have the colours of the classes, and masks that hold ids.

Axes: H height, W width, 3 = red green blue, U different colours.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from model.labels import Color, UInt8Array
from model.pictures.image import DEFAULT_LIMITS
from model.pictures.preprocess import ImageSize
from training.errors import InterchangeError
from training.interchange.foreign import ClassIds
from training.interchange.shapes import Bitmap
from training.interchange.source import Source

MASK_SUFFIXES = (".png", ".bmp", ".tif", ".tiff", ".gif", ".jpg", ".jpeg")

_FORMATS = ("PNG", "BMP", "TIFF", "GIF", "JPEG")
_MODES = ("1", "L", "P", "I;16", "RGB", "RGBA")
_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    TypeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
_GREY_MODES = ("1", "L", "I;16")
_SHOWN = 5
_NOTHING = -1
_BLOCK_COLORS = 1 << 16

T = TypeVar("T", int, npt.NDArray[np.int64])


def open_mask(source: Source, name: str, size: ImageSize | None) -> Image.Image:
    """Decode a mask.

    Args:
        source: holds the file.
        name: of the file.
        size: that the mask must have, checked before it is decoded.

    Returns:
        A loaded picture of mode 1, L, P, I;16, RGB or RGBA.

    Raises:
        InterchangeError: the file is no such picture, is damaged, or has another size.
    """
    return decode_mask(source.read(name), name, size)


def decode_mask(data: bytes, where: str, size: ImageSize | None) -> Image.Image:
    """Decode the bytes of a mask; as ``open_mask``.

    Args:
        data: the whole file.
        where: for messages.
        size: that the mask must have, checked before it is decoded.

    Raises:
        InterchangeError: the bytes are no such picture, are damaged, or have another size.
    """
    with _library_errors(where), Image.open(io.BytesIO(data), formats=_FORMATS) as image:
        if size is not None and image.size != (size.width, size.height):
            raise InterchangeError(
                f"{where}: the mask has {image.height}x{image.width} pixels, its picture {size}"
            )
        if image.width * image.height > DEFAULT_LIMITS.max_pixels:
            raise InterchangeError(f"{where}: more than {DEFAULT_LIMITS.max_pixels} pixels")
        if image.mode not in _MODES:
            raise InterchangeError(f"{where}: a mask has no pixels of kind {image.mode!r}")
        image.load()
        return image


@contextmanager
def _library_errors(where: str) -> Iterator[None]:
    """Turn errors of Pillow into one error that names the file."""
    try:
        yield
    except _ERRORS as error:
        raise InterchangeError(f"{where}: not a readable mask ({', '.join(_FORMATS)})") from error


@dataclass(frozen=True)
class MaskMeaning:
    """The meaning of the pixels of masks.

    Args:
        names: colour -> class name, as the source has it.
        tolerance: a colour of no class is read as the nearest one if no channel differs by more than this.
        grey_names: value of a grey mask -> class name; empty = grey is a colour like any other.
    """

    names: Mapping[Color, str]
    tolerance: int = 0
    grey_names: Mapping[int, str] = field(default_factory=dict)

    @cached_property
    def colors_K3(self) -> npt.NDArray[np.int16]:
        """The colours, in the order of ``names``."""
        return np.array(list(self.names), np.int16).reshape(-1, 3)


@dataclass(frozen=True)
class MaskFile:
    """Labels that a mask holds.

    Args:
        source: holds the mask.
        name: of the mask's file.
        meaning: of its pixels.
    """

    source: Source
    name: str
    meaning: MaskMeaning

    def own_size(self) -> ImageSize | None:
        """Return the size of the mask, from its header.

        Raises:
            InterchangeError: the file is unreadable.
        """
        with (
            _library_errors(self.name),
            Image.open(io.BytesIO(self.source.read(self.name)), formats=_FORMATS) as image,
        ):
            return ImageSize(image.height, image.width)

    def ids(self, size: ImageSize, classes: ClassIds) -> UInt8Array:
        """Return ids_HW, uint8.

        Args:
            size: of the picture, as it was labelled.
            classes: names -> ids.

        Raises:
            InterchangeError: the mask is unreadable or of another size, or holds a value of no class.
        """
        image = open_mask(self.source, self.name, size)
        if self.meaning.grey_names and image.mode in _GREY_MODES:
            return self._from_values(np.asarray(image).astype(np.int64), classes)
        return self._from_colors(pack_colors(np.asarray(image.convert("RGB"))), classes)

    def _from_values(self, values_HW: npt.NDArray[np.int64], classes: ClassIds) -> UInt8Array:
        values_U, index_HW = distinct(values_HW)
        if unknown := [value for value in values_U.tolist() if value not in self.meaning.grey_names]:
            raise InterchangeError(f"{self.name}: values {unknown[:_SHOWN]} are numbers of no class")
        ids = [classes.id_of(self.meaning.grey_names[value], self.name) for value in values_U.tolist()]
        return np.array(ids, np.uint8)[index_HW]

    def _from_colors(self, packed_HW: npt.NDArray[np.int64], classes: ClassIds) -> UInt8Array:
        colors_U, index_HW = distinct(packed_HW)
        blocks = range(0, len(colors_U), _BLOCK_COLORS)
        rows_U = np.concatenate([self._nearest(colors_U[at : at + _BLOCK_COLORS]) for at in blocks])
        if (rows_U == _NOTHING).any():
            self._refuse(colors_U[rows_U == _NOTHING], packed_HW)
        ids = [classes.id_of(name, self.name) for name in self.meaning.names.values()]
        ids_HW: UInt8Array = np.array(ids, np.uint8)[rows_U][index_HW]
        return ids_HW

    def _nearest(self, colors_U: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the number of the nearest colour of the table, or -1 where none is near enough."""
        colors_U3 = np.stack(unpack_color(colors_U), axis=1).astype(np.int16)
        best_U = np.full(len(colors_U), self.meaning.tolerance + 1, np.int16)
        rows_U = np.full(len(colors_U), _NOTHING, np.int64)
        for row, color_3 in enumerate(self.meaning.colors_K3):
            distance_U = np.abs(colors_U3 - color_3).max(axis=1)
            closer_U = distance_U < best_U
            best_U[closer_U], rows_U[closer_U] = distance_U[closer_U], row
        return rows_U

    def _refuse(self, strangers_U: npt.NDArray[np.int64], packed_HW: npt.NDArray[np.int64]) -> None:
        pixels = np.count_nonzero(np.isin(packed_HW, strangers_U))
        shown = ", ".join(str(unpack_color(color)) for color in strangers_U[:_SHOWN].tolist())
        more = f" and {len(strangers_U) - _SHOWN} more" if len(strangers_U) > _SHOWN else ""
        raise InterchangeError(
            f"{self.name}: {pixels} pixels have colours of no class: {shown}{more}; add them to the class "
            "list, or read each as the nearest colour with --color-tolerance N (blurred edges, JPEG)"
        )


@dataclass(frozen=True)
class EncodedBitmap:
    """A region that a mask of its own shows, decoded when it is painted.

    Args:
        load: returns the mask.
        least: values of the mask, as grey, from which on a pixel belongs to the region.
        left: column of the mask's first pixel.
        top: row of the mask's first pixel.
    """

    load: Callable[[], Image.Image]
    least: int = 1
    left: int = 0
    top: int = 0

    def paint(self, ids_HW: UInt8Array, class_id: int) -> None:
        """Give the pixels of the mask a class.

        Args:
            ids_HW: of the whole picture, uint8; changed.
            class_id: 0..255.

        Raises:
            ValueError: the mask does not lie within the picture.
            InterchangeError: it is unreadable.
        """
        mask_HW = np.asarray(self.load().convert("L")) >= self.least
        Bitmap(mask_HW, self.left, self.top).paint(ids_HW, class_id)


def pack_colors(colors_HW3: UInt8Array) -> npt.NDArray[np.int64]:
    """Return red, green and blue as one number, red highest."""
    red, green, blue = (colors_HW3[..., channel].astype(np.int64) for channel in range(3))
    packed: npt.NDArray[np.int64] = red << 16 | green << 8 | blue
    return packed


def unpack_color(packed: T) -> tuple[T, T, T]:
    """Return red, green and blue of a number, or of an array of numbers, that ``pack_colors`` made."""
    return packed >> 16 & 0xFF, packed >> 8 & 0xFF, packed & 0xFF


def distinct(values_HW: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the different values, and for each pixel which of them it has."""
    values_U, index = np.unique(values_HW, return_inverse=True)
    return values_U, index.reshape(values_HW.shape)
