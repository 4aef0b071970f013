"""What goes wrong on a connection before an application could see it, over real sockets."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress

import numpy as np
import pytest
from fakes import PATIENCE_S, FakeEngine
from http_site import Site, encoded, open_site

from service.http_api.app import HttpOptions
from service.http_api.connection import protocol
from service.http_api.connection.connection_limits import ConnectionLimits
from service.http_api.connection.protocol import GuardedConfig, GuardedProtocol
from service.http_api.connection.server import HttpServer, listen
from service.http_api.segment.body import BodyLimits
from service.http_api.segment.intake import SegmentOptions

PICTURE = encoded(np.zeros((32, 32, 3), np.uint8))
HOST = b"Host: localhost\r\n"
POST = b"POST /v1/segment HTTP/1.1\r\n" + HOST
LIVE = b"GET /livez HTTP/1.1\r\n" + HOST
H2C = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n"
MIB = 1 << 20


class Wire:
    """A server and how to talk to it."""

    def __init__(self, site: Site, server: HttpServer, port: int) -> None:
        self.site = site
        self.port = port
        self._server = server

    @property
    def connections(self) -> set[GuardedProtocol]:
        return {one for one in self._server.server_state.connections if isinstance(one, GuardedProtocol)}

    @property
    def idle(self) -> dict[GuardedProtocol, float]:
        config = self._server.config
        assert isinstance(config, GuardedConfig)
        return config.idle

    async def until_nothing_is_answered(self) -> None:
        await asyncio.gather(*self._server.server_state.tasks)

    async def until_all_are_disconnected(self) -> None:
        given_up_s = time.monotonic() + PATIENCE_S
        while self._server.server_state.connections:  # no event says so
            assert time.monotonic() < given_up_s, "somebody is still connected"
            await asyncio.sleep(0.01)

    async def ask(self, *pieces: bytes, until_closed: bool = True) -> list[int]:
        """Send pieces, read to the end, return the statuses of all answers."""
        return statuses(await self.converse(*pieces, until_closed=until_closed))

    async def converse(self, *pieces: bytes, until_closed: bool = True) -> bytes:
        async with asyncio.timeout(PATIENCE_S):
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
            try:
                for piece in pieces:
                    writer.write(piece)
                    await writer.drain()
                return await (reader.read() if until_closed else reader.readuntil(b"\r\n\r\n"))
            finally:
                writer.close()


def statuses(answers: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1\.1 ([0-9]{3}) ", answers)]


@asynccontextmanager
async def serving(
    engine: FakeEngine | None = None,
    limits: ConnectionLimits | None = None,
    options: HttpOptions | None = None,
) -> AsyncIterator[Wire]:
    async with open_site(engine, options=options) as site:
        with listen("127.0.0.1", 0) as listener:
            port = listener.getsockname()[1]
            server = HttpServer(
                site.app, listener, grace_s=1, limits=limits or ConnectionLimits(), metrics=site.metrics
            )
            running = asyncio.create_task(server.answer())
            yield Wire(site, server, port)
            server.stop()
            await running


@pytest.fixture
async def wire() -> AsyncIterator[Wire]:
    async with serving() as wire:
        yield wire


def with_length(head: bytes, body: bytes, *, close: bool = True) -> bytes:
    closing = b"Connection: close\r\n" if close else b""
    return head + closing + b"Content-Length: %d\r\n\r\n" % len(body) + body


def chunked(*chunks: bytes, extension: bytes = b"") -> bytes:
    return b"".join(b"%x%b\r\n%b\r\n" % (len(chunk), extension, chunk) for chunk in chunks)


MALFORMED = {
    "tls": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),
    "http2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "http3": b"GET / HTTP/3.1\r\n" + HOST + b"\r\n",
    "bare line feeds": b"GET /livez HTTP/1.1\nHost: localhost\n\n",
    "no method": b" / HTTP/1.1\r\n\r\n",
    "unknown method": b"SEGMENT / HTTP/1.1\r\n\r\n",
    "space in target": b"GET /a b HTTP/1.1\r\n\r\n",
    "bytes in target": b"GET /\xff\xfe HTTP/1.1\r\n" + HOST + b"\r\n",
    "no path": b"GET http://localhost HTTP/1.1\r\n" + HOST + b"\r\n",
    "tunnel": b"CONNECT localhost:22 HTTP/1.1\r\n" + HOST + b"\r\n",
    "tunnel with upgrade": b"CONNECT localhost:22 HTTP/1.1\r\n" + HOST + H2C + b"\r\n",
    "nul in header": LIVE + b"X: a\0b\r\n\r\n",
    "carriage return in header": LIVE + b"X: a\rb\r\n\r\n",
    "folded header": LIVE + b"X: a\r\n b\r\n\r\n",
    "space before colon": LIVE + b"X : a\r\n\r\n",
    "no colon": LIVE + b"X\r\n\r\n",
    "empty name": LIVE + b": x\r\n\r\n",
    "two lengths": POST + b"Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
    "list of lengths": POST + b"Content-Length: 3, 3\r\n\r\nabc",
    "negative length": POST + b"Content-Length: -1\r\n\r\n",
    "signed length": POST + b"Content-Length: +3\r\n\r\nabc",
    "endless length": POST + b"Content-Length: " + b"9" * 40 + b"\r\n\r\n",
    "length and chunks": POST + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks and length": POST + b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n",
    "chunks twice": POST + b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
    "unknown coding": POST + b"Transfer-Encoding: cow\r\n\r\n",
    "chunk without end": POST + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabcXX0\r\n\r\n",
    "chunk of letters": POST + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n",
    "endless chunk": POST + b"Transfer-Encoding: chunked\r\n\r\n" + b"f" * 20 + b"\r\n",
    "negative chunk": POST + b"Transfer-Encoding: chunked\r\n\r\n-1\r\n",
    "chunk with bare line feed": POST + b"Transfer-Encoding: chunked\r\n\r\n3\nabc\r\n0\r\n\r\n",
}


@pytest.mark.parametrize("request_bytes", MALFORMED.values(), ids=MALFORMED.keys())
async def test_what_is_no_request_is_answered_with_400_and_the_connection_closed(
    wire: Wire, request_bytes: bytes
) -> None:
    head, _, body = (await wire.converse(request_bytes)).partition(b"\r\n\r\n")
    assert statuses(head) == [400]
    assert b"content-type: application/problem+json" in head
    problem = json.loads(body)
    assert (problem["status"], problem["code"]) == (400, "invalid_argument")
    assert b"x-request-id: " + problem["request_id"].encode() in head
    assert await wire.ask(LIVE + b"Connection: close\r\n\r\n") == [200]


def endlessly(piece: bytes) -> Iterator[bytes]:
    """Give 16 times what the service may keep; reads of 256 KiB are as exact as it can be."""
    yield from [piece * (protocol.MAX_HEAD_BYTES // len(piece))] * 16


OVERSIZED = {
    "target": (414, b"GET /", b"a"),
    "query": (414, b"GET /livez?", b"a=1&"),
    "header value": (431, LIVE + b"X: ", b"a"),
    "header name": (431, LIVE, b"X"),
    "headers": (431, LIVE, b"X: a\r\n"),
    "large headers": (431, LIVE, b"X: " + b"a" * 1000 + b"\r\n"),
    "chunk extension": (431, POST + b"Transfer-Encoding: chunked\r\n\r\n3;", b"a=b;"),
    "trailer": (431, POST + b"Transfer-Encoding: chunked\r\n\r\n0\r\n", b"X: a\r\n"),
    "trailer value": (431, POST + b"Transfer-Encoding: chunked\r\n\r\n0\r\nX: ", b"a"),
    "empty lines": (431, b"", b"\r\n"),
}


@pytest.mark.parametrize(("status", "start", "piece"), OVERSIZED.values(), ids=OVERSIZED.keys())
async def test_what_comes_endlessly_is_cut_off(wire: Wire, status: int, start: bytes, piece: bytes) -> None:
    with suppress(ConnectionError):  # it was cut off while it still sent, and the answer is lost
        assert await wire.ask(start, *endlessly(piece)) == [status]
    assert await wire.ask(LIVE + b"Connection: close\r\n\r\n") == [200]


async def test_what_no_application_gets_to_see_is_counted_all_the_same(wire: Wire) -> None:
    assert await wire.ask(b"GET /" + b"a" * 2 * protocol.MAX_TARGET_BYTES) == [414]
    assert await wire.ask(MALFORMED["no colon"]) == [400]
    counted = 'bisenet_requests_total{code="invalid_argument",model="",protocol="http",route="unmatched"'
    assert re.search(rf"{re.escape(counted)}.*}} 2\.0", wire.site.metrics.exposition()[0].decode())


async def test_a_head_may_have_a_hundred_fields(wire: Wire) -> None:
    for fields, status in ((98, 200), (99, 431)):
        assert await wire.ask(LIVE + b"Connection: close\r\n" + b"X: a\r\n" * fields + b"\r\n") == [status]


@pytest.mark.parametrize("framing", ["length", "chunks"])
async def test_a_request_that_asks_for_http2_is_answered_in_http1_with_its_body(
    wire: Wire, framing: str
) -> None:
    if framing == "length":
        first = with_length(POST + H2C, PICTURE, close=False)
    else:
        first = POST + H2C + b"Transfer-Encoding: chunked\r\n\r\n" + chunked(PICTURE[:9], PICTURE[9:], b"")
    answers = await wire.converse(first, LIVE + b"Connection: close\r\n\r\n")
    assert statuses(answers) == [200, 200]
    assert b"\x89PNG" in answers


async def test_the_body_of_an_upgrade_is_not_taken_for_a_request(wire: Wire) -> None:
    smuggled = LIVE + b"\r\n"
    answers = await wire.ask(with_length(POST + H2C, smuggled))
    assert answers == [415]


async def test_a_body_in_chunks_may_have_extensions_and_trailers(wire: Wire) -> None:
    body = chunked(PICTURE[:9], PICTURE[9:], extension=b";a=b")
    request = POST + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n" + body + b"0\r\nX: a\r\n\r\n"
    assert await wire.ask(request) == [200]


async def test_a_trailer_changes_nothing(wire: Wire) -> None:
    body = chunked(PICTURE) + b"0\r\nX-Request-Timeout-Ms: none\r\nAccept: text/html\r\n\r\n"
    request = POST + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert await wire.ask(request, body) == [200]


@pytest.mark.guarantee("G17")
async def test_a_body_in_absurdly_many_pieces_is_refused(wire: Wire) -> None:
    pieces = chunked(*[b"a"] * (protocol.MAX_BODY_PIECES + 1))
    assert await wire.ask(POST + b"Transfer-Encoding: chunked\r\n\r\n", pieces) == [400]


async def test_a_body_that_goes_on_after_the_answer_is_cut_off(wire: Wire) -> None:
    request = POST + b"Content-Length: 99999999999\r\n\r\n"
    with suppress(ConnectionError):
        assert await wire.ask(request, *[bytes(MIB)] * (protocol.MAX_UNWANTED_BYTES // MIB + 1)) == [413]


async def test_an_answer_reaches_a_client_that_is_still_sending(wire: Wire) -> None:
    async with asyncio.timeout(PATIENCE_S):
        reader, writer = await asyncio.open_connection("127.0.0.1", wire.port)
        writer.write(LIVE + b"X" * protocol.MAX_HEAD_BYTES + b"X" * 4 * MIB)
        assert statuses(await reader.readuntil(b"\r\n\r\n")) == [431]
        writer.close()


async def test_expectations_are_met_or_read_over(wire: Wire) -> None:
    request = with_length(POST + b"Expect: 100-continue\r\n", PICTURE)
    assert await wire.ask(request) == [100, 200]
    assert await wire.ask(with_length(POST + b"Expect: cows\r\n", PICTURE)) == [200]


async def test_a_length_may_begin_with_zeros(wire: Wire) -> None:
    zeros = b"0" * 5000
    request = POST + b"Connection: close\r\nContent-Length: " + zeros + b"%d\r\n\r\n" % len(PICTURE)
    assert await wire.ask(request + PICTURE) == [200]


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET /livez HTTP/1.0\r\n\r\n", 200),
        (b"GET /livez HTTP/1.0\r\n" + HOST + b"\r\n", 200),
        (b"GET http://evil.example/livez HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n", 200),
        (b"GET /livez HTTP/1.1\r\nConnection: close\r\n\r\n", 400),
        (b"GET /livez HTTP/1.1\r\nHost: localhost/livez?\r\nConnection: close\r\n\r\n", 400),
        (b"GET /ui/../../etc/passwd HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n", 404),
        (b"GET /livez%00 HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n", 400),
        (b"OPTIONS * HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n", 404),
        (b"OPTIONS /v1/segment HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n", 405),
        (b"HEAD /v1/segment HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n", 405),
        (b"TRACE /livez HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n", 405),
    ],
)
async def test_odd_requests_are_answered(wire: Wire, request_bytes: bytes, status: int) -> None:
    assert await wire.ask(request_bytes) == [status]


async def test_requests_in_a_row_are_answered_in_a_row(wire: Wire) -> None:
    request = with_length(POST, PICTURE, close=False)
    assert await wire.ask(request * 3 + LIVE + b"Connection: close\r\n\r\n") == [200] * 4


@pytest.mark.parametrize("upgrade", [b"", H2C], ids=["plain", "upgrades"])
async def test_of_endlessly_many_requests_in_a_row_a_few_are_kept_and_answered(upgrade: bytes) -> None:
    engine = FakeEngine(held=True)
    flood = (LIVE + upgrade + b"\r\n") * 1500
    async with serving(engine) as wire:
        answers = asyncio.create_task(wire.converse(with_length(POST, PICTURE, close=False), flood))
        await asyncio.to_thread(engine.wait_until_busy)
        (connection,) = wire.connections
        while not connection.pipeline:  # noqa: ASYNC110 - nothing tells when it has read them
            await asyncio.sleep(0)
        assert len(connection.pipeline) <= protocol.MAX_PIPELINED
        engine.go_on()
        assert statuses(await answers) == [200] * (1 + protocol.MAX_PIPELINED)


async def test_requests_that_wait_are_not_received_without_end() -> None:
    engine = FakeEngine(held=True)
    head = POST + b"X: " + b"a" * 50_000 + b"\r\n"
    async with serving(engine) as wire:
        _, writer = await asyncio.open_connection("127.0.0.1", wire.port)
        writer.write(with_length(POST, PICTURE, close=False))
        await asyncio.to_thread(engine.wait_until_busy)
        (connection,) = wire.connections
        for _ in range(protocol.MAX_PIPELINED):
            writer.write(with_length(head, PICTURE, close=False))
        while not connection.flow.read_paused:  # noqa: ASYNC110 - nothing tells when it has read enough
            await asyncio.sleep(0)
        assert (
            sum(len(value) for cycle, _ in connection.pipeline for _, value in cycle.scope["headers"])
            < 0.5 * MIB
        )
        engine.go_on(1 + protocol.MAX_PIPELINED)
        writer.write(LIVE + b"Connection: close\r\n\r\n")
        writer.close()


async def test_who_leaves_is_missed_although_another_request_of_his_waits() -> None:
    engine = FakeEngine(held=True)
    async with serving(engine) as wire:
        _, writer = await asyncio.open_connection("127.0.0.1", wire.port)
        writer.write(with_length(POST, PICTURE, close=False))
        await asyncio.to_thread(engine.wait_until_busy)
        (connection,) = wire.connections
        writer.write(LIVE + b"\r\n")
        while not connection.pipeline:  # noqa: ASYNC110 - nothing tells when it has read it
            await asyncio.sleep(0)
        writer.close()
        await wire.until_all_are_disconnected()
        await asyncio.wait_for(wire.until_nothing_is_answered(), PATIENCE_S)
        engine.go_on()


async def test_an_answer_that_is_on_its_way_is_not_disturbed_by_what_follows() -> None:
    engine = FakeEngine(held=True)
    async with serving(engine) as wire:
        answers = asyncio.create_task(
            wire.converse(with_length(POST, PICTURE, close=False) + b"\0 this is no request\r\n\r\n")
        )
        await asyncio.to_thread(engine.wait_until_busy)
        engine.go_on()
        head, _, body = (await answers).partition(b"\r\n\r\n")
        assert statuses(head) == [200]
        assert b"connection: close" in head
        assert body.startswith(b"\x89PNG")
        assert body.endswith(b"IEND\xaeB`\x82")


async def test_a_client_that_leaves_in_the_middle_of_a_body_disturbs_no_other(wire: Wire) -> None:
    for cut in (1, 20, len(PICTURE) - 1):
        _, writer = await asyncio.open_connection("127.0.0.1", wire.port)
        writer.write(with_length(POST, PICTURE)[: -len(PICTURE) + cut])
        await writer.drain()
        writer.transport.abort()
    assert await wire.ask(with_length(POST, PICTURE)) == [200]


async def test_a_head_that_comes_byte_by_byte_is_understood(wire: Wire) -> None:
    request = LIVE + b"Connection: close\r\n\r\n"
    assert await wire.ask(*(request[i : i + 1] for i in range(len(request)))) == [200]


# --- clients that take their time -------------------------------------------------------------------------

HASTY = ConnectionLimits(
    head_timeout_s=1.0, idle_timeout_s=1.0, rest_timeout_s=0.4, stall_timeout_s=0.2, write_timeout_s=1.0
)


@pytest.fixture
async def hasty() -> AsyncIterator[Wire]:
    async with serving(limits=HASTY) as wire:
        yield wire


@pytest.mark.parametrize("start", [LIVE, b"\r\n", b"G", POST + b"Upgrade: h2c\r\n"])
async def test_a_head_that_does_not_end_is_answered_with_408_and_cut_off(hasty: Wire, start: bytes) -> None:
    assert await hasty.ask(start) == [408]


async def test_who_is_too_slow_is_told_by_which_setting(hasty: Wire) -> None:
    assert b"limits.head_timeout_s" in await hasty.converse(LIVE)


async def test_a_probe_of_http_1_0_needs_no_host(wire: Wire) -> None:
    answer = await wire.converse(b"GET /healthz HTTP/1.0\r\n\r\n")
    assert statuses(answer) == [200]


async def test_a_head_that_trickles_is_cut_off_too(hasty: Wire) -> None:
    async with asyncio.timeout(PATIENCE_S):
        reader, writer = await asyncio.open_connection("127.0.0.1", hasty.port)
        writer.write(LIVE)
        assert statuses(await trickle(b"X: a\r\n", reader, writer)) in ([408], [])


async def test_who_connects_and_says_nothing_is_left_without_a_word(hasty: Wire) -> None:
    assert await hasty.converse() == b""


@pytest.mark.parametrize("chatter", [b"", b"\r\n"])
async def test_an_idle_connection_is_closed_whatever_trickles_in(hasty: Wire, chatter: bytes) -> None:
    async with asyncio.timeout(PATIENCE_S):
        reader, writer = await asyncio.open_connection("127.0.0.1", hasty.port)
        writer.write(LIVE + b"\r\n")
        assert statuses(await reader.readuntil(b'"live"}')) == [200]
        await trickle(chatter, reader, writer)


async def trickle(piece: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
    """Send a piece again and again until the server closes; return what it said."""
    answer = asyncio.create_task(reader.read())
    while not answer.done():
        writer.write(piece)
        await asyncio.wait([answer], timeout=0.02)
    writer.close()
    with suppress(ConnectionError):  # it was cut off while it still sent
        return answer.result()
    return b""


async def test_the_second_head_on_a_connection_has_a_deadline_as_well(hasty: Wire) -> None:
    assert await hasty.ask(LIVE + b"\r\n" + LIVE) == [200, 408]


async def test_a_body_that_trickles_is_answered_with_408_and_cut_off() -> None:
    body = BodyLimits(receive_timeout_s=0.4)
    async with (
        serving(options=HttpOptions(segment=SegmentOptions(body=body))) as wire,
        asyncio.timeout(PATIENCE_S),
    ):
        reader, writer = await asyncio.open_connection("127.0.0.1", wire.port)
        writer.write(POST + b"Content-Length: 1000000\r\n\r\n")
        answer = await trickle(b"a", reader, writer)
        assert statuses(answer) in ([408], [])
        assert b"connection: close" in answer or not answer
        await wire.until_all_are_disconnected()
        text = wire.site.metrics.exposition()[0].decode()
        assert 'bisenet_expired_total{stage="receive"} 1.0' in text


async def test_the_rest_of_a_refused_body_may_not_trickle_for_ever() -> None:
    limits = ConnectionLimits(rest_timeout_s=0.4)
    async with serving(limits=limits) as wire, asyncio.timeout(PATIENCE_S):
        reader, writer = await asyncio.open_connection("127.0.0.1", wire.port)
        writer.write(POST + b"Content-Length: 99999999999\r\n\r\n")
        assert statuses(await reader.readuntil(b"}")) == [413]
        await trickle(b"a", reader, writer)


async def test_a_connection_whose_refused_body_has_come_to_its_end_is_idle() -> None:
    limits = ConnectionLimits(rest_timeout_s=0.2)
    async with serving(limits=limits) as wire, asyncio.timeout(PATIENCE_S):
        reader, writer = await asyncio.open_connection("127.0.0.1", wire.port)
        writer.write(POST + b"Content-Encoding: gzip\r\nContent-Length: 4\r\n\r\n")
        assert statuses(await reader.readuntil(b"}")) == [415]
        writer.write(b"rest")
        await asyncio.sleep(2 * limits.rest_timeout_s)
        writer.write(LIVE + b"Connection: close\r\n\r\n")
        assert statuses(await reader.read()) == [200]
        writer.close()


async def test_who_does_not_take_the_answer_is_cut_off() -> None:
    async with serving(limits=HASTY) as wire, asyncio.timeout(PATIENCE_S), slow_reader(wire):
        await wire.until_all_are_disconnected()


HUGE = encoded(np.zeros((1500, 1500, 3), np.uint8))
ASK_HUGE = b"POST /v1/segment?output=color HTTP/1.1\r\nAccept: application/octet-stream\r\n" + HOST
HUGE_BYTES = 3 * 1500 * 1500


@asynccontextmanager
async def slow_reader(wire: Wire) -> AsyncIterator[asyncio.StreamReader]:
    """Ask for a huge answer, and take no more than its head."""
    loop = asyncio.get_running_loop()
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.setblocking(False)
        await loop.sock_connect(client, ("127.0.0.1", wire.port))
        reader, writer = await asyncio.open_connection(sock=client, limit=1024)
        writer.write(with_length(ASK_HUGE, HUGE, close=False))
        assert statuses(await reader.readuntil(b"\r\n\r\n")) == [200]
        yield reader
        writer.close()


async def test_an_answer_is_written_no_faster_than_it_is_taken(wire: Wire) -> None:
    async with asyncio.timeout(PATIENCE_S), slow_reader(wire) as reader:
        (connection,) = wire.connections
        assert 0 < connection.transport.get_write_buffer_size() < MIB
        assert len(await reader.readexactly(HUGE_BYTES)) == HUGE_BYTES


async def test_large_answers_that_clients_do_not_take_have_a_limit_and_small_ones_pass_by() -> None:
    options = HttpOptions(segment=SegmentOptions(max_answer_bytes_in_flight=2 * HUGE_BYTES))
    async with serving(options=options) as wire, asyncio.timeout(PATIENCE_S):
        async with slow_reader(wire):
            hasty = ASK_HUGE + b"X-Request-Timeout-Ms: 500\r\n"
            assert await wire.ask(with_length(hasty, HUGE)) == [503]
            assert await wire.ask(with_length(POST, PICTURE)) == [200]
            waiting = asyncio.create_task(wire.ask(with_length(ASK_HUGE, HUGE)))
        assert await waiting == [200]


async def test_where_all_connections_are_taken_the_one_that_waited_longest_makes_room() -> None:
    async with (
        serving(limits=ConnectionLimits(max_connections=3, idle_when_full_s=0.0)) as wire,
        asyncio.timeout(PATIENCE_S),
    ):
        held = [await asyncio.open_connection("127.0.0.1", wire.port) for _ in range(3)]
        for reader, writer in (*held, held[0]):  # the second one waits longest
            writer.write(LIVE + b"\r\n")
            await reader.readuntil(b'"live"}')
        held[2][1].write(b"G")  # and the third one is not idle
        held.append(await asyncio.open_connection("127.0.0.1", wire.port))
        assert await held[1][0].read() == b""
        for (reader, writer), start in ((held[0], b"G"), (held[2], b""), (held[3], b"G")):
            writer.write(start + LIVE[1:] + b"\r\n")
            assert statuses(await reader.readuntil(b'"live"}')) == [200]
        for _, writer in held:
            writer.close()
        await wire.until_all_are_disconnected()
        assert not wire.idle


async def test_one_connection_too_many_is_told_so_and_the_others_live_on() -> None:
    async with serving(limits=ConnectionLimits(max_connections=3)) as wire:
        held = [await asyncio.open_connection("127.0.0.1", wire.port) for _ in range(3)]
        for _ in range(2):
            for reader, writer in held:
                writer.write(LIVE + b"\r\n")
                await reader.readuntil(b'"live"}')
            answer = await wire.converse()
            assert statuses(answer) == [503]
            assert b"retry-after: " in answer
        text = wire.site.metrics.exposition()[0].decode()
        assert 'bisenet_rejected_total{reason="too_many_connections"} 2.0' in text
        for _, writer in held:
            writer.close()
