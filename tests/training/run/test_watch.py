from __future__ import annotations

import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.client import HTTPResponse
from pathlib import Path

import pytest
from run_folders import append, finish, steps, write_running

from training.errors import WatchError
from training.run.watch import watched


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "street"


@pytest.fixture
def url(folder: Path) -> Iterator[str]:
    with watched(folder) as url:
        yield url


def get(url: str, **headers: str) -> HTTPResponse:
    request = urllib.request.Request(
        url, headers={key.replace("_", "-"): value for key, value in headers.items()}
    )
    return urllib.request.urlopen(request, timeout=30)


def text(url: str) -> str:
    with get(url) as answer:
        return str(answer.read().decode())


def refusal(url: str, **headers: str) -> int:
    with pytest.raises(urllib.error.HTTPError) as caught:
        get(url, **headers)
    with caught.value as error:
        return error.code


def test_the_page_is_there_before_the_run_has_begun_and_grows_with_its_log(folder: Path, url: str) -> None:
    assert "the run reads its data set" in text(url)
    write_running(folder)
    assert "step 200 of 400" in text(url)
    append(folder, *steps(220, 240))
    assert "step 240 of 400" in text(url)


def test_a_finished_run_shows_its_report(folder: Path, url: str) -> None:
    write_running(folder)
    assert "data-refresh-ms" in text(url)
    page = finish(folder).read_text()
    assert text(url) == page
    assert '"miou"' in text(f"{url}report.json")
    assert "a word on a word" in text(f"{url}evaluation.html")


def test_an_unchanged_page_is_not_sent_again(folder: Path, url: str) -> None:
    write_running(folder)
    with get(url) as answer:
        etag = answer.headers["ETag"]
    assert refusal(url, If_None_Match=etag) == 304
    append(folder, *steps(220, 220))
    with get(url, If_None_Match=etag) as answer:
        assert answer.status == 200


def test_only_pages_and_samples_are_served(folder: Path, url: str) -> None:
    write_running(folder)
    (folder / "secret.png").write_bytes(b"secret")
    with get(f"{url}samples/sample-0-picture.jpg") as answer:
        assert answer.headers["Content-Type"] == "image/jpeg"
    for path in ("log.jsonl", "samples/../secret.png", "samples/%2e%2e/secret.png", "samples/missing.png"):
        assert refusal(url + path) == 404


def test_pages_of_other_sites_do_not_reach_a_run(url: str) -> None:
    assert refusal(url, Host="attacker.example") == 403
    with get(url, Host="localhost:8000") as answer:  # a port of this machine that ssh forwards
        assert answer.headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"


def test_a_port_that_is_taken_is_named(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(WatchError, match=f"port {port} cannot be opened"), watched(folder, port):
            pass


def test_the_port_is_free_when_the_page_has_ended(folder: Path) -> None:
    with watched(folder) as url:
        port = int(url.rstrip("/").rpartition(":")[2])
    with watched(folder, port) as again:
        assert again == url
