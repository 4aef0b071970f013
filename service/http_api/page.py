"""``GET /`` of both ports: the pages for people, from the files below ``service/page``."""

from __future__ import annotations

import gzip
import hashlib
import mimetypes
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable

from fastapi import APIRouter, Request, Response

FOLDERS = {"": "static", "examples/": "examples", "thumbnails/": "thumbnails"}
"""Prefix of the path below ``/page/`` -> folder of ``service/page``."""

ADMIN_FOLDERS = {"": "static", "admin/": "admin"}
"""The same on the admin port; its first page is ``admin/index.html``."""

_SECURITY = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
        "media-src 'self' blob:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
}
_COMPRESSED = ("text/", "image/svg")


@dataclass(frozen=True)
class _StaticFile:
    content: bytes
    media_type: str
    etag: str
    gzipped: bytes | None

    @classmethod
    def of(cls, name: str, content: bytes) -> _StaticFile:
        media_type = mimetypes.guess_type(name)[0] or "application/octet-stream"
        etag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
        is_text = media_type.startswith(_COMPRESSED)
        return cls(content, media_type, etag, gzip.compress(content, 9, mtime=0) if is_text else None)

    def answer(self, request: Request) -> Response:
        headers = {**_SECURITY, "ETag": self.etag, "Cache-Control": "no-cache", "Vary": "Accept-Encoding"}
        if request.headers.get("if-none-match") == self.etag:
            return Response(status_code=304, headers=headers)
        if self.gzipped is not None and "gzip" in request.headers.get("accept-encoding", ""):
            return Response(
                self.gzipped, media_type=self.media_type, headers={**headers, "Content-Encoding": "gzip"}
            )
        return Response(self.content, media_type=self.media_type, headers=headers)


class Page:
    """The files of a page under the paths that serve them.

    Args:
        folders: prefix of the path below ``/page/`` -> folder of ``service/page``.
        index: the file that ``/`` serves, below ``/page/``.
    """

    def __init__(self, folders: Mapping[str, str] = FOLDERS, index: str = "index.html") -> None:
        found = {
            f"/page/{prefix}{file.name}": _StaticFile.of(file.name, file.read_bytes())
            for prefix, folder in folders.items()
            for file in _files_of(folder)
        }
        self._files = {"/": found.pop(f"/page/{index}"), **found}

    @property
    def paths(self) -> frozenset[str]:
        """All paths of the page. Their content needs no key."""
        return frozenset(self._files)

    def router(self) -> APIRouter:
        """Return the routes of the page."""
        router = APIRouter(include_in_schema=False)
        for path, file in self._files.items():
            router.add_api_route(path, _endpoint(file), methods=["GET", "HEAD"])
        return router


def _endpoint(file: _StaticFile) -> Callable[[Request], Awaitable[Response]]:
    async def static_file(request: Request) -> Response:
        return file.answer(request)

    return static_file


def _files_of(folder: str) -> list[Traversable]:
    found = files("service.page") / folder
    return [entry for entry in found.iterdir() if entry.is_file()] if found.is_dir() else []
