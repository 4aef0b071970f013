from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import typer

from service.cli.bench.http_target import HttpTarget
from service.cli.bench.load import RefusedError

Answer = Callable[[bytes, bytes], bytes]


class Site:
    """A server that answers each request by a function of its head and body."""

    def __init__(self, answer: Answer, *, closes: bool = False) -> None:
        self.connections = 0
        self._answer = answer
        self._closes = closes

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
                writer.write(self._answer(head, await reader.readexactly(length)))
                if self._closes:
                    break
        except asyncio.IncompleteReadError:
            pass
        finally:
            writer.close()

    @asynccontextmanager
    async def open(self, headers: dict[str, str] | None = None) -> AsyncIterator[HttpTarget]:
        server = await asyncio.start_server(self.handle, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        async with server, HttpTarget(f"http://127.0.0.1:{port}", headers=headers) as target:
            yield target


def response(status: str, body: bytes) -> bytes:
    return b"HTTP/1.1 %s\r\nX-Other: 1\r\nContent-Length: %d\r\n\r\n%s" % (status.encode(), len(body), body)


async def test_a_picture_is_posted_and_answered_over_one_connection() -> None:
    site = Site(lambda head, body: response("200 OK", head.split(b"\r\n")[0] + b"|" + body))
    async with site.open() as target:
        answers = [(await target.segment(b"picture")).body for _ in range(3)]
    assert answers == [b"POST /v1/segment HTTP/1.1|picture"] * 3
    assert site.connections == 1


async def test_requests_at_the_same_time_have_connections_of_their_own() -> None:
    site = Site(lambda _, body: response("200 OK", body))
    async with site.open() as target:
        requests = [target.segment(b"%d" % number) for number in range(4)]
        assert [answer.body for answer in await asyncio.gather(*requests)] == [b"0", b"1", b"2", b"3"]
        assert site.connections == 4
        await asyncio.gather(*(target.segment(b"") for _ in range(4)))
    assert site.connections == 4


async def test_a_connection_that_the_service_closed_is_not_used_again() -> None:
    site = Site(lambda _, body: response("200 OK", body), closes=True)
    async with site.open() as target:
        for number in range(3):
            assert (await target.segment(b"%d" % number)).body == b"%d" % number
            while target._idle and not target._idle[0][0].at_eof():  # noqa: ASYNC110 - nothing tells of an end
                await asyncio.sleep(0)
    assert site.connections == 3


async def test_headers_are_sent_along() -> None:
    site = Site(lambda head, _: response("200 OK", head))
    async with site.open({"Authorization": "Bearer secret"}) as target:
        assert b"\r\nAuthorization: Bearer secret\r\n" in (await target.segment(b"")).body


async def test_the_times_of_the_stages_come_from_the_head() -> None:
    answers = iter([b"\r\nServer-Timing: decode;dur=3.2, infer;dur=1e+2\r\n", b"\r\n"])
    site = Site(lambda *_: b"HTTP/1.1 200 OK\r\nContent-Length: 0" + next(answers) + b"\r\n")
    async with site.open() as target:
        assert (await target.segment(b"")).stages_ms == {"decode": 3.2, "infer": 100.0}
        assert (await target.segment(b"")).stages_ms == {}


async def test_models_are_listed() -> None:
    site = Site(lambda *_: response("200 OK", b'{"models": [{"name": "city"}]}'))
    async with site.open() as target:
        assert await target.models() == [{"name": "city"}]


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (response("429 Too Many Requests", b'{"code": "queue_full"}'), "queue_full"),
        (response("502 Bad Gateway", b"<html>"), "502"),
        (response("502 Bad Gateway", b"[]"), "502"),
        (b"HTTP/1.1 200 OK\r\n\r\n", "ConnectionError"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n", "IncompleteReadError"),
        (b"", "IncompleteReadError"),
    ],
)
async def test_what_is_no_answer_is_a_refusal(answer: bytes, code: str) -> None:
    async with Site(lambda *_: answer, closes=True).open() as target:
        with pytest.raises(RefusedError, match=f"^{code}$"):
            await target.segment(b"picture")


async def test_a_missing_service_is_a_refusal() -> None:
    server = await asyncio.start_server(Site(lambda *_: b"").handle, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    with pytest.raises(RefusedError, match="ConnectionRefusedError"):
        await HttpTarget(f"http://127.0.0.1:{port}").segment(b"picture")


@pytest.mark.parametrize("url", ["", "127.0.0.1:8000", "https://host", "http://host/v1/segment", "http://"])
def test_anything_else_is_no_url_of_a_service(url: str) -> None:
    with pytest.raises(typer.BadParameter):
        HttpTarget(url)
