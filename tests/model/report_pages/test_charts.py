from __future__ import annotations

import json
import math
from html import unescape
from itertools import pairwise
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.report_pages.charts import Series, chart, ticks


def drawn(*series: Series, is_share: bool = False, bounds: tuple[float, float] | None = None) -> ET.Element:
    return ET.fromstring(chart("loss", series, is_share=is_share, bounds=bounds))


def rows(figure: ET.Element) -> list[tuple[float, str, list[str]]]:
    found: list[tuple[float, str, list[str]]] = json.loads(unescape(figure.attrib["data-rows"]))
    return found


numbers = st.floats(-1e6, 1e6, allow_subnormal=False)


@given(numbers, numbers)
def test_the_axis_holds_all_values_in_equal_round_distances(one: float, other: float) -> None:
    low, high = min(one, other), max(one, other)
    levels = ticks(low, high)
    distances = [b - a for a, b in pairwise(levels)]
    slack = 1e-6 * max(abs(low), abs(high), 1e-3)
    assert levels[0] <= low + slack
    assert levels[-1] >= high - slack
    assert 2 <= len(levels) <= 8
    assert max(distances) == pytest.approx(min(distances), rel=1e-3, abs=1e-9)


def test_each_step_has_the_last_known_value_of_each_line() -> None:
    figure = drawn(Series("a", ((10, 1.0), (30, 3.0))), Series("b", ((20, 0.25),)))
    told = [(step, values) for _, step, values in rows(figure)]
    assert told == [("10", ["1", "none"]), ("20", ["1", "0.25"]), ("30", ["3", "0.25"])]


def test_the_values_stand_at_the_points_of_the_line() -> None:
    figure = drawn(Series("a", ((0, 0.0), (50, 1.0), (100, 0.5))))
    path = figure.find(".//g[@class='series series-0 dash-0']/path")
    assert path is not None
    points = [tuple(map(float, point.split())) for point in path.attrib["d"][1:].split("L")]
    assert [x for x, _ in points] == [x for x, _, _ in rows(figure)]
    heights = [y for _, y in points]
    assert heights[1] < heights[2] < heights[0]  # y grows downwards


def test_a_long_line_is_thinned_and_keeps_its_last_value() -> None:
    figure = drawn(Series("a", tuple((step, float(step)) for step in range(5001))))
    found = rows(figure)
    assert 500 <= len(found) <= 1000
    assert found[-1][1:] == ["5000", ["5000"]]


def test_a_single_value_is_a_dot() -> None:
    dots = drawn(Series("a", ((10, 1.0),))).find(".//path[@class='dots']")
    assert dots is not None
    assert dots.attrib["d"].endswith("l0 0")


def test_shares_are_told_in_percent_on_axis_and_legend() -> None:
    figure = drawn(Series("mIoU", ((10, 0.4567),)), is_share=True, bounds=(0, 1))
    axis = [text.text for text in figure.iter("text")]
    assert {"0 %", "50 %", "100 %"} <= set(axis)
    assert figure.findtext(".//li/output") == "45.7 %"
    svg = figure.find("svg")
    assert svg is not None
    assert svg.attrib["aria-label"] == "loss at the last step: mIoU 45.7 %"


def test_more_lines_than_hues_differ_by_their_dashes() -> None:
    figure = drawn(*(Series(str(k), ((0, float(k)), (1, 0.0))) for k in range(28)))
    looks = {line.attrib["class"] for line in figure.findall("./svg/g[@class]") if "class" in line.attrib}
    assert len(looks) == 28


def test_a_name_that_is_markup_stays_text() -> None:
    name = "<img src=x onerror=hit()>"
    assert drawn(Series(name, ((0, 1.0),))).findtext(".//li/span") == name


def test_all_places_are_finite() -> None:
    figure = drawn(Series("a", ((0, 1e-12), (1, 1e-12))))
    assert all(math.isfinite(x) for x, _, _ in rows(figure))
