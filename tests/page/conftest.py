"""A running service, a page of another origin, and Debian's Chromium to look at them with."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from browser_visit import JOB_MS, Visit, give_token, visiting
from fakes import write_pooling_artifact
from job_site import JobSite, job_environment, started_site, write_dataset
from live_service import Server, serving_environment, started

from model.artifacts.registry import ModelRegistry

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = shutil.which("chromium")
CAMERA = ["--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = [item for item in items if item.path.is_relative_to(Path(__file__).parent)]
    for item in here:
        item.add_marker(pytest.mark.browser)
        item.add_marker(pytest.mark.skipif(CHROMIUM is None, reason="Debian's chromium is not installed"))


class _EmptyPage(SimpleHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="session")
def other_origins() -> Iterator[tuple[str, str]]:
    """Two origins with an empty page each; the service allows the first one."""
    sites = [ThreadingHTTPServer(("127.0.0.1", 0), _EmptyPage) for _ in range(2)]
    for site in sites:
        threading.Thread(target=site.serve_forever, daemon=True).start()
    yield tuple(f"http://127.0.0.1:{site.server_port}" for site in sites)
    for site in sites:
        site.shutdown()
        site.server_close()


@pytest.fixture(scope="session")
def server(
    tiny_registry: Path,
    shared_cache: Path,
    tmp_path_factory: pytest.TempPathFactory,
    other_origins: tuple[str, str],
) -> Iterator[Server]:
    environment = serving_environment(tiny_registry, shared_cache, tmp_path_factory.mktemp("home"), "tiny")
    environment["BISENET_SERVER__CORS_ORIGINS"] = other_origins[0]
    with started(environment, tmp_path_factory.mktemp("log") / "stderr") as server:
        yield server
        assert server.stop() == 0


@pytest.fixture(scope="session")
def admin_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[JobSite]:
    folder = tmp_path_factory.mktemp("admin-page")
    environment = job_environment(folder, write_dataset(folder / "noise", 6), engine="openvino")
    artifact = write_pooling_artifact(folder / "second", seed=1)
    ModelRegistry(folder / "registry").publish(artifact.folder, "pool")
    with started_site(environment, folder / "log") as site:
        yield site
        assert site.server.stop() == 0


@pytest.fixture(scope="session")
def evaluated(admin_site: JobSite) -> JobSite:
    """Return the site with a finished evaluation of pool@1."""
    job_id = admin_site.submit(model="pool@1")
    until_s = time.monotonic() + JOB_MS / 1000
    while not admin_site.get(job_id).state.is_final:
        assert time.monotonic() < until_s, "the job does not end"
        time.sleep(0.2)
    return admin_site


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", *CAMERA])
        yield browser
        browser.close()


@pytest.fixture
def visit(browser: Browser, server: Server) -> Iterator[Visit]:
    with visiting(browser, str(server.client.base_url)) as visit:
        yield visit


@pytest.fixture
def admin(browser: Browser, admin_site: JobSite) -> Iterator[Visit]:
    with visiting(browser, str(admin_site.admin.base_url)) as visit:
        yield visit


@pytest.fixture
def with_token(admin: Visit, admin_site: JobSite) -> Callable[[str], Page]:
    """Return what opens a part of the admin page with the token."""

    def opened(fragment: str) -> Page:
        admin.open(fragment)
        give_token(admin.page, admin_site)
        return admin.page

    return opened
