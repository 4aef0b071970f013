"""Labelled pictures on disk: what a data-set TOML says, and the pairs it leads to.

Axes: H height, W width, 3 = red green blue.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import struct
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

import numpy as np
from PIL import Image

from model.errors import DatasetError, ImageError, LabelError, MissingRootError, PaletteError
from model.labels import IGNORE_ID, ClassPalette, Color, UInt8Array
from model.pictures.image import decode_image
from model.pictures.preprocess import ImageSize, size_of

ReadFile = Callable[[Path], bytes]
"""Returns the bytes of a file; raises ``OSError`` or ``ValueError`` as ``Path.read_bytes`` does."""

_KEYS = {"name", "root", "ignore_id", "splits", "label_map", "classes"}
_CLASS_KEYS = {"name", "color"}
_PATTERN_KEYS = {"images", "labels"}
_MAX_ID = 255

# A PNG starts with 8 bytes of signature and 8 of chunk header; then IHDR: width, height, depth, colour type.
_PNG_HEADER = struct.Struct(">8s8xIIBB")
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_GRAY, _INDEXED = 0, 3
_ID_BITS = 8


@dataclass(frozen=True)
class FolderPair:
    """A split that two patterns say instead of a list: each picture has its labels where the second leads.

    Args:
        images: path of the pictures below the root, with ``*`` for what differs, for example
            ``leftImg8bit/val/*/*_leftImg8bit.png``; a ``*`` stands for anything but a slash.
        labels: path of a picture's labels; its stars are those of ``images``, in order.

    Raises:
        DatasetError: no star, or not as many in one as in the other.
    """

    images: str
    labels: str

    def __post_init__(self) -> None:
        """Refuse patterns that do not lead from a picture to its labels."""
        stars = self.images.count("*"), self.labels.count("*")
        if not stars[0] or stars[0] != stars[1]:
            raise DatasetError(
                f"patterns need the same number of *, at least one: {self.images!r}, {self.labels!r}"
            )

    def pairs(self, root: Path) -> tuple[ListedPair, ...]:
        """Find the pictures, in the order of their paths, and say where the labels of each must be.

        Raises:
            DatasetError: there is no such picture.
        """
        matcher = re.compile("([^/]*)".join(map(re.escape, self.images.split("*"))))
        found = sorted(path.relative_to(root).as_posix() for path in root.glob(self.images))
        matches = [match for name in found if (match := matcher.fullmatch(name))]
        if not matches:
            raise DatasetError(f"{root}: no picture is {self.images}")
        pieces = self.labels.split("*")
        return tuple(
            ListedPair(root / match[0], root / _joined(pieces, match.groups()), f"{root}/{match[0]}")
            for match in matches
        )


def _joined(pieces: Sequence[str], between: Sequence[str]) -> str:
    return pieces[0] + "".join(star + piece for star, piece in zip(between, pieces[1:], strict=True))


@dataclass(frozen=True)
class DatasetSpec:
    """One data set: where it lies, what its ids mean, how it is split.

    Args:
        name: how reports call it.
        root: folder that the lists, and the paths in them, are relative to.
        palette: the classes after ``label_map``, and the ignore id.
        splits: split name -> where its pairs are said, relative to ``root``.
        label_map: id in the file -> class id or ignore id; ids that are absent stay as they are.

    Raises:
        DatasetError: a label-map id lies outside 0..255 or leads to no class.
    """

    name: str
    root: Path
    palette: ClassPalette
    splits: Mapping[str, str | FolderPair]
    label_map: Mapping[int, int]

    def __post_init__(self) -> None:
        """Refuse a label map that leads nowhere."""
        for source, target in self.label_map.items():
            known = 0 <= target < self.palette.num_classes or target == self.palette.ignore_id
            if not 0 <= source <= _MAX_ID or not known:
                raise DatasetError(
                    f"{self.name}: label_map {source} = {target} is not id (0..255) = class id"
                )

    @classmethod
    def load(cls, reference: str, *, root: Path | None = None) -> DatasetSpec:
        """Find a data set by the path of its TOML file or by the name of a preset.

        Args:
            reference: a path that ends in ``.toml``, or a preset (``camvid``).
            root: replaces the root of the file; a preset needs it.

        Raises:
            MissingRootError: a preset without a root.
            DatasetError: no such preset, or what ``from_toml`` raises.
        """
        if reference.endswith(".toml"):
            return cls.from_toml(Path(reference), root=root)
        preset = files("model") / "presets" / f"{reference}.toml"
        if not reference.isidentifier() or not preset.is_file():
            raise DatasetError(f"not a data-set preset and not a .toml file: {reference!r}")
        if root is None:
            raise MissingRootError(f"preset {reference!r} needs the folder where the data set lies")
        return _spec(_parsed(preset.read_text("utf-8"), reference), reference, root)

    @classmethod
    def from_toml(cls, path: Path, *, root: Path | None = None) -> DatasetSpec:
        """Read a data-set file.

        Args:
            path: the TOML file; a relative ``root`` in it starts at its folder.
            root: replaces the root that the file names.

        Raises:
            DatasetError: the file cannot be read or is no TOML; a key is missing, unknown or of a wrong type.
        """
        try:
            text = path.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise DatasetError(f"{path}: cannot be read: {error}") from error
        raw = _parsed(text, str(path))
        named = raw.get("root", ".")
        if not isinstance(named, str):
            raise DatasetError(f"{path}: root must be a string, not {named!r}")
        return _spec(raw, str(path), root if root is not None else path.parent / named)

    @cached_property
    def label_table(self) -> UInt8Array:
        """Class id by id in the file, shape (256,) uint8: the whole ``label_map`` at once."""
        table = np.arange(_MAX_ID + 1, dtype=np.uint8)
        for source, target in self.label_map.items():
            table[source] = target
        return table

    @cached_property
    def known_ids(self) -> frozenset[int]:
        """The ids that a label may carry after ``label_map``."""
        return frozenset({*range(self.palette.num_classes), self.palette.ignore_id})


@dataclass(frozen=True)
class ListedPair:
    """One line of a split: a picture, its labels, and where that is said.

    Attributes:
        image: path of the picture.
        label: path of the 8-bit PNG with ids.
        origin: where the pair is said, for messages: ``list file:line number``, or the picture's path.
    """

    image: Path
    label: Path
    origin: str


class LabeledImages:
    """The pictures of one split with their class ids, decoded when asked for.

    Args:
        spec: the data set.
        split: a key of ``spec.splits``.
        read: how files are read; a ``ConfinedReader`` reads no others than those of the data set.

    Raises:
        DatasetError: no such split, its list cannot be read, a line is no pair, or it has none.
    """

    def __init__(self, spec: DatasetSpec, split: str, *, read: ReadFile = Path.read_bytes) -> None:
        if split not in spec.splits:
            raise DatasetError(f"{spec.name} has no split {split!r}, only {', '.join(spec.splits)}")
        self.spec = spec
        self.split = split
        self.pairs = _pairs(spec.root, spec.splits[split], read)
        self._read = read

    def __len__(self) -> int:
        """Return the number of pairs."""
        return len(self.pairs)

    def name(self, index: int) -> str:
        """Return what reports call a picture: its path below the root, or the whole path from elsewhere."""
        path, root = self.pairs[index].image, self.spec.root
        return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)

    def __getitem__(self, index: int) -> tuple[UInt8Array, UInt8Array]:
        """Read one pair.

        Returns:
            image_HW3: upright RGB uint8.
            label_HW: uint8; class ids after ``label_map``, or the ignore id.

        Raises:
            LabelError: the labels are no 8-bit id PNG, have another size than their picture, or hold an id
                that is no class.
            DatasetError: a file is missing, or the picture is none.

            The message names the file and the list line.
        """
        pair = self.pairs[index]
        try:
            image_HW3 = decode_image(self._bytes_of(pair.image, pair))
        except ImageError as error:
            raise DatasetError(f"{pair.origin}: {pair.image}: {error}") from error
        return image_HW3, self._label(pair, size_of(image_HW3))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over classes, label map and the bytes of every file, in list order: 64 hex digits.

        Raises:
            DatasetError: a file is missing.
        """
        palette = self.spec.palette
        meaning = [palette.names, palette.ignore_id, sorted(self.spec.label_map.items())]
        total = hashlib.sha256(json.dumps(meaning).encode())
        for pair in self.pairs:
            for path in (pair.image, pair.label):
                total.update(hashlib.sha256(self._bytes_of(path, pair)).digest())
        return total.hexdigest()

    def _label(self, pair: ListedPair, size: ImageSize) -> UInt8Array:
        data = self._bytes_of(pair.label, pair)
        try:
            label_HW = self.spec.label_table[_decoded_ids(data, size)]
        except ValueError as error:
            raise LabelError(f"{pair.origin}: {pair.label}: {error}") from error
        present = np.flatnonzero(np.bincount(label_HW.reshape(-1), minlength=_MAX_ID + 1)).tolist()
        if unknown := sorted(set(present) - self.spec.known_ids):
            palette = self.spec.palette
            raise LabelError(
                f"{pair.origin}: {pair.label}: ids {unknown} are outside [0, {palette.num_classes}): "
                f"label_map can lead them to a class, or to the ignore id {palette.ignore_id}"
            )
        return label_HW

    def _bytes_of(self, path: Path, pair: ListedPair) -> bytes:
        try:
            return self._read(path)
        except OSError as error:
            raise DatasetError(f"{pair.origin}: {path}: {error.strerror}") from error
        except ValueError as error:
            raise DatasetError(f"{pair.origin}: {str(path)!r}: {error}") from error


def _decoded_ids(data: bytes, size: ImageSize) -> UInt8Array:
    """Read the raw ids of a PNG: gray values or palette indices, never colours."""
    if len(data) < _PNG_HEADER.size:
        raise ValueError("not a PNG")
    signature, width, height, depth, color_type = _PNG_HEADER.unpack_from(data)
    if signature != _PNG_SIGNATURE:
        raise ValueError("not a PNG")
    if (height, width) != size.shape:
        raise ValueError(f"labels are {height}x{width}, their picture is {size}")
    # Pillow stretches gray of fewer bits to 0..255, which would change ids; palette indices it leaves alone.
    if color_type != _INDEXED and (color_type != _GRAY or depth != _ID_BITS):
        raise ValueError(f"labels must be 8-bit ids, not PNG colour type {color_type} with {depth} bits")
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            return np.asarray(image, np.uint8)
    except (OSError, SyntaxError, EOFError) as error:
        raise ValueError(f"broken PNG: {error}") from error


def _pairs(root: Path, said: str | FolderPair, read: ReadFile) -> tuple[ListedPair, ...]:
    return said.pairs(root) if isinstance(said, FolderPair) else _listed_pairs(root, root / said, read)


def _listed_pairs(root: Path, list_file: Path, read: ReadFile) -> tuple[ListedPair, ...]:
    try:
        lines = read(list_file).decode().splitlines()
    except OSError as error:
        raise DatasetError(f"{list_file}: cannot be read: {error.strerror}") from error
    except ValueError as error:  # not UTF-8, or no possible name
        raise DatasetError(f"{list_file}: cannot be read: {error}") from error
    pairs = tuple(
        _pair(root, line, f"{list_file}:{number}") for number, line in enumerate(lines, 1) if line.strip()
    )
    if not pairs:
        raise DatasetError(f"{list_file}: no image,label pair in it")
    return pairs


def _pair(root: Path, line: str, origin: str) -> ListedPair:
    parts = [part.strip() for part in line.split(",")]
    if len(parts) != 2 or not all(parts):  # noqa: PLR2004
        raise DatasetError(f"{origin}: not an image,label pair: {line!r}")
    return ListedPair(root / parts[0], root / parts[1], origin)


def _parsed(text: str, origin: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise DatasetError(f"{origin}: not TOML: {error}") from error


def _spec(raw: dict[str, Any], origin: str, root: Path) -> DatasetSpec:
    _check_keys(raw, _KEYS, origin)
    for key, kind in (("name", str), ("splits", dict), ("classes", list)):
        if not isinstance(raw.get(key), kind) or not raw[key]:
            raise DatasetError(f"{origin}: {key} is missing, empty or of a wrong type")
    return DatasetSpec(
        name=raw["name"],
        root=root,
        palette=_palette(raw, origin),
        splits={name: _split(said, f"{origin}: split {name!r}") for name, said in raw["splits"].items()},
        label_map=_label_map(raw.get("label_map", {}), origin),
    )


def _split(said: object, origin: str) -> str | FolderPair:
    if isinstance(said, str):
        return said
    if not isinstance(said, dict) or not all(isinstance(value, str) for value in said.values()):
        raise DatasetError(f"{origin} must name a list file, or two patterns: {{ images, labels }}")
    _check_keys(said, _PATTERN_KEYS, origin)
    if missing := sorted(_PATTERN_KEYS - said.keys()):
        raise DatasetError(f"{origin} lacks {', '.join(missing)}")
    return FolderPair(**said)


def _check_keys(raw: Mapping[str, object], known: set[str], origin: str) -> None:
    if unknown := sorted(raw.keys() - known):
        raise DatasetError(f"{origin}: unknown keys: {', '.join(unknown)}")


def _palette(raw: dict[str, Any], origin: str) -> ClassPalette:
    for item in raw["classes"]:
        if not isinstance(item, dict):
            raise DatasetError(f"{origin}: classes are tables with name and color, not {item!r}")
        _check_keys(item, _CLASS_KEYS, origin)
        if not isinstance(item.get("name"), str) or not _is_color(item.get("color")):
            raise DatasetError(f"{origin}: a class needs a name and a color [r, g, b]: {item}")
    ignore_id = raw.get("ignore_id", IGNORE_ID)
    if not _is_integer(ignore_id):
        raise DatasetError(f"{origin}: ignore_id must be an integer, not {ignore_id!r}")
    names = tuple(item["name"] for item in raw["classes"])
    colors = tuple(cast("Color", tuple(item["color"])) for item in raw["classes"])
    try:
        return ClassPalette(names, colors, ignore_id)
    except PaletteError as error:
        raise DatasetError(f"{origin}: {error}") from error


def _label_map(raw: object, origin: str) -> dict[int, int]:
    if not isinstance(raw, dict) or not all(_is_integer(value) for value in raw.values()):
        raise DatasetError(f"{origin}: label_map must be a table of id = id")
    try:
        return {int(key): value for key, value in raw.items()}
    except ValueError as error:
        raise DatasetError(f"{origin}: label_map: {error}") from error


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_color(value: object) -> bool:
    return isinstance(value, list) and all(_is_integer(v) for v in value)
