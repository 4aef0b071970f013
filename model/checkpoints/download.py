"""Weights from the network: one file over https, no larger than allowed, with its digest."""

from __future__ import annotations

import hashlib
import http.client
import re
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from email.message import Message
from pathlib import Path, PurePosixPath
from typing import IO
from urllib.parse import unquote, urlsplit

from model.checkpoints.limits import MAX_FILE_BYTES
from model.errors import DownloadError

TIMEOUT_S = 30.0
"""How long the server may let a connection wait for the next bytes."""

_PIECE_BYTES = 1 << 18
_DIGEST = re.compile(r"[0-9a-f]{64}")
_FALLBACK_NAME = "weights"
_NOT_IN_NAMES = re.compile(r"[^\w.-]")


@dataclass(frozen=True)
class DownloadedFile:
    """A file that was fetched.

    Attributes:
        path: where it lies.
        url: where it came from, without credentials and query.
        sha256: of its bytes, 64 hex digits.
        size: in bytes.
    """

    path: Path
    url: str
    sha256: str
    size: int


def download(
    url: str,
    folder: Path,
    *,
    sha256: str | None = None,
    max_bytes: int = MAX_FILE_BYTES,
    on_bytes: Callable[[int, int | None], None] = lambda done, total: None,  # noqa: ARG005 - nothing is shown
) -> DownloadedFile:
    """Fetch a file over https; redirects may lead to https only.

    Certificates are checked against the system's authorities, or those of ``SSL_CERT_FILE``.

    Args:
        url: of the file.
        folder: where it is written, under the name that the URL ends with.
        sha256: 64 hex digits that its digest must be; None: any.
        max_bytes: largest size.
        on_bytes: called with the bytes so far, and with their total where the server tells it.

    Raises:
        DownloadError: no https, no answer, an answer that is an error or a web page, too many bytes, another
            digest, or no room. An unfinished file may lie in the folder.
    """
    if sha256 is not None and not _DIGEST.fullmatch(sha256):
        raise DownloadError(f"not a SHA-256 of 64 lower-case hex digits: {sha256!r}")
    target = folder / _file_name(url)
    try:
        with _opened(url) as response, target.open("wb") as file:
            _check_head(response, max_bytes)
            found, size = _copied(response, file, max_bytes, on_bytes)
    except (OSError, ValueError, http.client.HTTPException) as error:  # URLError and HTTPError are OSErrors
        raise DownloadError(f"{_shown(url)} cannot be fetched: {_reason(error)}") from error
    if sha256 is not None:
        check_digest(_shown(url), found, sha256)
    return DownloadedFile(target, _shown(url), found, size)


def check_digest(name: str, found: str, wanted: str) -> None:
    """Refuse a file of another digest.

    Raises:
        DownloadError: it has another one.
    """
    if found != wanted:
        raise DownloadError(f"{name} has the SHA-256 {found}, not {wanted}: it is another file")


class _OnlyHttps(urllib.request.HTTPRedirectHandler):
    """Follows redirects to https, and no others."""

    def redirect_request(  # noqa: PLR0917 - what urllib calls
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: Message,
        newurl: str,
    ) -> urllib.request.Request | None:
        _check_scheme(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)  # type: ignore[arg-type]


def _opened(url: str) -> http.client.HTTPResponse:
    _check_scheme(url)
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPSHandler(context=ssl.create_default_context()),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        _OnlyHttps(),
    ):
        opener.add_handler(handler)
    response: http.client.HTTPResponse = opener.open(url, timeout=TIMEOUT_S)
    return response


def _check_scheme(url: str) -> None:
    if urlsplit(url).scheme != "https":
        raise DownloadError(f"weights are fetched over https only, not from {_shown(url)}")


def _check_head(response: http.client.HTTPResponse, max_bytes: int) -> None:
    if response.headers.get_content_type() == "text/html":
        raise DownloadError("the server answered with a web page: give the address of the file itself")
    size = _declared(response)
    if size is not None and size > max_bytes:
        raise DownloadError(f"the file has {size} bytes, and at most {max_bytes} are allowed")


def _declared(response: http.client.HTTPResponse) -> int | None:
    length = response.headers.get("Content-Length", "")
    return int(length) if length.isdecimal() else None


def _copied(
    response: http.client.HTTPResponse,
    file: IO[bytes],
    max_bytes: int,
    on_bytes: Callable[[int, int | None], None],
) -> tuple[str, int]:
    digest, size, total = hashlib.sha256(), 0, _declared(response)
    while piece := response.read(_PIECE_BYTES):
        size += len(piece)
        if size > max_bytes:
            raise DownloadError(f"the file has more than the {max_bytes} bytes that are allowed")
        file.write(piece)
        digest.update(piece)
        on_bytes(size, total)
    if total is not None and size != total:
        raise DownloadError(f"the connection ended after {size} of {total} bytes")
    return digest.hexdigest(), size


def _file_name(url: str) -> str:
    name = PurePosixPath(unquote(urlsplit(url).path)).name
    return _NOT_IN_NAMES.sub("_", name).lstrip(".") or _FALLBACK_NAME


def _shown(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"the server answers {error.code} {error.reason}"
    told = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
    return str(told) or type(error).__name__
