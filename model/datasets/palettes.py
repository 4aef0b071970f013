"""Lists of classes: those of well-known data sets, with the normalisation used on them, and users' own.

A list is a text file with one class a line, ``name`` or ``name,red,green,blue``, in the order of the ids;
empty lines and lines that start with ``#`` do not count. Where it names no colours they are made: see
``distinct_colors``. Of the presets only Cityscapes names its own; the tables in use for ADE20K and COCO-Stuff
give one colour to several classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from model.datasets.dataset import DatasetSpec
from model.errors import PaletteError
from model.labels import ClassPalette, Color
from model.pictures.preprocess import Rgb

PresetName = Literal["cityscapes", "ade20k", "cocostuff", "face"]

_IMAGENET: tuple[Rgb, Rgb] = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

NORMALISATIONS: Mapping[PresetName, tuple[Rgb, Rgb]] = MappingProxyType(
    {
        "cityscapes": ((0.3257, 0.3690, 0.3223), (0.2112, 0.2148, 0.2115)),
        "ade20k": ((0.4934, 0.4682, 0.4311), (0.2568, 0.2551, 0.2742)),
        "cocostuff": ((0.4696, 0.4464, 0.4072), (0.2747, 0.2701, 0.2852)),
        "face": _IMAGENET,
    }
)
"""Data set -> mean and std that CoinCheung/BiSeNet and zllrunning/face-parsing.PyTorch train with."""


@dataclass(frozen=True)
class Preset:
    """What the keys of weights trained on a well-known data set cannot tell.

    Attributes:
        palette: the classes.
        mean: RGB, of values 0..1.
        std: RGB, of values 0..1.
    """

    palette: ClassPalette
    mean: Rgb
    std: Rgb


def load_preset(name: PresetName) -> Preset:
    """Return what is known of a data set."""
    mean, std = NORMALISATIONS[name]
    text = (files("model") / "presets" / f"{name}.txt").read_text("utf-8")
    return Preset(_parsed(text, name), mean, std)


def read_palette(path: Path) -> ClassPalette:
    """Read a list of classes, or the classes of a data-set file if the path ends in ``.toml``.

    Raises:
        PaletteError: the file cannot be read, a line is no class, or the classes are not one-to-one.
        DatasetError: the data-set file is unusable.
    """
    if path.suffix == ".toml":
        return DatasetSpec.from_toml(path).palette
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PaletteError(f"{path}: cannot be read: {error}") from error
    return _parsed(text, str(path))


def distinct_colors(count: int) -> tuple[Color, ...]:
    """Return so many colours, each its own, none black, the same every time.

    Class k has the bits of k + 1 dealt out to red, green and blue in turn, the lowest to their highest bits.

    Args:
        count: at most 255.

    Source:
        The colour map of the PASCAL VOC development kit.
    """
    return tuple((_dealt(k), _dealt(k >> 1), _dealt(k >> 2)) for k in range(1, count + 1))


def _dealt(bits: int) -> int:
    """Return every third bit, mirrored: bit 0 becomes bit 7, bit 3 bit 6, bit 6 bit 5."""
    return sum((bits >> 3 * i & 1) << 7 - i for i in range(3))


def _parsed(text: str, origin: str) -> ClassPalette:
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1)]
    rows = [_row(line, f"{origin}:{number}") for number, line in lines if line and not line.startswith("#")]
    names = tuple(name for name, _ in rows)
    colors = tuple(color for _, color in rows if color is not None)
    if colors and len(colors) < len(names):
        raise PaletteError(f"{origin}: {len(colors)} of {len(names)} classes have colors: name all or none")
    try:
        return ClassPalette(names, colors or distinct_colors(len(names)))
    except PaletteError as error:
        raise PaletteError(f"{origin}: {error}") from error


def _row(line: str, origin: str) -> tuple[str, Color | None]:
    name, *color = (part.strip() for part in line.split(","))
    return name, _color(color, origin) if color else None


def _color(parts: Sequence[str], origin: str) -> Color:
    try:
        red, green, blue = map(int, parts)
    except ValueError as error:
        raise PaletteError(f"{origin}: not red,green,blue after the name: {','.join(parts)!r}") from error
    return red, green, blue
