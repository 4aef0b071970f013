"""An evaluation as one HTML page without scripts, other files or network.

Axes: H height, W width, K classes, 3 = red green blue.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from model.evaluation.comparison import Comparison, Difference
from model.evaluation.evaluation import EvaluationContext, EvaluationReport
from model.evaluation.intervals import Interval
from model.labels import ClassPalette, UInt8Array
from model.report_pages.markup import Markup, joined, tag
from model.report_pages.page import (
    Section,
    color_code,
    counted,
    facts,
    folded,
    legend,
    percent,
    render_page,
    swatch,
    table,
    wide,
)
from model.report_pages.pictures import Tile, data_url, difference_png, labels_png, photo_jpeg, row

_BAR_WIDTH = 360
_MAX_TABLE = 40
"""Classes up to which the confusion matrix is a table: a browser needs seconds for 150 x 150 cells."""

_CONFUSIONS = 12
_SHOWN_PER_CONFUSION = 5
_INKS = 6


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
        *([_comparison(comparison)] if comparison else []),
        *score_sections(report, [one.name for one in shown]),
        *([picture_section("Worst pictures", shown, report.palette)] if shown else []),
        *skipped_sections(report),
        Section("What was measured", facts(_conditions(report.context))),
    ]
    return render_page("evaluation", title, headline(report), sections)


def headline(report: EvaluationReport) -> Markup:
    """Return the scores of all classes together."""
    matrix, interval = report.matrix, report.intervals.miou
    between = (
        "" if interval is None else f"95 % of resamples: {percent(interval.low)} to {percent(interval.high)}"
    )
    absent = " (absent ones count as 0)" if report.context.absent_as_zero else ""
    return joined(
        tag(
            "p",
            tag("span", percent(matrix.miou), class_="score"),
            tag("span", f"mIoU, {report.context.protocol}"),
            tag("span", between, class_="hint"),
            class_="line",
        ),
        tag(
            "p",
            f"mean over {matrix.classes_averaged} of {matrix.num_classes} classes{absent},"
            f" {len(report.images)} pictures, {matrix.pixels:,} scored pixels; pixel accuracy"
            f" {percent(matrix.pixel_accuracy)}, mean recall {percent(matrix.mean_recall)}, mean F1"
            f" {percent(matrix.mean_f1)}, frequency-weighted IoU {percent(matrix.frequency_weighted_iou)}",
            class_="note",
        ),
    )


def score_sections(report: EvaluationReport, shown: Sequence[str] = ()) -> list[Section]:
    """Return the scores of each class, and what is taken for what.

    Args:
        report: the evaluation.
        shown: names of the pictures that the page shows.
    """
    return [Section("Classes", _classes(report)), Section("Confusion", _confusion(report, shown))]


def picture_section(title: str, shown: Sequence[ShownImage], palette: ClassPalette) -> Section:
    """Return pictures with truth, prediction and the difference of both.

    Args:
        title: of the section.
        shown: the pictures, in order.
        palette: of their labels.
    """
    note = "The difference is red where the prediction is wrong and grey where nothing is scored."
    rows = (
        row(
            one.name,
            f"mIoU {percent(one.miou)}",
            [Tile(what, data_url(data)) for what, data in picture_files(one, palette).items()],
            id_=_anchor(one.name) if title == "Worst pictures" else None,
        )
        for one in shown
    )
    return Section(title, joined(tag("p", note, class_="note"), legend(palette.names, palette.colors), *rows))


def picture_files(one: ShownImage, palette: ClassPalette) -> dict[str, bytes]:
    """Return picture, truth, prediction and difference as JPEG and PNG files."""
    return {
        "picture": photo_jpeg(one.image_HW3),
        "truth": labels_png(one.truth_HW, palette),
        "prediction": labels_png(one.guess_HW, palette),
        "difference": difference_png(one.truth_HW, one.guess_HW, palette),
    }


def skipped_sections(report: EvaluationReport) -> list[Section]:
    """Return the pairs that were left out, if there are any."""
    if not report.skipped:
        return []
    items = (tag("li", f"{one.name}: {one.reason}") for one in report.skipped)
    return [Section(f"{len(report.skipped)} broken pairs were left out", tag("ul", *items))]


def _conditions(context: EvaluationContext) -> dict[str, str]:
    told = asdict(context)
    told["versions"] = ", ".join(f"{name} {version}" for name, version in told["versions"].items())
    return {name.replace("_", " "): str(value) for name, value in told.items() if value is not None}


def _classes(report: EvaluationReport) -> Markup:
    heads = ("class", "IoU", "", "95 %", "share of pixels", "precision", "recall")
    rows = [_class_row(report, k) for k in range(report.palette.num_classes)]
    return table(heads, rows, label="Scores of each class")


def _class_row(report: EvaluationReport, k: int) -> list[str]:
    matrix, interval = report.matrix, report.intervals.iou[k]
    share = int(matrix.truth_K[k]) / matrix.pixels if matrix.pixels else 0.0
    between = "" if interval is None else f"{percent(interval.low)} to {percent(interval.high)}"
    rest = (between, *map(percent, (share, matrix.precision[k], matrix.recall[k])))
    return [
        joined(swatch(report.palette.colors[k]), report.palette.names[k]),
        _number(percent(matrix.iou[k])),
        iou_bar(matrix.iou[k], interval, report.palette.colors[k]),
        *map(_number, rest),
    ]


def _number(text: str, kind: str = "") -> Markup:
    return tag("td", text, class_=f"number {kind}".strip())


def iou_bar(iou: float | None, interval: Interval | None, color: tuple[int, int, int]) -> Markup:
    """Draw an IoU as a bar in the colour of its class, and its interval as a line across the bar's end."""
    if iou is None:
        return Markup("")
    whisker = Markup("")
    if interval is not None:
        line = f"M{interval.low * _BAR_WIDTH:.1f} 9H{interval.high * _BAR_WIDTH:.1f}"
        whisker = joined(tag("path", d=line, class_="around"), tag("path", d=line, class_="between"))
    return tag(
        "svg",
        tag("rect", width=_BAR_WIDTH, height=14, y=2, class_="ground"),
        tag("rect", width=f"{iou * _BAR_WIDTH:.1f}", height=14, y=2, class_="fill", fill=color_code(color)),
        whisker,
        class_="bar",
        viewbox=f"0 0 {_BAR_WIDTH} 18",
        preserveAspectRatio="none",
        aria_hidden="true",
    )


