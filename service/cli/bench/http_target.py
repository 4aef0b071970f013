"""A service to measure: one that runs already, or one that is started here, and the leanest client for it.

The client shares the machine with the service, so what it costs is missing from the figures: it writes bytes
that were made before, and reads of an answer's head the status and the length.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import typer

from service.cli.bench.load import RefusedError

_OK = 200
_STATUS = re.compile(rb"HTTP/1\.[01] (\d{3}) ")
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)
_URL = re.compile(r"https?://[^ /]+(?=/v1/segment)")
_GRPC_ADDRESS = re.compile(r"gRPC: ([^\s;]+)")
_ADMIN = re.compile(r"administration: ([^\s,]+), token in (.+)")
_READ_BYTES = 1 << 18
_STOP_S = 30.0
_ALONE = {
    "BISENET_SERVER__ADMIN_PORT": "0",
    "BISENET_SERVER__GRPC_PORT": "0",
    "BISENET_SERVER__LAME_DUCK_S": "0",
    "BISENET_JOBS__MODE": "off",
    "BISENET_LOG__LEVEL": "warning",
}
"""Settings of a service that nobody else uses; what a request's log line costs is not measured."""

_Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class HttpTarget:
    """Asks a service over as many connections as there are requests under way, and keeps them.

    Args:
        url: of the service, without a path.
        headers: of every request, such as ``Authorization``.

    Raises:
        typer.BadParameter: not such a URL.
    """

    def __init__(self, url: str, *, headers: Mapping[str, str] | None = None) -> None:
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname or parts.path.strip("/"):
            raise typer.BadParameter(f"not http://HOST:PORT: {url!r}")
        self._address = parts.hostname, parts.port or 80
        named = {"Host": parts.netloc, **(headers or {})}
        self._headers = "".join(f"{name}: {value}\r\n" for name, value in named.items()).encode()
        self._idle: list[_Connection] = []

    async def __aenter__(self) -> Self:
        """Return the target; connections are opened when they are needed."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close all connections."""
        for _, writer in self._idle:
            writer.close()

    async def segment(self, picture: bytes, path: str = "/v1/segment") -> bytes:
        """Have a picture answered.

        Returns:
            The body of the answer.

        Raises:
            RefusedError: the status is not 200, or the connection failed; the message is the problem's code.
        """
        return await self._request(b"POST " + path.encode(), picture)

    async def models(self) -> list[dict[str, Any]]:
        """Return what the service says it serves; the first one is the default.

        Raises:
            RefusedError: as for ``segment``.
        """
        models: list[dict[str, Any]] = json.loads(await self._request(b"GET /v1/models", b""))["models"]
        return models

    async def _request(self, line: bytes, body: bytes) -> bytes:
        head = b"%s HTTP/1.1\r\n%sContent-Length: %d\r\n\r\n" % (line, self._headers, len(body))
        try:
            status, content = await self._exchange(head, body)
        except (OSError, EOFError) as error:
            raise RefusedError(type(error).__name__) from error
        if status != _OK:
            raise RefusedError(_code(status, content))
        return content

    async def _exchange(self, head: bytes, body: bytes) -> tuple[int, bytes]:
        connection = self._open_one() or await self._connect()
        try:
            answer = await _exchange(connection, head, body)
        except BaseException:
            connection[1].close()
            raise
        self._idle.append(connection)
        return answer

    def _open_one(self) -> _Connection | None:
        """Return an idle connection that the service has not closed meanwhile."""
        while self._idle:
            reader, writer = self._idle.pop()
            if not reader.at_eof():
                return reader, writer
            writer.close()
        return None

    async def _connect(self) -> _Connection:
        return await asyncio.open_connection(*self._address, limit=_READ_BYTES)


async def _exchange(connection: _Connection, head: bytes, body: bytes) -> tuple[int, bytes]:
    reader, writer = connection
    writer.writelines([head, body])
    await writer.drain()
    head = await reader.readuntil(b"\r\n\r\n")
    status, length = _STATUS.match(head), _LENGTH.search(head)
    if status is None or length is None:
        raise ConnectionError("not an answer with a length")
    return int(status[1]), await reader.readexactly(int(length[1]))


def _code(status: int, content: bytes) -> str:
    try:
        return str(json.loads(content)["code"])
    except (ValueError, KeyError, TypeError):
        return str(status)


@dataclass(frozen=True)
class RunningService:
    """A service of our own: where it listens, what opens its admin port, and the id of its process."""

    url: str
    grpc_address: str
    admin_url: str
    admin_token_file: Path
    pid: int


@contextmanager
def started_service(arguments: Sequence[str]) -> Iterator[str]:
    """Run ``bisenet serve`` as long as the context lasts; yields its URL; see ``running_service``."""
    with running_service(arguments) as service:
        yield service.url


@contextmanager
def running_service(arguments: Sequence[str]) -> Iterator[RunningService]:
    """Run ``bisenet serve`` on free ports as long as the context lasts.

    Args:
        arguments: further flags.

    Raises:
        RefusedError: it does not start; it has said why on stderr.
    """
    command = [sys.executable, "-m", "service", "--http-port", "0", *arguments]
    with subprocess.Popen(  # noqa: S603 - our own program
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, **_ALONE}
    ) as process:
        try:
            assert process.stdout is not None
            ready = process.stdout.readline()
            url, address, admin = _URL.search(ready), _GRPC_ADDRESS.search(ready), _ADMIN.search(ready)
            if url is None or address is None or admin is None:
                raise RefusedError("it did not start")
            yield RunningService(url[0], address[1], admin[1], Path(admin[2]), process.pid)
        finally:
            process.terminate()
            _stopped(process)


def _stopped(process: subprocess.Popen[Any]) -> None:
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
