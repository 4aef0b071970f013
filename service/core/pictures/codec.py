"""Renders a label map as the bytes that clients get: pictures, arrays, run lengths, shares.

PNG is written here, as one Up-filtered stream that ISA-L compresses: neighbouring rows of a label map are
almost equal, so their differences are almost all zero. ``benchmarks/codec.py`` compares it with Pillow's.
Everything is built from arrays: nothing of a request's own bytes, such as metadata, can reach an answer.
Pixels are made some rows at a time while they are encoded: beside picture and labels a PNG or an array takes
the memory of its own bytes, and a JPEG 4 bytes a pixel more, as Pillow wants the whole picture.

Axes: H height, W width, 3 = red green blue.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
import numpy.typing as npt
from isal import isal_zlib
from PIL import Image

from model.labels import Color, LabelMap, UInt8Array

FULL_CONFIDENCE = 255
"""The confidence 1 in a map of bytes."""

DEFAULT_ALPHA = 0.5
"""Default opacity of an overlay's colours."""

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_BYTE_DEPTH = 8
_MASK_DEPTH = 2
"""Pillow opens greys of 2 bits as mode L with 0 and 255, those of 1 bit as another mode."""

_GREY, _TRUE_COLOR, _INDEXED = 0, 2, 3
_UP_FILTER = 2
_COMPRESSION_LEVEL = 1
_JPEG_QUALITY = 85


def _two_bits() -> npt.NDArray[np.uint16]:
    """Return for each byte of bits the two bytes in which every bit stands twice, as big-endian numbers."""
    bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, np.newaxis], axis=1)
    return np.packbits(bits.repeat(_MASK_DEPTH, axis=1), axis=1).view(np.uint16)[:, 0]


_TWO_BITS = _two_bits()

_BAND_PIXELS = 1 << 19
"""Painted, filtered and compressed together. Each call of the compressor costs, and so do temporary arrays
that leave the processor's cache: of 2^16 to 2^21 this is best for labels (0.30 ms at 512x1024, against 0.45
and 0.33) and for overlays on two Zen 3 cores."""
_ONE = 256  # alpha in fixed point
_HALF = 128

_COCO_DIGIT_BITS = 5
_COCO_MAX_DIGITS = 7  # 35 bits: enough for any picture
_COCO_FIRST_LETTER = 48


