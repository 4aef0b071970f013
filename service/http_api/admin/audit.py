"""Who changed what over the admin port: two lines for each action, in a file that is only appended to.

``asked`` is on the disk before the action begins, ``done`` after it: with what the action found, what it
left, and the status of its answer. An action whose first line cannot be written is refused (507
``storage_full``, or 503 ``busy`` for another failure of the file) and changes nothing. If the second one
cannot be written, the action stands, and the service log has its line as an error. Inference writes none.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import errno
import json
import os
import threading
from collections.abc import Mapping
from io import FileIO
from pathlib import Path
from typing import Any

import structlog
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.core.errors import BusyError, ServiceError, StorageFullError
from service.http_api.exchange import Exchange
from service.http_api.problems import problem

_log = structlog.get_logger()

_STATE_KEY = "audited_change"
_READING = ("GET", "HEAD")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

Entry = Mapping[str, Any]


class AuditLog:
    """Appends JSON lines to a file; thread-safe. The file may be moved away at any time.

    Args:
        path: of the file, made (0600) where there is none; None = lines of the service log.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._lock = threading.Lock()

    def write(self, entry: Entry) -> None:
        """Append one line; it survives a loss of power once this returns.

        Raises:
            StorageFullError: there is no room; the file is what it was.
            BusyError: the file cannot be written for another reason.
        """
        if self._path is None:
            _log.info("audit", **entry)
            return
        line = json.dumps(entry, separators=(",", ":")).encode() + b"\n"
        try:
            with self._lock:
                _append(self._path, line)
        except OSError as error:
            _log.error("audit log cannot be written", path=str(self._path), reason=error.strerror)
            if error.errno in _FULL:
                raise StorageFullError("the audit log has no room, so that nothing was changed") from error
            raise BusyError("the audit log cannot be written, so that nothing was changed") from error


def _append(path: Path, line: bytes) -> None:
    with open(path, "ab", buffering=0, opener=_private) as file:
        size = os.fstat(file.fileno()).st_size
        try:
            _write_whole(file, line)
            os.fsync(file.fileno())
        except OSError:
            with contextlib.suppress(OSError):  # which would hide the reason
                file.truncate(size)  # no half line
            raise


def _write_whole(file: FileIO, line: bytes) -> None:
    if file.write(line) != len(line):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def note_change(request: Request, *, before: object, after: object) -> None:
    """Say what an action changed, for its line in the audit log.

    Args:
        request: that asked for it.
        before: what was there; plain JSON.
        after: what is there now; plain JSON.
    """
    request.scope["state"][_STATE_KEY] = {"before": before, "after": after}


class AuditTrail:
    """Writes the lines of every request that is no mere reading.

    Args:
        app: carries the actions out.
        log: where the lines go.
    """

    def __init__(self, app: ASGIApp, log: AuditLog) -> None:
        self._app = app
        self._log = log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http" or scope["method"] in _READING:
            await self._app(scope, receive, send)
            return
        exchange = Exchange.of(scope)
        action = _action(scope, exchange)
        try:
            await asyncio.to_thread(self._log.write, {"phase": "asked", **action})
        except ServiceError as refusal:
            await problem(refusal, exchange)(scope, receive, send)
            return
        status: int | None = None

        async def send_watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, send_watched)
        finally:
            change = scope["state"].get(_STATE_KEY, {})
            answer = {"time": _now(), "status": status, "code": exchange.code}
            await self._finish({"phase": "done", **action, **answer, **change})

    async def _finish(self, entry: Entry) -> None:
        try:
            await asyncio.to_thread(self._log.write, entry)
        except ServiceError:
            _log.error("audit line lost", **entry)


def _action(scope: Scope, exchange: Exchange) -> dict[str, Any]:
    client = scope.get("client")
    return {
        "time": _now(),
        "request_id": exchange.request_id,
        "who": None if exchange.key is None else exchange.key.name,
        "client": None if client is None else client[0],
        "method": scope["method"],
        "path": scope["path"],
    }


def _now() -> str:
    return dt.datetime.now(dt.UTC).isoformat(timespec="milliseconds")
