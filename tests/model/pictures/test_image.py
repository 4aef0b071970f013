import csv
import hashlib
import io
import os
import struct
import subprocess
import sys
import warnings
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from model.errors import (
    EmptyImageError,
    ImageError,
    TooManyPixelsError,
    UndecodableImageError,
    UnsupportedImageError,
)
from model.labels import UInt8Array
from model.pictures.image import (
    ImageLimits,
    decode_image,
    decode_with_orientation,
    peek_header,
    stored_size,
    turn_upright,
)
from model.pictures.preprocess import ImageSize

ORIENTATION = 0x0112
TINY = ImageLimits(max_pixels=4096, max_side=512)
MANIFEST_CODES = {
    EmptyImageError: "empty_body",
    UnsupportedImageError: "unsupported_format",
    TooManyPixelsError: "too_many_pixels",
    UndecodableImageError: "undecodable",
}


def random_pixels(height: int, width: int, channels: int, seed: int = 0) -> UInt8Array:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def encoded(picture: Image.Image, file_format: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, file_format, **options)
    return stream.getvalue()


def exif(orientation: int) -> Image.Exif:
    block = Image.Exif()
    block[ORIENTATION] = orientation
    return block


def pillow_rgb(data: bytes) -> UInt8Array:
    return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(*chunks: bytes, height: int = 8, width: int = 8, color_type: int = 2) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, color_type, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IEND", b"")


def gray_data(height: int, width: int) -> bytes:
    return chunk(b"IDAT", zlib.compress(b"".join(b"\0" + bytes([7] * width) for _ in range(height))))


# --- the corpus -------------------------------------------------------------------------------------------


def outcome(data: bytes) -> tuple[str, str, str]:
    """What the manifest says of a file: code, upright WxH, start of the digest of the pixels."""
    try:
        image_HW3 = decode_image(data)
    except ImageError as error:
        leak = " with the library's text" if str(error.__cause__) in str(error) else ""
        return MANIFEST_CODES[type(error)] + leak, "-", "-"
    assert peek_header(data).size == ImageSize(*image_HW3.shape[:2])
    digest = hashlib.sha256(image_HW3.tobytes()).hexdigest()[:16]
    return "ok", f"{image_HW3.shape[1]}x{image_HW3.shape[0]}", digest


@pytest.mark.guarantee("G1")
@pytest.mark.data
@pytest.mark.skipif("BISENET_DATA_ROOT" not in os.environ, reason="BISENET_DATA_ROOT is not set")
def test_every_hostile_file_has_its_outcome_size_and_pixels_in_any_thread_without_a_warning() -> None:
    root = Path(os.environ["BISENET_DATA_ROOT"]) / "hostile_images"
    with (root / "manifest.tsv").open(newline="") as lines:
        rows = list(csv.DictReader(lines, delimiter="\t"))
    with warnings.catch_warnings(record=True) as leaked, ThreadPoolExecutor(3) as threads:
        warnings.simplefilter("always")
        outcomes = list(threads.map(lambda row: outcome((root / row["file"]).read_bytes()), rows))
    expected = [(row["expected_code"], row["upright_wxh"], row["rgb_sha256_16"]) for row in rows]
    wrong = [
        f"{row['file']} ({row['whats_wrong']}): {got}, not {want}"
        for row, got, want in zip(rows, outcomes, expected, strict=True)
        if got != want
    ]
    assert len(rows) == 1358
    assert not wrong, "\n".join(wrong)
    assert not leaked, [str(warning.message) for warning in leaked]


# --- pixels -----------------------------------------------------------------------------------------------

MODES = [
    (mode, file_format)
    for file_format, modes in {
        "PNG": ["1", "L", "LA", "P", "RGB", "RGBA"],
        "JPEG": ["L", "RGB", "CMYK"],
        "WEBP": ["RGB", "RGBA"],
    }.items()
    for mode in modes
]


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(MODES),
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    orientation=st.integers(1, 8),
    seed=st.integers(0, 99),
)
def test_pixels_of_every_mode_and_orientation_are_those_of_pillow(
    kind: tuple[str, str], height: int, width: int, orientation: int, seed: int
) -> None:
    mode, file_format = kind
    channels = {"L": 1, "RGBA": 4, "LA": 2, "CMYK": 4}.get(mode, 3)
    pixels = random_pixels(height, width, channels, seed)
    picture = Image.fromarray(
        pixels.squeeze(2) if channels == 1 else pixels, mode if channels != 3 else "RGB"
    )
    options = {"lossless": True, "exact": True} if file_format == "WEBP" else {}
    data = encoded(picture.convert(mode), file_format, exif=exif(orientation), **options)
    decoded = decode_image(data)
    np.testing.assert_array_equal(decoded, pillow_rgb(data))
    assert peek_header(data).size == ImageSize(*decoded.shape[:2])
    assert decoded.flags.c_contiguous
    assert decoded.flags.writeable


