"""The listening socket tells at once when it cannot be had."""

from __future__ import annotations

import asyncio
import itertools
import resource
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
from certificates import Certificate, make_certificate, needs_openssl
from fakes import PATIENCE_S, FakeEngine
from http_site import encoded, open_site

from service.core.tls import CertificateFollower, TlsFiles
from service.http_api.connection.connection_limits import ConnectionLimits
from service.http_api.connection.server import BindError, HttpServer, affordable_connections, listen, url_of

LIVE = b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


def test_a_free_port_is_found_and_told() -> None:
    with listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        assert url_of(listener) == f"http://127.0.0.1:{port}"
        with socket.create_connection(("127.0.0.1", port)):
            pass  # it is open before anybody accepts


def test_a_taken_port_is_named() -> None:
    with listen("127.0.0.1", 0) as holder:
        port = holder.getsockname()[1]
        with pytest.raises(BindError, match=rf"port {port}: Address already in use"):
            listen("127.0.0.1", port)


def test_an_address_of_another_machine_is_named() -> None:
    with pytest.raises(BindError, match=r"192\.0\.2\.1"):
        listen("192.0.2.1", 0)


def test_an_unknown_host_name_is_named() -> None:
    with pytest.raises(BindError, match="no such host"):
        listen("no such host", 0)


def test_an_ipv6_address_stands_in_brackets() -> None:
    class Listener:
        def getsockname(self) -> tuple[str, int, int, int]:
            return ("::1", 8000, 0, 0)

    assert url_of(Listener()) == "http://[::1]:8000"  # type: ignore[arg-type]


async def test_who_has_connected_before_the_end_is_answered_after_it() -> None:
    async with open_site() as site:
        listener = listen("127.0.0.1", 0)
        address = listener.getsockname()
        server = HttpServer(site.app, listener, grace_s=30, limits=ConnectionLimits(), metrics=site.metrics)
        running = asyncio.create_task(server.answer())
        while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
            await asyncio.sleep(0)
        for accepting in server.servers:
            accepting.close()  # later connections wait in the backlog
        with ExitStack() as stack:
            clients = [stack.enter_context(socket.create_connection(address)) for _ in range(100)]
            for client in clients:
                client.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            server.stop()
            await running
            answers = {client.recv(100).partition(b"\r\n")[0] for client in clients}
        assert answers == {b"HTTP/1.1 200 OK"}
        assert not server.cut_off
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address)


async def test_what_takes_longer_than_its_grace_is_cut_off_and_told_so() -> None:
    engine = FakeEngine(held=True)
    async with open_site(engine) as site:
        listener = listen("127.0.0.1", 0)
        server = HttpServer(site.app, listener, grace_s=0.01, limits=ConnectionLimits(), metrics=site.metrics)
        running = asyncio.create_task(server.answer())
        reader, writer = await asyncio.open_connection(*listener.getsockname())
        picture = encoded(np.zeros((32, 32, 3), np.uint8))
        head = b"POST /v1/segment HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(picture)
        writer.write(head + picture)
        await asyncio.to_thread(engine.wait_until_busy)
        server.stop()
        await running
        assert server.cut_off
        assert await reader.readline() == b"HTTP/1.1 503 Service Unavailable\r\n"
        writer.close()
        engine.go_on()


def test_fewer_connections_are_let_in_where_few_files_may_be_open() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        assert affordable_connections(10) == 10
        resource.setrlimit(resource.RLIMIT_NOFILE, (300, hard))
        assert affordable_connections(1000) == 1000  # it asks for more, and may
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] >= 1256
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@asynccontextmanager
async def encrypted(tls: TlsFiles, **limits: float) -> AsyncIterator[tuple[str, int]]:
    """Serve a site over TLS, and yield its address."""
    async with open_site() as site:
        listener = listen("127.0.0.1", 0)
        server = HttpServer(
            site.app,
            listener,
            grace_s=PATIENCE_S,
            limits=ConnectionLimits(**limits),  # type: ignore[arg-type]
            metrics=site.metrics,
            tls=CertificateFollower(tls, clock=itertools.count().__next__).http_context(),
        )
        address = listener.getsockname()
        running = asyncio.create_task(server.answer())
        try:
            yield address
        finally:
            server.stop()
            await running


