import io
import json
import struct
from typing import cast

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image

from model.labels import IGNORE_ID, ClassPalette, LabelMap, UInt8Array
from service.core.pictures import codec

few = settings(max_examples=50, deadline=None)

PALETTE = ClassPalette(
    names=("road", "sky", "tree", "car"), colors=((128, 64, 128), (70, 130, 180), (107, 142, 35), (0, 0, 142))
)
CROWDED = ClassPalette(
    names=tuple(f"class {i}" for i in range(255)), colors=tuple((i, 255 - i, i // 2) for i in range(255))
)


@st.composite
def label_maps(draw: st.DrawFn) -> LabelMap:
    palette = draw(st.sampled_from([PALETTE, CROWDED]))
    known = st.integers(0, palette.num_classes - 1) | st.just(IGNORE_ID)
    shape = draw(array_shapes(min_dims=2, max_dims=2, max_side=40))
    ids_HW = draw(arrays(np.uint8, shape, elements=known, fill=known))
    return LabelMap(np.asfortranarray(ids_HW) if draw(st.booleans()) else ids_HW, palette)


@st.composite
def pictures_with_labels(draw: st.DrawFn) -> tuple[UInt8Array, LabelMap]:
    label_map = draw(label_maps())
    image_HW3 = draw(arrays(np.uint8, (*label_map.ids_HW.shape, 3)))
    return image_HW3, label_map


def smooth_map(height: int = 200, width: int = 300) -> LabelMap:
    coarse = np.random.default_rng(0).integers(0, 4, (8, 12), dtype=np.uint8)
    resized = Image.fromarray(coarse).resize((width, height), Image.Resampling.NEAREST)
    return LabelMap(np.asarray(resized), PALETTE)


def opened(data: bytes) -> Image.Image:
    picture = Image.open(io.BytesIO(data))
    picture.load()
    return picture


def chunk_kinds(data: bytes) -> list[bytes]:
    kinds, start = [], 8
    while start < len(data):
        length, kind = struct.unpack_from(">I4s", data, start)
        kinds.append(kind)
        start += 12 + length
    return kinds


# --- PNG --------------------------------------------------------------------------------------------------


@few
@given(label_maps())
def test_a_palette_png_carries_ids_as_pixels_and_colors_as_palette(label_map: LabelMap) -> None:
    data = codec.encode_palette_png(label_map)
    picture = opened(data)
    assert picture.mode == "P"
    np.testing.assert_array_equal(np.asarray(picture), label_map.ids_HW)
    np.testing.assert_array_equal(np.asarray(picture.convert("RGB")), codec.colorize(label_map).pixels())
    assert chunk_kinds(data) == [b"IHDR", b"PLTE", b"IDAT", b"IEND"]


def test_the_palette_covers_the_classes_and_the_ignore_id_only_where_it_occurs() -> None:
    for top_id, entries in ((0, 4), (3, 4), (IGNORE_ID, 256)):
        data = codec.encode_palette_png(LabelMap(np.array([[0, top_id]], np.uint8), PALETTE))
        (length,) = struct.unpack_from(">I", data, data.index(b"PLTE") - 4)
        assert length == 3 * entries


@few
@given(arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=40).map(lambda shape: (*shape, 3))))
def test_an_rgb_png_returns_its_pixels(image_HW3: UInt8Array) -> None:
    data = codec.encode_rgb_png(codec.raster_of(image_HW3))
    picture = opened(data)
    assert picture.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(picture), image_HW3)
    assert chunk_kinds(data) == [b"IHDR", b"IDAT", b"IEND"]


def test_a_smooth_label_map_becomes_a_smaller_png_than_pillows() -> None:
    label_map = smooth_map()
    peer = io.BytesIO()
    Image.fromarray(label_map.ids_HW).save(peer, "PNG", compress_level=1)
    assert len(codec.encode_palette_png(label_map)) <= len(peer.getvalue())


@pytest.mark.parametrize("shape", [(2, 270_000), (530_000, 1), (730, 730)])
def test_a_picture_of_several_bands_is_encoded_as_a_whole(shape: tuple[int, int]) -> None:
    random = np.random.default_rng(5)
    image_HW3 = random.integers(0, 256, (*shape, 3), dtype=np.uint8)
    label_map = LabelMap(random.integers(0, 4, shape, dtype=np.uint8), PALETTE)
    raster = codec.raster_of(image_HW3)
    assert len(list(raster.bands())) > 1
    np.testing.assert_array_equal(np.asarray(opened(codec.encode_rgb_png(raster))), image_HW3)
    np.testing.assert_array_equal(np.asarray(opened(codec.encode_palette_png(label_map))), label_map.ids_HW)
    np.testing.assert_array_equal(np.load(io.BytesIO(codec.encode_npy(raster))), image_HW3)


