"""Every part of both pages in light and dark: what axe finds, and whether it fits the screen of a phone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest
from browser_visit import ANSWER_MS, Visit
from job_site import JobSite
from live_service import Server

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

axe_api = pytest.importorskip("axe_playwright_python.sync_playwright")


def try_it(page: Page) -> None:
    page.get_by_role("button", name="Example: avenue").click()
    page.get_by_text("answered by").wait_for(timeout=ANSWER_MS)


def camera(page: Page) -> None:
    page.get_by_role("button", name="Start the camera").click()
    page.locator("#camera-mask").wait_for(timeout=ANSWER_MS)


def models(page: Page) -> None:
    page.get_by_role("heading", name="tiny@1").wait_for(timeout=ANSWER_MS)


def now(page: Page) -> None:
    page.locator(".chart path").first.wait_for(state="attached", timeout=ANSWER_MS)


def versions(page: Page) -> None:
    page.get_by_role("heading", name="pool").wait_for(timeout=ANSWER_MS)


def evaluations(page: Page) -> None:
    page.get_by_label("Model").select_option("pool@1")
    page.get_by_role("button", name="Start").click()
    page.get_by_text("succeeded.").wait_for(timeout=ANSWER_MS)
    page.get_by_role("button", name="Show the report").first.click()
    page.get_by_role("region", name="Confusion matrix").wait_for(timeout=ANSWER_MS)


@pytest.fixture(params=[("light", 1280), ("dark", 390)], ids=lambda one: f"{one[0]}-{one[1]}")
def page(browser: Browser, request: pytest.FixtureRequest) -> Iterator[Page]:
    scheme, width = request.param
    context = browser.new_context(viewport={"width": width, "height": 844}, color_scheme=scheme)
    yield context.new_page()
    context.close()


def check(page: Page) -> None:
    results = axe_api.Axe().run(page)
    assert results.violations_count == 0, results.generate_report()
    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0


@pytest.mark.parametrize("part", [try_it, camera, models])
def test_a_part_of_the_data_port_is_accessible(
    page: Page, server: Server, part: Callable[[Page], None]
) -> None:
    Visit(page, str(server.client.base_url).rstrip("/")).open(f"#{part.__name__.removesuffix('_it')}")
    part(page)
    check(page)


@pytest.mark.parametrize("part", [now, versions, evaluations])
def test_a_part_of_the_admin_port_is_accessible(
    page: Page, admin_site: JobSite, part: Callable[[Page], None]
) -> None:
    Visit(page, str(admin_site.admin.base_url).rstrip("/")).open(f"#{part.__name__}")
    check(page)
    page.get_by_label("Admin token").fill(admin_site.token_file.read_text().strip())
    page.get_by_role("button", name="Use the token").click()
    part(page)
    check(page)
