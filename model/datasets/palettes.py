"""Classes: their names and colours from class lists, data-set files and presets of well-known data sets.

A class list is a text file with one class a line in the order of the ids: ``name``, ``name,red,green,blue``,
or ``name:red,green,blue:parts:actions`` as in the ``labelmap.txt`` of CVAT. Empty lines, lines that start
with ``#`` and a header ``name,r,g,b`` are skipped. A class without a colour gets one of ``distinct_colors``.
Of the presets only Cityscapes names its own colours; the tables in use for ADE20K and COCO-Stuff give one
colour to several classes.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType
from typing import Literal, cast

from model.datasets.dataset_lines import check_keys
from model.datasets.text import decode_text, expand_home, printable, read_toml
from model.errors import DatasetError, PaletteError
from model.labels import IGNORE_ID, MAX_CLASSES, ClassPalette, Color
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

_CLASS_KEYS = {"name", "color"}
_CVAT_ROW = re.compile(r"(.+?):(\d+,\d+,\d+):.*")
_HEADER_COLORS = (["r", "g", "b"], ["red", "green", "blue"])


@dataclass(frozen=True)
class Preset:
    """Classes and normalisation of weights that were trained on a well-known data set.

    Attributes:
        palette: the classes.
        mean: RGB, of values 0..1.
        std: RGB, of values 0..1.
    """

    palette: ClassPalette
    mean: Rgb
    std: Rgb


@dataclass(frozen=True)
class ClassList:
    """Classes in the order of their ids.

    Args:
        names: one a class.
        colors: the colour that the source gives each class; None = none.
    """

    names: tuple[str, ...]
    colors: tuple[Color | None, ...]

    def palette(self, ignore_id: object, origin: str) -> ClassPalette:
        """Return the classes with one colour each.

        Args:
            ignore_id: the id of pixels without a class.
            origin: name of the source in messages.

        Raises:
            PaletteError: the ignore id is not an integer; or names, colours and ids are not one-to-one.
        """
        if not isinstance(ignore_id, int) or isinstance(ignore_id, bool):
            raise PaletteError(f"{origin}: ignore_id must be an integer, not {ignore_id!r}")
        unused = iter([color for color in distinct_colors(MAX_CLASSES) if color not in self.colors])
        colors = tuple(next(unused, (0, 0, 0)) if color is None else color for color in self.colors)
        try:
            return ClassPalette(self.names, colors, ignore_id)
        except PaletteError as error:
            raise PaletteError(f"{origin}: {error}") from error


def load_preset(name: PresetName) -> Preset:
    """Return the classes and the normalisation of a well-known data set."""
    mean, std = NORMALISATIONS[name]
    text = (files("model") / "presets" / f"{name}.txt").read_text("utf-8")
    return Preset(parse_class_list(text, name).palette(IGNORE_ID, name), mean, std)


def read_palette(path: Path) -> ClassPalette:
    """Read a class list, or the classes of a data-set file if the path ends in ``.toml``.

    Raises:
        PaletteError: the class list cannot be read, a line names no class, or the classes are not one-to-one.
        DatasetError: the data-set file is unusable.
    """
    origin = printable(path)
    if path.suffix.lower() != ".toml":
        return read_class_list(path).palette(IGNORE_ID, origin)
    raw = read_toml(path)
    classes = parse_classes(raw.get("classes"), origin, path.parent / expand_home(str(raw.get("root", "."))))
    return classes.palette(raw.get("ignore_id", IGNORE_ID), origin)


def read_class_list(path: Path) -> ClassList:
    """Read a class list.

    Raises:
        PaletteError: the file cannot be read, or a line names no class.
    """
    origin = printable(path)
    try:
        text = decode_text(path.read_bytes())
    except (OSError, ValueError) as error:
        raise PaletteError(f"{origin}: cannot be read: {error}") from error
    return parse_class_list(text, origin)


def parse_class_list(text: str, origin: str) -> ClassList:
    """Read the text of a class list.

    Args:
        text: the whole file.
        origin: its name in messages.

    Raises:
        PaletteError: a line names no class.
    """
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1)]
    rows = [(number, _split_row(line)) for number, line in lines if line and not line.startswith("#")]
    if rows and [value.lower() for value in rows[0][1][1:]] in _HEADER_COLORS:
        del rows[0]
    colors = [_parse_color(color, f"{origin}:{number}") for number, (_, *color) in rows]
    return ClassList(tuple(row[0] for _, row in rows), tuple(colors))


def parse_classes(raw: object, origin: str, root: Path) -> ClassList:
    """Read the ``classes`` of a data-set file.

    Args:
        raw: a class list's path, or a list of names and of tables with ``name`` and perhaps ``color``.
        origin: name of the data-set file in messages.
        root: folder at which a relative path starts.

    Raises:
        PaletteError: the class list cannot be read.
        DatasetError: the value has another form.
    """
    if isinstance(raw, str) and raw:
        return read_class_list(root / expand_home(raw))
    if not isinstance(raw, list) or not raw:
        raise DatasetError(f"{origin}: classes is missing, empty or of a wrong type")
    rows = [_parse_class(item, origin) for item in raw]
    return ClassList(tuple(name for name, _ in rows), tuple(color for _, color in rows))


def distinct_colors(count: int) -> tuple[Color, ...]:
    """Return different colours, none of them black, always the same ones.

    The bits of k + 1 go to red, green and blue in turn, the lowest bits to the highest of each colour.

    Args:
        count: number of colours, at most 255.

    Source:
        The colour map of the PASCAL VOC development kit.
    """
    ks = range(1, count + 1)
    return tuple((_every_third_bit(k), _every_third_bit(k >> 1), _every_third_bit(k >> 2)) for k in ks)


def _every_third_bit(bits: int) -> int:
    """Return every third bit, mirrored: bit 0 becomes bit 7, bit 3 bit 6, bit 6 bit 5."""
    return sum((bits >> 3 * i & 1) << 7 - i for i in range(3))


def _parse_class(item: object, origin: str) -> tuple[str, Color | None]:
    if isinstance(item, str):
        return item, None
    if not isinstance(item, dict):
        raise DatasetError(f"{origin}: a class is a name or a table with name and color, not {item!r}")
    check_keys(item, _CLASS_KEYS, origin, "classes")
    name, color = item.get("name"), item.get("color")
    is_color = isinstance(color, list) and all(type(value) is int for value in color)
    if not isinstance(name, str) or not (is_color or color is None):
        raise DatasetError(f"{origin}: a class needs a name, and its color is [r, g, b]: {item}")
    return name, None if color is None else cast("Color", tuple(color))


def _split_row(line: str) -> list[str]:
    if cvat := _CVAT_ROW.fullmatch(line):
        return [cvat[1].strip(), *cvat[2].split(",")]
    try:
        return [value.strip() for value in next(csv.reader([line], skipinitialspace=True))]
    except csv.Error as error:
        raise PaletteError(f"not a line of a class list: {error}") from error


def _parse_color(values: Sequence[str], origin: str) -> Color | None:
    if not values:
        return None
    try:
        red, green, blue = map(int, values)
    except ValueError as error:
        raise PaletteError(
            f"{origin}: not red,green,blue after the name: {','.join(values)!r}"
            " (quote a name that contains a comma)"
        ) from error
    return red, green, blue
