"""Patterns that find pictures in folders, and the labels of each picture.

- ``*`` stands for any characters but a slash, ``**`` for any number of folders, ``{jpg,png}`` for either.
- All other characters stand for themselves, also ``[``, ``]``, ``?`` and spaces; ``~/`` at the start is the
  home folder.
- The case of a suffix does not matter, and ``.jpg`` also stands for ``.jpeg``, ``.tif`` for ``.tiff``.
- Hidden files and folders (``._1.jpg``) are passed over unless the pattern itself has the dot.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from model.datasets.folder_contents import folders_below, untaken_files
from model.datasets.pairs import ListedPair
from model.datasets.text import expand_home, printable
from model.errors import DatasetError

_STAR = re.compile(r"\*\*|\*")
_BRACES = re.compile(r"\{([^{}]*)\}")
_OTHER_SPELLINGS = {"jpeg": "jpg", "tiff": "tif"}
_PICTURE_SUFFIXES = frozenset({"bmp", "gif", "jpg", "png", "tif", "webp"})

_Found = tuple[str, tuple[str, ...]]
"""Path of a picture as its pattern writes it, and the text that each star matched."""


@dataclass(frozen=True)
class PatternSplit:
    """A split that patterns describe in place of a list.

    Args:
        images: patterns of the pictures, relative to the root, for example
            ``leftImg8bit/val/*/*_leftImg8bit.png``.
        labels: patterns of the labels: one for all of ``images``, or one for each. Their stars stand for the
            text that the last stars of the picture's pattern matched.

    Raises:
        DatasetError: the patterns do not lead from a picture to its labels.
    """

    images: tuple[str, ...]
    labels: tuple[str, ...]

    def __post_init__(self) -> None:
        """Refuse patterns that do not lead from a picture to its labels."""
        if not self.images or len(self.labels) not in {1, len(self.images)}:
            raise DatasetError(
                f"labels has {len(self.labels)} patterns and images {len(self.images)}:"
                " labels needs one for all images, or one for each pattern of images"
            )
        for images, labels in self._patterns():
            _check_stars(images, labels)

    def pairs(self, root: Path) -> tuple[ListedPair, ...]:
        """Find the pictures and the labels of each, in the order of the pictures' paths.

        A picture without labels gets the path at which its first pattern expects them.

        Args:
            root: folder at which relative patterns start.

        Raises:
            DatasetError: there is no such folder or picture, several files fit as the labels of one picture,
                or one file as the labels of several.
        """
        listings = _Listings()
        labels_of: dict[str, Path] = {}
        try:
            for images, labels in self._patterns():
                for name, captures in _find(root, images):
                    if name not in labels_of:
                        labels_of[name] = _find_labels(root, labels, captures, listings)
        except OSError as error:
            raise DatasetError(f"{printable(error.filename)}: {error.strerror}") from error
        self._check_folders(root)
        pairs = [ListedPair(root / name, labels_of[name], "") for name in sorted(labels_of)]
        return _without_masks(pairs, listings) or self._nothing_found(root)

    def image_folders(self, root: Path) -> tuple[Path, ...]:
        """Return the folders in and below which the pictures are looked for."""
        return _fixed_folders(root, [images for images, _ in self._patterns()])

    def label_folders(self, root: Path) -> tuple[Path, ...]:
        """Return the folders in and below which the labels are looked for."""
        return _fixed_folders(root, [labels for _, labels in self._patterns()])

    def folders(self, root: Path) -> tuple[Path, ...]:
        """Return the folders in and below which pictures and labels are looked for."""
        return self.image_folders(root) + self.label_folders(root)

    def _patterns(self) -> Iterator[tuple[str, str]]:
        labels = self.labels * len(self.images) if len(self.labels) == 1 else self.labels
        return zip(map(_normalised, self.images), map(_normalised, labels), strict=True)

    def _check_folders(self, root: Path) -> None:
        for folder in self.image_folders(root):
            if not folder.is_dir():
                raise DatasetError(f"there is no folder {printable(folder)}{self._slash_hint}")

    def _nothing_found(self, root: Path) -> tuple[ListedPair, ...]:
        patterns = ", ".join(images for images, _ in self._patterns())
        contents = "; ".join(
            f"{printable(folder)} holds {untaken_files(folder, ()) or 'no files'}"
            for folder in self.image_folders(root)
        )
        raise DatasetError(f"no picture matches {patterns}: {contents}{self._slash_hint}")

    @property
    def _slash_hint(self) -> str:
        has_backslash = any("\\" in images for images in self.images)
        return "; patterns are written with slashes, not with backslashes" if has_backslash else ""


class _Folder:
    """The names in one folder, also by stem and suffix without regard to the spelling of the suffix."""

    def __init__(self, path: Path) -> None:
        try:
            self.names = frozenset(entry.name for entry in os.scandir(path))
        except OSError:  # there are no labels then: reading them says so
            self.names = frozenset()
        self.by_suffix: dict[tuple[str, str], list[str]] = {}
        self.by_stem: dict[str, list[str]] = {}
        for name in sorted(self.names):
            stem, suffix = _split_suffix(name)
            self.by_suffix.setdefault((stem, suffix), []).append(name)
            if suffix in _PICTURE_SUFFIXES:
                self.by_stem.setdefault(stem, []).append(name)


class _Listings:
    """Folders of labels, each read once."""

    def __init__(self) -> None:
        self._folders: dict[Path, _Folder] = {}

    def __getitem__(self, path: Path) -> _Folder:
        if path not in self._folders:
            self._folders[path] = _Folder(path)
        return self._folders[path]

    def contains(self, file: Path) -> bool:
        return file.name in self[file.parent].names


def _normalised(pattern: str) -> str:
    pattern = expand_home(pattern)
    parts = [part for part in pattern.split("/") if part not in {"", "."}]
    if parts and parts[-1] == "**":
        parts.append("*")
    return ("/" if pattern.startswith("/") else "") + "/".join(parts)


def _check_stars(images: str, labels: str) -> None:
    in_images, in_labels = (
        {len(_STAR.findall(one)) for one in _alternatives(each)} for each in (images, labels)
    )
    if min(in_images) == 0:
        raise DatasetError(
            f"images = {images!r} needs a * for the part of the path that differs, for example"
            f" {images.rstrip('/')}/*.jpg"
        )
    if len(in_images) > 1 or len(in_labels) > 1 or not 1 <= max(in_labels) <= max(in_images):
        raise DatasetError(
            f"labels = {labels!r} needs a * for each part of the path that it takes over from images ="
            f" {images!r}: at least one, and at most as many as images has"
        )


def _alternatives(pattern: str) -> list[str]:
    """Return the patterns without braces that a pattern with braces stands for."""
    braces = _BRACES.search(pattern)
    if braces is None:
        return [pattern]
    head, tail = pattern[: braces.start()], pattern[braces.end() :]
    return [one for choice in braces[1].split(",") for one in _alternatives(f"{head}{choice.strip()}{tail}")]


def _fixed_folders(root: Path, patterns: Sequence[str]) -> tuple[Path, ...]:
    """Return the folder of each pattern that comes before its first star."""
    fixed = [
        root / _STAR.split(one)[0].rpartition("/")[0] if not one.startswith("/*") else Path("/")
        for pattern in patterns
        for one in _alternatives(pattern)
    ]
    return tuple(dict.fromkeys(fixed))


def _find(root: Path, pattern: str) -> Iterator[_Found]:
    for one in _alternatives(pattern):
        start, path = ("/", one[1:]) if one.startswith("/") else ("", one)
        yield from _match(root, start, path.split("/"), ())


def _match(root: Path, above: str, segments: Sequence[str], captures: tuple[str, ...]) -> Iterator[_Found]:
    """Yield the pictures below the folder ``above`` that match the remaining segments of a pattern."""
    segment, rest = segments[0], segments[1:]
    if segment == "**":
        for folder in folders_below(root / above):
            below = folder.relative_to(root / above).as_posix().removeprefix(".")
            yield from _match(root, _join(above, below), rest, (*captures, below))
    elif rest and "*" not in segment:
        yield from _match(root, _join(above, segment), rest, captures)
    else:
        regex = _segment_regex(segment, is_last=not rest)
        for entry in _entries(root / above):
            match = regex.fullmatch(entry.name)
            if match is None or (entry.name.startswith(".") and not segment.startswith(".")):
                continue
            path, matched = _join(above, entry.name), (*captures, *match.groups())
            if rest and entry.is_dir():
                yield from _match(root, path, rest, matched)
            elif not rest and (entry.is_file() or entry.is_symlink()) and not entry.is_dir():
                yield path, matched


def _join(above: str, name: str) -> str:
    return f"{above.rstrip('/') + '/' if above else ''}{name}" if name else above


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except (FileNotFoundError, NotADirectoryError):  # of many folders that match, some lack the next part
        return []


@cache
def _segment_regex(segment: str, *, is_last: bool) -> re.Pattern[str]:
    segment = re.sub(r"\*+", "*", segment)
    dot = segment.rfind(".") if is_last and segment.rfind(".") > segment.rfind("*") else len(segment)
    stem, suffix = segment[:dot], segment[dot + 1 :]
    regex = "(.*)".join(map(re.escape, stem.split("*")))
    if suffix:
        common = _common_spelling(suffix)
        spellings = [common, *(other for other, usual in _OTHER_SPELLINGS.items() if usual == common)]
        regex += rf"\.(?i:{'|'.join(map(re.escape, spellings))})"
    return re.compile(regex, re.DOTALL)


def _find_labels(root: Path, pattern: str, captures: tuple[str, ...], listings: _Listings) -> Path:
    stem, suffix = _split_suffix(captures[-1])
    without_suffix = [(*captures[:-1], stem)] if suffix in _PICTURE_SUFFIXES else []
    expected = [root / _filled(one, captures) for one in _alternatives(pattern)]
    for tried in (captures, *without_suffix):
        paths = [root / _filled(one, tried) for one in _alternatives(pattern)]
        found = list(dict.fromkeys(path for each in paths for path in _existing(each, listings[each.parent])))
        if len(found) > 1:
            names = ", ".join(printable(path) for path in found)
            raise DatasetError(f"several files fit as the labels of one picture: {names}")
        if found:
            return found[0]
    return expected[0]


def _filled(pattern: str, captures: tuple[str, ...]) -> str:
    texts = iter(captures[-len(_STAR.findall(pattern)) :])
    return re.sub("//+", "/", _STAR.sub(lambda _: next(texts), pattern))


def _existing(expected: Path, folder: _Folder) -> list[Path]:
    if expected.name in folder.names:
        return [expected]
    stem, suffix = _split_suffix(expected.name)
    names = folder.by_suffix.get((stem, suffix), []) if suffix else folder.by_stem.get(stem, [])
    return [expected.parent / name for name in names]


def _split_suffix(name: str) -> tuple[str, str]:
    """Return the stem and the suffix in its common spelling, without the dot."""
    stem, _, suffix = name.rpartition(".")
    return (stem, _common_spelling(suffix)) if stem else (name, "")


def _common_spelling(suffix: str) -> str:
    return _OTHER_SPELLINGS.get(suffix.lower(), suffix.lower())


def _without_masks(pairs: Sequence[ListedPair], listings: _Listings) -> tuple[ListedPair, ...]:
    """Return the pairs without those whose picture is the labels of another picture.

    Raises:
        DatasetError: a file is its own labels, or the labels of several pictures.
    """
    owners: dict[Path, ListedPair] = {}
    for pair in pairs:
        assert pair.label is not None
        if pair.label == pair.image or not listings.contains(pair.label):
            continue
        other = owners.setdefault(pair.label, pair)
        if other is not pair:
            raise DatasetError(
                f"{printable(other.image)} and {printable(pair.image)} would have the same labels,"
                f" {printable(pair.label)};"
                " if that is right, write the pairs into a list"
            )
    kept = tuple(pair for pair in pairs if pair.image not in owners)
    for pair in kept:
        if pair.label == pair.image:
            raise DatasetError(
                f"{printable(pair.image)} would be its own labels: images and labels match the same files"
            )
    return kept
