"""An evaluation as one HTML page without scripts, other files or network.

Axes: H height, W width, 3 = red green blue.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from html import escape

import numpy as np
from PIL import Image

from model.evaluation.comparison import Comparison, Difference
from model.evaluation.evaluation import EvaluationContext, EvaluationReport
from model.labels import ClassPalette, UInt8Array

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1c2733 }
body { max-width: 1080px; margin: 2em auto; padding: 0 1em }
h1 { font-size: 1.5em; margin-bottom: 0 } h2 { font-size: 1.15em; margin: 2em 0 .5em }
.score { font-size: 2.6em; font-weight: 650 } .note { color: #5b6b7b }
table { border-collapse: collapse } th { text-align: left; font-weight: 600 }
td, th { padding: .15em .9em .15em 0; vertical-align: middle; font-variant-numeric: tabular-nums }
.number { text-align: right }
.swatch { display: inline-block; width: .9em; height: .9em; border: 1px solid #0003 }
.facts td:first-child { color: #5b6b7b } .facts td { overflow-wrap: anywhere }
.triple { display: grid; grid-template-columns: repeat(3, 1fr); gap: 6px } .triple img { width: 100% }
.better { color: #14713d } .worse { color: #a32020 }
"""

_BAR_WIDTH = 360
_MAX_SIDE = 640
_MATRIX_SIDE = 620
_MARGIN = 150
_MIN_SHARE = 5e-4
_MAX_FONT = 13


@dataclass(frozen=True, eq=False)
class ShownImage:
    """A picture of a report.

    Attributes:
        name: name in the report.
        miou: mIoU of this picture alone.
        image_HW3: uint8 RGB.
        truth_HW: class ids or the ignore id.
        guess_HW: class ids.
    """

    name: str
    miou: float
    image_HW3: UInt8Array
    truth_HW: UInt8Array
    guess_HW: UInt8Array


def render_html(
    report: EvaluationReport, shown: Sequence[ShownImage] = (), comparison: Comparison | None = None
) -> str:
    """Return the page.

    Args:
        report: the evaluation.
        shown: pictures with truth and prediction, in the order of the page.
        comparison: with another evaluation; its ``first`` is ``report``.
    """
    title = f"{report.context.model} on {report.context.dataset} {report.context.split}"
    sections = [
        _headline(title, report),
        _facts(report),
        _comparison(comparison) if comparison else "",
        _classes(report),
        _confusion(report),
        _pictures(shown, report.palette),
        _skipped(report),
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width"><title>{escape(title)}</title>'
        f"<style>{_STYLE}</style></head><body>{''.join(sections)}</body></html>\n"
    )


def _headline(title: str, report: EvaluationReport) -> str:
    matrix, interval = report.matrix, report.intervals.miou
    between = (
        ""
        if interval is None
        else f"95 % of resamples: {_percent(interval.low)} to {_percent(interval.high)}"
    )
    return (
        f"<h1>{escape(title)}</h1>"
        f'<div><span class="score">{_percent(matrix.miou)}</span> mIoU, {escape(report.context.protocol)}'
        f' <span class="note">{between}</span></div>'
        f'<p class="note">mean over {matrix.classes_averaged} of {matrix.num_classes} classes'
        f"{' (absent ones count as 0)' if report.context.absent_as_zero else ''},"
        f" {len(report.images)} pictures, {matrix.pixels:,} scored pixels; pixel accuracy"
        f" {_percent(matrix.pixel_accuracy)}, mean recall {_percent(matrix.mean_recall)}, mean F1"
        f" {_percent(matrix.mean_f1)}, frequency-weighted IoU {_percent(matrix.frequency_weighted_iou)}</p>"
    )


def _facts(report: EvaluationReport) -> str:
    facts = asdict(report.context)
    versions = facts.pop("versions")
    facts["versions"] = ", ".join(f"{name} {version}" for name, version in versions.items())
    rows = (
        f"<tr><td>{escape(name.replace('_', ' '))}</td><td>{escape(str(value))}</td></tr>"
        for name, value in facts.items()
        if value is not None
    )
    return f'<h2>What was measured</h2><table class="facts">{"".join(rows)}</table>'


def _classes(report: EvaluationReport) -> str:
    rows = "".join(_class_row(report, k) for k in range(report.palette.num_classes))
    return (
        "<h2>Classes</h2><table><tr><th>class</th><th>IoU</th><th></th><th>share of pixels</th>"
        f"<th>precision</th><th>recall</th></tr>{rows}</table>"
    )


def _class_row(report: EvaluationReport, k: int) -> str:
    matrix = report.matrix
    share = int(matrix.truth_K[k]) / matrix.pixels if matrix.pixels else 0.0
    numbers = (_percent(share), _percent(matrix.precision[k]), _percent(matrix.recall[k]))
    return (
        f"<tr><td>{_swatch(report.palette, k)} {escape(report.palette.names[k])}</td>"
        f'<td class="number">{_percent(matrix.iou[k])}</td><td>{_bar(report, k)}</td>'
        + "".join(f'<td class="number">{number}</td>' for number in numbers)
        + "</tr>"
    )


def _swatch(palette: ClassPalette, k: int) -> str:
    return f'<span class="swatch" style="background:{_hex(palette.colors[k])}"></span>'