async def first_line(address: tuple[str, int], client: ssl.SSLContext, request: bytes = LIVE) -> bytes:
    """Return the first line of the answer, or nothing where the connection is refused or ended."""
    try:
        reader, writer = await asyncio.open_connection(*address, ssl=client)
    except (ssl.SSLError, ConnectionError):
        return b""
    try:
        writer.write(request)
        return await reader.readline()
    except (ssl.SSLError, ConnectionError):
        return b""
    finally:
        writer.close()
        with suppress(ssl.SSLError, ConnectionError):
            await writer.wait_closed()


@needs_openssl
async def test_requests_are_answered_over_tls_and_refused_without(tmp_path: Path) -> None:
    certificate = await make_certificate(tmp_path)
    client = ssl.create_default_context(cafile=str(certificate.file))
    async with encrypted(TlsFiles(certificate.file, certificate.key_file)) as address:
        assert await first_line(address, client) == b"HTTP/1.1 200 OK\r\n"
        assert await first_line(address, client, b"no http\r\n\r\n") == b"HTTP/1.1 400 Bad Request\r\n"
        reader, writer = await asyncio.open_connection(*address)
        writer.write(LIVE)
        assert b"HTTP" not in await reader.read()
        writer.close()
        await writer.wait_closed()


@needs_openssl
async def test_with_a_client_ca_a_client_must_show_a_certificate_of_it(tmp_path: Path) -> None:
    (tmp_path / "client").mkdir()
    (tmp_path / "stranger").mkdir()
    server = await make_certificate(tmp_path)
    known, unknown = [await make_certificate(tmp_path / name) for name in ("client", "stranger")]
    async with encrypted(TlsFiles(server.file, server.key_file, client_ca=known.file)) as address:
        for shown, answer in ((known, b"HTTP/1.1 200 OK\r\n"), (unknown, b""), (None, b"")):
            client = ssl.create_default_context(cafile=str(server.file))
            if shown is not None:
                client.load_cert_chain(shown.file, shown.key_file)
            assert await first_line(address, client) == answer


@needs_openssl
async def test_certificates_that_are_replaced_are_used_without_a_restart(tmp_path: Path) -> None:
    made = []
    for name in ("old", "new", "old-client", "new-client"):
        (tmp_path / name).mkdir()
        made.append(await make_certificate(tmp_path / name))
    used = TlsFiles(tmp_path / "cert.pem", tmp_path / "key.pem", client_ca=tmp_path / "clients.pem")
    assert used.client_ca is not None

    def move_in(server: Certificate, clients: Certificate) -> None:
        used.key.write_bytes(server.key_file.read_bytes())
        used.cert.write_bytes(server.file.read_bytes())
        used.client_ca.write_bytes(clients.file.read_bytes())

    def client(server: Certificate, own: Certificate) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(server.file))
        context.load_cert_chain(own.file, own.key_file)
        return context

    old, new, old_client, new_client = made
    move_in(old, old_client)
    async with encrypted(used) as address:
        assert await first_line(address, client(old, old_client)) == b"HTTP/1.1 200 OK\r\n"
        move_in(new, new_client)
        assert await first_line(address, client(new, new_client)) == b"HTTP/1.1 200 OK\r\n"
        assert await first_line(address, client(old, new_client)) == b""
        assert await first_line(address, client(new, old_client)) == b""


@needs_openssl
async def test_a_client_that_never_ends_its_handshake_is_cut_off(tmp_path: Path) -> None:
    certificate = await make_certificate(tmp_path)
    tls = TlsFiles(certificate.file, certificate.key_file)
    async with encrypted(tls, head_timeout_s=0.05) as address:
        reader, writer = await asyncio.open_connection(*address)
        async with asyncio.timeout(PATIENCE_S):
            with suppress(ConnectionError):
                assert await reader.read() == b""
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()