@pytest.mark.parametrize(
    ("orientation", "stored"),
    [
        (1, lambda upright: upright),
        (2, np.fliplr),
        (3, lambda upright: np.rot90(upright, 2)),
        (4, np.flipud),
        (5, lambda upright: upright.swapaxes(0, 1)),
        (6, lambda upright: np.rot90(upright, 1)),
        (7, lambda upright: np.rot90(upright, 2).swapaxes(0, 1)),
        (8, lambda upright: np.rot90(upright, 3)),
    ],
)
def test_a_turned_picture_is_turned_back(
    orientation: int, stored: Callable[[UInt8Array], UInt8Array]
) -> None:
    upright = random_pixels(41, 67, 3)
    data = encoded(Image.fromarray(np.ascontiguousarray(stored(upright))), exif=exif(orientation))
    np.testing.assert_array_equal(decode_image(data), upright)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_what_was_drawn_on_the_stored_pixels_is_turned_like_the_picture(orientation: int) -> None:
    stored = random_pixels(5, 9, 3)
    data = encoded(Image.fromarray(stored), exif=exif(orientation))
    image_HW3, found = decode_with_orientation(data)
    assert found == orientation
    np.testing.assert_array_equal(image_HW3, decode_image(data))
    np.testing.assert_array_equal(turn_upright(stored, orientation), image_HW3)
    drawn = turn_upright(stored[..., 0], orientation)
    np.testing.assert_array_equal(drawn, image_HW3[..., 0])
    assert drawn.flags.c_contiguous
    assert stored_size(ImageSize(*drawn.shape), orientation) == ImageSize(5, 9)


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_out_of_range_means_upright(orientation: int) -> None:
    pixels = random_pixels(5, 9, 3)
    data = encoded(Image.fromarray(pixels), exif=exif(orientation))
    np.testing.assert_array_equal(decode_image(data), pixels)


def test_an_orientation_is_read_in_both_byte_orders_and_only_as_a_short() -> None:
    pixels = random_pixels(5, 9, 3)
    for order, mark in (("<", b"II"), (">", b"MM")):
        for kind, expected in ((3, ImageSize(9, 5)), (7, ImageSize(5, 9))):
            entry = struct.pack(f"{order}HHIHH", ORIENTATION, kind, 1, 6, 0)
            block = mark + struct.pack(f"{order}HIH", 42, 8, 1) + entry
            assert peek_header(encoded(Image.fromarray(pixels), exif=block)).size == expected


def test_xmp_turns_a_picture_only_when_exif_is_silent() -> None:
    pixels = Image.fromarray(random_pixels(5, 9, 3))
    packet = b'<x tiff:Orientation="6"/>'
    assert peek_header(encoded(pixels, "JPEG", xmp=packet)).size == ImageSize(9, 5)
    for spoken in (0, 1, 9):
        assert peek_header(encoded(pixels, "JPEG", xmp=packet, exif=exif(spoken))).size == ImageSize(5, 9)


def test_exif_that_points_nowhere_is_ignored_without_a_warning() -> None:
    entry = struct.pack("<HHII", 0x010F, 2, 1000, 5000)  # a camera maker's name beyond the end
    block = b"Exif\0\0II" + struct.pack("<HIH", 42, 8, 1) + entry
    data = encoded(Image.new("RGB", (9, 5)), "JPEG", exif=block)
    with warnings.catch_warnings(record=True) as leaked:
        warnings.simplefilter("always")
        assert peek_header(data).size == ImageSize(5, 9)
    assert not leaked


@pytest.mark.parametrize("kind", [b"tEXt", b"iTXt"])
@pytest.mark.parametrize("key", [b"exif", b"xmp", b"Raw profile type exif", b"transparency", b"interlace"])
def test_a_text_chunk_may_carry_any_name(kind: bytes, key: bytes) -> None:
    head = key + (b"\0" if kind == b"tEXt" else b"\0\0\0\0\0")
    data = png(chunk(kind, head + b"\n\n\nnot what it seems"), gray_data(8, 8), color_type=0)
    assert peek_header(data).size == ImageSize(8, 8)


