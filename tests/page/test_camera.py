"""The camera page, with Chromium's own test picture as the camera."""

from __future__ import annotations

import re

import pytest
from browser_visit import ANSWER_MS, Visit

playwright_api = pytest.importorskip("playwright.sync_api")


def start(visit: Visit) -> None:
    visit.open("#camera")
    visit.page.get_by_role("button", name="Start the camera").click()


def test_the_camera_gets_masks_and_every_frame_is_accounted_for(visit: Visit) -> None:
    start(visit)
    answered = visit.page.locator("#camera-answered")
    playwright_api.expect(answered).to_have_text(re.compile(r"^([3-9]|[1-9]\d+) of"), timeout=ANSWER_MS)
    assert visit.page.locator("#camera-mask").is_visible()
    assert float(visit.page.locator("#camera-fps").inner_text()) > 0
    assert visit.page.locator("#camera-age").inner_text().endswith(" ms")
    visit.page.get_by_role("button", name="Stop").click()
    visit.page.get_by_text("every frame is accounted for").wait_for(timeout=ANSWER_MS)
    number_answered, sent = map(int, answered.inner_text().split(" of "))
    told = visit.page.locator("#camera-drops").inner_text()
    dropped = sum(int(number) for number in re.findall(r"(\d+) (?!not sent)", told))
    assert number_answered + dropped == sent, told
    assert visit.complaints == []


def test_another_page_ends_the_stream(visit: Visit) -> None:
    start(visit)
    visit.page.get_by_role("button", name="Stop").wait_for()
    visit.page.get_by_role("link", name="Models").click()
    visit.page.get_by_role("link", name="Camera").click()
    visit.page.get_by_role("button", name="Start the camera").wait_for(timeout=ANSWER_MS)


def test_a_camera_that_may_not_be_used_is_told_in_words(visit: Visit) -> None:
    visit.page.add_init_script(
        "navigator.mediaDevices.getUserMedia ="
        " async () => { throw new DOMException('no', 'NotAllowedError'); }"
    )
    start(visit)
    visit.page.get_by_text("Allow it in the address bar").wait_for(timeout=ANSWER_MS)


def test_a_stream_that_the_service_refuses_is_told_in_its_words(visit: Visit) -> None:
    visit.page.route_web_socket(
        re.compile("/page/camera"),
        lambda socket: socket.close(code=1013, reason="busy: 512 streams are open, and more are not allowed"),
    )
    start(visit)
    visit.page.get_by_text("512 streams are open").wait_for(timeout=ANSWER_MS)
