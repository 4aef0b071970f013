"""The page's files as the HTTP port serves them."""

from __future__ import annotations

import re
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import pytest
from fakes import key_ring
from http_site import open_site
from PIL import Image

from service.http_api.access import AccessPolicy
from service.http_api.app import HttpOptions
from service.http_api.page import ADMIN_FOLDERS, Page
from service.settings import ServerSettings

ROOT = Path(__file__).parents[3]
STATIC = ROOT / "service/page/static"
ADMIN = ROOT / "service/page/admin"
WITH_PAGE = HttpOptions(page=True)
MAX_COMPRESSED_BYTES = 150_000


async def test_every_file_that_the_page_names_is_served_under_a_strict_policy() -> None:
    async with open_site(options=WITH_PAGE) as site:
        index = await site.client.get("/")
        assert index.headers["content-type"].startswith("text/html")
        named = re.findall(r'(?:src|href)="(page/[^"]+)"', index.text)
        assert named
        for path in named:
            response = await site.client.get(f"/{path}")
            assert response.status_code == 200, path
            policy = response.headers["content-security-policy"]
            assert policy.startswith("default-src 'none'")
            assert "unsafe" not in policy


async def test_a_file_that_has_not_changed_is_not_sent_again() -> None:
    async with open_site(options=WITH_PAGE) as site:
        first = await site.client.get("/page/style.css")
        again = await site.client.get("/page/style.css", headers={"If-None-Match": first.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")


async def test_a_service_without_the_page_has_no_such_path() -> None:
    async with open_site() as site:
        assert (await site.client.get("/")).status_code == 404
        assert (await site.client.get("/page/main.js")).status_code == 404


async def test_the_page_loads_without_a_key_and_the_models_do_not() -> None:
    access = AccessPolicy(keys=key_ring("a-key"))
    async with open_site(options=HttpOptions(access=access, page=True)) as site:
        assert (await site.client.get("/")).status_code == 200
        assert (await site.client.get("/page/main.js")).status_code == 200
        assert (await site.client.get("/v1/models")).status_code == 401


def test_the_page_weighs_little() -> None:
    check_weight(Page())
    check_weight(Page(ADMIN_FOLDERS, "admin/index.html"))


def check_weight(page: Page) -> None:
    texts = [file for path, file in page._files.items() if not path.startswith("/page/examples/")]
    assert sum(len(file.gzipped or file.content) for file in texts) <= MAX_COMPRESSED_BYTES


@pytest.mark.parametrize("path", sorted([*STATIC.iterdir(), *ADMIN.iterdir()]), ids=lambda path: path.name)
def test_a_file_names_no_other_host_and_holds_no_inline_script_or_style(path: Path) -> None:
    text = path.read_text("utf-8")
    hosts = set(re.findall(r"https?://([^/\"'`\s]+)", text)) - {"www.w3.org"}  # the name space of SVG
    assert hosts == set()
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\son\w+=|\sstyle=|innerHTML|outerHTML", text)


def test_the_examples_are_pictures_of_this_project_near_the_size_that_the_model_learned_from() -> None:
    examples = sorted((ROOT / "service/page/examples").glob("*.jpg"))
    shown = re.search(r"EXAMPLES = \[(.*?)\]", (STATIC / "try.js").read_text("utf-8"))
    assert shown is not None
    assert [example.stem for example in examples] == re.findall(r'"([^"]+)"', shown[1])
    thumbnails = sorted((ROOT / "service/page/thumbnails").glob("*.jpg"))
    assert [thumbnail.name for thumbnail in thumbnails] == [example.name for example in examples]
    for example in examples:
        assert Image.open(BytesIO(example.read_bytes())).size == (640, 360)


OPEN_SERVICE = """
import sys
from service.bootstrap import open_service
from service.settings import load_settings

folder, page = sys.argv[1:]
flags = {
    "registry": {"url": folder + "/registry"},
    "jobs": {"mode": "off"},
    "server": {"page": page},
    "auth": {name + "_token_file": folder + "/" + name for name in ("admin", "scrape")},
}
with open_service(load_settings(flags=flags, environment={})):
    pass
print(*sorted(set(sys.modules) & {"service.page", "service.http_api.page", "service.http_api.camera"}))
"""


@pytest.mark.parametrize(
    ("page", "imported"), [("off", ""), ("on", "service.http_api.camera service.http_api.page service.page")]
)
def test_a_service_imports_the_page_only_where_it_serves_it(tmp_path: Path, page: str, imported: str) -> None:
    command = [sys.executable, "-c", OPEN_SERVICE, str(tmp_path), page]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == imported


def test_the_page_is_on_by_default() -> None:
    assert ServerSettings().page == "auto"