def test_sixteen_bit_gray_keeps_its_high_byte() -> None:
    ramp = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    decoded = decode_image(encoded(Image.fromarray(ramp)))
    for channel in range(3):
        np.testing.assert_array_equal(decoded[..., channel], ramp >> 8)


def test_transparency_is_dropped_not_blended() -> None:
    pixels = random_pixels(9, 5, 4)
    pixels[..., 3] = 0
    decoded = decode_image(encoded(Image.fromarray(pixels)))
    np.testing.assert_array_equal(decoded, pixels[..., :3])


@pytest.mark.parametrize("file_format", ["PNG", "WEBP", "MPO"])
def test_of_several_frames_the_first_counts(file_format: str) -> None:
    first, second = (Image.new("RGB", (16, 8), color) for color in ("red", "blue"))
    decoded = decode_image(encoded(first, file_format, save_all=True, append_images=[second]))
    assert decoded.shape == (8, 16, 3)
    assert np.abs(decoded.astype(int) - [255, 0, 0]).max() <= 4


def test_pixels_that_a_file_leaves_out_are_black() -> None:
    frame = chunk(b"fcTL", struct.pack(">IIIIIHHBB", 0, 4, 4, 2, 2, 1, 1, 0, 0))
    decoded = decode_image(png(frame, gray_data(4, 4), color_type=0))
    expected = np.zeros((8, 8, 3), np.uint8)
    expected[2:6, 2:6] = 7
    np.testing.assert_array_equal(decoded, expected)


def test_a_memoryview_is_as_good_as_bytes() -> None:
    data = encoded(Image.fromarray(random_pixels(5, 9, 3)))
    np.testing.assert_array_equal(decode_image(memoryview(data)), decode_image(data))
    assert peek_header(memoryview(data)).size == ImageSize(5, 9)


# --- refusals ---------------------------------------------------------------------------------------------


def test_no_bytes_are_no_image() -> None:
    for decode in (decode_image, peek_header):
        with pytest.raises(EmptyImageError):
            decode(b"")


@pytest.mark.parametrize("file_format", ["GIF", "BMP", "TIFF", "PPM", "ICO", "JPEG2000", "AVIF"])
def test_other_formats_are_unsupported(file_format: str) -> None:
    data = encoded(Image.new("RGB", (16, 16)), file_format)
    with pytest.raises(UnsupportedImageError):
        decode_image(data)


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP"])
def test_limits_are_inclusive_and_hold_for_the_header_alone(file_format: str) -> None:
    for height, width in ((64, 64), (8, 512), (512, 8)):
        data = encoded(Image.new("RGB", (width, height)), file_format)
        assert decode_image(data, TINY).shape == (height, width, 3)
    for height, width in ((64, 65), (65, 64), (1, 513), (513, 1)):
        data = encoded(Image.new("RGB", (width, height)), file_format, exif=exif(6))
        for decode in (decode_image, peek_header):
            with pytest.raises(TooManyPixelsError, match=f"{height}x{width}"):
                decode(data, TINY)


def test_a_bomb_is_refused_before_it_is_decoded() -> None:
    undecodable_data = chunk(b"IDAT", b"not deflate")
    with pytest.raises(TooManyPixelsError):
        decode_image(png(undecodable_data, height=50_000, width=50_000))
    with pytest.raises(UndecodableImageError):
        decode_image(png(undecodable_data, height=7000, width=7000))


def test_a_webp_canvas_of_gigabytes_is_refused_before_its_decoder_is_made() -> None:
    canvas = struct.pack("<II", 10, 0) + (16_382).to_bytes(3, "little") * 2
    body = b"WEBPVP8X" + canvas
    with pytest.raises(TooManyPixelsError):
        decode_image(b"RIFF" + struct.pack("<I", len(body)) + body)


def test_a_jpeg_of_endless_scans_is_refused() -> None:
    data = encoded(Image.new("L", (8, 8)), "JPEG", progressive=True)
    scan = data[data.rindex(b"\xff\xda") : -2]
    assert decode_image(data[:-2] + scan * 20 + b"\xff\xd9").shape == (8, 8, 3)
    with pytest.raises(UndecodableImageError, match="scans"):
        decode_image(data[:-2] + scan * 101 + b"\xff\xd9")


def test_a_file_of_endless_pieces_is_refused() -> None:
    for pieces, expected in ((20_000, None), (100_000, UndecodableImageError)):
        data = png(chunk(b"tEXt", b"a\0b") * pieces, gray_data(8, 8), color_type=0)
        if expected is None:
            assert decode_image(data).shape == (8, 8, 3)
        else:
            with pytest.raises(expected):
                decode_image(data)


