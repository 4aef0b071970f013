"""Label files of every kind become class ids, or say what they are and what reads them."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from typing import Any

import numpy as np
import pytest
from dataset_folders import ROAD, truth
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFilter

from model.datasets.masks import DecodedMask, MaskError, MaskReader, MaskRules, mask_size
from model.labels import ClassPalette, Color, UInt8Array
from model.pictures.preprocess import ImageSize

CAR = (0, 0, 142)
TWO = ClassPalette(("background", "road"), ((0, 0, 0), ROAD))
THREE = ClassPalette(("background", "road", "car"), ((0, 0, 0), ROAD, CAR))
OWN_COLORS: dict[Color, int] = {(0, 0, 0): 0, ROAD: 1}
IDS = truth()


def encoded(image: Image.Image | np.ndarray, file_format: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(stream, file_format, **options)
    return stream.getvalue()


def painted(ids: UInt8Array, colors: list[Color]) -> UInt8Array:
    return np.array(colors, np.uint8)[ids]


def indexed(ids: UInt8Array, colors: list[Color], **options: Any) -> bytes:
    image = Image.fromarray(ids, mode="P")
    image.putpalette([value for color in colors for value in color])
    return encoded(image, **options)


def gray_png(values: np.ndarray, depth: int) -> bytes:
    """Write gray of few bits, which Pillow does not write."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    height, width = values.shape
    bits = np.unpackbits(values.astype(np.uint8)[..., None], axis=2)[..., 8 - depth :].reshape(height, -1)
    rows = b"".join(b"\0" + np.packbits(row).tobytes() for row in bits)
    header = struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def read(data: bytes, palette: ClassPalette = TWO, label_map: dict[int, int] | None = None) -> DecodedMask:
    """Read a mask as a data-set file without ``masks`` does."""
    colors = dict(zip(palette.colors, range(palette.num_classes), strict=True))
    return MaskReader(palette, label_map or {}, MaskRules(colors=colors)).read_mask(data)


def read_colors(data: bytes, *, tolerance: int = 0, colors: dict[Color, int] | None = None) -> DecodedMask:
    rules = MaskRules("colors", OWN_COLORS if colors is None else colors, tolerance)
    return MaskReader(TWO, {}, rules).read_mask(data)


def refusal(data: bytes, palette: ClassPalette = TWO, label_map: dict[int, int] | None = None) -> str:
    with pytest.raises(MaskError) as error:
        read(data, palette, label_map)
    return str(error.value)


# --- masks of ids -----------------------------------------------------------------------------------------

ID_MASKS = {
    "8-bit gray": encoded(IDS),
    "1-bit gray": encoded(Image.fromarray(IDS * np.uint8(255)).convert("1")),
    "2-bit gray": gray_png(IDS, 2),
    "4-bit gray": gray_png(IDS, 4),
    "16-bit gray": encoded(IDS.astype(np.uint16)),
    "gray and alpha": encoded(np.stack([IDS, np.full_like(IDS, 255)], axis=2)),
    "gray as RGB": encoded(np.stack([IDS] * 3, axis=2)),
    "gray as RGBA": encoded(np.stack([IDS] * 3 + [np.full_like(IDS, 255)], axis=2)),
    "indices": indexed(IDS, [(0, 0, 0), ROAD]),
    "indices of 1 bit": indexed(IDS, [(0, 0, 0), ROAD], bits=1),
    "indices in colours of no class": indexed(IDS, [(1, 2, 3), (4, 5, 6)]),
}


@pytest.mark.parametrize("kind", ID_MASKS)
def test_ids_are_read_from_png_files_of_every_kind(kind: str) -> None:
    mask = read(ID_MASKS[kind])
    assert mask.ids_HW.dtype == np.uint8
    assert np.array_equal(mask.ids_HW, IDS)
    assert mask_size(ID_MASKS[kind]) == ImageSize(*IDS.shape)


@given(st.integers(0, 3))
def test_gray_of_few_bits_keeps_its_values(value: int) -> None:
    palette = ClassPalette(("a", "b", "c", "d"), ((0, 0, 0), (1, 1, 1), (2, 2, 2), (3, 3, 3)))
    values = np.full((3, 5), value, np.uint8)
    for depth in (2, 4):
        assert np.array_equal(read(gray_png(values, depth), palette).ids_HW, values)


