"""A small HTTP client for measurements.

It shares the machine with the service, so its own cost must be small: it writes bytes that were made before,
and of an answer's head it reads the status, the length and the times of the stages.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import typer

from service.cli.bench.load import RefusedError

_OK = 200
_STATUS = re.compile(rb"HTTP/1\.[01] (\d{3}) ")
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)
_TIMING = re.compile(rb"\r\nserver-timing: *([^\r]+)", re.IGNORECASE)
_STAGE = re.compile(r"(\w+);dur=([0-9.e+-]+)")
_READ_BYTES = 1 << 18

_Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass(frozen=True)
class HttpAnswer:
    """One answer.

    Attributes:
        status: of HTTP.
        head: its bytes.
        body: its bytes.
    """

    status: int
    head: bytes
    body: bytes

    @property
    def stages_ms(self) -> dict[str, float]:
        """Milliseconds of each stage, from the header ``Server-Timing``; empty without it."""
        timing = _TIMING.search(self.head)
        return {} if timing is None else {name: float(ms) for name, ms in _STAGE.findall(timing[1].decode())}


class HttpTarget:
    """Sends pictures to a service; each request that is under way has a connection, which is kept.

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
        """Return the target; each connection is opened at its first use."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close all connections."""
        for _, writer in self._idle:
            writer.close()

    async def segment(self, picture: bytes, path: str = "/v1/segment") -> HttpAnswer:
        """Post a picture.

        Args:
            picture: bytes of its file.
            path: with the query, if any.

        Raises:
            RefusedError: the status is not 200, or the connection failed; the message is the problem's code.
        """
        return await self._request(b"POST " + path.encode(), picture)

    async def models(self) -> list[dict[str, Any]]:
        """Return the documents of the served models; the first one is the default.

        Raises:
            RefusedError: the status is not 200, or the connection failed; the message is the problem's code.
        """
        answer = await self._request(b"GET /v1/models", b"")
        models: list[dict[str, Any]] = json.loads(answer.body)["models"]
        return models

    async def _request(self, line: bytes, body: bytes) -> HttpAnswer:
        head = b"%s HTTP/1.1\r\n%sContent-Length: %d\r\n\r\n" % (line, self._headers, len(body))
        try:
            answer = await self._exchange(head, body)
        except (OSError, EOFError) as error:
            raise RefusedError(type(error).__name__) from error
        if answer.status != _OK:
            raise RefusedError(_code(answer))
        return answer

    async def _exchange(self, head: bytes, body: bytes) -> HttpAnswer:
        connection = self._idle_connection() or await self._connect()
        try:
            answer = await _exchange(connection, head, body)
        except BaseException:
            connection[1].close()
            raise
        self._idle.append(connection)
        return answer

    def _idle_connection(self) -> _Connection | None:
        """Return an idle connection that the service has not closed meanwhile."""
        while self._idle:
            reader, writer = self._idle.pop()
            if not reader.at_eof():
                return reader, writer
            writer.close()
        return None

    async def _connect(self) -> _Connection:
        return await asyncio.open_connection(*self._address, limit=_READ_BYTES)


async def _exchange(connection: _Connection, head: bytes, body: bytes) -> HttpAnswer:
    reader, writer = connection
    writer.writelines([head, body])
    await writer.drain()
    head = await reader.readuntil(b"\r\n\r\n")
    status, length = _STATUS.match(head), _LENGTH.search(head)
    if status is None or length is None:
        raise ConnectionError("not an answer with a length")
    return HttpAnswer(int(status[1]), head, await reader.readexactly(int(length[1])))


def _code(answer: HttpAnswer) -> str:
    try:
        return str(json.loads(answer.body)["code"])
    except (ValueError, KeyError, TypeError):
        return str(answer.status)
