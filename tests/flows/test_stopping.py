"""How a running service ends, and how it fails to start: signals, taken ports, wrong settings, no files."""

from __future__ import annotations

import os
import re
import resource
import signal
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx2
import numpy as np
import pytest
from fakes import PATIENCE_S, write_pooling_artifact
from http_site import encoded
from live_service import BISENET, Server, serving_environment, started

from model.artifacts.registry import ModelRegistry
from service.http_api.connection.server import listen

PICTURE = encoded(np.zeros((64, 96, 3), np.uint8))
NEVER_S = {"BISENET_SERVER__LAME_DUCK_S": "1000", "BISENET_SERVER__GRACE_S": "2000"}
"""Nothing ends by itself."""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory, shared_cache: Path) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("pooling")
    ModelRegistry(folder / "registry").publish(write_pooling_artifact(folder / "artifact").folder, "pooling")
    return serving_environment(folder / "registry", shared_cache, folder, "pooling")


def post(server: Server) -> httpx2.Response:
    return server.client.post("/v1/segment", content=PICTURE)


# --- the end ----------------------------------------------------------------------------------------------


def test_after_sigterm_the_service_is_not_ready_but_answers_until_a_second_one(
    environment: dict[str, str], tmp_path: Path
) -> None:
    with started(environment | NEVER_S, tmp_path / "log") as server:
        assert "connection" not in post(server).headers
        server.process.send_signal(signal.SIGTERM)
        wait_until_draining(server)
        answer = post(server)
        assert (answer.status_code, answer.headers["connection"]) == (200, "close")
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(PATIENCE_S) == 1


def wait_until_draining(server: Server) -> None:
    given_up_s = time.monotonic() + PATIENCE_S
    while server.client.get("/readyz").status_code != 503:
        assert time.monotonic() < given_up_s
    assert server.client.get("/readyz").json()["code"] == "draining"


@pytest.mark.soak
def test_the_lame_duck_time_ends_although_clients_keep_their_connections(
    environment: dict[str, str], tmp_path: Path
) -> None:
    short = {"BISENET_SERVER__LAME_DUCK_S": "0.2"}
    with (
        started(environment | short, tmp_path / "log") as server,
        server.connection(),  # says nothing at all
        server.connection() as (raw, reader),
    ):
        raw.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert reader.readline() == b"HTTP/1.1 200 OK\r\n"
        assert server.stop() == 0


def test_a_person_at_a_terminal_need_not_wait_for_the_lame_duck_time(
    environment: dict[str, str], tmp_path: Path
) -> None:
    with started(environment | NEVER_S, tmp_path / "log") as server:
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(PATIENCE_S) == 0


def test_what_is_cut_off_is_told_so(environment: dict[str, str], tmp_path: Path) -> None:
    with started(environment | NEVER_S, tmp_path / "log") as server, server.connection() as (raw, reader):
        raw.sendall(b"POST /v1/segment HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n")
        raw.sendall(b"Expect: 100-continue\r\n\r\n")
        assert reader.readline() == b"HTTP/1.1 100 Continue\r\n"
        reader.readline()
        for _ in range(2):
            server.process.send_signal(signal.SIGTERM)
            server.wait_until_logged('"event": "stopping"')
        assert reader.readline() == b"HTTP/1.1 503 Service Unavailable\r\n"
        assert b'"code": "draining"' in reader.read()
        assert server.process.wait(PATIENCE_S) == 1


class Load:
    """Clients that ask again and again; notes what becomes of each request that was sent."""

    def __init__(self, server: Server, *, keep_alive: bool) -> None:
        self.outcomes: Counter[str] = Counter()
        self._server = server
        self._keep_alive = keep_alive
        self._stop = threading.Event()

    def run(self) -> None:
        while not self._stop.is_set():
            limits = httpx2.Limits(max_keepalive_connections=1 if self._keep_alive else 0)
            with httpx2.Client(base_url=self._server.client.base_url, timeout=60, limits=limits) as client:
                while not self._stop.is_set():
                    try:
                        self.outcomes[str(client.post("/v1/segment", content=PICTURE).status_code)] += 1
                    except httpx2.ConnectError:  # nothing was sent
                        return
                    except httpx2.TransportError as error:
                        self.outcomes[f"lost: {error!r}"] += 1

    def stop(self) -> None:
        self._stop.set()


def stop_under_load(
    environment: dict[str, str], log: Path, *, keep_alive: bool, clients: int
) -> Counter[str]:
    short = {"BISENET_SERVER__LAME_DUCK_S": "0.5"}
    with started(environment | short, log) as server, ThreadPoolExecutor(clients) as pool:
        load = Load(server, keep_alive=keep_alive)
        for _ in range(clients):
            pool.submit(load.run)
        while load.outcomes["200"] < 20 * clients:
            time.sleep(0.01)
        assert server.stop() == 0
        load.stop()
    return load.outcomes


def test_nothing_is_lost_when_the_service_stops_under_load(
    environment: dict[str, str], tmp_path: Path
) -> None:
    outcomes = stop_under_load(environment, tmp_path / "log", keep_alive=False, clients=4)
    assert set(outcomes) == {"200"}


@pytest.mark.guarantee("G6")
@pytest.mark.soak
@pytest.mark.parametrize("keep_alive", [True, False], ids=["keep-alive", "close"])
def test_nothing_is_lost_in_twenty_stops_under_load(
    environment: dict[str, str], tmp_path: Path, *, keep_alive: bool
) -> None:
    outcomes: Counter[str] = Counter()
    for number in range(20):
        log = tmp_path / f"log-{number}"
        outcomes += stop_under_load(environment, log, keep_alive=keep_alive, clients=12)
    assert set(outcomes) == {"200"}, outcomes
    assert outcomes["200"] >= 20 * 12 * 20


