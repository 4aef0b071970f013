"""No route of either HTTP port opens to a trick. A new route must be added to this test."""

from __future__ import annotations

import asyncio
import datetime as dt
import re
from collections.abc import Iterator

import msgspec
import pytest
from fakes import PATIENCE_S
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import ASGIApp, Message

from service.bootstrap import Service, open_service
from service.core.keys.access_key import AccessKey
from service.core.keys.key_file import add_key
from service.http_api.access import OPEN_PATHS
from service.http_api.connection.connection_limits import ConnectionLimits
from service.http_api.connection.server import HttpServer, listen
from service.settings import load_settings

API_KEY, ADMIN, SCRAPE = "a-key-of-a-user", "the-token-of-the-admin", "the-token-of-the-scraper"
NAMED = {name: f"secret-of-{name}" for name in ("inferer", "streamer", "scraper", "expired", "admin")}
LONG_AGO = dt.datetime(2001, 1, 1, tzinfo=dt.UTC)

Head = tuple[str, str, list[tuple[bytes, bytes]]]
"""Method, path as it stands in the request, header fields."""


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("admin")
    for name, token in (("admin", ADMIN), ("scrape", SCRAPE)):
        (folder / name).write_text(token)
    for key in (
        AccessKey.of_secret(NAMED["inferer"], ("infer",), "inferer"),
        AccessKey.of_secret(NAMED["streamer"], ("stream",), "streamer"),
        AccessKey.of_secret(NAMED["scraper"], ("metrics",), "scraper"),
        AccessKey.of_secret(NAMED["admin"], ("admin",), "admin"),
        msgspec.structs.replace(
            AccessKey.of_secret(NAMED["expired"], ("infer", "stream", "admin", "metrics"), "expired"),
            expires=LONG_AGO,
        ),
    ):
        add_key(folder / "keys", key)
    flags = {
        "registry": {"url": str(folder / "registry")},
        "models": {"cache_folder": folder / "cache"},
        "jobs": {"state_folder": folder / "state"},
        "auth": {
            "keys": [API_KEY],
            "keys_file": folder / "keys",
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


async def answer(app: ASGIApp, head: Head) -> int:
    method, path, fields = head
    return await ask(app, method, path, *fields)


HOST = (b"host", b"localhost")
REFUSED = (400, 401, 403, 404, 405)


def bearer(token: str) -> tuple[bytes, bytes]:
    return (b"authorization", f"Bearer {token}".encode())


def tricks(method: str, path: str) -> Iterator[Head]:
    """Return what must not open a route, by way of whatever comes to an attacker's mind."""
    for fields in (
        [],
        [bearer("wrong")],
        [bearer("")],
        [bearer(API_KEY)],
        [bearer(NAMED["inferer"])],
        [bearer(NAMED["streamer"])],
        [bearer(NAMED["expired"])],
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
        yield method, path, [HOST, bearer(NAMED["scraper"])]
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


def routes(app: ASGIApp) -> list[tuple[str, str]]:
    """Return method and an example path of every route, from the application's own description."""
    while not hasattr(app, "openapi"):  # what guards it is around it
        app = app._app  # type: ignore[attr-defined]
    paths = app.openapi()["paths"]
    return [
        (method.upper(), re.sub(r"{[^}]*}", "1", path))
        for path, methods in paths.items()
        for method in methods
    ]


@pytest.mark.guarantee("G18")
async def test_no_trick_opens_any_admin_route_on_either_port(service: Service) -> None:
    matrix = [head for route in routes(service.admin_app) for head in tricks(*route)]
    for app in (service.admin_app, service.app):
        opened = [head for head in matrix if await answer(app, head) not in REFUSED]
        assert not opened
    assert len(routes(service.admin_app)) >= 8
    for action in ("load", "unload"):
        assert ("POST", f"/v2/repository/models/1/{action}") in routes(service.admin_app)


BAD_KEYS = [
    "wrong",
    ADMIN[:-1],
    ADMIN.upper(),
    API_KEY,
    NAMED["inferer"],
    NAMED["streamer"],
    NAMED["expired"],
]


@st.composite
def spelled(draw: st.DrawFn, path: str) -> str:
    """Return a path that a careless router could take for the same one."""
    text = "".join(
        draw(
            st.sampled_from(
                [c, c, c, c.upper(), f"%{ord(c):02x}", f"%{ord(c):02X}"]
                + ["//", "/./", "/x/../"] * (c == "/")
            )
        )
        for c in path
    )
    before = draw(st.sampled_from(["", "", "/", "http://localhost", "http://evil.example", "/livez/..", "*"]))
    after = draw(st.sampled_from(["", "", "/", "%00", "%2e", "/.", "/..;/", "?x", "#"]))
    return before + text + after


@pytest.mark.guarantee("G18")
@given(data=st.data())
async def test_no_combination_of_tricks_opens_an_admin_route(service: Service, data: st.DataObject) -> None:
    method, path = data.draw(st.sampled_from(routes(service.admin_app)))
    method = data.draw(st.sampled_from([method, "HEAD", "OPTIONS", "GET", "POST", "PUT", "get"]))
    credentials = data.draw(st.sampled_from([[], *([bearer(key)] for key in BAD_KEYS)]))
    hosts = data.draw(st.sampled_from([[HOST], [], [(b"host", b"evil.example")], [HOST, HOST]]))
    head = (method, data.draw(spelled(path)), [*hosts, *credentials])
    for app in (service.admin_app, service.app):
        assert await answer(app, head) in REFUSED


async def test_no_key_without_the_scope_opens_a_route_of_the_data_port(service: Service) -> None:
    guarded = [(method, path) for method, path in routes(service.app) if path not in OPEN_PATHS]
    assert len(guarded) >= 5
    for method, path in guarded:
        opening = {"inferer", "streamer"} if path.startswith("/v1/models") else {"inferer"}
        for secret in ("", "wrong", ADMIN, SCRAPE, *(NAMED[name] for name in NAMED.keys() - opening)):
            for fields in ([HOST, bearer(secret)], [HOST, HOST, bearer(API_KEY)], [bearer(API_KEY)]):
                assert await ask(service.app, method, path, *fields) in (400, 401, 403)


async def test_tokens_and_keys_with_the_scope_open_the_admin_port(service: Service) -> None:
    for secret in (SCRAPE, ADMIN, NAMED["scraper"], NAMED["admin"]):
        assert await ask(service.admin_app, "GET", "/metrics", HOST, bearer(secret)) == 200
    for secret in (ADMIN, NAMED["admin"]):
        assert await ask(service.admin_app, "POST", "/admin/v1/drain", HOST, bearer(secret)) == 202


async def test_the_data_port_has_no_admin_route(service: Service) -> None:
    for method, path in routes(service.admin_app):
        assert await ask(service.app, method, path, HOST, bearer(ADMIN)) == 403
        assert await ask(service.app, method, path, HOST, bearer(API_KEY)) == 404


@pytest.mark.guarantee("G18")
@pytest.mark.parametrize("target", ["http://localhost/metrics", "//metrics", "/%6Detrics", "/metrics"])
async def test_no_form_of_a_target_opens_a_route_on_a_real_connection(service: Service, target: str) -> None:
    server = HttpServer(
        service.admin_app,
        listen("127.0.0.1", 0),
        grace_s=PATIENCE_S,
        limits=ConnectionLimits(),
        metrics=service.metrics,
    )
    answering = asyncio.create_task(server.answer())
    try:
        for secret in ("wrong", NAMED["inferer"], NAMED["expired"]):
            reader, writer = await asyncio.open_connection(*server._listener.getsockname())
            head = f"GET {target} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {secret}\r\n\r\n"
            writer.write(head.encode())
            assert int((await reader.readuntil(b"\r\n\r\n")).split()[1]) in REFUSED
            writer.close()
            await writer.wait_closed()
    finally:
        server.stop()
        await answering
