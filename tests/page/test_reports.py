"""Reports of training and evaluation in a real browser: from a server, and opened from the disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from browser_visit import ANSWER_MS, Visit
from run_folders import MARKUP, append, evaluation, finish, shown_images, start, steps, write_running

from model.evaluation.comparison import Comparison
from model.evaluation.report import render_html
from training.run.run_comparison import read_runs, render_comparison
from training.run.watch import watched

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

axe_api = pytest.importorskip("axe_playwright_python.sync_playwright")

Write = Callable[[Path], Path]
"""Folder -> a report in it."""


def training(folder: Path) -> Path:
    write_running(folder)
    return finish(folder)


def evaluating(folder: Path) -> Path:
    folder.mkdir()
    report = evaluation()
    page = folder / "index.html"
    page.write_text(render_html(report, shown_images(), Comparison(report, report)))
    return page


def comparing(folder: Path) -> Path:
    append(folder / "short", start(), *steps(20, 200))
    append(folder / "long", start(seed=1), *steps(20, 400))
    page = folder / "compare.html"
    page.write_text(render_comparison(read_runs([folder / "short", folder / "long"])))
    return page


@pytest.fixture
def report(browser: Browser) -> Iterator[Visit]:
    """A visit that loads nothing but files of the report's folder."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    visit = Visit(context.new_page(), "")
    yield visit
    context.close()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    write_running(tmp_path / "street")
    return tmp_path / "street"


@pytest.fixture
def live(report: Visit, run: Path) -> Iterator[Visit]:
    with watched(run) as url:
        report.url = url.rstrip("/")
        report.open()
        yield report
    assert [one for one in report.requests if not one.startswith((report.url, "data:"))] == []


def readout(page: Page, title: str) -> str:
    return page.locator(f"figure[data-title='{title}']").inner_text()


@pytest.mark.parametrize("write", [training, evaluating, comparing])
@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 1280), ("dark", 390)])
def test_a_report_from_the_disk_is_accessible_and_fits_the_screen(
    browser: Browser, tmp_path: Path, write: Write, scheme: str, width: int
) -> None:
    context = browser.new_context(viewport={"width": width, "height": 844}, color_scheme=scheme)
    visit = Visit(context.new_page(), "")
    address = write(tmp_path / "street").as_uri()
    visit.page.goto(address)
    for one in visit.page.locator("summary").all():
        one.click()
    results = axe_api.Axe().run(visit.page)
    assert results.violations_count == 0, results.generate_report()
    assert visit.page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    assert visit.complaints == []
    assert [one for one in visit.requests if not one.startswith((address, "data:"))] == []
    context.close()


@pytest.mark.parametrize("write", [training, evaluating])
def test_a_class_whose_name_is_markup_stays_text(report: Visit, tmp_path: Path, write: Write) -> None:
    report.page.goto(write(tmp_path / "street").as_uri())
    assert report.page.get_by_text(MARKUP).count() > 1
    assert report.page.locator("img[src=x]").count() == 0
    assert "hit" not in report.page.title()


def test_what_gets_into_a_report_cannot_act(report: Visit, tmp_path: Path) -> None:
    page = training(tmp_path / "street")
    injected = "</h1><script>document.title = 'hit'</script><img src=x onerror=\"document.title = 'hit'\">"
    page.write_text(page.read_text().replace("</h1>", injected, 1))
    report.page.goto(page.as_uri())
    assert len([one for one in report.complaints if "Content Security Policy" in one]) >= 2
    assert report.page.title() == "street"


