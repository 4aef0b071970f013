from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from certificates import Certificate, make_certificate, needs_openssl
from https_server import Answer, HttpsServer, https_server

from model.checkpoints.download import DownloadedFile, download
from model.errors import DownloadError

pytestmark = needs_openssl

WEIGHTS = bytes(range(256)) * 3000
DIGEST = hashlib.sha256(WEIGHTS).hexdigest()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return asyncio.run(make_certificate(tmp_path_factory.mktemp("certificate")))


@pytest.fixture(scope="module")
def server(certificate: Certificate) -> Iterator[HttpsServer]:
    with https_server(certificate) as site:
        site.answers["/v1/weights.pth"] = Answer(WEIGHTS)
        site.answers["/moved"] = Answer(status=302, headers={"Location": f"{site.url}/v1/weights.pth"})
        site.answers["/to-http"] = Answer(status=302, headers={"Location": "http://127.0.0.1:9/weights.pth"})
        site.answers["/to-file"] = Answer(status=302, headers={"Location": "file:///etc/hostname"})
        site.answers["/round"] = Answer(status=302, headers={"Location": "/round"})
        site.answers["/page"] = Answer(b"<html>", headers={"Content-Type": "text/html; charset=utf-8"})
        site.answers["/cut"] = Answer(b"short", headers={"Content-Length": "900"})
        site.answers["/unknown-size"] = Answer(WEIGHTS, headers={"Content-Length": ""})
        site.answers["/a%2F..%2F..%2F.profile"] = Answer(WEIGHTS)
        yield site


@pytest.fixture(autouse=True)
def _trusts_the_server(certificate: Certificate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate.file))


def test_a_file_is_fetched_with_its_name_and_its_digest(server: HttpsServer, tmp_path: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    url = f"{server.url}/v1/weights.pth"
    found = download(url, tmp_path, sha256=DIGEST, on_bytes=lambda *numbers: seen.append(numbers))
    assert found == DownloadedFile(tmp_path / "weights.pth", url, DIGEST, len(WEIGHTS))
    assert found.path.read_bytes() == WEIGHTS
    assert seen[-1] == (len(WEIGHTS), len(WEIGHTS))


def test_a_redirect_to_https_is_followed(server: HttpsServer, tmp_path: Path) -> None:
    found = download(f"{server.url}/moved", tmp_path)
    assert (found.sha256, found.path.name) == (DIGEST, "moved")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/to-http", "over https only, not from http://127.0.0.1:9/weights.pth"),
        ("/to-file", "Redirection to url .file:///etc/hostname. is not allowed"),
        ("/round", "would lead to an infinite loop"),
        ("/page", "a web page: give the address of the file itself"),
        ("/cut", "ended after 5 of 900 bytes"),
        ("/nothing", "the server answers 404 Not Found"),
    ],
)
def test_what_is_no_file_is_named(server: HttpsServer, tmp_path: Path, path: str, message: str) -> None:
    with pytest.raises(DownloadError, match=message):
        download(server.url + path, tmp_path)


@pytest.mark.parametrize("path", ["/v1/weights.pth", "/unknown-size"])
def test_a_file_above_the_limit_is_not_fetched(server: HttpsServer, tmp_path: Path, path: str) -> None:
    with pytest.raises(DownloadError, match=f"{len(WEIGHTS) - 1}"):
        download(server.url + path, tmp_path, max_bytes=len(WEIGHTS) - 1)
    assert download(server.url + path, tmp_path, max_bytes=len(WEIGHTS)).size == len(WEIGHTS)


def test_another_digest_is_another_file(server: HttpsServer, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match=f"has the SHA-256 {DIGEST}, not {'0' * 64}"):
        download(f"{server.url}/moved", tmp_path, sha256="0" * 64)
    with pytest.raises(DownloadError, match="not a SHA-256"):
        download(f"{server.url}/moved", tmp_path, sha256="abc")


def test_no_name_leads_out_of_the_folder(server: HttpsServer, tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    found = download(f"{server.url}/a%2F..%2F..%2F.profile", tmp_path / "inner")
    assert found.path == tmp_path / "inner" / "profile"


def test_a_certificate_of_an_unknown_authority_is_refused(
    server: HttpsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    with pytest.raises(DownloadError, match="CERTIFICATE_VERIFY_FAILED"):
        download(f"{server.url}/moved", tmp_path)


@pytest.mark.parametrize("url", ["http://127.0.0.1/weights.pth", "file:///etc/hostname", "weights.pth"])
def test_only_https_is_asked(url: str, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="over https only"):
        download(url, tmp_path)


def test_credentials_and_query_are_never_shown(tmp_path: Path) -> None:
    with pytest.raises(DownloadError) as refusal:
        download("https://me:secret@127.0.0.1:1/weights.pth?token=secret", tmp_path)
    assert "https://127.0.0.1:1/weights.pth" in str(refusal.value)
    assert "secret" not in str(refusal.value)
