"""Label files as class ids, whatever kind of pixels they hold.

Axes: H height, W width, 3 = red green blue, U unknown colours, C colours of classes.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from model.datasets.mask_advice import (
    MaskArray,
    advise_colors,
    advise_edges,
    advise_ids,
    advise_index_colors,
    advise_lossy,
    key_of,
)
from model.errors import ImageError
from model.labels import ClassPalette, Color, UInt8Array
from model.pictures.image import ImageLimits, decode_image, peek_header
from model.pictures.preprocess import ImageSize

MaskKind = Literal["ids", "colors"]

_ANY_SIZE = ImageLimits(max_pixels=1 << 40, max_side=1 << 31)
"""The size of a mask is compared with that of its picture, which has limits."""

# A PNG starts with 8 bytes of signature and 8 of chunk header; then IHDR: width, height, depth, colour type.
_PNG_HEADER = struct.Struct(">8s8xIIBB")
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_JPEG_SIGNATURE = b"\xff\xd8\xff"
_OTHER_SIGNATURES = {
    b"BM": "a BMP",
    b"GIF8": "a GIF",
    b"II*\0": "a TIFF",
    b"MM\0*": "a TIFF",
    b"\x93NUMPY": "a NumPy array",
    b"RIFF": "a WebP",
    b"{": "JSON, perhaps polygons, which `bisenet dataset import` converts",
}
_GRAY, _INDEXED = 0, 3
_BYTE_DEPTH, _WORD_DEPTH = 8, 16
_VALUES = 1 << _WORD_DEPTH
_BYTE = 256
_COLORS = 1 << 24
_UNKNOWN = -1
_OPAQUE = 255
_NEAREST_CHUNK = 4096


class MaskError(ValueError):
    """A label file cannot be read as class ids.

    Attributes:
        values: the values that occur in a mask of ids some of which are no classes; else empty.
    """

    def __init__(self, reason: str, values: frozenset[int] = frozenset()) -> None:
        super().__init__(reason)
        self.values = values


@dataclass(frozen=True, eq=False)
class DecodedMask:
    """A label file as class ids.

    Attributes:
        ids_HW: uint8, class ids or the ignore id, as the file stores its pixels.
        index_colors: colour in the file of each index that occurs; empty unless indices of a palette are ids.
        nearest_pixels: pixels whose colour is no class's and that have the id of the nearest one.
    """

    ids_HW: UInt8Array
    index_colors: Mapping[int, Color] = field(default_factory=dict)
    nearest_pixels: int = 0


@dataclass(frozen=True)
class MaskRules:
    """How a data-set file describes its label files.

    Args:
        kind: meaning of the pixels. None = ids, unless a palette contradicts the colours of the classes.
        colors: colour -> class id or ignore id, as far as the data-set file names colours.
        color_tolerance: a pixel of another colour has the id of the nearest one, unless a channel differs by
            more than this; 0..255.
        has_label_map: the data-set file has a ``[label_map]``, of ids or of colours.
    """

    kind: MaskKind | None = None
    colors: Mapping[Color, int] = field(default_factory=dict)
    color_tolerance: int = 0
    has_label_map: bool = False


@dataclass(frozen=True)
class MaskReader:
    """Reads label files as class ids.

    Args:
        palette: the classes, and the ignore id.
        label_map: value in masks of ids, 0..65535 -> class id or ignore id; absent values are ids.
        rules: the data-set file's description of the label files.
    """

    palette: ClassPalette
    label_map: Mapping[int, int] = field(default_factory=dict)
    rules: MaskRules = field(default_factory=MaskRules)

    def read_mask(self, data: bytes) -> DecodedMask:
        """Decode a label file.

        Args:
            data: the whole file.

        Raises:
            MaskError: the file is no PNG, is broken, or holds values or colours without a class.
        """
        return self._read_colors(data) if self.rules.kind == "colors" else self._read_ids(data)

    @cached_property
    def id_table(self) -> UInt8Array:
        """Class id or ignore id by value in masks of ids, shape (65536,); 0 where ``is_known`` is False."""
        table = np.zeros(_VALUES, np.uint8)
        table[:_BYTE] = np.arange(_BYTE)
        for value, target in self.label_map.items():
            table[value] = target
        return table * self.is_known

    @cached_property
    def is_known(self) -> npt.NDArray[np.bool_]:
        """Whether a value in masks of ids has a class id or the ignore id, shape (65536,)."""
        known = np.zeros(_VALUES, np.bool_)
        known[: self.palette.num_classes] = True
        known[self.palette.ignore_id] = True
        known[list(self.label_map)] = True
        return known

    @cached_property
    def _color_table(self) -> npt.NDArray[np.int16]:
        """Id by colour, shape (2**24,): 32 MB, and the only table that takes one look-up a pixel."""
        table = np.full(_COLORS, _UNKNOWN, np.int16)
        for color, target in self.rules.colors.items():
            table[key_of(color)] = target
        return table

    def _read_ids(self, data: bytes) -> DecodedMask:
        if data.startswith(_JPEG_SIGNATURE):
            raise MaskError(advise_lossy("JPEG", masks_are_colors=False))
        image, color_type, depth = _open_png(data)
        values_HW = _ids_in_channels(image, color_type, depth)
        if values_HW is None:
            raise self._unknown_colors(_color_keys(image))
        present = np.flatnonzero(np.bincount(values_HW.reshape(-1)))
        if not self.is_known[present].all():
            raise self._unknown_ids(values_HW, frozenset(present.tolist()))
        index_colors = (
            _index_colors(image, present) if color_type == _INDEXED and self.rules.kind is None else {}
        )
        if advice := advise_index_colors(index_colors, self.rules.colors, self.palette, self.label_map):
            raise MaskError(advice)
        return DecodedMask(self.id_table.take(values_HW), index_colors)

    def _read_colors(self, data: bytes) -> DecodedMask:
        if data.startswith(_PNG_SIGNATURE):
            keys_HW = _color_keys(_open_png(data)[0])
        elif data.startswith(_JPEG_SIGNATURE) and not self.rules.color_tolerance:
            raise MaskError(advise_lossy("JPEG", masks_are_colors=True))
        else:
            keys_HW = _packed(_decoded(data))
        ids_HW = self._color_table[keys_HW]
        is_other_HW = ids_HW == _UNKNOWN
        others = keys_HW[is_other_HW]
        if others.size:
            keys_U, inverse = np.unique(others, return_inverse=True)
            ids_HW[is_other_HW] = self._nearest(keys_U)[inverse]
            if (ids_HW == _UNKNOWN).any():
                raise self._unknown_colors(keys_HW)
        return DecodedMask(ids_HW.astype(np.uint8), nearest_pixels=int(others.size))

    def _nearest(self, keys_U: MaskArray) -> npt.NDArray[np.int16]:
        """Return the id of the nearest colour, -1 where a channel differs by more than the tolerance."""
        known_C3 = np.array(list(self.rules.colors), np.int32)
        targets_C = np.array(list(self.rules.colors.values()), np.int16)
        ids_U = np.empty(len(keys_U), np.int16)
        for start in range(0, len(keys_U), _NEAREST_CHUNK):
            keys = keys_U[start : start + _NEAREST_CHUNK].astype(np.int32)
            colors_U3 = np.stack([keys >> 16, keys >> 8 & 255, keys & 255], axis=1)
            differences_UC3 = np.abs(colors_U3[:, None] - known_C3)
            nearest_U = (differences_UC3**2).sum(axis=2).argmin(axis=1)
            far_U = differences_UC3[np.arange(len(keys)), nearest_U].max(axis=1) > self.rules.color_tolerance
            ids_U[start : start + _NEAREST_CHUNK] = np.where(far_U, _UNKNOWN, targets_C[nearest_U])
        return ids_U

    def _unknown_ids(self, values_HW: MaskArray, values: frozenset[int]) -> MaskError:
        edges = advise_edges(values_HW, ~self.is_known[values_HW], self.palette, self.label_map)
        if edges is not None:
            return MaskError(edges)
        return MaskError(advise_ids(values, self.palette, self.label_map), values)

    def _unknown_colors(self, keys_HW: MaskArray) -> MaskError:
        return MaskError(
            advise_colors(
                keys_HW,
                self.rules.colors,
                self.palette,
                masks_are_colors=self.rules.kind == "colors",
                has_label_map=self.rules.has_label_map,
            )
        )


def mask_size(data: bytes) -> ImageSize:
    """Return the size of a label file as it stores its pixels, from its header.

    Raises:
        MaskError: the file is neither a PNG nor another picture that masks may be.
    """
    if data.startswith(_PNG_SIGNATURE):
        height, width, _, _ = _png_header(data)
        return ImageSize(height, width)
    try:
        return peek_header(data, _ANY_SIZE).size
    except ImageError as error:
        raise MaskError(_not_a_png(data)) from error


def name_format(data: bytes) -> str | None:
    """Return the format of a file that is neither JPEG nor PNG, for messages; None = unknown."""
    return next((name for start, name in _OTHER_SIGNATURES.items() if data.startswith(start)), None)


def _not_a_png(data: bytes) -> str:
    name = name_format(data)
    return f"not a PNG but {name}" if name else "not a PNG"


def _png_header(data: bytes) -> tuple[int, int, int, int]:
    """Return height, width, depth and colour type."""
    if len(data) < _PNG_HEADER.size or not data.startswith(_PNG_SIGNATURE):
        raise MaskError(_not_a_png(data))
    _, width, height, depth, color_type = _PNG_HEADER.unpack_from(data)
    if not width or not height:
        raise MaskError("broken PNG: it has no pixels")
    return height, width, depth, color_type


def _open_png(data: bytes) -> tuple[PngImageFile, int, int]:
    """Decode a PNG; return it with its colour type and depth."""
    _, _, depth, color_type = _png_header(data)
    try:
        # Not Image.open, which warns of and refuses the large pictures that ``max_pixels`` allows.
        image = PngImageFile(io.BytesIO(data))
        image.load()
    except Exception as error:  # a parser of broken files raises anything
        raise MaskError(f"broken PNG: {error}") from error
    return image, color_type, depth


def _decoded(data: bytes) -> UInt8Array:
    try:
        return decode_image(data, _ANY_SIZE)
    except ImageError as error:
        raise MaskError(str(error)) from error


def _ids_in_channels(image: PngImageFile, color_type: int, depth: int) -> MaskArray | None:
    """Return the ids that a PNG holds as gray values, as indices, or alike in all of its channels."""
    if color_type == _INDEXED:
        return np.asarray(image, np.uint8)
    if color_type == _GRAY:
        values_HW = np.asarray(image)
        if depth == _WORD_DEPTH:
            return values_HW if values_HW.max() >= _BYTE else values_HW.astype(np.uint8)
        # Pillow stretches gray of 2 and 4 bits to 0..255.
        step = 1 if depth in {1, _BYTE_DEPTH} else _OPAQUE // ((1 << depth) - 1)
        return values_HW.astype(np.uint8) // step if step > 1 or depth == 1 else values_HW
    pixels_HW = np.asarray(image)
    bands = image.getbands()
    is_gray = depth == _BYTE_DEPTH and all(
        np.array_equal(pixels_HW[..., 0], pixels_HW[..., band])
        for band, name in enumerate(bands)
        if name in "GB"
    )
    is_opaque = "A" not in bands or bool((pixels_HW[..., -1] == _OPAQUE).all())
    return np.ascontiguousarray(pixels_HW[..., 0]) if is_gray and is_opaque else None


def _index_colors(image: PngImageFile, present: npt.NDArray[np.intp]) -> dict[int, Color]:
    palette = image.getpalette("RGB") or []
    colors = [(palette[i], palette[i + 1], palette[i + 2]) for i in range(0, len(palette), 3)]
    return {int(index): colors[index] for index in present if index < len(colors)}


def _color_keys(image: Image.Image) -> MaskArray:
    """Return the colours of a PNG; transparent pixels are black.

    Raises:
        MaskError: every pixel is transparent and some have a colour.
    """
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if "transparency" not in image.info and "A" not in image.getbands():
        return _packed(np.asarray(image.convert("RGB")))
    pixels_HW4 = np.array(image.convert("RGBA"))
    is_clear_HW = pixels_HW4[..., 3] < _BYTE // 2
    if is_clear_HW.all() and pixels_HW4[..., :3].any():
        raise MaskError("every pixel of the mask is transparent: save it without an alpha channel")
    pixels_HW4[is_clear_HW] = 0
    return _packed(pixels_HW4[..., :3])


def _packed(image_HW3: UInt8Array) -> MaskArray:
    keys_HW4 = np.zeros((*image_HW3.shape[:2], 4), np.uint8)
    keys_HW4[..., 2::-1] = image_HW3  # blue is the lowest byte
    return keys_HW4.view("<u4")[..., 0].astype(np.uint32, copy=False)
