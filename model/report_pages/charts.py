"""Curves over the steps of a run: drawn here, read under the pointer by ``report.js``."""

from __future__ import annotations

import json
import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from model.report_pages.markup import Markup, slug, tag

_WIDTH, _HEIGHT = 480, 190
_LEFT, _RIGHT, _TOP, _BOTTOM = 60, 8, 10, 26
_MAX_POINTS = 1000
_MAX_DOTS = 60
_TICKS = 4
_HUES = 7


@dataclass(frozen=True)
class Series:
    """One line of a chart.

    Attributes:
        name: in the legend.
        points: step and value, steps rising; all finite, at least one.
    """

    name: str
    points: tuple[tuple[int, float], ...]


def chart(
    title: str,
    series: Sequence[Series],
    *,
    is_share: bool = False,
    bounds: tuple[float, float] | None = None,
) -> Markup:
    """Draw lines over steps.

    Args:
        title: of the chart.
        series: at least one line; of a long one every n-th point is drawn, and the last.
        is_share: whether values are shares of 1, which are written in percent.
        bounds: lowest and highest value of the axis; None = those of the lines.
    """
    lines = [Series(one.name, _thinned(one.points)) for one in series]
    values = [value for one in lines for _, value in one.points]
    write = _share if is_share else _number
    levels = ticks(*(bounds or (min(values), max(values))))
    steps = ticks(0, max(one.points[-1][0] for one in lines))
    scale = _Scale(steps[-1], levels[0], levels[-1])
    drawn = (
        *(_level(scale, level, is_share=is_share) for level in levels),
        *(_step_label(scale, step) for step in steps),
        *(_line(scale, one, place) for place, one in enumerate(lines)),
        tag("line", class_="marker", y1=_TOP, y2=_HEIGHT - _BOTTOM, visibility="hidden"),
    )
    rows = _rows(scale, lines, write)
    last = [write(one.points[-1][1]) for one in lines]
    told = ", ".join(f"{one.name} {value}" for one, value in zip(lines, last, strict=True))
    return tag(
        "figure",
        tag("figcaption", tag("span", title), tag("output", f"step {rows[-1][1]}", class_="at")),
        tag(
            "svg",
            *drawn,
            viewbox=f"0 0 {_WIDTH} {_HEIGHT}",
            role="img",
            aria_label=f"{title} at the last step: {told}",
        ),
        tag("ul", *map(_key, range(len(lines)), lines, last), class_="inline"),
        id=f"chart-{slug(title)}",
        class_="chart",
        data_title=title,
        data_rows=json.dumps(rows, separators=(",", ":")),
    )


def charts(drawn: Iterable[Markup]) -> Markup:
    """Return charts side by side."""
    return tag("div", *drawn, class_="charts")


def ticks(low: float, high: float) -> list[float]:
    """Return about four round numbers, equally far apart, from at most ``low`` to at least ``high``."""
    span = high - low or abs(high) or 1.0
    raw = span / _TICKS
    decade = 10.0 ** math.floor(math.log10(raw))
    distance = decade * next(factor for factor in (1, 2, 2.5, 5, 10) if factor * decade >= raw * (1 - 1e-9))
    first = math.floor(low / distance + 1e-9)
    last = max(math.ceil(high / distance - 1e-9), first + 1)
    return [float(f"{place * distance:.10g}") for place in range(first, last + 1)]


@dataclass(frozen=True)
class _Scale:
    last_step: float
    low: float
    high: float

    def x(self, step: float) -> float:
        return _LEFT + step / self.last_step * (_WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        inside = min(max((value - self.low) / (self.high - self.low), 0.0), 1.0)
        return _HEIGHT - _BOTTOM - inside * (_HEIGHT - _TOP - _BOTTOM)


def _thinned(points: tuple[tuple[int, float], ...]) -> tuple[tuple[int, float], ...]:
    """Return every n-th point, counted from the last one."""
    return points[:: -1 if len(points) <= _MAX_POINTS else len(points) // -_MAX_POINTS][::-1]


def _number(value: float) -> str:
    return f"{value:.4g}"


def _share(value: float) -> str:
    return f"{100 * value:.1f} %"


def _level(scale: _Scale, level: float, *, is_share: bool) -> Markup:
    y, text = scale.y(level), f"{100 * level:.4g} %" if is_share else _number(level)
    return tag(
        "g",
        tag("line", class_="grid", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=f"{y:.1f}", y2=f"{y:.1f}"),
        tag("text", text, x=_LEFT - 6, y=f"{y + 4:.1f}", text_anchor="end"),
    )


def _step_label(scale: _Scale, step: float) -> Markup:
    anchor = "end" if step == scale.last_step else "middle"
    return tag("text", f"{step:g}", x=f"{scale.x(step):.1f}", y=_HEIGHT - 7, text_anchor=anchor)


def _line(scale: _Scale, series: Series, place: int) -> Markup:
    points = [f"{scale.x(step):.1f} {scale.y(value):.1f}" for step, value in series.points]
    line = tag("path", d=f"M{'L'.join(points)}")
    dots = "".join(f"M{point}l0 0" for point in points) if len(points) <= _MAX_DOTS else ""
    return tag("g", line, tag("path", d=dots, class_="dots"), class_=_look(place))


def _look(place: int) -> str:
    """Return the classes of a line: seven hues, and further dashes for more lines."""
    return f"series series-{place % _HUES} dash-{place // _HUES % 4}"


def _key(place: int, series: Series, last: str) -> Markup:
    line = tag("path", class_=_look(place), d="M0 4h22")
    key = tag("svg", line, class_="key", viewbox="0 0 22 8", aria_hidden="true")
    return tag("li", key, tag("span", series.name, class_="name"), " ", tag("output", last, class_="value"))


def _rows(
    scale: _Scale, lines: Sequence[Series], write: Callable[[float], str]
) -> list[tuple[float, str, list[str]]]:
    """Return for each step its x, its text and the text of each line's value at it."""
    steps = sorted({step for one in lines for step, _ in one.points})
    return [
        (round(scale.x(step), 1), str(step), [_told(one, step, write) for one in lines]) for step in steps
    ]


def _told(series: Series, step: int, write: Callable[[float], str]) -> str:
    """Return the value at a step, or the last one before it: lines have values at different steps."""
    place = bisect_right(series.points, step, key=lambda point: point[0])
    return write(series.points[place - 1][1]) if place else "none"
