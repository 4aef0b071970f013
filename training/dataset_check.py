"""``bisenet dataset check``: the content of a data set, files outside its splits, and its faults."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from training.command_errors import FAILED, exit_on_training_errors


def check_dataset(
    reference: Annotated[str, typer.Argument(metavar="D", help="A data-set file, or a preset with --root.")],
    *,
    root: Annotated[
        Path | None, typer.Option(help="Folder of the data set; replaces the root of the file.")
    ] = None,
    split: Annotated[list[str] | None, typer.Option(help="Check this split only; repeatable.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Threads that read.")] = 4,
    as_json: Annotated[bool, typer.Option("--json", help="Write a JSON object.")] = False,
) -> None:
    """Read every pair: sizes, classes, mean and std, broken and missing files, misread masks.

    Each problem comes with the lines that the data-set file needs. Files of the same folders that no split
    takes are counted. Ends with 1 when anything would stop a run.

    Examples:
      bisenet dataset check camvid --root /data/camvid

      bisenet dataset check mine.toml --split train --json
    """
    from model.datasets.coverage import describe_untaken, files_not_taken  # noqa: PLC0415
    from model.datasets.dataset import DatasetSpec, LabeledImages  # noqa: PLC0415
    from training.data.findings import report_dataset, skip_hint  # noqa: PLC0415
    from training.data.inspection import inspect_split  # noqa: PLC0415

    with exit_on_training_errors():
        spec = DatasetSpec.load(reference, root=root)
        splits = [LabeledImages(spec, name) for name in split or spec.splits]
        facts = [
            inspect_split(one, workers=workers, progress=_counter(f"{spec.name} {one.split}", len(one)))
            for one in splits
        ]
        found = report_dataset(facts, splits)
        found["hint"] = skip_hint(facts)
        found["not_taken"] = [describe_untaken(files, spec) for files in files_not_taken(spec)]
    typer.echo(json.dumps(found, indent=2) if as_json else "\n".join(_lines(found)))
    if found["problems"]:
        raise typer.Exit(FAILED)


def _counter(name: str, total: int) -> Callable[[int], None]:
    """Return a function that shows the number of pairs read on a terminal, and nothing elsewhere."""

    def show(done: int) -> None:
        if sys.stderr.isatty():
            end = "\n" if done == total else ""
            sys.stderr.write(f"\r{name}: {done}/{total}{end}")
            sys.stderr.flush()

    return show


def _lines(found: dict[str, Any]) -> Iterator[str]:
    for split in found["splits"]:
        sizes = ", ".join(f"{size}: {count}" for size, count in split["sizes"].items())
        pictures = "1 picture" if split["pictures"] == 1 else f"{split['pictures']} pictures"
        yield f"{split['name']}: {pictures} ({sizes or 'none can be read'})"
        yield f"  fingerprint {split['fingerprint'] or 'unknown: files are missing'}"
        if split["unseen"]:
            yield f"  classes without a pixel: {', '.join(split['unseen'])}"
        yield from (_indented(f"note: {note}") for note in split["notes"])
        yield from (_indented(f"problem: {problem}") for problem in split["problems"])
    yield from (f"not taken: {one}" for one in found["not_taken"])
    if found["mean"] is not None:
        yield f"{'id':>4}  {'class':24} {'share':>8}  weight"
        yield from map(_class_line, found["classes"])
        yield f"mean {found['mean']}, std {found['std']} (RGB, of values 0..1)"
    yield f"problems: {found['problems']}"
    if found["hint"]:
        yield found["hint"]


def _indented(text: str) -> str:
    return "  " + text.replace("\n", "\n  ")


def _class_line(one: dict[str, Any]) -> str:
    share = "-" if one["share"] is None else f"{100 * one['share']:.3f}%"
    weight = "-" if one["weight"] is None else f"{one['weight']:.3f}"
    return f"{one['id']:>4}  {one['name']:24} {share:>8}  {weight}"