def small_files() -> list[bytes]:
    picture = Image.fromarray(random_pixels(12, 17, 3))
    animation = {"save_all": True, "append_images": [Image.new("RGB", (17, 12))]}
    return [
        encoded(picture, "JPEG", exif=exif(6)),
        encoded(picture, "JPEG", progressive=True),
        encoded(picture, "MPO", **animation),
        encoded(picture.convert("CMYK"), "JPEG"),
        encoded(picture, "PNG", exif=exif(3)),
        encoded(picture, "PNG", **animation),
        encoded(picture.quantize(8), "PNG", transparency=b"\0\x80"),
        encoded(Image.fromarray(np.arange(204, dtype=np.uint16).reshape(12, 17) * 300), "PNG"),
        encoded(picture, "WEBP", exif=exif(8)),
        encoded(picture, "WEBP", lossless=True),
        encoded(picture, "WEBP", **animation),
    ]


SMALL_FILES = small_files()


def assert_picture_or_image_error(data: bytes) -> None:
    with warnings.catch_warnings(record=True) as leaked:
        warnings.simplefilter("always")
        try:
            decoded = decode_image(data, TINY)
        except ImageError:
            pass
        else:
            assert decoded.dtype == np.uint8
            assert peek_header(data, TINY).size == ImageSize(*decoded.shape[:2])
    assert not leaked


@pytest.mark.parametrize("data", SMALL_FILES, ids=range(len(SMALL_FILES)))
def test_a_file_cut_anywhere_is_a_picture_or_an_image_error(data: bytes) -> None:
    for length in range(0, len(data), 3):
        assert_picture_or_image_error(data[:length])


@settings(max_examples=300, deadline=None)
@given(
    data=st.sampled_from(SMALL_FILES),
    edits=st.lists(
        st.tuples(st.integers(0, 1 << 20), st.binary(min_size=1, max_size=4)), min_size=1, max_size=6
    ),
)
def test_a_file_with_any_bytes_changed_is_a_picture_or_an_image_error(
    data: bytes, edits: list[tuple[int, bytes]]
) -> None:
    changed = bytearray(data)
    for position, replacement in edits:
        start = position % len(data)
        changed[start : start + len(replacement)] = replacement
    assert_picture_or_image_error(bytes(changed))


# --- memory -----------------------------------------------------------------------------------------------

MEASURE_PEAK = """
import sys
from model.pictures.image import decode_image
pixels = decode_image(sys.stdin.buffer.read()).size // 3
status = open("/proc/self/status").read()
print(pixels, int(status.split("VmHWM:")[1].split()[0]) * 1024)
"""


COSTS = [
    ("RGB", "JPEG", {}, 4),
    ("L", "JPEG", {}, 3),
    ("RGB", "JPEG", {"exif": exif(6)}, 7),
    ("RGB", "JPEG", {"progressive": True, "subsampling": 0}, 10),
    ("CMYK", "JPEG", {"progressive": True}, 12),
    ("RGBA", "PNG", {}, 4),
    ("P", "PNG", {}, 3),
    ("RGB", "WEBP", {"lossless": True}, 12),
]


@pytest.mark.guarantee("G14")
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
@pytest.mark.parametrize(("mode", "file_format", "options", "bytes_a_pixel"), COSTS)
def test_decoding_takes_the_bytes_a_pixel_that_the_header_tells_and_64_mb(
    mode: str, file_format: str, options: dict[str, object], bytes_a_pixel: int
) -> None:
    data = encoded(Image.new(mode, (4000, 4000)), file_format, **options)
    assert peek_header(data).decode_bytes == bytes_a_pixel * 4000 * 4000
    run = subprocess.run([sys.executable, "-c", MEASURE_PEAK], input=data, capture_output=True, check=True)
    pixels, peak_bytes = (int(number) for number in run.stdout.split())
    assert pixels == 4000 * 4000
    assert peak_bytes <= bytes_a_pixel * pixels + 64 * 2**20


def test_a_thumbnail_is_not_taken_for_a_second_scan() -> None:
    thumbnail = encoded(Image.new("RGB", (8, 8)), "JPEG")
    data = encoded(Image.new("RGB", (16, 16)), "JPEG", exif=b"Exif\0\0II*\0" + thumbnail)
    assert data.count(b"\xff\xda") == 2
    assert peek_header(data).decode_bytes == 4 * 16 * 16