def test_values_of_16_bits_are_led_to_classes() -> None:
    values = np.where(IDS, 40000, 7).astype(np.uint16)
    mask = read(encoded(values), label_map={40000: 1, 7: 0})
    assert np.array_equal(mask.ids_HW, IDS)


def test_ids_above_255_are_never_cut_to_a_byte() -> None:
    message = refusal(encoded(IDS.astype(np.uint16) * 257))
    assert "ids [257] are outside [0, 2)" in message
    assert "257 = 1" in message


@pytest.mark.parametrize(
    ("values", "palette", "lines"),
    [
        ([0, 127, 255], THREE, ["127 = 1", "255 = 2"]),
        ([0, 127, 255], TWO, ["127 = 1"]),
        ([0, 10, 20], THREE, ["10 = 1", "20 = 2"]),
        ([0, 10, 20, 255], THREE, ["10 = 1", "20 = 2"]),
        ([1, 2], TWO, ["1 = 0", "2 = 1"]),
        ([0, 1, 2], TWO, ["0 = 255", "1 = 0", "2 = 1"]),
        ([0, 1, 9], TWO, ["9 = 255"]),
    ],
)
def test_values_that_are_no_ids_come_with_a_label_map(
    values: list[int], palette: ClassPalette, lines: list[str]
) -> None:
    message = refusal(encoded(np.repeat(np.array([values], np.uint8), 8, axis=0).repeat(8, axis=1)), palette)
    assert message.splitlines()[1:] == ["    [label_map]", *(f"    {line}" for line in lines)]


def test_a_proposed_label_map_keeps_the_lines_that_are_there() -> None:
    message = refusal(encoded(np.repeat(np.array([[0, 7, 9]], np.uint8), 9, axis=1)), label_map={7: 1})
    assert message.endswith("in [label_map], in place of its lines:\n    7 = 1\n    9 = 255")


def test_label_ids_of_cityscapes_are_recognised() -> None:
    names = (
        *("road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign"),
        *("vegetation", "terrain", "sky", "person", "rider", "car", "truck", "bus", "train"),
        *("motorcycle", "bicycle"),
    )
    cityscapes = ClassPalette(names, tuple((0, 0, k) for k in range(19)))
    message = refusal(encoded(np.repeat(np.array([[7, 11, 21, 23, 26]], np.uint8), 9, axis=1)), cityscapes)
    assert "labelIds of Cityscapes" in message
    for line in ("0 = 255", "7 = 0", "26 = 13", "33 = 18"):
        assert f"\n    {line}" in message


def test_one_class_is_told_to_need_a_background() -> None:
    one = ClassPalette(("road",), (ROAD,))
    message = refusal(encoded(IDS), one)
    assert message.endswith(
        'add before the first [[classes]]:\n    [[classes]]\n    name = "background"\n    color = [0, 0, 0]'
    )


def test_a_gray_photograph_is_no_mask() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 50), np.uint8)
    assert "too many values for a mask" in refusal(encoded(noise))


# --- edges, compression, colours --------------------------------------------------------------------------


def smooth_edges(low: int, high: int) -> UInt8Array:
    large = Image.fromarray(np.kron(IDS, np.ones((8, 8), np.uint8)) * np.uint8(high - low) + np.uint8(low))
    return np.asarray(large.resize((96, 72), Image.Resampling.LANCZOS).filter(ImageFilter.GaussianBlur(0.7)))


@pytest.mark.parametrize(("low", "high", "label_map"), [(0, 255, {255: 1}), (0, 200, {200: 1}), (0, 255, {})])
def test_anti_aliased_edges_of_gray_masks_are_named(low: int, high: int, label_map: dict[int, int]) -> None:
    message = refusal(encoded(smooth_edges(low, high)), label_map=label_map)
    assert "anti-aliased edges" in message
    assert 'masks = "colors"\n    color_tolerance = 255' in message
    assert f'"{low},{low},{low}" = 0\n    "{high},{high},{high}" = 1' in message


def test_every_class_keeps_its_gray_value_where_a_mask_shows_some_of_them() -> None:
    message = refusal(encoded(smooth_edges(0, 255)), THREE, {255: 2, 127: 1})
    assert message.endswith('"0,0,0" = 0\n    "127,127,127" = 1\n    "255,255,255" = 2')
    message = refusal(encoded(smooth_edges(0, 200)), TWO, {0: 1, 200: 0})
    assert message.endswith('"0,0,0" = 1\n    "200,200,200" = 0')


