"""A proxy for gRPC that breaks its connections as nginx, HAProxy, Envoy and load balancers do."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

from http2_bytes import DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PREFACE, RST_STREAM, frame, literal

_HEAD = 9


@dataclass(frozen=True)
class Break:
    """One way to break a stream.

    Args:
        after: frames with data that the client gets from the service before that.
        injected: bytes that the proxy sends to the client instead of the next one, for a stream.
        closes: the proxy then closes the connection.
    """

    after: int
    injected: Callable[[int], bytes]
    closes: bool


def reset(code: int, *, after: int = 7) -> Break:
    """RST_STREAM with an error code (RFC 9113, 7)."""
    return Break(after, lambda stream: frame(RST_STREAM, 0, stream, struct.pack(">I", code)), closes=False)


def go_away(code: int, *, after: int = 7) -> Break:
    """GOAWAY for all streams, then the end of the connection."""
    return Break(after, lambda _: frame(GOAWAY, 0, 0, struct.pack(">II", 0, code)), closes=True)


def hang_up(*, after: int = 7) -> Break:
    """The end of the connection without a word."""
    return Break(after, lambda _: b"", closes=True)


def http_error(status: int) -> Break:
    """An error page in the place of the service's answer."""
    fields = literal(b":status", b"%d" % status) + literal(b"content-type", b"text/html")

    def page(stream: int) -> bytes:
        head = frame(HEADERS, END_HEADERS, stream, fields)
        return head + frame(DATA, END_STREAM, stream, b"<html>Bad Gateway</html>")

    return Break(0, page, closes=False)


@asynccontextmanager
async def breaking_proxy(address: str, *breaks: Break) -> AsyncIterator[str]:
    """Stand before a service; yields the address for clients.

    Each of the first streams is broken in one of the given ways; all others reach the service.
    """
    host, _, port = address.rpartition(":")
    left = list(breaks)
    relays: set[asyncio.Task[None]] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        service = await asyncio.open_connection(host, int(port))
        relay = asyncio.create_task(_Relay(left, (reader, writer), service).run())
        relays.add(relay)
        relay.add_done_callback(relays.discard)

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for relay in relays:
            relay.cancel()
        await asyncio.gather(*relays, return_exceptions=True)


_Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class _Relay:
    """One connection of a client: HTTP/2 frames are passed on whole, so that others fit between them."""

    def __init__(self, breaks: list[Break], client: _Connection, service: _Connection) -> None:
        self._breaks = breaks
        self._from_client, self._to_client = client
        self._from_service, self._to_service = service
        self._broken: set[int] = set()
        self._passed: dict[int, int] = {}

    async def run(self) -> None:
        tasks: list[asyncio.Task[None]] = []
        try:
            self._to_service.write(await self._from_client.readexactly(len(PREFACE)))
            tasks = [asyncio.create_task(self._upwards()), asyncio.create_task(self._downwards())]
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for writer in (self._to_client, self._to_service):
                writer.close()
                with suppress(ConnectionError):
                    await writer.wait_closed()

    async def _upwards(self) -> None:
        while True:
            kind, stream, whole = await _frame_of(self._from_client)
            if stream not in self._broken:
                self._to_service.write(whole)  # the headers of a broken call, too: they change HPACK's table
                await self._to_service.drain()
            if kind == HEADERS and self._breaks and self._breaks[0].after == 0 and self._break(stream):
                return

    async def _downwards(self) -> None:
        while True:
            kind, stream, whole = await _frame_of(self._from_service)
            if kind == DATA and stream not in self._broken:
                self._passed[stream] = self._passed.get(stream, 0) + 1
                if self._breaks and self._passed[stream] > self._breaks[0].after and self._break(stream):
                    return
            if stream not in self._broken:
                self._to_client.write(whole)
                await self._to_client.drain()

    def _break(self, stream: int) -> bool:
        """Break a stream; return whether the connection ends with it."""
        way = self._breaks.pop(0)
        self._broken.add(stream)
        self._to_client.write(way.injected(stream))
        self._to_service.write(frame(RST_STREAM, 0, stream, struct.pack(">I", 8)))
        return way.closes


async def _frame_of(reader: asyncio.StreamReader) -> tuple[int, int, bytes]:
    head = await reader.readexactly(_HEAD)
    length, kind, stream = int.from_bytes(head[:3]), head[3], int.from_bytes(head[5:])
    return kind, stream, head + await reader.readexactly(length)
