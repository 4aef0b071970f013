"""The input tensor as pictures: what shapes are allowed, and that bytes and shape agree."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from model.pictures.image import DEFAULT_LIMITS
from model.pictures.preprocess import ImageSize
from service.core.errors import InvalidArgumentError
from service.open_inference.images import MAX_PICTURES, ImageTensor


def elements(*files: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(file)) + file for file in files)


@pytest.mark.parametrize("shape", [[3], [3, 1]])
def test_files_come_one_an_element(shape: list[int]) -> None:
    tensor = ImageTensor.parse("image", "BYTES", shape)
    pictures = tensor.pictures(elements(b"a", b"", b"ccc"))
    assert [bytes(picture.data) for picture in pictures] == [b"a", b"", b"ccc"]  # type: ignore[attr-defined]


def test_pixels_are_cut_into_pictures_without_a_copy() -> None:
    pixels_NHW3 = np.arange(2 * 4 * 5 * 3, dtype=np.uint8).reshape(2, 4, 5, 3)
    raw = pixels_NHW3.tobytes()
    tensor = ImageTensor.parse("image", "UINT8", [2, 4, 5, 3])
    read = [picture.read(DEFAULT_LIMITS) for picture in tensor.pictures(raw)]
    assert tensor.size == ImageSize(4, 5)
    assert np.array_equal(np.stack(read), pixels_NHW3)
    assert all(np.shares_memory(image, np.frombuffer(raw, np.uint8)) for image in read)


@pytest.mark.parametrize(
    ("datatype", "shape"),
    [
        ("BYTES", []),
        ("BYTES", [0]),
        ("BYTES", [-1]),
        ("BYTES", [1, 2]),
        ("BYTES", [MAX_PICTURES + 1]),
        ("BYTES", [1 << 100]),
        ("UINT8", [1]),
        ("UINT8", [4, 5, 3]),
        ("UINT8", [1, 4, 5, 4]),
        ("UINT8", [1, 0, 5, 3]),
        ("UINT8", [1, -4, -5, 3]),
        ("UINT8", [1 << 63, 4, 5, 3]),
        ("FP32", [1, 4, 5, 3]),
        ("uint8", [1, 4, 5, 3]),
        ("", [1]),
    ],
)
def test_any_other_shape_or_datatype_is_refused(datatype: str, shape: list[int]) -> None:
    with pytest.raises(InvalidArgumentError, match="image"):
        ImageTensor.parse("image", datatype, shape)


def test_another_name_is_refused_by_the_right_one() -> None:
    with pytest.raises(InvalidArgumentError, match=r"no input 'picture'.*'image'"):
        ImageTensor.parse("picture", "BYTES", [1])


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\x01\x00\x00",
        elements(b"a"),
        elements(b"a", b"b") + b"c",
        elements(b"a", b"b", b"c"),
        struct.pack("<I", 0xFFFFFFFF) + b"a" * 20,
        elements(b"a") + struct.pack("<I", 2) + b"b",
    ],
)
def test_elements_that_do_not_fill_their_bytes_are_refused(raw: bytes) -> None:
    with pytest.raises(InvalidArgumentError, match="image"):
        ImageTensor.parse("image", "BYTES", [2]).pictures(raw)


@pytest.mark.parametrize("missing", [1, -1, 60])
def test_pixels_of_another_size_are_refused(missing: int) -> None:
    with pytest.raises(InvalidArgumentError, match="is 120 bytes, not"):
        ImageTensor.parse("image", "UINT8", [2, 4, 5, 3]).pictures(bytes(120 - missing))


def test_two_to_the_31_elements_are_refused_by_their_bytes() -> None:
    tensor = ImageTensor.parse("image", "UINT8", [1, 1 << 16, 1 << 15, 3])
    with pytest.raises(InvalidArgumentError, match="6442450944 bytes, not 3"):
        tensor.pictures(b"abc")


def test_files_that_are_apart_must_be_as_many_as_the_shape_says() -> None:
    tensor = ImageTensor.parse("image", "BYTES", [2])
    assert len(tensor.files([b"a", b"b"])) == 2
    with pytest.raises(InvalidArgumentError, match="2 elements, the data 1"):
        tensor.files([b"a"])
    with pytest.raises(InvalidArgumentError, match="no BYTES elements"):
        ImageTensor.parse("image", "UINT8", [1, 1, 1, 3]).files([b"a"])
