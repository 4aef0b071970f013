"""The content of a data-set file, checked key by key.

Every message names the table in which the fault stands.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, get_args

from model.datasets.dataset_lines import FILE_KEYS, belongs_on_top, check_keys
from model.datasets.masks import MaskKind, MaskRules
from model.datasets.orientation import ExifPolicy
from model.datasets.palettes import ClassList, parse_classes
from model.datasets.patterns import PatternSplit
from model.errors import DatasetError, PaletteError
from model.labels import IGNORE_ID, ClassPalette, Color
from model.pictures.image import DEFAULT_LIMITS, ImageLimits

_PATTERN_KEYS = {"images", "labels"}
_CHANNELS = 3
_MAX_BYTE = 255
_MAX_PIXELS = 1 << 40

_T = TypeVar("_T")


@dataclass(frozen=True)
class ReadingRules:
    """How the files of a data set are read, where its file says more than it must.

    Args:
        masks: how label files are described.
        exif: the pixels that labels were drawn on, where EXIF turns a picture; None = the size of the labels
            decides, and a turn that keeps the size is refused.
        missing_label: class id of all pixels of a picture without a label file; None = it is refused.
        path_map: start of a path in a list -> text in its place.
        max_pixels: largest picture, height times width; None = ``DEFAULT_LIMITS``.
    """

    masks: MaskRules = field(default_factory=MaskRules)
    exif: ExifPolicy | None = None
    missing_label: int | None = None
    path_map: Mapping[str, str] = field(default_factory=dict)
    max_pixels: int | None = None

    @property
    def limits(self) -> ImageLimits:
        """Limits of the pictures; ``max_pixels`` also allows longer sides."""
        return DEFAULT_LIMITS if self.max_pixels is None else ImageLimits(self.max_pixels, self.max_pixels)


@dataclass(frozen=True)
class DatasetFile:
    """The content of a data-set file without its root.

    Attributes:
        name: name of the data set in reports.
        palette: the classes after ``label_map``, and the ignore id.
        splits: split name -> list file relative to the root, or patterns.
        label_map: value in masks of ids -> class id or ignore id.
        rules: how files are read.
    """

    name: str
    palette: ClassPalette
    splits: Mapping[str, str | PatternSplit]
    label_map: Mapping[int, int]
    rules: ReadingRules


def parse_dataset_file(raw: Mapping[str, Any], origin: str, root: Path) -> DatasetFile:
    """Check the content of a data-set file.

    Args:
        raw: the parsed TOML.
        origin: name of the file in messages.
        root: folder at which the path of a class list starts.

    Raises:
        DatasetError: a key is missing, unknown or has a wrong value.
    """
    check_keys(raw, FILE_KEYS, origin)
    name, splits = raw.get("name"), raw.get("splits")
    if not isinstance(name, str) or not name:
        raise DatasetError(f"{origin}: name is missing, empty or of a wrong type")
    if not isinstance(splits, dict) or not splits:
        raise DatasetError(f"{origin}: splits is missing, empty or of a wrong type")
    try:
        classes = parse_classes(raw.get("classes"), origin, root)
        palette = classes.palette(raw.get("ignore_id", IGNORE_ID), origin)
    except PaletteError as error:
        raise DatasetError(str(error)) from error
    kind: MaskKind | None = _choice(raw, "masks", get_args(MaskKind), origin)
    table = _table(raw, "label_map", int, origin)
    colors = {_color(key, origin): target for key, target in table.items()} if kind == "colors" else {}
    return DatasetFile(
        name=name,
        palette=palette,
        splits={split: _split(split, value, origin) for split, value in splits.items()},
        label_map={} if kind == "colors" else {_value(key, origin): target for key, target in table.items()},
        rules=ReadingRules(
            masks=MaskRules(
                kind,
                _mask_colors(classes, colors, origin, is_needed=kind == "colors"),
                _integer(raw, "color_tolerance", range(_MAX_BYTE + 1), origin) or 0,
                has_label_map=bool(table),
            ),
            exif=_choice(raw, "exif", get_args(ExifPolicy), origin),
            missing_label=_class_id(raw.get("missing_label"), palette, origin),
            path_map=_table(raw, "path_map", str, origin),
            max_pixels=_integer(raw, "max_pixels", range(1, _MAX_PIXELS), origin),
        ),
    )


def _split(name: str, value: object, origin: str) -> str | PatternSplit:
    where = f"{origin}: split {name!r}"
    if name in FILE_KEYS:
        raise DatasetError(f"{where}{belongs_on_top([name])}")
    if isinstance(value, str):
        return value
    if not isinstance(value, dict):
        raise DatasetError(f"{where} must name a list file, or patterns: {{ images, labels }}")
    check_keys(value, _PATTERN_KEYS, origin, f"split {name!r}")
    if missing := sorted(_PATTERN_KEYS - value.keys()):
        raise DatasetError(f"{where} lacks {', '.join(missing)}")
    try:
        return PatternSplit(*(_patterns(value[key], f"{where}: {key}") for key in ("images", "labels")))
    except DatasetError as error:
        raise DatasetError(f"{where}: {error}") from error


def _patterns(value: object, where: str) -> tuple[str, ...]:
    patterns = [value] if isinstance(value, str) else value
    if not isinstance(patterns, list) or not all(isinstance(one, str) and one for one in patterns):
        raise DatasetError(f"{where} must be a pattern or a list of patterns, not {value!r}")
    return tuple(patterns)


def _choice(raw: Mapping[str, Any], key: str, choices: tuple[_T, ...], origin: str) -> _T | None:
    value = raw.get(key)
    if value is not None and value not in choices:
        raise DatasetError(f"{origin}: {key} must be one of {', '.join(map(str, choices))}, not {value!r}")
    return value


def _integer(raw: Mapping[str, Any], key: str, allowed: range, origin: str) -> int | None:
    value = raw.get(key)
    if value is None or (type(value) is int and value in allowed):
        return value
    raise DatasetError(f"{origin}: {key} must be an integer {allowed[0]}..{allowed[-1]}, not {value!r}")


def _table(raw: Mapping[str, Any], key: str, kind: type[_T], origin: str) -> dict[str, _T]:
    table = raw.get(key, {})
    if not isinstance(table, dict):
        raise DatasetError(f"{origin}: {key} must be a table")
    for name, value in table.items():
        if type(value) is not kind:
            raise DatasetError(
                f"{origin}: {key} must be a table of {kind.__name__} values: {name} = {value!r}"
                f"{belongs_on_top([name])}"
            )
    return table


def _value(key: str, origin: str) -> int:
    try:
        return int(key)
    except ValueError as error:
        hint = 'colours need masks = "colors"' if "," in key else "the values of masks are integers"
        raise DatasetError(f"{origin}: label_map: {key!r} is no value: {hint}") from error


def _color(key: str, origin: str) -> Color:
    parts = key.split(",")
    if len(parts) != _CHANNELS or not all(
        part.strip().isdecimal() and int(part) <= _MAX_BYTE for part in parts
    ):
        raise DatasetError(f'{origin}: label_map: {key!r} is no colour "red,green,blue" of 0..255')
    red, green, blue = map(int, parts)
    return red, green, blue


def _mask_colors(
    classes: ClassList, label_map: Mapping[Color, int], origin: str, *, is_needed: bool
) -> dict[Color, int]:
    """Return colour -> class id; the colours of ``label_map`` replace the own colour of their class."""
    led_to = set(label_map.values())
    own = {
        color: class_id
        for class_id, color in enumerate(classes.colors)
        if color is not None and class_id not in led_to and color not in label_map
    }
    colors = {**own, **label_map}
    without = [name for class_id, name in enumerate(classes.names) if class_id not in colors.values()]
    if is_needed and without:
        raise DatasetError(f'{origin}: masks = "colors" needs a color for each class; {without[0]} has none')
    return colors


def _class_id(value: object, palette: ClassPalette, origin: str) -> int | None:
    if value is None:
        return None
    try:
        return palette.id_of(str(value))
    except PaletteError as error:
        raise DatasetError(f"{origin}: missing_label must be a class, not {value!r}") from error
