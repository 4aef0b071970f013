"""The input tensor ``image`` as pictures: N files, or N pictures of raw RGB pixels.

Axes: N pictures, H height, W width, 3 = red green blue.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from model.pictures.preprocess import ImageSize
from service.core.errors import InvalidArgumentError
from service.core.pictures.picture import EncodedPicture, Picture, RawPicture
from service.open_inference.metadata import IMAGE
from service.open_inference.parameters import shown

MAX_PICTURES = 64
"""In one request."""

MAX_AXES = 8
LENGTH_BYTES = 4
"""Before each element of a BYTES tensor in its raw form: its length, little-endian."""

_RGB = 3
_FORMS = f"{IMAGE!r} is BYTES [N] (files) or UINT8 [N, H, W, 3] (RGB pixels)"


@dataclass(frozen=True)
class ImageTensor:
    """What the head of the input tensor says of its bytes.

    Attributes:
        count: pictures, 1..MAX_PICTURES.
        size: of each picture; None = the elements are files.
    """

    count: int
    size: ImageSize | None

    @classmethod
    def parse(cls, name: str, datatype: str, shape: Sequence[int]) -> ImageTensor:
        """Check the head of an input tensor.

        Raises:
            InvalidArgumentError: name, datatype or shape are none that metadata offers.
        """
        if name != IMAGE:
            raise InvalidArgumentError(f"there is no input {shown(name)}: {_FORMS}")
        match datatype, list(shape):
            case "BYTES", [count] | [count, 1]:
                return cls(_checked_count(count), None)
            case "UINT8", [count, height, width, 3] if height > 0 and width > 0:
                return cls(_checked_count(count), ImageSize(height, width))
        given = f"{shown(datatype)} {shown(list(shape[:MAX_AXES]))}"
        raise InvalidArgumentError(f"{_FORMS}, not {given}")

    @property
    def num_bytes(self) -> int:
        """Bytes of all pixels; 0 for files, whose lengths are in the data."""
        return 0 if self.size is None else self.count * _RGB * self.size.pixels

    def pictures(self, raw: bytes | memoryview) -> list[Picture]:
        """Return the pictures in the raw form of the tensor; pixels are not copied.

        Args:
            raw: all elements in row-major order; before each file its length.

        Raises:
            InvalidArgumentError: there are more or fewer bytes than the elements need.
        """
        view = memoryview(raw)
        if self.size is None:
            return [EncodedPicture(element) for element in self._elements(view)]
        if len(view) != self.num_bytes:
            raise InvalidArgumentError(
                f"{IMAGE!r}: UINT8 [{self.count}, {self.size.height}, {self.size.width}, 3] is "
                f"{self.num_bytes} bytes, not {len(view)}"
            )
        step = self.num_bytes // self.count
        return [RawPicture(view[start : start + step], self.size) for start in range(0, len(view), step)]

    def files(self, elements: Sequence[bytes]) -> list[Picture]:
        """Return the pictures of a BYTES tensor whose elements are apart.

        Raises:
            InvalidArgumentError: the tensor holds pixels, or another number of elements.
        """
        if self.size is not None:
            raise InvalidArgumentError(f"{IMAGE!r}: UINT8 pixels are no BYTES elements")
        self.check_count(len(elements))
        return [EncodedPicture(element) for element in elements]

    def check_count(self, elements: int) -> None:
        """Compare the number of elements with the shape.

        Raises:
            InvalidArgumentError: they differ.
        """
        needed = self.num_bytes or self.count
        if elements != needed:
            raise InvalidArgumentError(f"{IMAGE!r}: the shape has {needed} elements, the data {elements}")

    def _elements(self, view: memoryview) -> Iterator[memoryview]:
        start = 0
        for index in range(self.count):
            begin = start + LENGTH_BYTES
            length = struct.unpack_from("<I", view, start)[0] if begin <= len(view) else math.inf
            if begin + length > len(view):
                raise InvalidArgumentError(
                    f"{IMAGE!r}: the data ends inside element {index} of {self.count}: each element is "
                    "4 bytes for its length, little-endian, and its bytes"
                )
            start = begin + int(length)
            yield view[begin:start]
        if start != len(view):
            raise InvalidArgumentError(
                f"{IMAGE!r}: {len(view) - start} bytes follow the last of {self.count} elements"
            )


def _checked_count(count: int) -> int:
    if not 1 <= count <= MAX_PICTURES:
        raise InvalidArgumentError(
            f"{IMAGE!r}: a request holds 1 to {MAX_PICTURES} pictures, not {shown(count)}: send more in "
            "requests of their own"
        )
    return count
