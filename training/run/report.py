"""The report of a run as pages: while it goes on, when it was stopped, and when it is finished.

A finished run has a folder: ``index.html`` shows the run, ``evaluation.html`` the scores of its model class
by class, ``report.json`` the numbers of both. Each page is one file. Nothing here needs torch.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from model.evaluation.evaluation import EvaluationReport
from model.evaluation.report import (
    ShownImage,
    headline,
    picture_section,
    render_html,
    score_sections,
    skipped_sections,
)
from model.progress import duration
from model.report_pages.charts import Series, chart, charts
from model.report_pages.markup import Markup, joined, tag
from model.report_pages.page import Section, facts, folded, legend, nested, percent, render_page
from model.report_pages.pictures import Tile, data_url, row
from training.run.record import SAMPLE_FOLDER, RunRecord, Sample

REPORT_FOLDER = "report"
INDEX_FILE = "index.html"
EVALUATION_FILE = "evaluation.html"
REPORT_FILE = "report.json"


class _Options(TypedDict, total=False):
    is_share: bool
    bounds: tuple[float, float]


Source = Callable[[str], str]
"""Name of a file of the samples -> address of the picture in a page; empty where the file is missing."""

_CHARTS: tuple[tuple[str, tuple[str, ...], _Options], ...] = (
    ("Validation mIoU", ("mIoU", "pixel accuracy"), {"is_share": True}),
    ("Training loss", ("loss",), {}),
    ("Validation loss", ("validation loss",), {}),
    ("Learning rate", ("learning rate",), {}),
    ("Crops per second", ("images per second",), {}),
    ("Time that steps wait for pictures", ("data wait",), {"is_share": True, "bounds": (0, 1)}),
)
"""Title, names of the curves, and options of the chart."""

_LINE_NAMES = {"images per second": "crops", "data wait": "waiting"}
_WORTHLESS = "of pictures that the run learned from: they say nothing about other ones"
_LOSS_NOTE = (
    "The training loss counts the hardest pixels of crops and adds all heads of the network. The validation"
    " loss is the cross-entropy of the answer on whole pictures. Compare their directions, not their values."
)


@dataclass(frozen=True, eq=False)
class FinishedRun:
    """What a finished run adds to its log.

    Attributes:
        evaluation: scores of the averaged weights on the validation split, before they were rounded.
        provenance: of the artifact.
        pictures: title -> pictures, labelled by the published network.
    """

    evaluation: EvaluationReport
    provenance: Mapping[str, Any]
    pictures: Mapping[str, Sequence[ShownImage]]

    def write(self, record: RunRecord, out: Path) -> Path:
        """Write the report of a finished run; return the path of its first page.

        Args:
            record: the log of the run.
            out: folder of the run.

        Raises:
            OSError: a file cannot be written.
        """
        folder = out / REPORT_FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        document = {
            "name": record.name,
            "provenance": dict(self.provenance),
            "curves": {curve.name: list(curve.points) for curve in record.curves.values()},
            "evaluation": self.evaluation.to_json(),
        }
        (folder / REPORT_FILE).write_text(json.dumps(document, indent=1), "utf-8")
        (folder / EVALUATION_FILE).write_text(render_html(self.evaluation), "utf-8")
        index = folder / INDEX_FILE
        index.write_text(self.to_html(record, inlined(out / SAMPLE_FOLDER)), "utf-8")
        return index

    def to_html(self, record: RunRecord, source: Source) -> str:
        """Return the first page.

        Args:
            record: the log of the run.
            source: of the pictures of the log.
        """
        links = tag(
            "p",
            tag("a", "The evaluation as a page of its own", href=EVALUATION_FILE),
            tag("a", "All numbers as JSON", href=REPORT_FILE),
            class_="line",
        )
        palette = self.evaluation.palette
        sections = [
            _curve_section(record),
            *score_sections(self.evaluation, [one.name for one in self.pictures.get("Worst pictures", ())]),
            *(picture_section(title, shown, palette) for title, shown in self.pictures.items()),
            *_crop_sections(record, source, dict(zip(palette.names, palette.colors, strict=True))),
            *skipped_sections(self.evaluation),
            _configuration(record, self.provenance),
        ]
        head = joined(headline(self.evaluation), _facts(record, _finished(record)), links)
        return render_page("training", record.name, head, sections, with_script=True)


def render_run(record: RunRecord, source: Source, *, refresh_ms: int | None = None) -> str:
    """Return the page of a run that is not finished.

    Args:
        record: the log of the run.
        source: of the pictures of the log.
        refresh_ms: the page asks its server for news so often; None = the run was stopped.
    """
    step, samples = record.samples
    sections = [
        _curve_section(record),
        *([Section("Samples", _samples(samples, step, record, source))] if samples else []),
        *_crop_sections(record, source, record.classes),
        *([_configuration(record, {})] if record.events else []),
    ]
    state = _running(record) if refresh_ms else _stopped(record)
    head = joined(_best(record), _facts(record, state))
    return render_page("training", record.name, head, sections, with_script=True, refresh_ms=refresh_ms)


def write_interim(out: Path) -> Path:
    """Write the report of a run that was stopped; return the path of its page.

    Args:
        out: folder of the run.

    Raises:
        RunNotFoundError: there is no log in the folder.
        OSError: the page cannot be written.
    """
    page = render_run(RunRecord.read(out), inlined(out / SAMPLE_FOLDER))
    index = out / REPORT_FOLDER / INDEX_FILE
    index.parent.mkdir(parents=True, exist_ok=True)
    index.write_text(page, "utf-8")
    return index


def inlined(folder: Path) -> Source:
    """Return a source that puts the pictures of a folder into the page."""

    def source(name: str) -> str:
        try:
            return data_url((folder / name).read_bytes())
        except OSError:
            return ""

    return source


def curve_charts(curves: Mapping[str, Sequence[Series]]) -> list[Markup]:
    """Return the charts of a run, or of several.

    Args:
        curves: name of the curve -> its lines.
    """
    return [
        chart(title, lines, **options)
        for title, names, options in _CHARTS
        if (lines := [line for name in names for line in curves.get(name, ())])
    ]


def time_of(moment: dt.datetime | None) -> str:
    """Write a time to the second, in UTC."""
    return "unknown" if moment is None else f"{moment:%Y-%m-%d %H:%M:%S} UTC"


def run_facts(record: RunRecord) -> dict[str, str]:
    """Return what a reader asks first, in words."""
    config, counts = record.config, record.picture_counts
    data = config.get("data", {})
    told = {
        "started": time_of(record.started),
        "duration": duration(record.duration_s),
        "hardware": record.hardware or "not recorded",
        "pictures": ", ".join(f"{count:,} for {use}" for use, count in counts.items()) or "not recorded",
        "data set": str(data.get("dataset", "")),
        "network": str(config.get("network", {}).get("architecture", "")),
        "first weights": record.first_weights or "random",
        "scores": _WORTHLESS if data.get("val_split") in data.get("train_splits", ()) else "",
    }
    return {name: text for name, text in told.items() if text}


def _facts(record: RunRecord, state: str) -> Markup:
    return facts({"state": state, **run_facts(record)})


def _finished(record: RunRecord) -> str:
    best = record.best
    published = f"; the published weights are those of step {best.step:,}" if best else ""
    return f"finished after {record.step:,} steps{published}"


def _running(record: RunRecord) -> str:
    if not record.events:
        return "the run reads its data set"
    left = record.remaining_s
    rest = "" if left is None else f", about {duration(left)} left"
    return f"{_progress(record)}{rest}; last entry of the log {time_of(record.last_entry)}"


def _stopped(record: RunRecord) -> str:
    return f"stopped at {_progress(record)}; the same command with --resume goes on"


def _progress(record: RunRecord) -> str:
    total = record.total_steps
    return f"step {record.step:,}" + ("" if total is None else f" of {total:,}")


def _best(record: RunRecord) -> Markup:
    best = record.best
    if best is None:
        return tag("p", "There was no validation yet.", class_="note")
    return tag(
        "p",
        tag("span", percent(best.miou), class_="score"),
        tag("span", f"mIoU, the best validation so far, at step {best.step:,}"),
        class_="line",
    )


def _curve_section(record: RunRecord) -> Section:
    lines = {
        name: [Series(_LINE_NAMES.get(name, name), curve.points)] for name, curve in record.curves.items()
    }
    drawn = curve_charts(lines)
    classes = [Series(curve.name, curve.points) for curve in record.class_curves]
    if classes:
        drawn.insert(1, chart("IoU of each class", classes, is_share=True, bounds=(0, 1)))
    if not drawn:
        return Section("Curves", tag("p", "The first values come after 20 steps.", class_="note"))
    note = tag("p", _LOSS_NOTE, class_="note") if "validation loss" in lines else Markup("")
    return Section("Curves", joined(charts(drawn), note))


def _samples(samples: Sequence[Sample], step: int, record: RunRecord, source: Source) -> Markup:
    note = f"Labelled by the averaged weights of step {step:,}, always the same pictures."
    rows = (
        row(one.name, f"mIoU {percent(one.miou)}", tiles) for one in samples if (tiles := _tiles(one, source))
    )
    return joined(tag("p", note, class_="note"), _legend(record.classes), *rows)


def _crop_sections(
    record: RunRecord, source: Source, classes: Mapping[str, tuple[int, int, int]]
) -> list[Section]:
    drawn = [row(one.name, "", tiles) for one in record.crops if (tiles := _tiles(one, source))]
    if not drawn:
        return []
    note = "Crops of the first step as the network sees them: cut, scaled, mirrored and recoloured."
    sheet = tag("div", *drawn, class_="sheet")
    return [Section("Augmented crops", joined(tag("p", note, class_="note"), _legend(classes), sheet))]


def _legend(classes: Mapping[str, tuple[int, int, int]]) -> Markup:
    return legend(list(classes), list(classes.values())) if classes else Markup("")


def _tiles(sample: Sample, source: Source) -> list[Tile]:
    found = ((what, source(name)) for what, name in sample.files.items())
    return [Tile(what, address) for what, address in found if address]


def _configuration(record: RunRecord, provenance: Mapping[str, Any]) -> Section:
    told = {key: value for key, value in provenance.items() if key not in {"config", "validation"}}
    origin = {"command": record.command, "code version": record.code} | {
        key.replace("_", " "): str(value) for key, value in told.items()
    }
    return Section(
        "Configuration",
        joined(
            folded("Every setting of the run", nested(record.config), id_="settings"),
            folded("Command, versions and fingerprints", facts(origin), id_="origin"),
        ),
    )


def all_lines(records: Iterable[RunRecord]) -> dict[str, list[Series]]:
    """Return the curves of several runs: name of the curve -> a line for each run that has it."""
    found: dict[str, list[Series]] = {}
    for record in records:
        for name, curve in record.curves.items():
            found.setdefault(name, []).append(Series(record.name, curve.points))
    return found