def _confusion(report: EvaluationReport, shown: Sequence[str]) -> Markup:
    names = report.palette.names
    shares_KK = report.matrix.counts_KK / np.maximum(report.matrix.truth_K, 1)[:, np.newaxis]
    largest = _largest_confusions(report)
    matrix = joined(
        tag(
            "p",
            "Rows are the truth, columns the prediction; a cell is the share of the true class in percent."
            " A linked cell leads to the pictures in which it happens.",
            class_="note",
        ),
        wide(_matrix(names, shares_KK, report, largest), label="Confusion matrix"),
    )
    listed = (_confusion_item(report, truth, guess, shown) for truth, guess in largest)
    return joined(
        matrix if len(names) <= _MAX_TABLE else Markup(""),
        tag("h3", "Most frequent confusions") if largest else Markup(""),
        *listed,
    )


def _largest_confusions(report: EvaluationReport) -> list[tuple[int, int]]:
    """Return truth and prediction of the most frequent errors, the most pixels first."""
    wrong_KK = report.matrix.counts_KK.copy()
    np.fill_diagonal(wrong_KK, 0)
    order = np.argsort(-wrong_KK, axis=None, kind="stable")[:_CONFUSIONS]
    cells = ((int(cell) // len(wrong_KK), int(cell) % len(wrong_KK)) for cell in order)
    return [cell for cell in cells if wrong_KK[cell]]


def _matrix(
    names: Sequence[str],
    shares_KK: np.ndarray[tuple[int, ...], np.dtype[np.float64]],
    report: EvaluationReport,
    linked: Sequence[tuple[int, int]],
) -> Markup:
    def cell(row: int, column: int) -> Markup:
        share, pixels = float(shares_KK[row, column]), int(report.matrix.counts_KK[row, column])
        text = f"{100 * share:.1f}" if pixels else "0"
        is_linked = (row, column) in linked
        told = f"{names[row]} seen as {names[column]}: {percent(share)}, {counted(pixels, 'pixel')}"
        # The root makes a share of 1 % visible.
        ink = f"ink-{round(share**0.5 * _INKS)}" if pixels else "zero"
        link = tag("a", text, href=f"#{_confusion_id(row, column)}", aria_label=told) if is_linked else text
        return tag("td", link, class_=ink, title=told)

    heads = (tag("th", tag("span", name), scope="col") for name in names)
    rows = (
        tag("tr", tag("th", names[k], scope="row"), *(cell(k, j) for j in range(len(names))))
        for k in range(len(names))
    )
    corner = tag("td", "truth \\ prediction")
    return tag("table", tag("thead", tag("tr", corner, *heads)), tag("tbody", *rows), class_="matrix")


def _confusion_item(report: EvaluationReport, truth: int, guess: int, shown: Sequence[str]) -> Markup:
    """Return one confusion as a line that opens the pictures with the most pixels of it."""
    names, counts_KK = report.palette.names, report.matrix.counts_KK
    pixels, cell = int(counts_KK[truth, guess]), truth * len(names) + guess
    found = ((int(one.pixels[one.cells == cell].sum()), one.name) for one in report.images)
    ranked = sorted(((count, name) for count, name in found if count), key=lambda pair: (-pair[0], pair[1]))
    items = (
        tag(
            "li",
            tag("a", name, href=f"#{_anchor(name)}") if name in shown else name,
            f": {counted(count, 'pixel')}",
        )
        for count, name in ranked[:_SHOWN_PER_CONFUSION]
    )
    of_class = percent(pixels / int(report.matrix.truth_K[truth]))
    told = f"{names[truth]} seen as {names[guess]}: {of_class} of {names[truth]}, {counted(pixels, 'pixel')}"
    # A browser opens what holds the target of a link.
    content = tag("ol", *items, id=_confusion_id(truth, guess))
    return folded(f"{told}, in {counted(len(ranked), 'picture')}", content, id_=f"open-{truth}-{guess}")


def _confusion_id(truth: int, guess: int) -> str:
    return f"confusion-{truth}-{guess}"


def _anchor(name: str) -> str:
    return f"picture-{name.encode().hex()}"


def _comparison(comparison: Comparison) -> Section:
    first, second = (_told(report.context) for report in (comparison.first, comparison.second))
    note = (
        "A change is coloured where its 95 % interval over pictures, which are the same for both,"
        " excludes zero."
    )
    rows = [_difference_row(one) for one in (comparison.miou, *comparison.classes)]
    changes = table(("", first, second, "change", "95 %"), rows, label="Differences of each class")
    return Section(f"Compared with {second}", joined(tag("p", note, class_="note"), changes))


def _told(context: EvaluationContext) -> str:
    return f"{context.model} ({context.engine} {context.precision} on {context.device})"


def _difference_row(one: Difference) -> list[str]:
    kind, between = "", ""
    if one.interval is not None:
        between = f"{100 * one.interval.low:+.2f} to {100 * one.interval.high:+.2f}"
        if one.interval.excludes_zero:
            kind = "better" if one.interval.low > 0 else "worse"
    change = "" if one.change is None else f"{100 * one.change:+.2f}"
    return [
        one.name,
        _number(percent(one.first)),
        _number(percent(one.second)),
        _number(change, kind),
        _number(between, "note"),
    ]
