"""Pages of other origins that use the service from a browser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from live_service import Server

playwright_api = pytest.importorskip("playwright.sync_api")
EXAMPLE = Path(__file__).parents[2] / "service/page/examples/crossing.jpg"

ASK = """async ([service, bytes]) => {
  // The first header makes the browser ask with a preflight.
  const headers = { "X-Request-Timeout-Ms": "60000", Accept: "application/octet-stream" };
  try {
    const answer = await fetch(`${service}/v1/segment?output=labels`,
      { method: "POST", body: new Uint8Array(bytes), headers });
    const labels = (await answer.arrayBuffer()).byteLength;
    return { status: answer.status, width: answer.headers.get("x-image-width"), labels };
  } catch (error) {
    return { failed: error.name };
  }
}"""


def ask_from(origin: str, browser: playwright_api.Browser, server: Server) -> dict[str, Any]:
    context = browser.new_context()
    page = context.new_page()
    page.goto(origin)
    answer = page.evaluate(ASK, [str(server.client.base_url).rstrip("/"), [*EXAMPLE.read_bytes()]])
    context.close()
    return dict(answer)


def test_a_page_of_an_allowed_origin_gets_labels_and_reads_their_size(
    other_origins: tuple[str, str], browser: playwright_api.Browser, server: Server
) -> None:
    answer = ask_from(other_origins[0], browser, server)
    assert answer == {"status": 200, "width": "640", "labels": 640 * 360}


def test_a_page_of_another_origin_is_refused_by_the_browser(
    other_origins: tuple[str, str], browser: playwright_api.Browser, server: Server
) -> None:
    assert ask_from(other_origins[1], browser, server) == {"failed": "TypeError"}