# --- colours ----------------------------------------------------------------------------------------------


@few
@given(st.integers(1, 9), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_a_mask_is_a_grey_png_of_0_and_255(height: int, width: int, seed: int) -> None:
    is_inside_HW = np.random.default_rng(seed).random((height, width)) < 0.5
    decoded = Image.open(io.BytesIO(codec.encode_mask_png(is_inside_HW)))
    assert decoded.mode == "L"
    assert np.array_equal(np.asarray(decoded), np.where(is_inside_HW, 255, 0))


def test_a_mask_of_several_bands_is_encoded_as_a_whole() -> None:
    is_inside_HW = np.random.default_rng(1).random((1100, 1003)) < 0.5
    decoded = Image.open(io.BytesIO(codec.encode_mask_png(is_inside_HW)))
    assert np.array_equal(np.asarray(decoded) == 255, is_inside_HW)


def test_a_grey_png_returns_its_levels() -> None:
    levels_HW = np.arange(7 * 300, dtype=np.uint16).reshape(7, 300).astype(np.uint8)
    decoded = Image.open(io.BytesIO(codec.encode_grey_png(levels_HW)))
    assert decoded.mode == "L"
    assert np.array_equal(np.asarray(decoded), levels_HW)


@few
@given(label_maps(), st.integers(0, 2**32 - 1))
def test_the_mean_confidence_of_a_class_is_that_of_its_pixels(label_map: LabelMap, seed: int) -> None:
    confidence_HW = np.random.default_rng(seed).integers(0, 256, label_map.ids_HW.shape, np.uint8)
    counts = codec.confidence_histogram(label_map, confidence_HW)
    assert np.array_equal(counts.sum(axis=1), label_map.counts)
    for class_id in range(256):
        inside = confidence_HW[label_map.ids_HW == class_id]
        expected = pytest.approx(inside.mean() / 255) if inside.size else None
        assert codec.mean_confidence(counts[class_id]) == expected
    means = codec.mean_confidences(label_map, confidence_HW)
    assert means == [codec.mean_confidence(row) for row in counts[: label_map.palette.num_classes]]


@few
@given(label_maps())
def test_color_is_the_palettes_and_black_where_ignored(label_map: LabelMap) -> None:
    expected = label_map.palette.rgb_table[label_map.ids_HW]
    expected[label_map.ids_HW == IGNORE_ID] = 0
    np.testing.assert_array_equal(codec.colorize(label_map).pixels(), expected)


@few
@given(pictures_with_labels(), st.floats(0, 1))
def test_an_overlay_mixes_picture_and_colors_except_where_ignored(
    pair: tuple[UInt8Array, LabelMap], alpha: float
) -> None:
    image_HW3, label_map = pair
    before = image_HW3.copy()
    shown = codec.overlay(image_HW3, label_map, alpha=alpha).pixels()
    ignored = label_map.ids_HW == IGNORE_ID
    np.testing.assert_array_equal(shown[ignored], image_HW3[ignored])
    mixed = (1 - alpha) * image_HW3 + alpha * codec.colorize(label_map).pixels()
    assert np.abs(shown - mixed)[~ignored].max(initial=0) <= 0.5 + 255 / 512 + 1e-6
    np.testing.assert_array_equal(image_HW3, before)


def test_alpha_zero_is_the_picture_one_the_colors_and_half_exactly_between() -> None:
    label_map = smooth_map()
    image_HW3 = np.random.default_rng(1).integers(0, 256, (200, 300, 3), dtype=np.uint8)
    colors = codec.colorize(label_map).pixels()
    np.testing.assert_array_equal(codec.overlay(image_HW3, label_map, alpha=0).pixels(), image_HW3)
    np.testing.assert_array_equal(codec.overlay(image_HW3, label_map, alpha=1).pixels(), colors)
    between = (image_HW3.astype(int) + colors + 1) // 2
    np.testing.assert_array_equal(codec.overlay(image_HW3, label_map).pixels(), between)


def test_an_overlay_refuses_what_does_not_fit() -> None:
    label_map = smooth_map()
    image_HW3 = np.zeros((200, 300, 3), np.uint8)
    for alpha in (-0.01, 1.01, float("nan")):
        with pytest.raises(ValueError, match="alpha"):
            codec.overlay(image_HW3, label_map, alpha=alpha)
    with pytest.raises(ValueError, match=r"\(200, 299\).*\(200, 300\)"):
        codec.overlay(image_HW3[:, 1:], label_map)


def test_a_jpeg_shows_nearly_the_pixels_and_carries_no_metadata() -> None:
    ramp = np.linspace(0, 255, 64 * 96).reshape(64, 96, 1).repeat(3, axis=2).astype(np.uint8)
    picture = opened(codec.encode_jpeg(codec.raster_of(ramp)))
    assert picture.format == "JPEG"
    assert np.abs(np.asarray(picture).astype(int) - ramp).max() <= 8
    assert not picture.getexif()
    assert not {"comment", "icc_profile", "exif", "xmp"} & picture.info.keys()


# --- arrays, shares, run lengths --------------------------------------------------------------------------


@few
@given(arrays(np.uint8, array_shapes(min_dims=2, max_dims=3, max_side=20)), st.booleans())
def test_npy_returns_the_array_without_pickle_and_raw_its_bytes(pixels: UInt8Array, transposed: bool) -> None:  # noqa: FBT001
    pixels = pixels.swapaxes(0, 1) if transposed else pixels
    raster = codec.raster_of(pixels)
    decoded = np.load(io.BytesIO(codec.encode_npy(raster)), allow_pickle=False)
    assert decoded.dtype == np.uint8
    np.testing.assert_array_equal(decoded, pixels)
    assert codec.encode_raw(raster) == pixels.tobytes()


@few
@given(label_maps())
def test_shares_list_every_class_and_add_up_to_all_but_the_ignored(label_map: LabelMap) -> None:
    shares = codec.class_statistics(label_map)
    assert [share["id"] for share in shares] == list(range(label_map.palette.num_classes))
    assert [share["name"] for share in shares] == list(label_map.palette.names)
    assert [share["color"] for share in shares] == list(label_map.palette.colors)
    for share in shares:
        assert share["pixels"] == np.count_nonzero(label_map.ids_HW == share["id"])
        assert share["fraction"] == share["pixels"] / label_map.ids_HW.size
    ignored = np.count_nonzero(label_map.ids_HW == IGNORE_ID)
    assert sum(share["pixels"] for share in shares) == label_map.ids_HW.size - ignored
    assert len(json.loads(json.dumps(shares))) == len(shares)


def coco_counts(text: str) -> list[int]:
    """Read COCO's run lengths one letter at a time."""
    counts: list[int] = []
    number, shift = 0, 0
    for letter in text.encode():
        number |= (letter - 48 & 31) << shift
        shift += 5
        if not letter - 48 & 32:
            number -= (letter - 48 & 16) << (shift - 4)
            counts.append(number + (counts[-2] if len(counts) > 2 else 0))
            number, shift = 0, 0
    return counts


def coco_mask(entry: dict[str, object]) -> npt.NDArray[np.bool_]:
    counts = coco_counts(str(entry["counts"]))
    values = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    return values.reshape(cast("list[int]", entry["size"])[::-1]).T


@few
@given(label_maps())
def test_each_coco_mask_decodes_to_the_pixels_of_its_class(label_map: LabelMap) -> None:
    masks = codec.coco_rle(label_map)
    occurring = [class_id for class_id in np.unique(label_map.ids_HW).tolist() if class_id != IGNORE_ID]
    assert [mask["id"] for mask in masks] == occurring
    for mask in masks:
        np.testing.assert_array_equal(coco_mask(mask), label_map.ids_HW == mask["id"])
    assert json.loads(json.dumps(masks)) == masks


@few
@given(st.lists(st.integers(0, 2**32), min_size=1))
def test_run_lengths_of_any_size_survive_coco_text(counts: list[int]) -> None:
    assert coco_counts(codec._coco_text(np.array(counts))) == counts


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        # Texts of pycocotools 2 for the same masks.
        (np.eye(4, dtype=np.uint8), "01400000"),
        (np.ones((4, 4), np.uint8), "0`0"),
        (np.array([[1, 0, 0, 1, 1, 0]], np.uint8), "0121O"),
    ],
)
def test_coco_text_is_that_of_pycocotools(rows: UInt8Array, expected: str) -> None:
    (mask,) = (mask for mask in codec.coco_rle(LabelMap(rows, PALETTE)) if mask["id"] == 1)
    assert mask == {"id": 1, "size": list(rows.shape), "counts": expected}