def test_curves_are_read_under_the_pointer_and_by_keyboard(report: Visit, tmp_path: Path) -> None:
    report.page.goto(training(tmp_path / "street").as_uri())
    chart = report.page.get_by_role("img", name="Validation loss")
    assert "step 400" in readout(report.page, "Validation loss")
    assert "0.125" in readout(report.page, "Validation loss")
    box = chart.bounding_box()
    assert box is not None
    chart.hover(position={"x": 0.36 * box["width"], "y": 0.5 * box["height"]})
    assert "step 100" in readout(report.page, "Validation loss")
    assert "0.5" in readout(report.page, "Validation loss")
    slider = report.page.get_by_label("Step of Validation loss")
    slider.focus()
    slider.press("ArrowRight")
    assert "step 200" in readout(report.page, "Validation loss")
    assert slider.get_attribute("aria-valuetext") == "step 200: validation loss 0.25"


def test_a_line_stands_out_while_its_name_has_the_focus(report: Visit, tmp_path: Path) -> None:
    report.page.goto(training(tmp_path / "street").as_uri())
    classes = report.page.locator("figure[data-title='IoU of each class']")
    classes.locator("li").nth(1).focus()
    assert classes.locator("svg[role=img] .series.faint").count() == 2
    report.page.get_by_label("Step of Training loss").focus()
    assert classes.locator(".faint").count() == 0


def test_a_cell_of_the_confusion_matrix_opens_its_pictures(report: Visit, tmp_path: Path) -> None:
    report.page.goto(evaluating(tmp_path / "street").as_uri())
    cell = report.page.get_by_role("link", name="sky seen as road")
    cell.click()
    listed = report.page.locator("details[open] li")
    assert listed.count() == 2
    assert "pixels" in listed.first.inner_text()
    listed.first.get_by_role("link").click()
    assert report.page.evaluate("document.querySelector(':target').querySelectorAll('img').length") == 4


def test_without_its_script_a_report_shows_the_last_values(browser: Browser, tmp_path: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(training(tmp_path / "street").as_uri())
    shown = page.locator("figure[data-title='Validation loss']").inner_text()
    context.close()
    assert "0.125" in shown


def test_a_live_page_follows_its_run_to_the_report(live: Visit, run: Path) -> None:
    page = live.page
    page.get_by_text("Live: this page follows the run.").wait_for(timeout=ANSWER_MS)
    page.get_by_text("Every setting of the run").click()
    append(run, *steps(220, 300))
    page.get_by_text("step 300 of 400").wait_for(timeout=ANSWER_MS)
    assert "step 300" in readout(page, "Validation loss")
    assert page.get_by_text("backbone_lr_factor").is_visible()  # what was opened stays open
    assert page.locator("#samples img").evaluate_all("all => all.every((one) => one.naturalWidth > 0)")
    finish(run)
    page.get_by_text("The run has ended. This is its report.").wait_for(timeout=ANSWER_MS)
    page.get_by_role("heading", name="Worst pictures").wait_for()
    assert page.get_by_role("region", name="Confusion matrix").is_visible()
    assert live.complaints == []


def test_a_reader_who_looks_at_an_earlier_step_stays_there(live: Visit, run: Path) -> None:
    slider = live.page.get_by_label("Step of Training loss")
    slider.focus()
    slider.press("Home")
    append(run, *steps(220, 300))
    live.page.get_by_text("step 300 of 400").wait_for(timeout=ANSWER_MS)
    assert "step 20" in readout(live.page, "Training loss").splitlines()
    assert slider.evaluate("one => one === document.activeElement")


def test_a_live_page_keeps_its_last_state_when_the_run_is_gone(report: Visit, run: Path) -> None:
    with watched(run) as url:
        report.page.goto(url)
        report.page.get_by_text("Live: this page follows the run.").wait_for(timeout=ANSWER_MS)
    report.page.get_by_text("The run does not answer").wait_for(timeout=ANSWER_MS)
    assert "step 200" in readout(report.page, "Training loss")


def test_a_live_page_is_accessible(live: Visit) -> None:
    live.page.get_by_text("Live: this page follows the run.").wait_for(timeout=ANSWER_MS)
    results = axe_api.Axe().run(live.page)
    assert results.violations_count == 0, results.generate_report()
