from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path

import pytest

from model.report_pages.markup import tag
from model.report_pages.page import Section, nested, plain_text, render_page, table

ROOT = Path(__file__).parents[3]


def hashed(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def policy(page: str) -> str:
    (found,) = re.findall(r'http-equiv="Content-Security-Policy" content="(.*?)"', page)
    return str(found.replace("&#x27;", "'"))


def declarations(stylesheet: Path) -> list[str]:
    """Return the colours of a stylesheet, light and dark."""
    return re.findall(r"--[a-z-]+: #[0-9a-f]{6}", stylesheet.read_text())


def test_reports_have_the_colours_of_the_page_of_the_service() -> None:
    page = declarations(ROOT / "service/page/static/style.css")
    report = declarations(ROOT / "model/report_pages/report.css")
    assert len(page) >= 2 * 8
    assert [one for one in page if one not in report] == []


def test_only_the_style_and_the_script_of_the_page_may_act() -> None:
    page = render_page("training", "run", tag("p"), [], with_script=True)
    ((style, script),) = re.findall(r"<style>(.*?)</style>.*<script>(.*?)</script>", page, re.DOTALL)
    assert policy(page) == (
        f"default-src 'none'; style-src {hashed(style)}; script-src {hashed(script)}; img-src data:;"
        " connect-src 'none'; base-uri 'none'; form-action 'none'"
    )


def test_only_a_live_page_asks_its_own_server() -> None:
    page = render_page("training", "run", tag("p"), [], with_script=True, refresh_ms=5000)
    assert "img-src data: 'self'; connect-src 'self';" in policy(page)
    assert '<main data-refresh-ms="5000">' in page


def test_a_part_is_known_by_its_content() -> None:
    def part(text: str) -> str:
        page = render_page("training", "run", tag("p"), [Section("Curves", tag("p", text))])
        return re.findall(r'<section id="curves" data-part="(\w+)">', page)[0]

    assert part("a") == part("a") != part("b")


def test_nested_values_are_lists_below_the_names_of_their_groups() -> None:
    told = nested({"seed": 0, "augment": {"flip": 0.5, "rare": {"classes": ["pole", "sign"]}}})
    names = re.findall(r"<(?:dt|h3|dd)>(.*?)</(?:dt|h3|dd)>", told)
    assert names == ["seed", "0", "augment", "flip", "0.5", "rare", "classes", "pole, sign"]


@pytest.mark.parametrize(
    ("value", "text"), [([], "none"), ("", "empty"), (True, "yes"), (None, "none"), ([1, 2], "1, 2")]
)
def test_values_are_told_without_the_signs_of_a_programming_language(value: object, text: str) -> None:
    assert plain_text(value) == text


def test_the_first_cell_of_a_row_is_its_head_and_a_finished_cell_stays() -> None:
    told = table(("class", "IoU"), [["sky", tag("td", "1", class_="number")]], label="Scores")
    assert '<th scope="row">sky</th><td class="number">1</td>' in told
    assert 'tabindex="0" role="region" aria-label="Scores"' in told
