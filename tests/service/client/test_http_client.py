"""HTTP clients behind proxies: closed connections, error pages, prefixes."""

from __future__ import annotations

import asyncio
import http.server
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from films import served

from service.client.errors import ClientError, ProtocolError, RefusedError, UnreachableError
from service.client.http_client import AsyncHttpClient, HttpClient

MODELS = b'{"models": []}'


def response(status: int, body: bytes, content_type: str = "application/json") -> bytes:
    head = f"HTTP/1.1 {status} Status\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def page(status: int) -> bytes:
    return response(status, b"<html>Error</html>", "text/html")


@contextmanager
def proxy(*responses: bytes) -> Iterator[tuple[str, list[str]]]:
    """Give one response to each request; an empty one closes the connection instead.

    Yields its URL, and the paths that were asked for.
    """
    left, paths = list(responses), list[str]()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            paths.append(self.path)
            answer = left.pop(0)
            self.wfile.write(answer)
            self.close_connection = not answer

        def log_message(self, *_: object) -> None:
            pass

    with served(Handler) as url:
        yield url, paths


Ask = Callable[[str], Awaitable[Any]]


@pytest.fixture(params=["blocking", "asyncio"])
def ask(request: pytest.FixtureRequest) -> Ask:
    """Return what lists the models of a service twice on one client."""

    def blocking(url: str) -> Any:
        with HttpClient(url) as client:
            return client.models(), client.models()

    async def ask(url: str) -> Any:
        if request.param == "blocking":
            return await asyncio.to_thread(blocking, url)
        async with AsyncHttpClient(url) as client:
            return await client.models(), await client.models()

    return ask


async def test_a_connection_that_a_proxy_closed_costs_no_answer(ask: Ask) -> None:
    with proxy(response(200, MODELS), b"", response(200, MODELS)) as (url, paths):
        assert await ask(url) == ([], [])
        assert len(paths) == 3


async def test_a_proxy_that_always_closes_is_an_error(ask: Ask) -> None:
    with proxy(b"", b"") as (url, paths):
        with pytest.raises(UnreachableError):
            await ask(url)
        assert len(paths) == 2


async def test_the_prefix_of_a_proxy_is_kept(ask: Ask) -> None:
    with proxy(response(200, MODELS), response(200, MODELS)) as (url, paths):
        await ask(f"{url}/masks")
        assert paths == ["/masks/v1/models"] * 2


@pytest.mark.parametrize(
    ("answer", "kind", "message"),
    [
        (page(502), UnreachableError, "a proxy answers 502"),
        (page(503), UnreachableError, "a proxy answers 503"),
        (page(504), UnreachableError, "a proxy answers 504"),
        (page(413), RefusedError, "client_max_body_size"),
        (page(404), ProtocolError, "status 404 is not from this service"),
        (page(200), ProtocolError, "is another program at this address"),
        (response(200, b'["no", "models"]'), ProtocolError, "is another program at this address"),
        (response(500, b'["no", "problem"]'), ProtocolError, "status 500"),
    ],
)
async def test_a_page_that_is_not_of_the_service_is_told(
    ask: Ask, answer: bytes, kind: type[ClientError], message: str
) -> None:
    with proxy(answer) as (url, _), pytest.raises(kind, match=message):
        await ask(url)
