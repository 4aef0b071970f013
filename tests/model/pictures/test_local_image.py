"""Pictures on local disks: every format upright, 16 bits kept where they count, faults named."""

from __future__ import annotations

import io
import struct
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from model.errors import (
    EmptyImageError,
    ImageError,
    TooManyPixelsError,
    UndecodableImageError,
    UnsupportedImageError,
)
from model.labels import UInt8Array
from model.pictures import local_image
from model.pictures.image import ImageLimits, decode_image
from model.pictures.local_image import decode_local_image

SMOOTH_HW3 = np.asarray(
    Image.fromarray(np.random.default_rng(3).integers(0, 256, (3, 4, 3), np.uint8)).resize(
        (40, 30), Image.Resampling.BICUBIC
    )
)


def encoded(image: Image.Image, file_format: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, file_format, **options)
    return stream.getvalue()


def exif(orientation: int) -> Image.Exif:
    block = Image.Exif()
    block[0x0112] = orientation
    return block


def turned(orientation: int) -> UInt8Array:
    """Return what Pillow makes of the smooth picture, stored with this orientation."""
    data = encoded(Image.fromarray(SMOOTH_HW3), "PNG", exif=exif(orientation))
    return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))


@pytest.mark.parametrize(
    ("file_format", "options", "tolerance"),
    [
        ("TIFF", {}, 0),
        ("TIFF", {"compression": "tiff_lzw"}, 0),
        ("TIFF", {"compression": "jpeg"}, 40),
        ("BMP", {}, 0),
        ("GIF", {}, 64),
        ("JPEG2000", {}, 0),
        ("PPM", {}, 0),
        ("AVIF", {"quality": 100, "subsampling": "4:4:4"}, 6),
        ("PNG", {}, 0),
        ("WEBP", {"lossless": True}, 0),
        ("JPEG", {"quality": 95, "subsampling": 0}, 12),
    ],
)
def test_each_format_becomes_the_same_pixels(
    file_format: str, options: dict[str, Any], tolerance: int
) -> None:
    picture = decode_local_image(encoded(Image.fromarray(SMOOTH_HW3), file_format, **options))
    difference = np.abs(picture.image_HW3.astype(int) - SMOOTH_HW3)
    assert difference.max() <= tolerance
    assert (picture.used_bits, picture.pictures) == (None, 1)
    assert picture.image_HW3.flags.c_contiguous


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
def test_pictures_that_the_network_may_send_get_the_same_pixels_as_there(file_format: str) -> None:
    data = encoded(Image.fromarray(SMOOTH_HW3), file_format, exif=exif(6))
    assert np.array_equal(decode_local_image(data).image_HW3, decode_image(data))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr"])
def test_pixels_of_every_kind_become_rgb(mode: str) -> None:
    image = Image.fromarray(SMOOTH_HW3).convert(mode)
    picture = decode_local_image(encoded(image, "TIFF"))
    assert np.array_equal(picture.image_HW3, np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_tiff_is_upright(orientation: int) -> None:
    data = encoded(Image.fromarray(SMOOTH_HW3), "TIFF", exif=exif(orientation))
    assert np.array_equal(decode_local_image(data).image_HW3, turned(orientation))


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_heic_is_upright(orientation: int) -> None:
    heif = pytest.importorskip("pillow_heif", reason="the extra `heic` is not installed")
    stream = io.BytesIO()
    heif.from_pillow(Image.fromarray(SMOOTH_HW3)).save(
        stream, quality=95, chroma=444, exif=exif(orientation).tobytes()
    )
    picture = decode_local_image(stream.getvalue())
    assert np.abs(picture.image_HW3.astype(int) - turned(orientation)).mean() < 3


def test_without_its_reader_a_heic_is_refused_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_image, "_heic_reader", lambda: None)
    assert not local_image.has_heic_reader()
    with pytest.raises(UnsupportedImageError, match=r"pip install 'bisenet-service\[heic\]'"):
        decode_local_image(b"\0\0\0\x18ftypheic" + bytes(64))


@pytest.mark.parametrize("file_format", ["TIFF", "GIF"])
def test_of_several_pictures_the_first_is_taken_and_all_are_counted(file_format: str) -> None:
    first, other = Image.new("RGB", (8, 8), (255, 0, 0)), Image.new("RGB", (8, 8), (0, 0, 255))
    picture = decode_local_image(encoded(first, file_format, save_all=True, append_images=[other, first]))
    assert picture.pictures == 3
    assert picture.image_HW3[0, 0].tolist() == [255, 0, 0]


