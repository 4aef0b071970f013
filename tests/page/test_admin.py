"""The page of the admin port in a real browser."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from browser_visit import ANSWER_MS, JOB_MS, Visit, give_token
from job_site import JobSite

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page, Route

playwright_api = pytest.importorskip("playwright.sync_api")


def test_the_page_shows_nothing_without_the_token_and_forgets_it(admin: Visit, admin_site: JobSite) -> None:
    admin.open()
    admin.page.get_by_label("Admin token").fill("wrong")
    admin.page.get_by_role("button", name="Use the token").click()
    admin.page.get_by_text("That is not the admin token.").wait_for(timeout=ANSWER_MS)
    assert not admin.page.locator("#parts").is_visible()
    give_token(admin.page, admin_site)
    assert admin.page.evaluate("Object.keys(localStorage).length + Object.keys(sessionStorage).length") == 0
    admin.page.reload()
    assert not admin.page.locator("#parts").is_visible()


def test_an_alias_is_moved_and_rolled_back_and_a_version_loaded_and_unloaded(
    with_token: Callable[[str], Page],
) -> None:
    page = with_token("#versions")
    meant = page.get_by_text("A request for pool without a version is answered by pool@2.")
    meant.wait_for(timeout=ANSWER_MS)
    page.get_by_role("button", name="Load pool@1", exact=True).click()
    page.get_by_text("Load pool@1: done.").wait_for(timeout=ANSWER_MS)
    page.get_by_label("Version for pool:production").select_option("1")
    page.get_by_role("button", name="Move pool:production").click()
    page.get_by_text("pool:production points at version 1 and is served.").wait_for(timeout=ANSWER_MS)
    page.get_by_role("button", name="Roll back pool:production").click()
    page.get_by_text("pool:production points at version 2 and is served.").wait_for(timeout=ANSWER_MS)


def test_a_refused_change_is_told_in_the_words_of_the_service(with_token: Callable[[str], Page]) -> None:
    page = with_token("#versions")
    problem = {"code": "conflict", "detail": "the version does not prove itself here", "request_id": "abc"}
    page.route("**/*:*load", lambda route: route.fulfill(status=409, json=problem))
    page.get_by_role("button", name="oad pool@").first.click()
    page.get_by_text("The version does not prove itself here.").wait_for(timeout=ANSWER_MS)


@pytest.mark.usefixtures("evaluated")
def test_an_evaluation_is_started_watched_to_its_end_and_compared(
    admin: Visit, with_token: Callable[[str], Page]
) -> None:
    page = with_token("#evaluations")
    page.get_by_label("Model").select_option("pool@2")
    page.get_by_role("button", name="Start").click()
    page.get_by_text("The evaluation of pool@2 on noise succeeded.").wait_for(timeout=JOB_MS)
    page.get_by_role("button", name="Show the report of pool@2").click()
    matrix = page.get_by_role("region", name="Confusion matrix")
    matrix.wait_for(timeout=ANSWER_MS)
    cells = matrix.locator("tbody td").all_inner_texts()
    assert len(cells) == 4
    check_gallery_of_a_cell(page)
    check_gallery_of_the_worst(page)
    assert "6 pictures" in page.locator("#report").inner_text()
    assert page.get_by_role("region", name="Worst pictures").locator("tbody tr").count() == 6
    with page.expect_download() as download:
        page.get_by_role("button", name="Download the report").click()
    assert "<html" in Path(download.value.path()).read_text()
    for box in page.get_by_label("compare").all():
        box.check()
    page.get_by_role("region", name="Side by side").wait_for(timeout=ANSWER_MS)
    assert admin.complaints == []


def check_gallery_of_a_cell(page: Page) -> None:
    cells = page.get_by_role("region", name="Confusion matrix").get_by_role("button").all()
    told_cells = [re.findall(r"([\d,]+) pixels of (\w+) answered as (\w+)", told(cell)) for cell in cells]
    at, count, truth, guess = next(
        (at, count, truth, guess) for at, [(count, truth, guess)] in enumerate(told_cells) if truth != guess
    )
    cells[at].click()
    page.get_by_role("heading", name=f"{truth} answered as {guess}: pictures").wait_for(timeout=ANSWER_MS)
    page.get_by_role("button", name=re.compile("Show more")).click()
    lines = page.get_by_text("of its pixels are in this cell")
    playwright_api.expect(lines).to_have_count(6, timeout=ANSWER_MS)
    texts = lines.all_inner_texts()
    assert sum(number(text.split(" ")[0]) for text in texts) == number(count)
    assert "otherwise" not in " ".join(texts)
    for view in ("picture", "truth", "answer", "difference"):
        picture = page.get_by_role("img", name=f"{view} of 0.png")
        assert picture.evaluate("async (one) => { await one.decode(); return one.naturalWidth; }") == 64


def told(cell: Locator) -> str:
    return cell.get_attribute("title") or ""


def number(text: str) -> int:
    return int(text.replace(",", ""))


def check_gallery_of_the_worst(page: Page) -> None:
    page.get_by_role("region", name="Worst pictures").get_by_role("button").first.click()
    page.get_by_role("heading", name="One of the worst pictures").wait_for(timeout=ANSWER_MS)
    playwright_api.expect(page.locator(".gallery").nth(1).get_by_role("img")).to_have_count(
        4, timeout=ANSWER_MS
    )


@pytest.mark.usefixtures("evaluated")
def test_the_cells_of_the_matrix_are_walked_by_the_arrow_keys(with_token: Callable[[str], Page]) -> None:
    page = with_token("#evaluations")
    page.get_by_role("button", name="Show the report of pool@1").click()
    matrix = page.get_by_role("region", name="Confusion matrix")
    matrix.wait_for(timeout=ANSWER_MS)
    matrix.get_by_role("button").first.focus()
    page.keyboard.press("ArrowDown")
    focused = "document.activeElement.getAttribute('aria-label')"
    assert "pixels of bright answered as" in page.evaluate(focused)
    page.keyboard.press("Enter")
    page.get_by_role("heading", name=re.compile("^bright answered .*: pictures")).wait_for(timeout=ANSWER_MS)


def test_pictures_of_a_version_that_is_not_loaded_are_refused_in_words(
    evaluated: JobSite, with_token: Callable[[str], Page]
) -> None:
    evaluated.admin.post("/admin/v1/models/pool/versions/1:unload")
    page = with_token("#evaluations")
    page.get_by_role("button", name="Show the report of pool@1").click()
    page.get_by_role("region", name="Worst pictures").get_by_role("button").first.click()
    page.get_by_text("Pool@1 is not loaded here: load it, then open its pictures.").wait_for(
        timeout=ANSWER_MS
    )


def test_an_evaluation_is_cancelled_while_it_is_watched(with_token: Callable[[str], Page]) -> None:
    page = with_token("#evaluations")
    page.route("**/admin/v1/evaluations", answer_with_a_running_job)
    running = {"state": "running", "done": 2, "total": 6}
    page.route("**/evaluations/made-up/events", lambda route: route.fulfill(body=event_of(running)))
    page.route("**/evaluations/made-up", lambda route: route.fulfill(status=202, json=JOB))
    page.get_by_label("Model").select_option("pool@2")
    page.get_by_role("button", name="Start").click()
    page.get_by_text("2 of 6").wait_for(timeout=ANSWER_MS)
    page.unroute("**/evaluations/made-up/events")
    cancelled = {"state": "cancelled", "done": 2, "total": 6}
    page.route("**/evaluations/made-up/events", lambda route: route.fulfill(body=event_of(cancelled)))
    page.get_by_role("button", name="Cancel the evaluation of pool@2").click()
    page.get_by_text("The evaluation of pool@2 on noise cancelled.").wait_for(timeout=ANSWER_MS)


JOB = {
    "id": "made-up",
    "state": "queued",
    "model": "pool@2",
    "dataset": "noise",
    "split": "val",
    "protocol": "ss",
    "done": 0,
    "total": None,
    "error": None,
    "result": None,
}


def event_of(changes: dict[str, object]) -> str:
    return f"event: evaluation\ndata: {json.dumps(JOB | changes)}\n\n"


def answer_with_a_running_job(route: Route) -> None:
    if route.request.method == "POST":
        route.fulfill(status=202, json=JOB)
    else:
        route.continue_()


@pytest.mark.parametrize("part", ["Now", "Versions", "Evaluations"])
def test_a_part_is_shown_again_after_a_reload_and_the_token(
    admin: Visit, admin_site: JobSite, with_token: Callable[[str], Page], part: str
) -> None:
    page = with_token(f"#{part.lower()}")
    page.get_by_role("heading", name=part, level=1).wait_for()
    page.reload()
    assert not page.locator("#parts").is_visible()
    give_token(page, admin_site)
    page.get_by_role("heading", name=part, level=1).wait_for()
    assert page.locator("#parts section:visible").count() == 1
    assert admin.complaints == []


def test_a_service_that_is_gone_is_told(with_token: Callable[[str], Page]) -> None:
    page = with_token("#versions")
    page.get_by_role("heading", name="pool").wait_for(timeout=ANSWER_MS)
    page.context.set_offline(True)
    page.get_by_role("button", name="oad pool@").first.click()
    page.get_by_text("The service cannot be reached").wait_for(timeout=ANSWER_MS)


def test_a_service_without_jobs_or_data_sets_says_so(with_token: Callable[[str], Page]) -> None:
    page = with_token("#now")
    page.route("**/evaluations:choices", lambda route: route.fulfill(status=404, json={}))
    page.get_by_role("link", name="Evaluations").click()
    page.get_by_text("This service runs no evaluation jobs").wait_for(timeout=ANSWER_MS)
    page.unroute("**/evaluations:choices")
    empty = {"datasets": [], "protocols": ["ss"]}
    page.route("**/evaluations:choices", lambda route: route.fulfill(json=empty))
    page.get_by_role("link", name="Now").click()
    page.get_by_role("link", name="Evaluations").click()
    page.get_by_text("No data set is configured").wait_for(timeout=ANSWER_MS)
    assert page.get_by_role("button", name="Start").is_disabled()


def test_the_last_minutes_are_drawn_and_read_under_the_pointer(
    admin: Visit, with_token: Callable[[str], Page]
) -> None:
    page = with_token("#now")
    chart = page.get_by_role("img", name="Pictures a second")
    chart.wait_for(timeout=ANSWER_MS)
    assert page.locator(".chart").count() == 8
    chart.hover()
    assert "pictures" in page.locator(".chart").first.inner_text()
    assert admin.complaints == []
