"""List files of a split: one ``image,label`` pair a line, as any CSV reader takes it.

A byte-order mark, quotes, spaces around names, either line end, empty lines and a header line are accepted.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from model.datasets.dataset_lines import Addition, path_map_addition, with_additions
from model.datasets.pairs import ListedPair
from model.datasets.text import decode_text, printable
from model.errors import DatasetError

_PAIR = 2
_WINDOWS_PATH = re.compile(r"[A-Za-z]:[\\/]|.*\\", re.DOTALL)
_OTHER_SEPARATORS = {"\t": ("a tab", r"\t"), ";": ("a semicolon", ";"), " ": ("a space", "  *")}
"""Separator -> its name, and how ``sed`` writes it."""

_Row = tuple[int, list[str]]


@dataclass(frozen=True)
class ListRules:
    """How the lists of a data set are read.

    Args:
        path_map: start of a path in a list -> text in its place, for lists from another machine. The first
            that fits is taken. With any entry, backslashes are read as slashes.
        may_lack_labels: a line may leave the field of the labels empty.
    """

    path_map: Mapping[str, str] = field(default_factory=dict)
    may_lack_labels: bool = False


def parse_list(data: bytes, list_file: Path, root: Path, rules: ListRules) -> tuple[ListedPair, ...]:
    """Read the pairs of a list file.

    Args:
        data: bytes of the file.
        list_file: its path, for messages.
        root: folder at which relative paths in the list start.
        rules: how the list is read.

    Raises:
        DatasetError: the file is not UTF-8, a line is not a pair or has Windows paths, or there is no pair.
    """
    origin = printable(list_file)
    try:
        rows = _rows(decode_text(data, errors="surrogateescape"))
    except (ValueError, csv.Error) as error:
        raise DatasetError(f"{origin}: cannot be read: {error}") from error
    if rows and _is_header(rows):
        del rows[0]
    pairs = tuple(_pair(fields, f"{origin}:{number}", root, rules) for number, fields in rows)
    if not pairs:
        raise DatasetError(f"{origin}: no image,label pair in it")
    return pairs


def moved_start(path: str, root: Path) -> tuple[str, str] | None:
    """Return the entry of ``path_map`` that leads a path of another machine to an existing file.

    Args:
        path: with slashes.
        root: folder in which the file is looked for, by ever shorter ends of the path.

    Returns:
        the start of the path and the text in its place; None where no end of the path leads to a file.
    """
    parts = PurePosixPath(path).parts
    for cut in range(1, len(parts)):
        end = "/".join(parts[cut:])
        if (root / end).is_file():
            return path[: len(path) - len(end)], ""
    return None


def _rows(text: str) -> list[_Row]:
    reader = csv.reader(io.StringIO(text, newline=None), skipinitialspace=True)
    rows = [(reader.line_num, [value.strip() for value in row]) for row in reader]
    return [(number, _without_empty_ends(row)) for number, row in rows if any(row)]


def _without_empty_ends(row: list[str]) -> list[str]:
    while len(row) > _PAIR and not row[-1]:
        row = row[:-1]
    return row


def _is_header(rows: Sequence[_Row]) -> bool:
    """Return whether the first line has two words in the place of file names with suffixes."""
    (_, first), *others = rows
    has_words = len(first) == _PAIR and not any(set("./\\") & set(name) for name in first)
    return has_words and (not others or any(PurePosixPath(row[0]).suffix for _, row in others))


def _pair(fields: Sequence[str], origin: str, root: Path, rules: ListRules) -> ListedPair:
    if len(fields) != _PAIR or not fields[0] or not (fields[1] or rules.may_lack_labels):
        line = printable(",".join(fields))
        hint = _other_separator(fields, origin.rpartition(":")[0])
        raise DatasetError(f"{origin}: not an image,label pair: {line!r}{hint}")
    image, label = (_mapped(name, rules.path_map) for name in fields)
    for name in (image, label):
        if _WINDOWS_PATH.match(name):
            addition = _for_windows_path(name, root, has_table=bool(rules.path_map))
            kind = "with backslashes" if "\\" in name else "with a drive letter"
            raise DatasetError(
                with_additions(f"{origin}: a Windows path {kind}: '{printable(name)}'", addition)
            )
    return ListedPair(root / image, root / label if label else None, origin)


def _other_separator(fields: Sequence[str], list_file: str) -> str:
    for separator, (name, pattern) in _OTHER_SEPARATORS.items():
        if len(fields) == 1 and len(fields[0].split(separator)) == _PAIR:
            command = f"sed -i 's/{pattern}/,/' '{list_file}'"
            return f"; it has {name} in place of the comma; this command changes all lines: {command}"
    if len(fields) == 1 and not PurePosixPath(fields[0]).suffix:
        return "; names alone, as in ImageSets of Pascal VOC, are converted by: bisenet dataset import voc"
    return "; a line names a picture and its labels" if len(fields) == 1 else ""


def _mapped(name: str, path_map: Mapping[str, str]) -> str:
    if path_map:
        name = name.replace("\\", "/")
    for old, new in path_map.items():
        start = old.replace("\\", "/")
        if name.startswith(start):
            return new + name[len(start) :]
    return name


def _for_windows_path(name: str, root: Path, *, has_table: bool) -> Addition:
    if ":" not in name:  # any entry makes backslashes slashes
        return path_map_addition("\\", "/", has_table=has_table)
    path = name.replace("\\", "/")
    old, new = moved_start(path, root) or (path[: path.rindex("/") + 1], "/folder/on/this/machine/")
    return path_map_addition(name[: len(old)], new, has_table=has_table)
