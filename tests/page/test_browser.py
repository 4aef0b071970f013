"""The page in a real browser: ``make browser``."""

from __future__ import annotations

from pathlib import Path

import pytest
from browser_visit import ANSWER_MS, Visit
from live_service import Server

playwright_api = pytest.importorskip("playwright.sync_api")
ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "service/page/examples/crossing.jpg"


def test_a_picture_gets_its_mask_its_shares_and_its_times(visit: Visit) -> None:
    visit.open()
    visit.page.set_input_files("#file", EXAMPLE)
    visit.answered()
    assert visit.page.locator("#mask").is_visible()
    assert visit.page.locator("#legend li").count() > 0
    assert "infer" in visit.page.locator("#timing-list").inner_text()
    assert visit.complaints == []


def test_an_example_is_one_click_away(visit: Visit) -> None:
    visit.open()
    visit.page.get_by_role("button", name="Example: avenue").click()
    visit.answered()


def test_a_class_is_hidden_and_shown_again_and_a_key_hides_the_mask(visit: Visit) -> None:
    visit.open()
    visit.page.set_input_files("#file", EXAMPLE)
    visit.answered()
    visit.page.get_by_role("button", name="Show only").first.click()
    assert visit.page.locator("#all-classes").is_visible()
    visit.page.locator("#all-classes").click()
    assert not visit.page.locator("#all-classes").is_visible()
    visit.page.keyboard.down("h")
    assert not visit.page.locator("#mask").is_visible()
    visit.page.keyboard.up("h")
    assert visit.page.locator("#mask").is_visible()


def test_the_pointer_reads_the_class_of_a_pixel(visit: Visit) -> None:
    visit.open()
    visit.page.set_input_files("#file", EXAMPLE)
    visit.answered()
    visit.page.locator("#stage").hover()
    assert ":" in visit.page.locator("#readout").inner_text()


def test_what_is_no_picture_is_told_in_words(visit: Visit, tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("no picture")
    visit.open()
    visit.page.set_input_files("#file", tmp_path / "text.jpg")
    visit.page.get_by_text("cannot read this picture").wait_for(timeout=ANSWER_MS)


def test_a_refusal_of_the_service_is_told_in_its_words(visit: Visit) -> None:
    problem = '{"code": "queue_full", "detail": "3 requests are waiting", "request_id": "abc"}'
    headers = {"content-type": "application/problem+json", "retry-after": "4"}
    visit.page.route("**/*:segment?*", lambda route: route.fulfill(status=429, headers=headers, body=problem))
    visit.open()
    visit.page.set_input_files("#file", EXAMPLE)
    visit.page.get_by_text("3 requests are waiting. Try again in 4 s. (request abc)").wait_for(
        timeout=ANSWER_MS
    )


def test_a_service_that_is_gone_is_told(visit: Visit) -> None:
    visit.open()
    visit.page.route("**/*:segment?*", lambda route: route.abort())
    visit.page.set_input_files("#file", EXAMPLE)
    visit.page.get_by_text("The service cannot be reached").wait_for(timeout=ANSWER_MS)


def test_a_class_whose_name_is_markup_stays_text(visit: Visit) -> None:
    name = "<img src=x onerror=document.title='hit'>"
    model = {
        "name": "m",
        "version": 1,
        "engine": "e",
        "device": "cpu",
        "precision": "f32",
        "refused": "",
        "default": True,
        "architecture": "a",
        "ignore_id": 255,
        "evaluations": [],
        "classes": [{"id": 0, "name": name, "color": [1, 2, 3]}],
    }
    visit.page.route("**/v1/models", lambda route: route.fulfill(json={"models": [model]}))
    visit.open()
    assert name in visit.page.locator("#legend").inner_text()
    visit.open("#models")
    visit.page.locator("#model-cards").get_by_text(name).wait_for()
    assert visit.page.title() == "Segmentation"


def test_the_models_page_says_what_is_served_after_a_reload_too(visit: Visit) -> None:
    visit.open("#models")
    visit.page.get_by_role("heading", name="tiny@1").wait_for()
    visit.page.reload()
    visit.page.get_by_role("heading", name="tiny@1").wait_for()


@pytest.mark.parametrize(("width", "scheme"), [(390, "light"), (390, "dark"), (1280, "dark")])
def test_nothing_is_wider_than_the_screen(
    browser: playwright_api.Browser, server: Server, width: int, scheme: str
) -> None:
    context = browser.new_context(viewport={"width": width, "height": 844}, color_scheme=scheme)
    page = context.new_page()
    page.goto(str(server.client.base_url))
    page.wait_for_load_state("networkidle")
    wide = page.evaluate("document.documentElement.scrollWidth")
    context.close()
    assert wide <= width
