"""What a test looks at in a browser."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

from job_site import JobSite

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

ANSWER_MS = 60_000
JOB_MS = 600_000  # a job has the lowest priority: other work on the machine holds it up


class Visit:
    """A page of the service, what it asked for and what it complained about."""

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self.url = url
        self.complaints: list[str] = []
        self.requests: list[str] = []
        page.on("console", lambda message: self.complaints.append(message.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", lambda request: self.requests.append(request.url))

    def open(self, fragment: str = "") -> None:
        self.page.goto(f"{self.url}/{fragment}")
        self.page.wait_for_load_state("networkidle")

    def answered(self) -> None:
        self.page.get_by_text("answered by").wait_for(timeout=ANSWER_MS)


@contextmanager
def visiting(
    browser: Browser, url: str, *, width: int = 1280, scheme: Literal["light", "dark"] = "light"
) -> Iterator[Visit]:
    """Open a page for a visit; afterwards no request may have left the origin."""
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    visit = Visit(context.new_page(), url.rstrip("/"))
    yield visit
    context.close()
    assert [url for url in visit.requests if not url.startswith((visit.url, "blob:"))] == []


def give_token(page: Page, site: JobSite) -> None:
    """Open the parts of the admin page."""
    page.get_by_label("Admin token").fill(site.token_file.read_text().strip())
    page.get_by_role("button", name="Use the token").click()
    page.locator("#parts").wait_for()
