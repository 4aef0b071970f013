"""The page of the admin port in a real browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from browser_visit import ANSWER_MS, Visit
from job_site import JobSite

if TYPE_CHECKING:
    from playwright.sync_api import Browser

playwright_api = pytest.importorskip("playwright.sync_api")


@pytest.fixture
def admin(browser: Browser, admin_site: JobSite) -> Iterator[Visit]:
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    visit = Visit(context.new_page(), str(admin_site.admin.base_url).rstrip("/"))
    yield visit
    context.close()
    assert [url for url in visit.requests if not url.startswith((visit.url, "blob:"))] == []


def open_with_token(admin: Visit, admin_site: JobSite, fragment: str) -> None:
    admin.open(fragment)
    admin.page.get_by_label("Admin token").fill(admin_site.token_file.read_text().strip())
    admin.page.get_by_role("button", name="Use the token").click()
    admin.page.locator("#parts").wait_for()


def test_the_page_shows_nothing_without_the_token_and_forgets_it(admin: Visit, admin_site: JobSite) -> None:
    admin.open()
    admin.page.get_by_label("Admin token").fill("wrong")
    admin.page.get_by_role("button", name="Use the token").click()
    admin.page.get_by_text("That is not the admin token.").wait_for(timeout=ANSWER_MS)
    assert not admin.page.locator("#parts").is_visible()
    open_with_token(admin, admin_site, "")
    assert admin.page.evaluate("Object.keys(localStorage).length + Object.keys(sessionStorage).length") == 0
    admin.page.reload()
    assert not admin.page.locator("#parts").is_visible()


def test_an_alias_is_moved_and_rolled_back_and_a_version_loaded_and_unloaded(
    admin: Visit, admin_site: JobSite
) -> None:
    open_with_token(admin, admin_site, "#versions")
    page = admin.page
    page.get_by_role("button", name="Load pool@1", exact=True).click()
    page.get_by_text("Load pool@1: done.").wait_for(timeout=ANSWER_MS)
    page.get_by_label("Version for pool:production").select_option("1")
    page.get_by_role("button", name="Move pool:production").click()
    page.get_by_text("pool:production points at version 1 and is served.").wait_for(timeout=ANSWER_MS)
    page.get_by_role("button", name="Roll back pool:production").click()
    page.get_by_text("pool:production points at version 2 and is served.").wait_for(timeout=ANSWER_MS)


def test_a_refused_change_is_told_in_the_words_of_the_service(admin: Visit, admin_site: JobSite) -> None:
    open_with_token(admin, admin_site, "#versions")
    problem = {"code": "conflict", "detail": "the version does not prove itself here", "request_id": "abc"}
    admin.page.route("**/*:*load", lambda route: route.fulfill(status=409, json=problem))
    admin.page.get_by_role("button", name="oad pool@").first.click()
    admin.page.get_by_text("The version does not prove itself here.").wait_for(timeout=ANSWER_MS)


def test_an_evaluation_is_started_watched_to_its_end_and_compared(admin: Visit, admin_site: JobSite) -> None:
    open_with_token(admin, admin_site, "#evaluations")
    page = admin.page
    for model in ("pool@1", "pool@2"):
        page.get_by_label("Model").select_option(model)
        page.get_by_role("button", name="Start").click()
        page.get_by_text(f"The evaluation of {model} on noise succeeded.").wait_for(timeout=ANSWER_MS)
    page.get_by_role("button", name="Show the report of pool@1").click()
    matrix = page.get_by_role("region", name="Confusion matrix")
    matrix.wait_for(timeout=ANSWER_MS)
    cells = matrix.locator("tbody td").all_inner_texts()
    assert len(cells) == 4
    assert "6 pictures" in page.locator("#report").inner_text()
    assert page.get_by_role("region", name="Worst pictures").locator("tbody tr").count() == 6
    with page.expect_download() as download:
        page.get_by_role("button", name="Download the report").click()
    assert "<html" in Path(download.value.path()).read_text()
    for box in page.get_by_label("compare").all():
        box.check()
    page.get_by_role("region", name="Side by side").wait_for(timeout=ANSWER_MS)
    assert admin.complaints == []


def test_the_last_minutes_are_drawn_and_read_under_the_pointer(admin: Visit, admin_site: JobSite) -> None:
    open_with_token(admin, admin_site, "#now")
    chart = admin.page.get_by_role("img", name="Pictures a second")
    chart.wait_for(timeout=ANSWER_MS)
    assert admin.page.locator(".chart").count() == 8
    chart.hover()
    assert "pictures" in admin.page.locator(".chart").first.inner_text()
    assert admin.complaints == []
