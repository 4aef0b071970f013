"""Labelled pictures on disk: a data set, and the pairs of picture and labels in its splits.

Axes: H height, W width, 3 = red green blue.
"""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from importlib.resources import files
from os.path import relpath
from pathlib import Path
from typing import Any

import numpy as np

from model.datasets.dataset_file import ReadingRules, parse_dataset_file
from model.datasets.dataset_lines import TOP, Addition, path_map_addition, with_additions
from model.datasets.lists import ListRules, moved_start, parse_list
from model.datasets.masks import DecodedMask, MaskError, MaskReader, mask_size, name_format
from model.datasets.orientation import OrientationError, is_drawn_on_stored
from model.datasets.pairs import ListedPair
from model.datasets.patterns import PatternSplit
from model.datasets.text import expand_home, parse_toml, printable, read_toml
from model.errors import (
    DatasetError,
    ImageError,
    LabelError,
    MissingRootError,
    PairError,
    TooManyPixelsError,
    UnsupportedImageError,
)
from model.labels import ClassPalette, UInt8Array
from model.pictures.image import (
    DEFAULT_LIMITS,
    ImageLimits,
    decode_with_orientation,
    peek_header,
    turn_upright,
)
from model.pictures.preprocess import size_of

__all__ = ["DatasetSpec", "LabeledImages", "LabeledPicture"]

ReadFile = Callable[[Path], bytes]
"""Returns the bytes of a file; raises ``OSError`` or ``ValueError`` as ``Path.read_bytes`` does."""

_MAX_VALUE = (1 << 16) - 1
_ANY_SIZE = ImageLimits(max_pixels=1 << 40, max_side=1 << 31)


@dataclass(frozen=True)
class DatasetSpec:
    """One data set: its folder, the meaning of its labels, its splits.

    Args:
        name: its name in reports.
        root: folder at which the paths of lists, and the paths in them, start.
        palette: the classes after ``label_map``, and the ignore id.
        splits: split name -> list file relative to ``root``, or patterns.
        label_map: value in masks of ids -> class id or ignore id; absent values are ids.
        rules: how files are read.

    Raises:
        DatasetError: the label map has a value outside 0..65535, or leads to no class.
    """

    name: str
    root: Path
    palette: ClassPalette
    splits: Mapping[str, str | PatternSplit]
    label_map: Mapping[int, int]
    rules: ReadingRules = field(default_factory=ReadingRules)

    def __post_init__(self) -> None:
        """Refuse a label map that leads to no class."""
        for value, target in (*self.label_map.items(), *self.rules.masks.colors.items()):
            is_known = 0 <= target < self.palette.num_classes or target == self.palette.ignore_id
            if not is_known or (isinstance(value, int) and not 0 <= value <= _MAX_VALUE):
                raise DatasetError(
                    f"{self.name}: label_map {value} = {target} is not value in the masks (0..{_MAX_VALUE})"
                    f" = class id (below {self.palette.num_classes}) or ignore id ({self.palette.ignore_id})"
                )

    @classmethod
    def load(cls, reference: str, *, root: Path | None = None) -> DatasetSpec:
        """Read a data set by the path of its TOML file or by the name of a preset.

        Args:
            reference: a path that ends in ``.toml``, or a preset (``camvid``).
            root: replaces the root of the file; a preset needs it.

        Raises:
            MissingRootError: a preset without a root.
            DatasetError: there is no such preset, or the data-set file is unusable.
        """
        if reference.lower().endswith(".toml"):
            return cls.from_toml(Path(reference), root=root)
        preset = files("model") / "presets" / f"{reference}.toml"
        if not reference.isidentifier() or not preset.is_file():
            raise DatasetError(f"not a data-set preset and not a .toml file: {reference!r}")
        if root is None:
            raise MissingRootError(f"preset {reference!r} needs the folder where the data set lies")
        return cls._parsed(parse_toml(preset.read_text("utf-8"), reference), reference, root)

    @classmethod
    def from_toml(cls, path: Path, *, root: Path | None = None) -> DatasetSpec:
        """Read a data-set file.

        Args:
            path: the TOML file; a relative ``root`` in it starts at its folder.
            root: replaces the root that the file names.

        Raises:
            DatasetError: the file cannot be read or is no TOML; or a key is missing, unknown or wrong.
        """
        raw, origin = read_toml(path), printable(path)
        if root is None:
            named = raw.get("root", ".")
            if not isinstance(named, str):
                raise DatasetError(f"{origin}: root must be a string, not {named!r}")
            root = path.parent / expand_home(named)
        return cls._parsed(raw, origin, root)

    @classmethod
    def _parsed(cls, raw: Mapping[str, Any], origin: str, root: Path) -> DatasetSpec:
        file = parse_dataset_file(raw, origin, root)
        return cls(file.name, root, file.palette, file.splits, file.label_map, file.rules)

    @cached_property
    def mask_reader(self) -> MaskReader:
        """Reads the label files."""
        return MaskReader(self.palette, self.label_map, self.rules.masks)

    @property
    def folders_elsewhere(self) -> tuple[Path, ...]:
        """Folders outside the root in which patterns look for files."""
        splits = [split for split in self.splits.values() if isinstance(split, PatternSplit)]
        folders = [one for split in splits for one in split.folders(self.root)]
        return tuple(dict.fromkeys(one for one in folders if not one.is_relative_to(self.root)))

    @cached_property
    def labelling(self) -> dict[str, Any]:
        """Rules that decide the labels of a file, as JSON values; a rule that is not set is left out."""
        masks, exif, missing = self.rules.masks, self.rules.exif, self.rules.missing_label
        colors = [[*color, target] for color, target in sorted(masks.colors.items())]
        in_colors = {"colors": colors, "color_tolerance": masks.color_tolerance}
        return {
            "names": list(self.palette.names),
            "ignore_id": self.palette.ignore_id,
            "label_map": [list(pair) for pair in sorted(self.label_map.items())],
            **(in_colors if masks.kind == "colors" else {}),
            **({} if exif is None else {"exif": exif}),
            **({} if missing is None else {"missing_label": missing}),
        }