def test_areas_are_not_taken_for_edges() -> None:
    values = IDS.copy()
    values[0:4, 0:9], values[16:20, 0:9], values[16:20, 20:30] = 30, 40, 50
    message = refusal(encoded(values))
    assert "anti-aliased" not in message
    assert "ids [30, 40, 50]" in message


@pytest.mark.parametrize("kind", ["RGB", "RGBA", "P"])
def test_a_mask_in_the_colours_of_the_classes_is_recognised(kind: str) -> None:
    if kind == "P":
        image = indexed(IDS, [ROAD, (0, 0, 0)])
        assert "has the colour of road there" in refusal(image)
    else:
        image = encoded(Image.fromarray(painted(IDS, [(0, 0, 0), ROAD])).convert(kind))
        assert refusal(image).startswith("a mask in the colours of the classes; add")
    assert 'masks = "colors"' in refusal(image)


def test_colours_of_no_class_are_listed_with_lines_that_leave_them_out() -> None:
    message = refusal(encoded(painted(IDS, [(0, 0, 0), (9, 8, 7)])))
    assert f"1 of them of no class: 9,8,7 on {IDS.sum()} pixels" in message
    assert '[label_map]\n    "9,8,7" = 255' in message


def test_a_photograph_is_no_mask() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    assert "a picture in 2000 colours, not a mask" in refusal(encoded(noise))


def test_a_jpeg_is_told_to_change_values() -> None:
    assert refusal(encoded(IDS, "JPEG")).startswith("a JPEG, whose compression")


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (encoded(IDS, "BMP"), "a BMP"),
        (encoded(IDS, "TIFF"), "a TIFF"),
        (encoded(IDS, "GIF"), "a GIF"),
        (encoded(IDS, "WEBP"), "a WebP"),
        (b'{"shapes": []}', "bisenet dataset import"),
        (b"\x93NUMPY\x01", "a NumPy array"),
    ],
)
def test_files_of_other_formats_are_named(data: bytes, name: str) -> None:
    assert name in refusal(data)


@pytest.mark.parametrize("data", [b"", b"\x89PNG\r\n\x1a\n", encoded(IDS)[:60], gray_png(IDS, 8)[:-40]])
def test_a_broken_png_is_named(data: bytes) -> None:
    assert "not a PNG" in refusal(data) or "broken PNG" in refusal(data)


def test_a_png_without_pixels_is_broken() -> None:
    with pytest.raises(MaskError, match="no pixels"):
        mask_size(encoded(IDS).replace(struct.pack(">II", 32, 24), bytes(8), 1))
    with pytest.raises(MaskError, match="not a PNG"):
        mask_size(b"?")


# --- palettes ---------------------------------------------------------------------------------------------


def test_indices_with_the_colour_of_another_class_are_refused_unless_the_file_says_which_count() -> None:
    swapped = indexed(IDS, [ROAD, (0, 0, 0)])
    assert 'masks = "ids" if the indices are right' in refusal(swapped)
    by_index = MaskReader(TWO, {}, MaskRules("ids", OWN_COLORS)).read_mask(swapped)
    assert np.array_equal(by_index.ids_HW, IDS)
    assert np.array_equal(read_colors(swapped).ids_HW, 1 - IDS)


def test_a_palette_is_compared_after_the_label_map() -> None:
    swapped = indexed(IDS, [ROAD, (0, 0, 0)])
    assert np.array_equal(read(swapped, label_map={0: 1, 1: 0}).ids_HW, 1 - IDS)


def test_colours_of_indices_that_do_not_occur_do_not_matter() -> None:
    assert read(indexed(np.zeros_like(IDS), [(0, 0, 0), (0, 0, 0)])).index_colors == {0: (0, 0, 0)}


def test_an_index_beyond_the_end_of_the_palette_has_no_colour() -> None:
    data = indexed(IDS, [(5, 5, 5), (6, 6, 6)], bits=8)
    start, length = data.index(b"PLTE") - 4, 6
    palette = b"PLTE" + bytes([5, 5, 5])
    short = struct.pack(">I", 3) + palette + struct.pack(">I", zlib.crc32(palette))
    mask = read(data[:start] + short + data[start + 12 + length :])
    assert mask.index_colors == {0: (5, 5, 5)}
    assert np.array_equal(mask.ids_HW, IDS)


# --- masks in colours -------------------------------------------------------------------------------------

