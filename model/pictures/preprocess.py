"""Picture geometry before the network: sizes, reduction, padding. Pixels stay uint8 RGB.

Axes: H height, W width, 3 = red green blue.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from model.labels import UInt8Array

__all__ = ["ImageSize", "PreparedImage", "PreprocessSpec"]

Rgb = tuple[float, float, float]

PAD_MULTIPLE = 32
"""Both sides of the network's input divide by it: BiSeNet's deepest feature is 1/32 of the input."""

DEFAULT_MAX_INFER_PIXELS = 4_194_304
"""Larger pictures are area-reduced before the network (2048 x 2048)."""

_BAND_LINES = 64
"""Rows or columns that are reduced at a time, enough to use whole cache lines."""


@dataclass(frozen=True, order=True)
class ImageSize:
    """Height and width in pixels, both at least 1."""

    height: int
    width: int

    def __post_init__(self) -> None:
        """Refuse empty sizes."""
        if self.height < 1 or self.width < 1:
            raise ValueError(f"an image has at least 1x1 pixels, not {self.height}x{self.width}")

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width, in the order of an array's axes."""
        return self.height, self.width

    @property
    def pixels(self) -> int:
        """Height times width."""
        return self.height * self.width

    def padded(self, multiple: int = PAD_MULTIPLE) -> ImageSize:
        """Return the smallest size that contains this one and divides by ``multiple``."""
        return ImageSize(-(-self.height // multiple) * multiple, -(-self.width // multiple) * multiple)

    def reduced_to(self, max_pixels: int) -> ImageSize:
        """Return the largest size of (nearly) this aspect with at most ``max_pixels`` pixels."""
        if self.pixels <= max_pixels:
            return self
        scale = math.sqrt(max_pixels / self.pixels)
        height = min(max(1, math.floor(self.height * scale)), max_pixels)
        width = min(max(1, math.floor(self.width * scale)), max_pixels // height)
        return ImageSize(height, width)

    def __str__(self) -> str:
        """Return ``HxW``."""
        return f"{self.height}x{self.width}"


def size_of(image_HW3: UInt8Array) -> ImageSize:
    """Return the size of an array; its first two axes are H and W."""
    return ImageSize(image_HW3.shape[0], image_HW3.shape[1])


@dataclass(frozen=True, eq=False)
class PreparedImage:
    """A picture at the size of the network's input, with the sizes that lead back to the original.

    Attributes:
        pixels_HW3: uint8 RGB, both sides multiples of 32.
        content: size of the picture inside ``pixels_HW3``, at the top left; the rest is padding.
        original: upright size of the picture; larger than ``content`` where it was reduced.
        confidence: whether the confidence of each label is wanted as well.
    """

    pixels_HW3: UInt8Array
    content: ImageSize
    original: ImageSize
    confidence: bool = False

    @property
    def padded(self) -> ImageSize:
        """Size of the network's input."""
        return size_of(self.pixels_HW3)


Canvas = Callable[[ImageSize, ImageSize], UInt8Array]
"""Padded size, original size -> C-contiguous uint8 HW3 array of the padded size, which is overwritten."""


@dataclass(frozen=True)
class PreprocessSpec:
    """Preparation of pictures for a model, the same for evaluation and serving.

    Validation during training does not reduce pictures.

    Args:
        mean: mean that the network normalises with, RGB, of values 0..1.
        max_infer_pixels: larger pictures are area-reduced first.
    """

    mean: Rgb
    max_infer_pixels: int = DEFAULT_MAX_INFER_PIXELS

    @property
    def pad_color(self) -> tuple[int, int, int]:
        """Colour of the padding: the mean in 0..255, rounded half up."""
        red, green, blue = (math.floor(value * 255 + 0.5) for value in self.mean)
        return red, green, blue

    def prepare(self, image_HW3: UInt8Array, canvas: Canvas | None = None) -> PreparedImage:
        """Reduce a picture that is too large, then pad it right and bottom to multiples of 32.

        Args:
            image_HW3: upright uint8 RGB of any size from 1x1.
            canvas: returns the array that the result is written to; None = a new array, or ``image_HW3``
                itself where nothing changes.
        """
        original = size_of(image_HW3)
        content = original.reduced_to(self.max_infer_pixels)
        if content != original:
            image_HW3 = _area_reduced(image_HW3, content)
        padded = content.padded()
        if canvas is not None:
            image_HW3 = _padded(image_HW3, canvas(padded, original), self.pad_color)
        elif padded != content:
            blank_HW3 = np.empty((padded.height, padded.width, 3), np.uint8)
            image_HW3 = _padded(image_HW3, blank_HW3, self.pad_color)
        return PreparedImage(np.ascontiguousarray(image_HW3), content, original)


def _area_reduced(image_HW3: UInt8Array, size: ImageSize) -> UInt8Array:
    """Average with Pillow's BOX filter, band by band: Pillow copies a whole picture to 4 bytes a pixel.

    Rows are reduced first, then columns, as Pillow did up to version 12, to the bit; later versions choose
    the order by the shape (python-pillow/Pillow#9549), which moves values by one level.
    """
    height = len(image_HW3)
    narrow_HW3 = np.empty((height, size.width, 3), np.uint8)
    for top in range(0, height, _BAND_LINES):
        band = slice(top, top + _BAND_LINES)
        narrow_HW3[band] = _box(image_HW3[band], ImageSize(len(image_HW3[band]), size.width))
    reduced_HW3 = np.empty((size.height, size.width, 3), np.uint8)
    for left in range(0, size.width, _BAND_LINES):
        band = slice(left, left + _BAND_LINES)
        strip_HW3 = narrow_HW3[:, band]
        reduced_HW3[:, band] = _box(strip_HW3, ImageSize(size.height, strip_HW3.shape[1]))
    return reduced_HW3


def _box(image_HW3: UInt8Array, size: ImageSize) -> UInt8Array:
    return np.asarray(Image.fromarray(image_HW3).resize((size.width, size.height), Image.Resampling.BOX))


def _padded(image_HW3: UInt8Array, canvas: UInt8Array, color: tuple[int, int, int]) -> UInt8Array:
    height, width = image_HW3.shape[:2]
    canvas[:height, :width] = image_HW3
    canvas[height:, :] = color
    canvas[:height, width:] = color
    return canvas
