"""Pictures to measure with: those of a folder, or soft shapes with some noise, in given sizes.

Axes: H height, W width, 3 = red green blue.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import typer
from PIL import Image

from model.errors import ImageError
from model.labels import UInt8Array
from model.pictures.image import decode_image
from model.pictures.preprocess import ImageSize

JPEG_QUALITY = 90

_SIZE = re.compile(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})")
_MADE_UP = 16
_GRID = (5, 7, 3)
_NOISE = 8


def parse_image_size(text: str) -> ImageSize:
    """Read ``HEIGHTxWIDTH``.

    Raises:
        typer.BadParameter: the text has another form.
    """
    match = _SIZE.fullmatch(text)
    if match is None:
        raise typer.BadParameter(f"{text!r} is not HEIGHTxWIDTH")
    return ImageSize(int(match[1]), int(match[2]))


def encoded_pictures(sizes: Sequence[ImageSize], folder: Path | None = None) -> list[bytes]:
    """Return JPEG files: the pictures one after the other, each in the next size.

    Args:
        sizes: of the pictures.
        folder: of the pictures; None = made-up ones, which take as long to decode as photographs. Their masks
            are simpler than those of a street.

    Raises:
        typer.BadParameter: the folder has no pictures, or other files.
    """
    sources = [_made_up_picture(seed) for seed in range(_MADE_UP)] if folder is None else _read(folder)
    count = max(len(sources), len(sizes))
    return [_jpeg(sources[n % len(sources)], sizes[n % len(sizes)]) for n in range(count)]


def _made_up_picture(seed: int) -> UInt8Array:
    random = np.random.default_rng(seed)
    grid = Image.fromarray(random.integers(0, 256, _GRID, np.uint8))
    smooth_HW3 = np.asarray(grid.resize((1024, 512), Image.Resampling.BICUBIC), np.int16)
    noisy_HW3 = smooth_HW3 + random.integers(-_NOISE, _NOISE + 1, smooth_HW3.shape)
    return noisy_HW3.clip(0, 255).astype(np.uint8)


def _read(folder: Path) -> list[UInt8Array]:
    files = sorted(path for path in folder.iterdir() if path.is_file())
    if not files:
        raise typer.BadParameter(f"no pictures in {folder}")
    try:
        return [decode_image(path.read_bytes()) for path in files]
    except ImageError as error:
        raise typer.BadParameter(f"{folder} holds a file that is no picture: {error}") from error


def _jpeg(source_HW3: UInt8Array, size: ImageSize) -> bytes:
    stream = io.BytesIO()
    resized = Image.fromarray(source_HW3).resize((size.width, size.height), Image.Resampling.BICUBIC)
    resized.save(stream, "JPEG", quality=JPEG_QUALITY)
    return stream.getvalue()