# --- what cannot start ------------------------------------------------------------------------------------


def run(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*BISENET, "serve", "--http-port", "0", *arguments],
        capture_output=True,
        text=True,
        env=environment,
        timeout=4 * PATIENCE_S,
        check=False,
    )


@pytest.mark.guarantee("G24")
@pytest.mark.parametrize("flag", ["--http-port", "--admin-port"])
def test_a_port_that_is_taken_is_named(environment: dict[str, str], flag: str) -> None:
    with listen("127.0.0.1", 0) as holder:
        port = str(holder.getsockname()[1])
        done = run(environment, flag, port)
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.endswith(f"error: cannot listen on 127.0.0.1 port {port}: Address already in use\n")


def test_an_engine_asked_for_by_name_is_not_replaced(environment: dict[str, str]) -> None:
    done = run(environment, "--engine", "tensorrt")
    assert (done.returncode, done.stdout) == (3, "")
    assert re.search(r"^error: tensorrt .*$", done.stderr, re.MULTILINE)


@pytest.mark.guarantee("G24")
@pytest.mark.parametrize(
    ("name", "value", "key"),
    [
        ("BISENET_REGISTRY", "ftp://host/models", "registry.url"),
        ("BISENET_AUTH__ADMIN_TOKEN_FILE", "/dev/null/token", "auth.admin_token_file"),
        ("BISENET_SERVER__HOST", "0.0.0.0", "server.host"),
    ],
)
def test_a_setting_that_cannot_be_used_is_named_in_one_line(
    environment: dict[str, str], name: str, value: str, key: str
) -> None:
    done = run(environment | {name: value, "BISENET_AUTH__KEYS": ""})
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(rf"error: {re.escape(key)}[: ].*\n", done.stderr)


# --- more clients than there is room for ------------------------------------------------------------------


@pytest.mark.soak
def test_a_service_without_file_descriptors_left_refuses_and_recovers(
    environment: dict[str, str], tmp_path: Path
) -> None:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    patient = {"BISENET_LIMITS__HEAD_TIMEOUT_S": "300"}
    with started(environment | patient, tmp_path / "log", files=288) as server, ExitStack() as held:
        connections = [held.enter_context(dial(server)) for _ in range(200)]
        assert b"503 Service Unavailable" in connections[-1].recv(1000)
        used = cpu_seconds(server)
        time.sleep(0.5)  # not for something to happen: to see that nothing does
        assert cpu_seconds(server) - used < 0.3
        held.close()
        assert post(server).status_code == 200
        assert server.stop() == 0
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == limit


def dial(server: Server) -> socket.socket:
    url = server.client.base_url
    return socket.create_connection((url.host, url.port), timeout=PATIENCE_S)


def cpu_seconds(server: Server) -> float:
    fields = Path(f"/proc/{server.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / 100


SLOW = {
    "head": b"POST /v1/segment HTTP/1.1\r\nHost: localhost\r\nX: ",
    "body": b"POST /v1/segment HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10485760\r\n\r\n",
    "silence": b"",
}


@pytest.mark.guarantee("G16")
@pytest.mark.soak
@pytest.mark.parametrize("slow", [list(SLOW), ["body"]], ids=["all kinds", "bodies of 10 MB"])
def test_five_hundred_slow_clients_are_all_cut_off_while_a_normal_one_is_answered(
    environment: dict[str, str], tmp_path: Path, slow: list[str]
) -> None:
    hasty = {"BISENET_LIMITS__HEAD_TIMEOUT_S": "3", "BISENET_LIMITS__RECEIVE_TIMEOUT_S": "6"}
    with started(environment | hasty, tmp_path / "log") as server, ExitStack() as held:
        begun_s = time.monotonic()
        clients = [held.enter_context(dial(server)) for _ in range(500)]
        kinds = [slow[number % len(slow)] for number in range(500)]
        for client, kind in zip(clients, kinds, strict=True):
            client.sendall(SLOW[kind])
            client.setblocking(False)
        alive = dict(zip(clients, kinds, strict=True))
        while alive:
            assert time.monotonic() < begun_s + 10 * PATIENCE_S, Counter(alive.values())
            assert post(server).status_code == 200
            trickle(alive)
        print(f"all closed after {time.monotonic() - begun_s:.1f} s")  # noqa: T201 - a figure for the report


def trickle(alive: dict[socket.socket, str]) -> None:
    """Send a byte on each connection, and forget those that the service has closed."""
    for client, kind in list(alive.items()):
        try:
            while client.recv(1000):
                pass
        except BlockingIOError:
            with suppress(ConnectionError, BlockingIOError):
                client.send(b"a" if kind != "silence" else b"")
            continue
        except ConnectionError:
            pass
        del alive[client]


# --- the log is not read ---------------------------------------------------------------------------------


@pytest.fixture
def unread_log() -> Iterator[int]:
    reader, writer = os.pipe()  # takes 64 KiB
    yield writer
    os.close(reader)
    os.close(writer)


@pytest.mark.soak
def test_a_log_that_is_not_read_holds_no_request_up(
    environment: dict[str, str], tmp_path: Path, unread_log: int
) -> None:
    with started(environment, tmp_path / "log", stderr=unread_log) as server:
        long_id = {"X-Request-Id": "x" * 128}
        for _ in range(600):  # of a line of 300 bytes each
            assert server.client.get("/nothing", headers=long_id).status_code == 404
        assert server.stop() == 0
