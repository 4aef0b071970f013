"""What the page says when something fails, in a real browser."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from browser_visit import ANSWER_MS, Visit

from service.http_api.problems import STATUS_OF_CODE

if TYPE_CHECKING:
    from playwright.sync_api import Route

playwright_api = pytest.importorskip("playwright.sync_api")
EXAMPLE = Path(__file__).parents[2] / "service/page/examples/crossing.jpg"
ANSWERS = "**/*:segment?*"


def test_what_is_no_picture_is_told_in_words(visit: Visit, tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("no picture")
    visit.open()
    visit.page.set_input_files("#file", tmp_path / "text.jpg")
    visit.page.get_by_text("cannot read this picture").wait_for(timeout=ANSWER_MS)


def test_a_refusal_of_the_service_is_told_in_its_words(visit: Visit) -> None:
    problem = '{"code": "queue_full", "detail": "3 requests are waiting", "request_id": "abc"}'
    headers = {"content-type": "application/problem+json", "retry-after": "4"}
    visit.page.route(ANSWERS, lambda route: route.fulfill(status=429, headers=headers, body=problem))
    visit.open()
    visit.page.set_input_files("#file", EXAMPLE)
    visit.page.get_by_text("3 requests are waiting. Try again in 4 s. (request abc)").wait_for(
        timeout=ANSWER_MS
    )


def test_a_service_that_is_gone_is_told(visit: Visit) -> None:
    visit.open()
    visit.page.route(ANSWERS, lambda route: route.abort())
    visit.page.set_input_files("#file", EXAMPLE)
    visit.page.get_by_text("The service cannot be reached").wait_for(timeout=ANSWER_MS)


def refuse_with(code: str, status: int) -> Callable[[Route], None]:
    body = json.dumps({"code": code, "detail": f"this is {code}", "request_id": "abc"})
    return lambda route: route.fulfill(status=status, content_type="application/problem+json", body=body)


def test_every_error_of_the_service_is_told_in_its_words(visit: Visit) -> None:
    visit.open()
    status = visit.page.locator("#status")
    for code, number in STATUS_OF_CODE.items():
        visit.page.route(ANSWERS, refuse_with(code, int(number)))
        visit.page.set_input_files("#file", EXAMPLE)
        playwright_api.expect(status).to_have_text(f"This is {code}. (request abc)", timeout=ANSWER_MS)
        visit.page.unroute(ANSWERS)


def test_an_error_of_a_proxy_is_told_without_its_markup(visit: Visit) -> None:
    visit.open()
    visit.page.route(ANSWERS, lambda route: route.fulfill(status=502, body="<html><h1>502</h1></html>"))
    visit.page.set_input_files("#file", EXAMPLE)
    visit.page.get_by_text("Bad Gateway.").wait_for(timeout=ANSWER_MS)


def test_a_picture_that_is_too_large_is_told_before_it_is_sent(visit: Visit, tmp_path: Path) -> None:
    (tmp_path / "large.jpg").write_bytes(EXAMPLE.read_bytes() + bytes(21 * 1024 * 1024))
    visit.open()
    visit.page.set_input_files("#file", tmp_path / "large.jpg")
    visit.page.get_by_text("The picture has 21 MiB; the service takes 20.").wait_for(timeout=ANSWER_MS)


def test_a_browser_that_is_offline_is_told_and_the_next_picture_is_answered(visit: Visit) -> None:
    visit.open()
    visit.page.context.set_offline(True)
    visit.page.set_input_files("#file", EXAMPLE)
    visit.page.get_by_text("The service cannot be reached").wait_for(timeout=ANSWER_MS)
    visit.page.context.set_offline(False)
    visit.page.set_input_files("#file", EXAMPLE)
    visit.answered()


def test_a_slow_service_is_waited_for_and_a_newer_picture_takes_the_place_of_the_older(visit: Visit) -> None:
    held: list[Route] = []
    visit.open()
    visit.page.route(ANSWERS, lambda route: held.append(route))  # noqa: PLW0108 - a method takes no attributes
    visit.page.set_input_files("#file", EXAMPLE)
    visit.page.get_by_text("The service is working on the picture").wait_for(timeout=ANSWER_MS)
    assert visit.page.get_by_role("button", name="Mask", exact=True).is_disabled()
    visit.page.unroute(ANSWERS)
    visit.page.set_input_files("#file", EXAMPLE)
    visit.answered()
    assert len(held) == 1
    assert visit.complaints == []


def test_a_service_that_asks_for_a_key_gets_it_from_the_memory_of_the_page(visit: Visit) -> None:
    def answer(route: Route) -> None:
        if route.request.headers.get("authorization") == "Bearer right":
            route.continue_()
        else:
            detail = "an API key is needed"
            route.fulfill(status=401, json={"code": "unauthenticated", "detail": detail})

    visit.page.route("**/v1/models", answer)
    visit.open()
    key = visit.page.get_by_label("This service asks for an API key")
    for given in ("wrong", "right"):
        key.fill(given)
        visit.page.get_by_role("button", name="Use the key").click()
    visit.page.get_by_role("button", name="Use the key").wait_for(state="hidden")
    visit.page.get_by_role("button", name="Example: avenue").click()
    visit.answered()
    assert visit.page.evaluate("JSON.stringify(localStorage)").count("right") == 0
    assert "YOUR_KEY" in visit.page.locator("#snippets").inner_text()


def test_a_service_without_a_model_says_what_to_do(visit: Visit) -> None:
    visit.page.route("**/v1/models", lambda route: route.fulfill(json={"models": []}))
    visit.open()
    visit.page.get_by_text("No model is served yet. Load one on the admin port").wait_for()
