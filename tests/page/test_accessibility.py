"""Every part of both pages in light and dark: what axe finds, and whether it fits the screen of a phone."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import pytest
from browser_visit import ANSWER_MS, Visit, give_token, visiting
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
    page.get_by_role("button", name="Show the report of pool@1").click()
    matrix = page.get_by_role("region", name="Confusion matrix")
    matrix.get_by_role("button").first.click(timeout=ANSWER_MS)
    page.get_by_role("img", name="difference of").first.wait_for(timeout=ANSWER_MS)


Looks = Callable[[str], AbstractContextManager[Visit]]


@pytest.fixture(params=[("light", 1280), ("dark", 390)], ids=lambda one: f"{one[0]}-{one[1]}")
def looks(browser: Browser, request: pytest.FixtureRequest) -> Looks:
    """Return what opens an address in a colour scheme and on a width."""
    scheme, width = request.param
    return lambda url: visiting(browser, url, width=width, scheme=scheme)


def check(page: Page) -> None:
    results = axe_api.Axe().run(page)
    assert results.violations_count == 0, results.generate_report()
    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0


@pytest.mark.parametrize("part", [try_it, camera, models])
def test_a_part_of_the_data_port_is_accessible(
    looks: Looks, server: Server, part: Callable[[Page], None]
) -> None:
    with looks(str(server.client.base_url)) as visit:
        visit.open(f"#{part.__name__.removesuffix('_it')}")
        part(visit.page)
        check(visit.page)


@pytest.mark.parametrize("part", [now, versions, evaluations])
def test_a_part_of_the_admin_port_is_accessible(
    looks: Looks, evaluated: JobSite, part: Callable[[Page], None]
) -> None:
    evaluated.admin.post("/admin/v1/models/pool/versions/1:load").raise_for_status()
    with looks(str(evaluated.admin.base_url)) as visit:
        visit.open(f"#{part.__name__}")
        check(visit.page)
        give_token(visit.page, evaluated)
        part(visit.page)
        check(visit.page)
