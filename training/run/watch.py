"""A server on loopback that shows a run while it goes on, from the files in its folder.

It reads what the run writes, so that it serves a run of this process, of another one, or of last week.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from training.errors import RunNotFoundError, WatchError
from training.run.record import LOG_FILE, SAMPLE_FOLDER, RunRecord
from training.run.report import EVALUATION_FILE, INDEX_FILE, REPORT_FILE, REPORT_FOLDER, render_run

HOST = "127.0.0.1"
REFRESH_MS = 5000

_SAMPLE = re.compile(r"/samples/([a-z0-9-]+\.(?:jpg|png))")
_MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".json": "application/json",
    ".jpg": "image/jpeg",
    ".png": "image/png",
}
_HEADERS = {
    "Content-Security-Policy": "frame-ancestors 'none'",  # the page names the rest itself
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


@dataclass(frozen=True)
class Answer:
    """The answer to a request.

    Attributes:
        content: its bytes.
        media_type: their type.
    """

    content: bytes
    media_type: str

    @property
    def etag(self) -> str:
        """Digest of the content, as HTTP writes it."""
        return f'"{hashlib.sha256(self.content).hexdigest()[:16]}"'


class RunSite:
    """The pages of a run. Safe to use from several threads.

    Args:
        folder: of the run; it may be made later.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._rendered: tuple[tuple[int, int], Answer] | None = None

    def answer(self, path: str) -> Answer | None:
        """Return the content of a path; None where there is none.

        Args:
            path: of a URL, without its query.
        """
        if path == "/":
            return self._index()
        if path in (f"/{EVALUATION_FILE}", f"/{REPORT_FILE}"):
            return _file(self._folder / REPORT_FOLDER / path[1:])
        sample = _SAMPLE.fullmatch(path)
        return _file(self._folder / SAMPLE_FOLDER / sample[1]) if sample else None

    def _index(self) -> Answer:
        """Return the report of a finished run, else the page of the log."""
        with self._lock:
            state = self._state()
            if self._rendered is None or self._rendered[0] != state:
                self._rendered = (state, self._drawn())
            return self._rendered[1]

    def _drawn(self) -> Answer:
        try:
            record = RunRecord.read(self._folder)
        except RunNotFoundError:
            record = RunRecord(self._folder.resolve().name, ())
        finished = _file(self._folder / REPORT_FOLDER / INDEX_FILE) if record.is_finished else None
        page = render_run(record, lambda name: f"{SAMPLE_FOLDER}/{name}", refresh_ms=REFRESH_MS)
        return finished or Answer(page.encode(), _MEDIA_TYPES[".html"])

    def _state(self) -> tuple[int, int]:
        """Return the size of the log and the time of the report: both change when the page does."""
        return _stat(self._folder / LOG_FILE)[0], _stat(self._folder / REPORT_FOLDER / INDEX_FILE)[1]


@contextmanager
def watched(folder: Path, port: int = 0) -> Iterator[str]:
    """Serve the page of a run on loopback until the context is left.

    Args:
        folder: of the run; it may be made later.
        port: 0 = any free one.

    Yields:
        The address of the page.

    Raises:
        WatchError: the port is taken.
    """
    site = RunSite(folder)
    try:
        server = _Server((HOST, port), site)
    except OSError as error:
        raise WatchError(
            f"port {port} cannot be opened ({error.strerror}); choose another one, or 0 for any free one"
        ) from error
    thread = threading.Thread(target=server.serve_forever, name="watch", daemon=True)
    thread.start()
    try:
        yield f"http://{HOST}:{server.server_port}/"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address: tuple[str, int], site: RunSite) -> None:
        super().__init__(address, _Handler)
        self.site = site


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = 30

    def do_GET(self) -> None:
        self._respond(with_content=True)

    def do_HEAD(self) -> None:
        self._respond(with_content=False)

    def log_message(self, *_: object) -> None:
        """Say nothing: stderr shows the run."""

    def _respond(self, *, with_content: bool) -> None:
        if not self._is_for_this_host():
            # Another site's name that leads here would give that site's pages this one's content.
            self.send_error(HTTPStatus.FORBIDDEN, "This page is for this machine only")
            return
        found = self.server.site.answer(self.path.partition("?")[0])
        if found is None:
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        is_known = self.headers.get("If-None-Match") == found.etag
        self.send_response(HTTPStatus.NOT_MODIFIED if is_known else HTTPStatus.OK)
        for name, value in {**_HEADERS, "ETag": found.etag}.items():
            self.send_header(name, value)
        if not is_known:
            self.send_header("Content-Type", found.media_type)
            self.send_header("Content-Length", str(len(found.content)))
        self.end_headers()
        if with_content and not is_known:
            self.wfile.write(found.content)

    def _is_for_this_host(self) -> bool:
        name = self.headers.get("Host", "").rpartition(":")[0] or self.headers.get("Host", "")
        return name in {"localhost", HOST}


def _file(path: Path) -> Answer | None:
    try:
        return Answer(path.read_bytes(), _MEDIA_TYPES[path.suffix])
    except OSError:
        return None


def _stat(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except OSError:
        return 0, 0
    return found.st_size, found.st_mtime_ns
