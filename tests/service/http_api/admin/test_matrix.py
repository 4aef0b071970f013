"""No route of the admin frontend opens to a trick. A new route must be added to this test."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from starlette.types import ASGIApp, Message

from service.bootstrap import Service, open_service
from service.settings import load_settings

API_KEY, ADMIN, SCRAPE = "a-key-of-a-user", "the-token-of-the-admin", "the-token-of-the-scraper"

Head = tuple[str, str, list[tuple[bytes, bytes]]]
"""Method, path as it stands in the request, header fields."""


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("admin")
    for name, token in (("admin", ADMIN), ("scrape", SCRAPE)):
        (folder / name).write_text(token)
    flags = {
        "registry": {"url": str(folder / "registry")},
        "models": {"cache_folder": folder / "cache"},
        "jobs": {"state_folder": folder / "state"},
        "auth": {
            "keys": [API_KEY],
            "admin_token_file": folder / "admin",
            "scrape_token_file": folder / "scrape",
        },
    }
    with open_service(load_settings(flags=flags, environment={})) as service:
        yield service


async def ask(app: ASGIApp, method: str, path: str, *fields: tuple[bytes, bytes]) -> int:
    """Send a head as it is, without a client that would repair it."""
    statuses: list[int] = []
    plain, _, query = path.partition("?")

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    scope = {
        "type": "http",
        "method": method,
        "path": re.sub("%([0-9a-fA-F]{2})", lambda found: chr(int(found[1], 16)), plain),
        "raw_path": plain.encode(),
        "query_string": query.encode(),
        "headers": list(fields),
        "root_path": "",
        "scheme": "http",
        "http_version": "1.1",
    }
    await app(scope, receive, send)
    (status,) = statuses
    return status


HOST = (b"host", b"localhost")


def bearer(token: str) -> tuple[bytes, bytes]:
    return (b"authorization", f"Bearer {token}".encode())


def tricks(method: str, path: str) -> Iterator[Head]:
    """Return what must not open a route, by way of whatever comes to an attacker's mind."""
    for fields in (
        [],
        [bearer("wrong")],
        [bearer("")],
        [bearer(API_KEY)],
        [bearer(ADMIN[:-1])],
        [bearer(ADMIN + "x")],
        [bearer(ADMIN.upper())],
        [(b"authorization", ADMIN.encode())],
        [(b"authorization", b"Basic " + ADMIN.encode())],
        [(b"authorization", b"Bearer")],
        [bearer("wrong"), bearer(ADMIN)],
        [(b"x-authorization", b"Bearer " + ADMIN.encode())],
        [(b"cookie", b"token=" + ADMIN.encode())],
        [(b"x-forwarded-for", b"127.0.0.1"), (b"x-real-ip", b"127.0.0.1")],
        [(b"x-original-url", b"/metrics"), (b"x-rewrite-url", b"/metrics"), bearer(SCRAPE + "?")],
        [(b"x-http-method-override", method.encode()), bearer(API_KEY)],
    ):
        yield method, path, [HOST, *fields]
    if path != "/metrics":
        yield method, path, [HOST, bearer(SCRAPE)]
        yield method, f"/metrics/..{path}", [HOST, bearer(SCRAPE)]
        yield method, f"/metrics/%2e%2e{path}", [HOST, bearer(SCRAPE)]
        yield method, f"/metrics;{path}", [HOST, bearer(SCRAPE)]
        yield method, f"{path}?path=/metrics", [HOST, bearer(SCRAPE)]
    for other in ("HEAD", "OPTIONS", "TRACE", "GET", "PUT", "DELETE", "PATCH"):
        yield other, path, [HOST]
    for before in ("/", "/livez", "/docs/..", "/%2e", "http://localhost"):
        yield method, f"{before}{path}", [HOST]
    for after in ("/", "%00", "%0a", f"?token={ADMIN}", f"?access_token={ADMIN}"):
        yield method, f"{path}{after}", [HOST]
    yield method, path.upper(), [HOST]
    for host in (b"evil.example", b"localhost.evil.example", b"127.0.0.1@evil", b"localhost/metrics?", b""):
        yield method, path, [(b"host", host), bearer(ADMIN)]
    yield method, path, [HOST, HOST, bearer(ADMIN)]
    yield method, path, [bearer(ADMIN)]


def routes(service: Service) -> list[tuple[str, str]]:
    """Return method and an example path of every route, from the application's own description."""
    app = service.admin_app
    while not hasattr(app, "openapi"):  # the gate and the edge are around it
        app = app._app  # type: ignore[attr-defined]
    paths = app.openapi()["paths"]
    return [
        (method.upper(), re.sub(r"{[^}]*}", "1", path))
        for path, methods in paths.items()
        for method in methods
    ]


async def test_no_trick_opens_any_route(service: Service) -> None:
    matrix = [head for route in routes(service) for head in tricks(*route)]
    opened = [head for head in matrix if (await answer(service, head)) not in (400, 401, 403, 404, 405)]
    assert len(routes(service)) >= 6
    assert not opened


async def answer(service: Service, head: Head) -> int:
    method, path, fields = head
    return await ask(service.admin_app, method, path, *fields)


async def test_the_token_does(service: Service) -> None:
    assert await ask(service.admin_app, "GET", "/metrics", HOST, bearer(SCRAPE)) == 200
    assert await ask(service.admin_app, "POST", "/admin/v1/drain", HOST, bearer(ADMIN)) == 202


async def test_the_data_port_knows_no_token_and_no_admin_route(service: Service) -> None:
    for method, path in routes(service):
        assert await ask(service.app, method, path, HOST, bearer(ADMIN)) == 401
        assert await ask(service.app, method, path, HOST, bearer(API_KEY)) == 404
