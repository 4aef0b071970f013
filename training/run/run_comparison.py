"""Several runs on one page: their curves over each other, their best scores, and what was set differently."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from model.report_pages.charts import charts
from model.report_pages.markup import Markup, joined, tag
from model.report_pages.page import Section, percent, plain_text, render_page, table
from training.errors import RunNotFoundError
from training.run.record import RunRecord
from training.run.report import all_lines, curve_charts, run_facts

_ABSENT = "not set"


def read_runs(folders: Sequence[Path]) -> list[RunRecord]:
    """Read the logs of runs; two of the same name are told apart by their paths.

    Args:
        folders: of the runs, at least two different ones.

    Raises:
        RunNotFoundError: a folder holds no run, or fewer than two were named.
    """
    different = list(dict.fromkeys(folder.resolve() for folder in folders))
    if len(different) < 2:  # noqa: PLR2004
        raise RunNotFoundError("a comparison needs at least two different runs")
    records = [RunRecord.read(folder) for folder in different]
    names = [record.name for record in records]
    return [
        record
        if names.count(record.name) == 1
        else replace(record, name=f"{folder.parent.name}/{record.name}")
        for record, folder in zip(records, different, strict=True)
    ]


def render_comparison(records: Sequence[RunRecord]) -> str:
    """Return the page of several runs.

    Args:
        records: at least two runs; changes are told against the first one.
    """
    names = [record.name for record in records]
    head = tag("p", f"Changes are told against {names[0]}, the first one.", class_="note")
    sections = [
        Section("Runs", _overview(records)),
        Section("Curves", charts(curve_charts(_titled(records)))),
        Section("Best validation of each class", _classes(records)),
        Section("Settings that differ", _settings(records)),
    ]
    return render_page("training", " against ".join(names), head, sections, with_script=True)


def _titled(records: Sequence[RunRecord]) -> dict[str, Any]:
    lines = all_lines(records)
    lines.pop("pixel accuracy", None)  # beside mIoU each run would have two lines
    return lines


def _overview(records: Sequence[RunRecord]) -> Markup:
    rows: dict[str, list[str]] = {"best mIoU": [], "at step": [], "steps": []}
    for record in records:
        best = record.best
        rows["best mIoU"].append("none" if best is None else percent(best.miou))
        rows["at step"].append("none" if best is None else f"{best.step:,}")
        total = "" if record.total_steps is None else f" of {record.total_steps:,}"
        rows["steps"].append(f"{record.step:,}{total}")
    told = [run_facts(record) for record in records]
    for name in dict.fromkeys(name for one in told for name in one):
        rows[name] = [one.get(name, "") for one in told]
    names = [record.name for record in records]
    return table(("", *names), [[name, *cells] for name, cells in rows.items()], label="Runs")


def _classes(records: Sequence[RunRecord]) -> Markup:
    scores = [{} if record.best is None else record.best.iou for record in records]
    names = dict.fromkeys(name for one in scores for name in one)
    if not names:
        return tag("p", "There was no validation yet.", class_="note")
    heads = ["class"]
    for place, record in enumerate(records):
        heads += [record.name] if place == 0 else [record.name, "change"]
    rows = [[name, *_class_cells([one.get(name) for one in scores])] for name in names]
    mious = [None if record.best is None else record.best.miou for record in records]
    return table(heads, [["mIoU", *_class_cells(mious)], *rows], label="Best validation of each class")


def _class_cells(scores: Sequence[float | None]) -> list[str]:
    first, *others = scores
    cells = [tag("td", percent(first), class_="number")]
    for other in others:
        change = "" if first is None or other is None else f"{100 * (other - first):+.2f}"
        cells += [tag("td", percent(other), class_="number"), tag("td", change, class_="number note")]
    return list(cells)


def _settings(records: Sequence[RunRecord]) -> Markup:
    flat = [_flat(record.config) for record in records]
    keys = dict.fromkeys(key for one in flat for key in one)
    rows = [[key, *(one.get(key, _ABSENT) for one in flat)] for key in keys]
    different = [cells for cells in rows if len(set(cells[1:])) > 1]
    if not different:
        return tag("p", "The configurations are equal.", class_="note")
    names = [record.name for record in records]
    note = tag("p", "All other settings are equal.", class_="note")
    return joined(table(("", *names), different, label="Settings that differ"), note)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = plain_text(value)
    return found
