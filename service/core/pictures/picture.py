"""The forms in which a picture comes: the bytes of a file, or pixels without one.

Axes: H height, W width, 3 = red green blue.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import numpy as np

import model.errors as image_errors
from model.labels import UInt8Array
from model.pictures.image import ImageHeader, ImageLimits, decode_image, peek_header
from model.pictures.preprocess import ImageSize
from service.core.errors import (
    EmptyBodyError,
    InvalidArgumentError,
    ServiceError,
    TooManyPixelsError,
    UndecodableImageError,
    UnsupportedMediaError,
)

IMAGE_ERRORS: Mapping[type[image_errors.ImageError], type[ServiceError]] = {
    image_errors.EmptyImageError: EmptyBodyError,
    image_errors.UnsupportedImageError: UnsupportedMediaError,
    image_errors.TooManyPixelsError: TooManyPixelsError,
    image_errors.UndecodableImageError: UndecodableImageError,
}
"""The error of the service for each error of a picture."""

_RGB_BYTES = 3


class Picture(Protocol):
    """A picture that is not read yet; both methods run in a thread."""

    def header(self, limits: ImageLimits) -> ImageHeader:
        """Return the size, and the memory that reading takes; raises as ``read``."""
        ...

    def read(self, limits: ImageLimits) -> UInt8Array:
        """Return image_HW3, upright uint8 RGB.

        Raises:
            EmptyBodyError: there are no bytes.
            UnsupportedMediaError: neither JPEG, PNG nor WebP.
            TooManyPixelsError: more pixels than the limits allow.
            UndecodableImageError: the picture does not decode.
            InvalidArgumentError: there are more or fewer bytes than the pixels need.
        """
        ...


@dataclass(frozen=True, eq=False)
class EncodedPicture:
    """A JPEG, PNG or WebP file.

    Args:
        data: the bytes of the file.
    """

    data: bytes | memoryview

    def header(self, limits: ImageLimits) -> ImageHeader:
        """Read the header of the file."""
        with _service_errors():
            return peek_header(self.data, limits)

    def read(self, limits: ImageLimits) -> UInt8Array:
        """Decode the file."""
        with _service_errors():
            return decode_image(self.data, limits)


@dataclass(frozen=True, eq=False)
class RawPicture:
    """Pixels that need no decoding.

    Args:
        data: 3 bytes a pixel, rows from top to bottom without padding.
        size: of the picture.
        bgr: the bytes of a pixel are blue, green, red instead of red, green, blue.
    """

    data: bytes | memoryview
    size: ImageSize
    bgr: bool = False

    def header(self, limits: ImageLimits) -> ImageHeader:
        """Compare the size with the limits and with the number of bytes."""
        size, needed = self.size, _RGB_BYTES * self.size.pixels
        if not self.data:
            raise EmptyBodyError("there are no pixels")
        if size.pixels > limits.max_pixels or max(size.shape) > limits.max_side:
            raise TooManyPixelsError(
                f"{size} pixels: {limits.max_pixels} and {limits.max_side} a side are allowed"
            )
        if len(self.data) != needed:
            raise InvalidArgumentError(f"{size} pixels are {needed} bytes, not {len(self.data)}")
        return ImageHeader(size, needed)

    def read(self, limits: ImageLimits) -> UInt8Array:  # noqa: ARG002 - ``header`` has compared them
        """Return the pixels; those of ``bgr`` are copied."""
        image_HW3 = np.frombuffer(self.data, np.uint8).reshape(*self.size.shape, _RGB_BYTES)
        return np.ascontiguousarray(image_HW3[..., ::-1]) if self.bgr else image_HW3


@contextmanager
def _service_errors() -> Iterator[None]:
    try:
        yield
    except image_errors.ImageError as error:
        raise IMAGE_ERRORS[type(error)](str(error)) from error