class TestSixteenBits:
    def gray(self, file_format: str, values_HW: Any) -> bytes:
        return encoded(Image.fromarray(values_HW), file_format)

    def colour(self, file_format: str, values_HW3: Any) -> bytes:
        cv2 = pytest.importorskip("cv2", reason="OpenCV writes the 16-bit colours of this test")
        suffix, options = {
            "PNG": (".png", []),
            "TIFF": (".tif", [cv2.IMWRITE_TIFF_COMPRESSION, 1]),
            "TIFF, LZW": (".tif", [cv2.IMWRITE_TIFF_COMPRESSION, 5]),
        }[file_format]
        return bytes(cv2.imencode(suffix, values_HW3[..., ::-1], options)[1])

    @pytest.mark.parametrize("file_format", ["PNG", "TIFF", "PPM"])
    @pytest.mark.parametrize("used_bits", [7, 10, 12, 16])
    def test_the_bits_in_use_are_counted_in_gray(self, file_format: str, used_bits: int) -> None:
        values_HW = np.linspace(0, 2**used_bits - 1, 64, dtype=np.uint16).reshape(8, 8)
        picture = decode_local_image(self.gray(file_format, values_HW))
        assert picture.used_bits == used_bits
        assert np.array_equal(picture.image_HW3, np.repeat(values_HW[..., None] >> 8, 3, 2))

    @pytest.mark.parametrize("file_format", ["PNG", "TIFF", "TIFF, LZW"])
    @pytest.mark.parametrize("used_bits", [7, 10, 12, 16])
    def test_the_bits_in_use_are_counted_in_colour(self, file_format: str, used_bits: int) -> None:
        values_HW3 = np.linspace(0, 2**used_bits - 1, 8 * 8 * 3, dtype=np.uint16).reshape(8, 8, 3)
        data = self.colour(file_format, values_HW3)
        picture = decode_local_image(data)
        assert picture.used_bits == used_bits
        assert np.array_equal(picture.image_HW3, values_HW3 >> 8)
        bits = max(used_bits, 8)
        assert np.array_equal(decode_local_image(data, bits=bits).image_HW3, values_HW3 >> (bits - 8))

    def test_without_a_stretch_a_png_gets_the_pixels_that_the_network_gets(self) -> None:
        values_HW = np.random.default_rng(0).integers(0, 65536, (8, 8)).astype(np.uint16)
        data = self.gray("PNG", values_HW)
        assert np.array_equal(decode_local_image(data).image_HW3, decode_image(data))

    def test_a_larger_value_than_the_stated_bits_is_the_brightest(self) -> None:
        values_HW = np.array([[0, 1023, 4095, 4096, 65535]], np.uint16)
        picture = decode_local_image(self.gray("PNG", values_HW), bits=12)
        assert picture.image_HW3[0, :, 0].tolist() == [0, 63, 255, 255, 255]
        assert picture.used_bits == 16

    @pytest.mark.parametrize("orientation", [1, 6, 3])
    def test_a_picture_of_16_bits_is_upright(self, orientation: int) -> None:
        image = Image.fromarray(SMOOTH_HW3[..., 0].astype(np.uint16) << 8)
        picture = decode_local_image(encoded(image, "PNG", exif=exif(orientation)))
        assert np.array_equal(picture.image_HW3[..., 0], turned(orientation)[..., 0])

    @pytest.mark.parametrize(
        ("values", "what"),
        [
            (np.full((2, 2), 70_000, np.int32), "32 bits"),
            (np.full((2, 2), -1, np.int32), "32 bits"),
            (np.full((2, 2), 0.5, np.float32), "floating-point"),
        ],
    )
    def test_wider_pixels_are_refused_with_the_way_out(self, values: Any, what: str) -> None:
        with pytest.raises(UndecodableImageError, match=f"{what}.*8 or 16 bits"):
            decode_local_image(encoded(Image.fromarray(values), "TIFF"))


class TestRefusals:
    def test_no_bytes_are_no_picture(self) -> None:
        with pytest.raises(EmptyImageError):
            decode_local_image(b"")

    @pytest.mark.parametrize("data", [b"%!PS-Adobe-3.0 EPSF-3.0\n", b"some text", b"\0" * 200, b"8BPS\0\1"])
    def test_another_format_is_refused_with_the_known_ones(self, data: bytes) -> None:
        with pytest.raises(UnsupportedImageError, match="JPEG, PNG, WebP, TIFF"):
            decode_local_image(data)

    @pytest.mark.parametrize("file_format", ["TIFF", "BMP", "GIF", "AVIF", "JPEG2000", "PPM"])
    def test_a_damaged_file_is_an_image_error(self, file_format: str) -> None:
        data = encoded(Image.fromarray(SMOOTH_HW3), file_format)
        for kept in range(8, len(data) - 40, 61):
            with pytest.raises(ImageError):
                decode_local_image(data[:kept])

    @pytest.mark.parametrize("limits", [ImageLimits(max_pixels=1199), ImageLimits(max_side=39)])
    def test_the_limits_hold_before_anything_is_decoded(self, limits: ImageLimits) -> None:
        with pytest.raises(TooManyPixelsError, match="30x40"):
            decode_local_image(encoded(Image.fromarray(SMOOTH_HW3), "TIFF"), limits)

    def test_limits_above_those_of_pillow_hold_as_well(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
        assert decode_local_image(encoded(Image.fromarray(SMOOTH_HW3), "BMP")).image_HW3.shape == (30, 40, 3)


def odd_tiff() -> bytes:
    """Return a TIFF whose copyright lies behind the end of the file: Pillow warns of it."""
    data = encoded(Image.fromarray(SMOOTH_HW3), "TIFF")
    (directory,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, directory)
    entries = data[directory + 2 : directory + 2 + 12 * count]
    copyright_entry = struct.pack("<HHII", 33432, 2, 100, len(data) + 1_000_000)
    head = struct.pack("<2sHI", b"II", 42, len(data))
    return head + data[8:] + struct.pack("<H", count + 1) + entries + copyright_entry + bytes(4)


def test_warnings_of_pillow_stay_inside_in_every_thread() -> None:
    data = odd_tiff()
    with pytest.warns(UserWarning, match=r"(?i)truncated|possibly corrupt"):
        Image.open(io.BytesIO(data)).load()
    decode: Callable[[bytes], Any] = decode_local_image
    with warnings.catch_warnings(), ThreadPoolExecutor(4) as threads:
        warnings.simplefilter("error")
        for picture in threads.map(decode, [data] * 40):
            assert np.array_equal(picture.image_HW3, SMOOTH_HW3)