@dataclass(frozen=True, eq=False)
class Raster:
    """Pixels that are made on demand.

    Args:
        shape: (H, W) of ids or (H, W, 3) of colours.
        paint: makes the rows [top, bottom), uint8.
    """

    shape: tuple[int, ...]
    paint: Callable[[int, int], UInt8Array]

    def bands(self) -> Iterator[UInt8Array]:
        """Yield the rows from top to bottom, a few at a time."""
        height, width = self.shape[:2]
        rows = max(1, _BAND_PIXELS // width)
        for top in range(0, height, rows):
            yield self.paint(top, min(top + rows, height))

    def pixels(self) -> UInt8Array:
        """Return all rows."""
        return self.paint(0, self.shape[0])


def raster_of(pixels: UInt8Array) -> Raster:
    """Return pixels that are there already, ids_HW or image_HW3, as a raster."""
    return Raster(pixels.shape, lambda top, bottom: pixels[top:bottom])


class ClassShare(TypedDict):
    """The share of a picture that a class covers.

    Attributes:
        id: value of the class in the mask.
        name: of the class.
        color: red, green, blue.
        pixels: number of its pixels.
        fraction: share of all pixels of the picture, 0..1.
    """

    id: int
    name: str
    color: Color
    pixels: int
    fraction: float


def class_statistics(label_map: LabelMap) -> list[ClassShare]:
    """Count the pixels of every class of the palette, in id order; ignored pixels belong to none."""
    palette, num_pixels = label_map.palette, label_map.ids_HW.size
    counts = label_map.counts[: palette.num_classes].tolist()
    return [
        ClassShare(id=class_id, name=name, color=color, pixels=count, fraction=count / num_pixels)
        for class_id, (name, color, count) in enumerate(
            zip(palette.names, palette.colors, counts, strict=True)
        )
    ]


def confidence_histogram(label_map: LabelMap, confidence_HW: UInt8Array) -> npt.NDArray[np.int64]:
    """Count the pixels of each id and confidence.

    Args:
        label_map: the labels.
        confidence_HW: probability of each label in 255ths.

    Returns:
        Shape (256, 256): row = id, column = confidence.
    """
    counts = np.zeros(1 << 16, np.int64)
    rows = max(1, _BAND_PIXELS // confidence_HW.shape[1])
    for top in range(0, len(confidence_HW), rows):
        pairs = label_map.ids_HW[top : top + rows].astype(np.uint16)
        pairs <<= 8
        pairs |= confidence_HW[top : top + rows]
        counts += np.bincount(pairs.reshape(-1), minlength=1 << 16)
    return counts.reshape(256, 256)


def mean_confidence(counts: npt.NDArray[np.int64]) -> float | None:
    """Return the mean confidence, 0..1, of pixels of which so many have each one; None = there are none.

    Args:
        counts: shape (256,): a row of ``confidence_histogram``.
    """
    total = int(counts.sum())
    return float(counts @ np.arange(256)) / (FULL_CONFIDENCE * total) if total else None


def mean_confidences(label_map: LabelMap, confidence_HW: UInt8Array) -> list[float | None]:
    """Return the mean confidence, 0..1, of each class of the palette, in id order; None = it does not occur.

    Args:
        label_map: the labels.
        confidence_HW: probability of each label in 255ths.
    """
    counts = confidence_histogram(label_map, confidence_HW)
    return [mean_confidence(row) for row in counts[: label_map.palette.num_classes]]


def encode_palette_png(label_map: LabelMap) -> bytes:
    """Encode as an indexed 8-bit PNG: the pixel is the id, the palette holds the colours.

    The palette has K entries, or as many as the ignore id needs where that occurs; it is black.

    Source:
        PNG specification, third edition: sections 5 (chunks), 9.2 (filter 2, Up), 11.2.2 (PLTE).
    """
    num_colors = max(label_map.palette.num_classes, int(label_map.ids_HW.max()) + 1)
    colors = label_map.palette.rgb_table[:num_colors].tobytes()
    return _png(raster_of(label_map.ids_HW), _INDEXED, chunks=(_chunk(b"PLTE", colors),))


def encode_rgb_png(image: Raster) -> bytes:
    """Encode RGB pixels as a PNG."""
    return _png(image, _TRUE_COLOR)


def encode_grey_png(levels_HW: UInt8Array) -> bytes:
    """Encode levels 0..255 as a grey PNG."""
    return _png(raster_of(levels_HW), _GREY)


def encode_mask_png(is_inside_HW: npt.NDArray[np.bool_]) -> bytes:
    """Encode a mask as a grey PNG: 0 outside, 255 inside; in the file a pixel takes 2 bits.

    Source:
        PNG specification, third edition: section 7.2 (scanlines: the leftmost pixel in the highest bits).
    """
    width = is_inside_HW.shape[1]

    def packed(top: int, bottom: int) -> UInt8Array:
        pairs = _TWO_BITS.take(np.packbits(is_inside_HW[top:bottom], axis=1))
        return pairs.view(np.uint8)[:, : -(-_MASK_DEPTH * width // 8)]

    return _png(Raster(is_inside_HW.shape, packed), _GREY, _MASK_DEPTH)


def encode_jpeg(image: Raster) -> bytes:
    """Encode RGB pixels as a JPEG of quality 85."""
    height, width = image.shape[:2]
    canvas = Image.new("RGB", (width, height))
    top = 0
    for band in image.bands():
        canvas.paste(Image.fromarray(band), (0, top))
        top += len(band)
    stream = io.BytesIO()
    canvas.save(stream, "JPEG", quality=_JPEG_QUALITY)
    return stream.getvalue()


def encode_npy(pixels: Raster) -> bytes:
    """Encode ids or colours in numpy's own format; ``numpy.load`` reads it without pickle."""
    stream = io.BytesIO()
    header = {"descr": "|u1", "fortran_order": False, "shape": pixels.shape}
    np.lib.format.write_array_header_1_0(stream, header)
    _write_rows(stream, pixels)
    return stream.getvalue()


def encode_raw(pixels: Raster) -> bytes:
    """Encode ids or colours as their bytes alone, row by row."""
    stream = io.BytesIO()
    _write_rows(stream, pixels)
    return stream.getvalue()


def colorize(label_map: LabelMap) -> Raster:
    """Paint every pixel in the colour of its class, RGB; ignored pixels are black."""
    ids_HW, colors = label_map.ids_HW, label_map.palette.rgb_table
    return Raster((*ids_HW.shape, 3), lambda top, bottom: np.asarray(_painted(ids_HW[top:bottom], colors)))


def overlay(image_HW3: UInt8Array, label_map: LabelMap, alpha: float = DEFAULT_ALPHA) -> Raster:
    """Blend the colours of the classes over the picture; ignored pixels show it unchanged.

    Args:
        image_HW3: the upright picture, RGB uint8, of the label map's size.
        label_map: the labels.
        alpha: 0 shows the picture, 1 the colours.

    Returns:
        RGB pixels within half a level of ``(1 - a) * picture + a * colour`` where a is alpha rounded to
        1/256.

    Raises:
        ValueError: alpha is outside 0..1, or the sizes differ.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be 0..1, not {alpha}")
    if image_HW3.shape[:2] != label_map.ids_HW.shape:
        raise ValueError(f"a picture of {image_HW3.shape[:2]} and labels of {label_map.ids_HW.shape}")
    weight = round(alpha * _ONE)

    def blend(top: int, bottom: int) -> UInt8Array:
        return _blended(image_HW3[top:bottom], label_map.ids_HW[top:bottom], label_map, weight)

    return Raster(image_HW3.shape, blend)


def coco_rle(label_map: LabelMap) -> list[dict[str, object]]:
    """Encode each class that occurs as a COCO run-length mask, in id order.

    Returns:
        One ``{"id": class id, "size": [height, width], "counts": text}`` a class, as pycocotools decodes it.
    """
    columns = np.ascontiguousarray(label_map.ids_HW.T).reshape(-1)  # COCO runs down the columns
    starts = np.flatnonzero(columns[1:] != columns[:-1]) + 1
    starts = np.concatenate([[0], starts])
    bounds_N2 = np.stack([starts, np.append(starts[1:], columns.size)], axis=1)
    classes = columns[starts]
    return [
        {
            "id": class_id,
            "size": list(label_map.ids_HW.shape),
            "counts": _coco_text(_coco_counts(bounds_N2[classes == class_id], columns.size)),
        }
        for class_id in np.flatnonzero(label_map.counts[: label_map.palette.num_classes]).tolist()
    ]


def _write_rows(stream: io.BytesIO, pixels: Raster) -> None:
    stream.writelines(band.tobytes() for band in pixels.bands())


def _png(
    pixels: Raster, color_type: int, bit_depth: int = _BYTE_DEPTH, chunks: Sequence[bytes] = ()
) -> bytes:
    height, width = pixels.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, bit_depth, color_type, 0, 0, 0)
    stream = io.BytesIO()
    stream.writelines([_PNG_SIGNATURE, _chunk(b"IHDR", header), *chunks])
    _write_image_data(stream, pixels)
    stream.write(_chunk(b"IEND", b""))
    return stream.getvalue()


def _chunk(kind: bytes, data: bytes) -> bytes:
    checksum = isal_zlib.crc32(data, isal_zlib.crc32(kind))
    return b"".join([struct.pack(">I", len(data)), kind, data, struct.pack(">I", checksum)])


def _write_image_data(stream: io.BytesIO, pixels: Raster) -> None:
    """Write one IDAT chunk, whose length is known in the end."""
    kind = b"IDAT"
    start = stream.tell()
    stream.write(struct.pack(">I", 0) + kind)
    length, checksum = 0, isal_zlib.crc32(kind)
    for data in _compressed(pixels):
        stream.write(data)
        length += len(data)
        checksum = isal_zlib.crc32(data, checksum)
    stream.write(struct.pack(">I", checksum))
    stream.seek(start)
    stream.write(struct.pack(">I", length))
    stream.seek(0, io.SEEK_END)


def _compressed(pixels: Raster) -> Iterator[bytes]:
    compressor = isal_zlib.compressobj(_COMPRESSION_LEVEL)
    above_B: UInt8Array | int = 0
    for band in pixels.bands():
        rows_HB = band.reshape(len(band), -1)
        yield compressor.compress(_up_filtered(rows_HB, above_B))
        above_B = rows_HB[-1]
    yield compressor.flush()


def _up_filtered(rows_HB: UInt8Array, above_B: UInt8Array | int) -> UInt8Array:
    """Put the filter's number before each row and replace its bytes by the difference from the row above."""
    height, row_bytes = rows_HB.shape
    filtered = np.empty((height, 1 + row_bytes), np.uint8)
    filtered[:, 0] = _UP_FILTER
    filtered[0, 1:] = rows_HB[0] - above_B  # modulo 256, as PNG wants it
    np.subtract(rows_HB[1:], rows_HB[:-1], out=filtered[1:, 1:])
    return filtered


def _painted(ids_HW: UInt8Array, colors: UInt8Array) -> Image.Image:
    """Look colours up with Pillow: twice as fast as ``numpy.take``, eight times as fast as indexing."""
    height, width = ids_HW.shape
    indexed = Image.frombuffer("P", (width, height), np.ascontiguousarray(ids_HW), "raw", "P", 0, 1)
    indexed.putpalette(colors.tobytes())
    return indexed.convert("RGB")


def _blended(image_HW3: UInt8Array, ids_HW: UInt8Array, label_map: LabelMap, weight: int) -> UInt8Array:
    palette = label_map.palette
    colors_HW3 = np.array(_painted(ids_HW, palette.rgb_table))
    if label_map.counts[palette.ignore_id]:
        ignored_HW1 = (ids_HW == palette.ignore_id)[..., np.newaxis]
        np.copyto(colors_HW3, image_HW3, where=ignored_HW1)  # blending a pixel with itself changes nothing
    mixed_HW3 = image_HW3 * np.uint16(_ONE - weight)
    mixed_HW3 += colors_HW3 * np.uint16(weight) + np.uint16(_HALF)
    return (mixed_HW3 >> 8).astype(np.uint8)


def _coco_counts(bounds_N2: npt.NDArray[np.int64], num_pixels: int) -> npt.NDArray[np.int64]:
    """Turn a class's runs, each [start, end), into lengths: without the class, with it, without it, ..."""
    counts = np.diff(bounds_N2.reshape(-1), prepend=0, append=num_pixels)
    return counts if counts[-1] else counts[:-1]


def _coco_text(counts: npt.NDArray[np.int64]) -> str:
    """Write lengths as text.

    From the fourth on, each is the difference from the last but one. A number is cut into groups of 5 bits,
    lowest first, until what remains is only the sign of the group; a sixth bit says that more follow. Each
    group is a letter from "0" on.

    Source:
        The COCO API's compressed run-length format (cocodataset/cocoapi, mask API).
    """
    rest = counts.copy()
    rest[3:] -= counts[1:-2]
    letters = np.zeros((counts.size, _COCO_MAX_DIGITS), np.uint8)
    unfinished = np.ones(counts.size, np.bool_)
    for digit in range(_COCO_MAX_DIGITS):
        group = rest & 31
        rest >>= _COCO_DIGIT_BITS
        more = unfinished & (rest != np.where(group & 16, -1, 0))
        letters[unfinished, digit] = (group + 32 * more + _COCO_FIRST_LETTER)[unfinished]
        unfinished = more
    return letters[letters > 0].tobytes().decode("ascii")
