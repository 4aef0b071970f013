"""Finds the pictures of ``bisenet predict`` and chooses the file of each mask."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import typer
from click import format_filename

from service.core.pictures.local_files import (
    FILM_SUFFIXES,
    HIDDEN,
    mask_path,
    not_taken_line,
    other_kind,
    readable_suffixes,
)


@dataclass(frozen=True)
class PredictTask:
    """One picture and the file of its mask."""

    source: Path
    target: Path


@dataclass(frozen=True)
class PredictPlan:
    """The inputs and outputs of a run of the command.

    Attributes:
        tasks: the pictures in the order of the inputs, those of a folder by name.
        not_taken: number of files in the folders that are not read, by kind.
    """

    tasks: tuple[PredictTask, ...]
    not_taken: Counter[str]


def is_film(path: Path) -> bool:
    """Return whether a path is a film by its name."""
    return path.suffix.lower() in FILM_SUFFIXES and not path.is_dir()


def plan(inputs: Sequence[Path], out: Path) -> PredictPlan:
    """Choose the file of each mask, before a picture is read.

    Args:
        inputs: files, which are read whatever their names are, and folders, of which the pictures at any
            depth are read.
        out: the file of the mask if there is one input file and ``out`` has a suffix; else a folder, in which
            masks lie as their pictures lie in the input folder.

    Raises:
        typer.BadParameter: there is no picture, two pictures have the same mask file, a mask would replace a
            picture, or the name of a mask does not end in ``.png``.
    """
    found = _Findings()
    for path in inputs:
        if path.is_dir():
            _search(path, out, found)
        else:
            found.pictures.setdefault(path, Path(path.name))
    if not found.pictures:
        raise typer.BadParameter(_nothing_found(inputs, found))
    if len(inputs) == 1 and inputs[0].is_file() and out.suffix and not out.is_dir():
        tasks = [PredictTask(inputs[0], out)]
    else:
        tasks = [
            PredictTask(source, out / mask_path(relative)) for source, relative in found.pictures.items()
        ]
    _check_targets(tasks)
    return PredictPlan(tuple(tasks), found.not_taken)


@dataclass
class _Findings:
    """The result of a search.

    Attributes:
        pictures: each with its path below the input folder.
        not_taken: files that are not read, by kind.
        folders: number of searched folders.
    """

    pictures: dict[Path, Path] = field(default_factory=dict)
    not_taken: Counter[str] = field(default_factory=Counter)
    folders: int = 0


def _search(top: Path, out: Path, found: _Findings) -> None:
    suffixes = readable_suffixes()
    for folder, names in _walk(top, out, found):
        found.folders += 1
        for name in names:
            path = folder / name
            kind = _other_kind(path, suffixes)
            if kind is None:
                found.pictures.setdefault(path, path.relative_to(top))
            else:
                found.not_taken[kind] += 1


def _walk(top: Path, out: Path, found: _Findings) -> Iterator[tuple[Path, list[str]]]:
    """Yield each folder with its files by name. Links are followed, but each folder is searched once."""

    def count_unreadable(_: OSError) -> None:
        found.not_taken["folders without permission to read"] += 1

    output_folder = out.resolve()
    seen = {top.resolve()}
    for folder, folder_names, names in os.walk(top, followlinks=True, onerror=count_unreadable):
        kept = []
        for name in sorted(folder_names):
            path = Path(folder, name).resolve()
            if name.startswith("."):
                found.not_taken["hidden"] += 1
            elif path == output_folder:
                found.not_taken["output folder"] += 1
            elif path not in seen:
                seen.add(path)
                kept.append(name)
        folder_names[:] = kept
        yield Path(folder), sorted(names)


def _other_kind(path: Path, suffixes: frozenset[str]) -> str | None:
    """Return the kind of a file that is not read, for people; None for a picture."""
    kind = other_kind(path.name, suffixes)
    return kind if kind == HIDDEN or path.is_file() else "broken links or special files"


def _nothing_found(inputs: Sequence[Path], found: _Findings) -> str:
    where = ", ".join(format_filename(path) for path in inputs)
    below = found.folders - len(inputs)
    folders = f" and {below} folders below" if below else ""
    others = not_taken_line(found.not_taken) or "there are no files at all"
    return f"no pictures in {where}{folders}; {others}"


def _check_targets(tasks: Sequence[PredictTask]) -> None:
    pictures = {task.source.resolve() for task in tasks}
    owners: dict[Path, Path] = {}
    for task in tasks:
        target = task.target.resolve()
        source_name, target_name = format_filename(task.source), format_filename(task.target)
        if target.suffix.lower() != ".png":
            raise typer.BadParameter(f"masks are PNG files: {target_name}")
        if target in pictures:
            raise typer.BadParameter(
                f"the mask of {source_name} would replace a picture, {target_name}: name another --out"
            )
        owner = owners.setdefault(target, task.source)
        if owner != task.source:
            raise typer.BadParameter(
                f"{format_filename(owner)} and {source_name} would both become {target_name}: "
                "rename one of them, or run the command for each with an --out of its own"
            )
