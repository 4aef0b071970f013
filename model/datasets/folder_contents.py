"""Files of a folder: those below it, and those that a selection leaves out, by kind and count."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from model.datasets.text import printable

_SHOWN_NAMES = 3


@dataclass(frozen=True)
class UntakenFiles:
    """Files of a folder that a selection left out.

    Attributes:
        folder: the folder.
        names: kind -> paths below the folder, sorted. A kind is a suffix in lower case (``.jpeg``),
            ``hidden`` or ``without a suffix``. A hidden folder counts as one file.
    """

    folder: Path
    names: Mapping[str, tuple[str, ...]]

    @property
    def total(self) -> int:
        """Number of files of all kinds."""
        return sum(map(len, self.names.values()))

    def __str__(self) -> str:
        """Return each kind with its count and first names: ``2 .jpeg (3.jpeg, 4.JPEG), 1 .tif (a.tif)``."""
        return ", ".join(f"{len(names)} {kind} ({_shown(names)})" for kind, names in self.names.items())


def untaken_files(folder: Path, taken: Collection[Path]) -> UntakenFiles:
    """Return the files below a folder that a selection left out.

    Args:
        folder: the folder; a missing one has no files.
        taken: paths of the selected files, as ``folder / name below it``.
    """
    selected = {os.path.normpath(path) for path in taken}
    names: dict[str, list[str]] = {}
    for path in _files_below(folder):
        if os.path.normpath(path) not in selected:
            below = path.relative_to(folder)
            names.setdefault(_kind(below), []).append(printable(below))
    by_count = sorted(names.items(), key=lambda item: (-len(item[1]), item[0]))
    return UntakenFiles(folder, {kind: tuple(sorted(found)) for kind, found in by_count})


def folders_below(folder: Path) -> Iterator[Path]:
    """Yield a folder and all folders below it that are not hidden.

    Links to folders are followed, except to a folder that contains the link.

    Raises:
        OSError: a folder cannot be read.
    """
    return _walk(folder, frozenset())


def _walk(folder: Path, above: frozenset[tuple[int, int]]) -> Iterator[Path]:
    status = folder.stat()
    identity = status.st_dev, status.st_ino
    if identity in above:
        return
    yield folder
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.is_dir() and not entry.name.startswith("."):
            yield from _walk(folder / entry.name, above | {identity})


def _files_below(folder: Path) -> Iterator[Path]:
    try:
        for inner in folders_below(folder):
            with os.scandir(inner) as entries:
                yield from (
                    inner / entry.name
                    for entry in entries
                    if not entry.is_dir() or entry.name.startswith(".")
                )
    except OSError:  # the selection itself reports a folder that cannot be read
        return


def _kind(path: Path) -> str:
    if path.name.startswith("."):
        return "hidden"
    return path.suffix.lower() or "without a suffix"


def _shown(names: tuple[str, ...]) -> str:
    more = len(names) - _SHOWN_NAMES
    return ", ".join(names[:_SHOWN_NAMES]) + (f" and {more} more" if more > 0 else "")
