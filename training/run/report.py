"""The report of a finished run: a folder with curves, scores and pictures.

``index.html`` shows the run, ``evaluation.html`` the scores of its model class by class; ``report.json`` has
the numbers of both. Each page is one file.

Axes: H height, W width, 3 = red green blue.
"""

from __future__ import annotations

import base64
import io
import json
import math
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from model.evaluation.evaluation import EvaluationReport
from model.evaluation.report import render_html
from model.labels import UInt8Array

INDEX_FILE = "index.html"
EVALUATION_FILE = "evaluation.html"
REPORT_FILE = "report.json"

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1c2733 }
body { max-width: 1080px; margin: 2em auto; padding: 0 1em }
h1 { font-size: 1.5em; margin-bottom: 0 } h2 { font-size: 1.15em; margin: 2em 0 .5em }
.score { font-size: 2.6em; font-weight: 650 } .note { color: #5b6b7b } img { max-width: 100% }
td { padding: .15em .9em .15em 0; overflow-wrap: anywhere } td:first-child { color: #5b6b7b }
"""
_WIDTH, _HEIGHT, _MARGIN = 1000, 220, 60
_MAX_POINTS = 1000
_LINE_COLOR = "#1f6f5c"


@dataclass(frozen=True)
class Curve:
    """A number over the steps of a run.

    Attributes:
        name: of the number.
        points: step and value, steps rising; all finite.
    """

    name: str
    points: tuple[tuple[int, float], ...]


@dataclass(frozen=True, eq=False)
class Summary:
    """The content of a report.

    Attributes:
        name: name of the run.
        evaluation: scores of the averaged weights on the validation split, before they were rounded.
        provenance: of the artifact.
        events: events of the log.
        grids: title -> grid_HW3, uint8 RGB: picture, truth and prediction side by side.
    """

    name: str
    evaluation: EvaluationReport
    provenance: Mapping[str, Any]
    events: Sequence[Mapping[str, Any]]
    grids: Mapping[str, UInt8Array]

    def write(self, folder: Path) -> Path:
        """Write the folder; return the path of its first page."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / REPORT_FILE).write_text(json.dumps(self.to_json(), indent=1), "utf-8")
        (folder / EVALUATION_FILE).write_text(render_html(self.evaluation), "utf-8")
        (folder / INDEX_FILE).write_text(self.to_html(), "utf-8")
        return folder / INDEX_FILE

    def to_json(self) -> dict[str, Any]:
        """Return the numbers as plain JSON values."""
        return {
            "name": self.name,
            "provenance": dict(self.provenance),
            "curves": {curve.name: list(curve.points) for curve in curves(self.events)},
            "evaluation": self.evaluation.to_json(),
        }

    def to_html(self) -> str:
        """Return the first page as HTML."""
        body = "".join(
            (
                self._headline(),
                *map(_drawn, curves(self.events)),
                "<h2>Run</h2>",
                _table(_facts(self.provenance)),
                *(f"<h2>{escape(title)}</h2>{_img(grid_HW3)}" for title, grid_HW3 in self.grids.items()),
            )
        )
        return (
            f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(self.name)}</title>'
            f"<style>{_STYLE}</style></head><body>{body}</body></html>\n"
        )

    def _headline(self) -> str:
        matrix, split = self.evaluation.matrix, escape(self.evaluation.context.split)
        miou = "none" if matrix.miou is None else f"{100 * matrix.miou:.2f} %"
        return (
            f'<h1>{escape(self.name)}</h1><div><span class="score">{miou}</span> mIoU on {split}</div>'
            f'<p class="note"><a href="{EVALUATION_FILE}">classes, confusion matrix, intervals</a>'
            f' &middot; <a href="{REPORT_FILE}">as JSON</a></p>'
        )


def read_events(path: Path) -> list[dict[str, Any]]:
    """Read the log of a run; an incomplete line of a killed process is left out."""
    events = []
    for line in path.read_text("utf-8").splitlines():
        try:
            events.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return events


def curves(events: Iterable[Mapping[str, Any]]) -> list[Curve]:
    """Return the curves of a run.

    A resumed run may take some steps again; the later value counts.
    """
    values: dict[str, dict[int, float]] = {}
    for event in events:
        for name, key in _CURVES.get(event.get("event", ""), ()):
            number = event.get(key)
            if isinstance(number, int | float) and math.isfinite(number):
                values.setdefault(name, {})[int(event["step"])] = float(number)
    return [Curve(name, tuple(sorted(points.items()))) for name, points in values.items()]


_CURVES = {
    "step": (("loss", "loss"), ("learning rate", "lr"), ("images per second", "images_per_s")),
    "validation": (("mIoU", "miou"), ("pixel accuracy", "pixel_accuracy")),
}


def versions() -> dict[str, str]:
    """Return the versions of Python, torch and NumPy."""
    return {"python": platform.python_version(), "torch": str(torch.__version__), "numpy": np.__version__}


def _facts(provenance: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in provenance.items():
        if isinstance(value, Mapping):
            yield from _facts(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", str(value)


def _table(facts: Iterable[tuple[str, str]]) -> str:
    rows = (f"<tr><td>{escape(key)}</td><td>{escape(value)}</td></tr>" for key, value in facts)
    return f"<table>{''.join(rows)}</table>"


def _drawn(curve: Curve) -> str:
    points = curve.points[:: -(-len(curve.points) // _MAX_POINTS)]
    last_step = max(curve.points[-1][0], 1)
    lowest, highest = min(value for _, value in points), max(value for _, value in points)
    span = highest - lowest or 1.0
    places = " ".join(
        f"{_MARGIN + _WIDTH * step / last_step:.1f},{_HEIGHT * (1 - (value - lowest) / span) + 10:.1f}"
        for step, value in points
    )
    dots = "".join(f'<circle cx="{x}" cy="{y}" r="2"/>' for x, y in (p.split(",") for p in places.split()))
    return (
        f"<h2>{escape(curve.name)}</h2>"
        f'<svg viewBox="0 0 {_WIDTH + 2 * _MARGIN} {_HEIGHT + 40}" width="100%" font-size="13"'
        f' fill="{_LINE_COLOR}">'
        f'<polyline points="{places}" fill="none" stroke="{_LINE_COLOR}" stroke-width="1.5"/>{dots}'
        f'<text x="0" y="14">{highest:.4g}</text><text x="0" y="{_HEIGHT + 10}">{lowest:.4g}</text>'
        f'<text x="{_MARGIN + _WIDTH}" y="{_HEIGHT + 32}" text-anchor="end">step {last_step}</text></svg>'
    )


def _img(image_HW3: UInt8Array) -> str:
    file = io.BytesIO()
    Image.fromarray(image_HW3).save(file, "PNG")
    return f'<img alt="" src="data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}">'