COLORED = painted(IDS, [(0, 0, 0), ROAD])
COLOR_MASKS = {
    "RGB": encoded(COLORED),
    "RGBA": encoded(Image.fromarray(COLORED).convert("RGBA")),
    "indices": indexed(IDS, [(0, 0, 0), ROAD]),
    "indices in another order": indexed(1 - IDS, [ROAD, (0, 0, 0)]),
    "lossless WebP": encoded(COLORED, "WEBP", lossless=True),
    "transparent background": encoded(np.dstack([COLORED, IDS * np.uint8(255)])),
    "erased background": encoded(np.dstack([np.full_like(COLORED, ROAD), IDS * np.uint8(255)])),
    "transparent index": indexed(1 - IDS, [ROAD, (7, 7, 7)], transparency=1),
}


@pytest.mark.parametrize("kind", COLOR_MASKS)
def test_colours_are_read_from_pictures_of_every_kind(kind: str) -> None:
    data = COLOR_MASKS[kind]
    mask = read_colors(data)
    assert np.array_equal(mask.ids_HW, IDS)
    assert (mask.nearest_pixels, mask.index_colors) == (0, {})


@pytest.mark.parametrize(
    "data",
    [
        encoded(IDS * np.uint8(255)),
        encoded(Image.fromarray(IDS * np.uint8(255)).convert("1")),
        encoded(IDS.astype(np.uint16) * 65535),
        gray_png(IDS * np.uint8(15), 4),
    ],
)
def test_gray_is_a_colour_too(data: bytes) -> None:
    mask = read_colors(data, colors={(0, 0, 0): 0, (255, 255, 255): 1})
    assert np.array_equal(mask.ids_HW, IDS)


def test_a_mask_that_is_transparent_everywhere_is_refused() -> None:
    with pytest.raises(MaskError, match="every pixel of the mask is transparent"):
        read_colors(encoded(np.dstack([COLORED, np.zeros_like(IDS)])))


def test_a_colour_of_no_class_is_refused_by_name() -> None:
    with pytest.raises(MaskError, match=r"1 of them of no class: 9,9,9 on") as error:
        read_colors(encoded(painted(IDS, [(0, 0, 0), (9, 9, 9)])))
    assert 'masks = "colors"' not in str(error.value)


def test_smooth_edges_in_colours_take_the_nearest_colour_on_request() -> None:
    large = Image.fromarray(np.kron(IDS, np.ones((8, 8), np.uint8)))
    exact = np.asarray(large)
    smooth = Image.fromarray(painted(exact, [(0, 0, 0), ROAD])).filter(ImageFilter.GaussianBlur(1))
    with pytest.raises(MaskError, match="anti-aliased edges") as error:
        read_colors(encoded(smooth))
    assert str(error.value).endswith("color_tolerance = 255")
    mask = read_colors(encoded(smooth), tolerance=255)
    assert mask.nearest_pixels > 0
    assert (mask.ids_HW == exact).mean() > 0.995


def test_jpeg_masks_take_the_nearest_colour_on_request() -> None:
    exact = np.kron(IDS, np.ones((8, 8), np.uint8))
    jpeg = encoded(painted(exact, [(0, 0, 0), ROAD]), "JPEG", quality=80)
    with pytest.raises(MaskError, match="a JPEG, whose compression"):
        read_colors(jpeg)
    assert (read_colors(jpeg, tolerance=255).ids_HW == exact).mean() > 0.995


@given(
    color=st.tuples(*[st.integers(0, 255)] * 3),
    tolerance=st.integers(1, 255),
)
def test_the_nearest_colour_is_that_of_the_smallest_squared_distance_within_the_tolerance(
    color: Color, tolerance: int
) -> None:
    data = encoded(np.full((1, 1, 3), color, np.uint8))
    distances = [sum((a - b) ** 2 for a, b in zip(color, known, strict=True)) for known in OWN_COLORS]
    nearest = distances.index(min(distances))
    farthest = max(abs(a - b) for a, b in zip(color, list(OWN_COLORS)[nearest], strict=True))
    if farthest > tolerance:
        with pytest.raises(MaskError):
            read_colors(data, tolerance=tolerance)
    else:
        assert read_colors(data, tolerance=tolerance).ids_HW[0, 0] == nearest


def test_a_mask_larger_than_pillow_opens_by_itself_is_read_without_a_warning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(read(encoded(IDS)).ids_HW, IDS)
        assert np.array_equal(read_colors(COLOR_MASKS["RGB"]).ids_HW, IDS)