@dataclass(frozen=True, eq=False)
class LabeledPicture:
    """A picture with its class ids, and how they were read.

    Attributes:
        image_HW3: upright RGB uint8.
        label_HW: uint8; class ids or the ignore id.
        orientation: of the picture's file, 1..8 as EXIF counts.
        mask: the label file; None = there is none, and ``missing_label`` fills ``label_HW``.
        is_turned: the labels were drawn on the stored pixels, and are turned with the picture.
    """

    image_HW3: UInt8Array
    label_HW: UInt8Array
    orientation: int
    mask: DecodedMask | None
    is_turned: bool = False


class LabeledImages:
    """The pictures of one split with their class ids, decoded when asked for.

    Args:
        spec: the data set.
        split: a key of ``spec.splits``.
        read: how files are read; a ``ConfinedReader`` reads no others than those of the data set.
        leave_out: indices of pairs, as they are counted without this, that are left out.

    Raises:
        DatasetError: there is no such split, its list cannot be read, a line is no pair, or it has none.
    """

    def __init__(
        self,
        spec: DatasetSpec,
        split: str,
        *,
        read: ReadFile = Path.read_bytes,
        leave_out: Collection[int] = (),
    ) -> None:
        if split not in spec.splits:
            raise DatasetError(f"{spec.name} has no split {split!r}, only {', '.join(spec.splits)}")
        self.spec = spec
        self.split = split
        pairs = _pairs(spec, spec.splits[split], read)
        self.pairs = tuple(pair for index, pair in enumerate(pairs) if index not in leave_out)
        self._read = read

    def __len__(self) -> int:
        """Return the number of pairs."""
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[UInt8Array, UInt8Array]:
        """Read one pair.

        Returns:
            image_HW3: upright RGB uint8.
            label_HW: uint8; class ids after ``label_map``, or the ignore id.

        Raises:
            LabelError: the labels have another size than their picture, or a value that is no class.
            PairError: a file is missing, or the picture is none. The message names file and list line.
        """
        picture = self.read_pair(index)
        return picture.image_HW3, picture.label_HW

    def read_pair(self, index: int) -> LabeledPicture:
        """Read one pair, and tell how it was read.

        Raises:
            LabelError: the labels have another size than their picture, or a value that is no class.
            PairError: a file is missing, or the picture is none. The message names file and list line.
        """
        pair, rules = self.pairs[index], self.spec.rules
        data = self._bytes_of(pair.image, pair)
        try:
            image_HW3, orientation = decode_with_orientation(data, rules.limits)
        except ImageError as error:
            raise PairError(pair.origin, printable(pair.image), _why_no_picture(error, data)) from error
        size, mask_data = size_of(image_HW3), self._mask_bytes(pair)
        if mask_data is None:
            label_HW = np.full(size.shape, rules.missing_label, np.uint8)
            return LabeledPicture(image_HW3, label_HW, orientation, None)
        try:
            is_turned = is_drawn_on_stored(mask_size(mask_data), size, orientation, rules.exif)
            mask = self.spec.mask_reader.read_mask(mask_data)
        except OrientationError as error:
            raise LabelError(pair.origin, printable(pair.image), str(error)) from error
        except MaskError as error:
            raise LabelError(pair.origin, printable(pair.label or ""), str(error), error.values) from error
        label_HW = turn_upright(mask.ids_HW, orientation) if is_turned else mask.ids_HW
        return LabeledPicture(image_HW3, label_HW, orientation, mask, is_turned)

    def name(self, index: int) -> str:
        """Return a picture's name in reports: its path below the root, or the whole path from elsewhere."""
        path, root = self.pairs[index].image, self.spec.root
        return printable(path.relative_to(root) if path.is_relative_to(root) else path)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the meaning of the labels and the bytes of every file, in list order: 64 hex digits.

        Raises:
            PairError: a file is missing.
        """
        labelling = dict(self.spec.labelling)
        meaning = [labelling.pop(key) for key in ("names", "ignore_id", "label_map")]
        total = hashlib.sha256(json.dumps([*meaning, labelling] if labelling else meaning).encode())
        for pair in self.pairs:
            for data in (self._bytes_of(pair.image, pair), self._mask_bytes(pair)):
                total.update(hashlib.sha256(data or b"").digest())
        return total.hexdigest()

    def _mask_bytes(self, pair: ListedPair) -> bytes | None:
        """Return the bytes of a label file; None where there is none and ``missing_label`` stands in."""
        label, has_default = pair.label, self.spec.rules.missing_label is not None
        if label is None or (has_default and not label.exists() and label.parent.is_dir()):
            return None
        return self._bytes_of(label, pair)

    def _bytes_of(self, path: Path, pair: ListedPair) -> bytes:
        try:
            return self._read(path)
        except OSError as error:
            reason = error.strerror or str(error)
            if error.errno == errno.ENOENT:
                alike = _similar_name(path)
                ways = [] if alike else self._ways_to(path, is_label=path == pair.label)
                reason = with_additions(f"{reason}{alike}", *ways)
            raise PairError(pair.origin, printable(path), reason) from error
        except ValueError as error:
            raise PairError(pair.origin, repr(printable(path)), str(error)) from error

    def _ways_to(self, path: Path, *, is_label: bool) -> list[Addition]:
        """Return the lines that lead to a missing file, or do without missing labels."""
        spec, source = self.spec, self.spec.splits[self.split]
        moved = None
        if isinstance(source, str) and not path.is_relative_to(spec.root):
            moved = moved_start(path.as_posix(), spec.root)
        elif isinstance(source, str):
            folder = (spec.root / source).parent
            if (folder / path.relative_to(spec.root)).is_file():
                moved = "", f"{relpath(folder, spec.root)}/"
        if moved is not None:
            return [path_map_addition(*moved, has_table=bool(spec.rules.path_map))]
        line = f'missing_label = "{spec.palette.names[0]}"'
        return (
            [Addition(f"{TOP}, if a picture without labels shows this class alone", (line,))]
            if is_label
            else []
        )


def _similar_name(path: Path) -> str:
    """Return a hint at a file in the same folder whose name starts alike, in any case: ``*_mask.png``."""
    stem = path.stem.lower()
    try:
        ends = [one.name[len(stem) :] for one in path.parent.iterdir() if one.name.lower().startswith(stem)]
    except OSError:  # no such folder
        return ""
    return f"; there is a *{printable(min(ends))} in that folder" if ends else ""


def _pairs(spec: DatasetSpec, source: str | PatternSplit, read: ReadFile) -> tuple[ListedPair, ...]:
    if isinstance(source, PatternSplit):
        return source.pairs(spec.root)
    list_file = spec.root / expand_home(source)
    try:
        data = read(list_file)
    except (OSError, ValueError) as error:
        reason = (isinstance(error, OSError) and error.strerror) or str(error)
        hint = "" if spec.root.is_dir() else f"; there is no folder {printable(spec.root)}"
        raise DatasetError(f"{printable(list_file)}: cannot be read: {reason}{hint}") from error
    rules = ListRules(spec.rules.path_map, may_lack_labels=spec.rules.missing_label is not None)
    return parse_list(data, list_file, spec.root, rules)


def _why_no_picture(error: ImageError, data: bytes) -> str:
    if isinstance(error, UnsupportedImageError) and (name := name_format(data)):
        return f"{error}; it is {name}: convert it to JPEG or PNG"
    if isinstance(error, TooManyPixelsError):
        with suppress(ImageError):
            pixels = max(peek_header(data, _ANY_SIZE).size.pixels, DEFAULT_LIMITS.max_pixels)
            return with_additions(str(error), Addition(TOP, (f"max_pixels = {pixels}",)))
    return str(error)