def _bar(report: EvaluationReport, k: int) -> str:
    """Draw the IoU as a bar in the colour of the class, and its interval as a line across its end."""
    iou, interval = report.matrix.iou[k], report.intervals.iou[k]
    if iou is None:
        return ""
    whisker = ""
    if interval is not None:
        line = f"M{interval.low * _BAR_WIDTH:.1f} 9H{interval.high * _BAR_WIDTH:.1f}"
        whisker = "".join(
            f'<path d="{line}" stroke="{color}" stroke-width="{width}"/>'
            for color, width in (("#ffffff", 5), ("#1c2733", 2))
        )
    return (
        f'<svg width="{_BAR_WIDTH}" height="18" role="img"><rect width="{_BAR_WIDTH}" height="14" y="2"'
        f' fill="#edf1f5"/><rect width="{iou * _BAR_WIDTH:.1f}" height="14" y="2"'
        f' fill="{_hex(report.palette.colors[k])}" stroke="#0003"/>{whisker}</svg>'
    )


def _confusion(report: EvaluationReport) -> str:
    """Draw the confusion matrix, each row in shares of its true class."""
    names = report.palette.names
    shares_KK = report.matrix.counts_KK / np.maximum(report.matrix.truth_K, 1)[:, np.newaxis]
    seen = np.argwhere(shares_KK >= _MIN_SHARE)
    squares = "".join(_square(names, row, column, float(shares_KK[row, column])) for row, column in seen)
    cell = _MATRIX_SIDE / len(names)
    side = _MATRIX_SIDE + _MARGIN
    return (
        '<h2>Confusion</h2><p class="note">rows: truth; columns: prediction; the darker, the larger the'
        " share of the true class</p>"
        f'<svg viewBox="{-_MARGIN} {-_MARGIN} {side} {side}" width="{side}" role="img"'
        f' font-size="{min(_MAX_FONT, 0.8 * cell):.1f}">'
        f'<rect width="{_MATRIX_SIDE}" height="{_MATRIX_SIDE}" fill="#f4f6f8"/>'
        f'<g transform="scale({cell:.3f})">{squares}</g>{"".join(_axis_labels(names, cell))}</svg>'
    )


def _square(names: Sequence[str], row: int, column: int, share: float) -> str:
    # The root makes a share of 1 % visible.
    red, green, blue = (round(244 - math.sqrt(share) * depth) for depth in (224, 174, 94))
    told = f"{names[row]} seen as {names[column]}: {_percent(share)}"
    return (
        f'<rect x="{column}" y="{row}" width="1" height="1" fill="rgb({red},{green},{blue})">'
        f"<title>{escape(told)}</title></rect>"
    )


def _axis_labels(names: Sequence[str], cell: float) -> Iterable[str]:
    for k, name in enumerate(names):
        middle, text = f"{(k + 0.5) * cell:.1f}", escape(name)
        yield f'<text x="-6" y="{middle}" text-anchor="end" dominant-baseline="middle">{text}</text>'
        yield f'<text transform="translate({middle},-6) rotate(-60)">{text}</text>'


def _pictures(shown: Sequence[ShownImage], palette: ClassPalette) -> str:
    if not shown:
        return ""
    rows = "".join(
        f'<p>{escape(one.name)}: mIoU {_percent(one.miou)}</p><div class="triple">'
        f"{_img(_photo(one.image_HW3), 'picture')}{_img(_mask(one.truth_HW, palette), 'truth')}"
        f"{_img(_mask(one.guess_HW, palette), 'prediction')}</div>"
        for one in shown
    )
    return f'<h2>Worst pictures</h2><p class="note">picture, truth (black: not scored), prediction</p>{rows}'


def _comparison(comparison: Comparison) -> str:
    first, second = (_told(report.context) for report in (comparison.first, comparison.second))
    rows = "".join(_difference_row(one) for one in (comparison.miou, *comparison.classes))
    return (
        f"<h2>Compared with {second}</h2>"
        '<p class="note">a change is coloured where its 95 % interval over pictures, which are the same for'
        " both, excludes zero</p>"
        f"<table><tr><th></th><th>{first}</th><th>{second}</th><th>change</th><th>95 %</th></tr>"
        f"{rows}</table>"
    )


def _told(context: EvaluationContext) -> str:
    return escape(f"{context.model} ({context.engine} {context.precision} on {context.device})")


def _difference_row(one: Difference) -> str:
    kind, between = "", ""
    if one.interval is not None:
        between = f"{100 * one.interval.low:+.2f} to {100 * one.interval.high:+.2f}"
        if one.interval.excludes_zero:
            kind = " better" if one.interval.low > 0 else " worse"
    change = "" if one.change is None else f"{100 * one.change:+.2f}"
    return (
        f'<tr><td>{escape(one.name)}</td><td class="number">{_percent(one.first)}</td>'
        f'<td class="number">{_percent(one.second)}</td><td class="number{kind}">{change}</td>'
        f'<td class="number note">{between}</td></tr>'
    )


def _skipped(report: EvaluationReport) -> str:
    if not report.skipped:
        return ""
    rows = "".join(f"<li>{escape(one.name)}: {escape(one.reason)}</li>" for one in report.skipped)
    return f"<h2>{len(report.skipped)} broken pairs were left out</h2><ul>{rows}</ul>"


def _photo(image_HW3: UInt8Array) -> Image.Image:
    image = Image.fromarray(image_HW3)
    image.thumbnail((_MAX_SIDE, _MAX_SIDE))
    return image


def _mask(ids_HW: UInt8Array, palette: ClassPalette) -> Image.Image:
    image = Image.fromarray(ids_HW).convert("P")
    image.putpalette(palette.rgb_table.tobytes())
    image.thumbnail((_MAX_SIDE, _MAX_SIDE), Image.Resampling.NEAREST)
    return image


def _img(image: Image.Image, alternative: str) -> str:
    file = io.BytesIO()
    image.save(file, "PNG")
    data = base64.b64encode(file.getvalue()).decode()
    return f'<img alt="{alternative}" src="data:image/png;base64,{data}">'


def _hex(color: tuple[int, int, int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*color)


def _percent(value: float | None) -> str:
    return "none" if value is None else f"{100 * value:.2f} %"
