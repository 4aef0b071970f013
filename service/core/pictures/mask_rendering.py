"""The outputs of a labelled picture for commands and jobs: palette PNG, overlay PNG, pixels of a film.

Axes: H height, W width, 3 = red green blue.
"""

from __future__ import annotations

from typing import Literal

from model.labels import LabelMap, UInt8Array
from service.core.pictures import codec

Output = Literal["labels", "color", "overlay"]


def mask_png(image_HW3: UInt8Array, label_map: LabelMap, output: Output) -> bytes:
    """Return a PNG file: an overlay as RGB, else class ids with the colours as palette.

    Args:
        image_HW3: the picture, uint8 RGB.
        label_map: its labels.
        output: content of the file. ``labels`` and ``color`` are the same file.
    """
    if output == "overlay":
        return codec.encode_rgb_png(codec.overlay(image_HW3, label_map))
    return codec.encode_palette_png(label_map)


def mask_pixels(image_HW3: UInt8Array, label_map: LabelMap, output: Output) -> UInt8Array:
    """Return uint8 RGB pixels: an overlay, else the colours of the classes.

    Args:
        image_HW3: the picture, uint8 RGB.
        label_map: its labels.
        output: content of the pixels.
    """
    if output == "overlay":
        return codec.overlay(image_HW3, label_map).pixels()
    return codec.colorize(label_map).pixels()
