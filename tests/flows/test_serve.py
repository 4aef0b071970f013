"""``bisenet serve`` as users start it: a process of its own, in which importing torch fails."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fakes import PATIENCE_S
from http_site import encoded
from live_service import BISENET, Server, serving_environment, started
from PIL import Image

from model.labels import UInt8Array
from service.http_api.connection.server import listen

START_PATIENCE_S = 120.0  # the first start compiles; a successful test takes less


@pytest.fixture(scope="module")
def environment(
    tiny_registry: Path, shared_cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    environment = serving_environment(tiny_registry, shared_cache, tmp_path_factory.mktemp("home"), "tiny")
    return environment | {"BISENET_MODELS__PRECISION": "auto"}  # as users start it


@pytest.fixture(scope="module")
def server(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with started(environment, tmp_path_factory.mktemp("log") / "stderr") as server:
        yield server
        assert server.stop() == 0


def run(environment: Mapping[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*BISENET, *arguments],
        capture_output=True,
        text=True,
        env=dict(environment),
        timeout=START_PATIENCE_S,
        check=False,
    )


def code_of(response: httpx2.Response) -> tuple[int, str]:
    assert response.headers["content-type"] == "application/problem+json"
    return response.status_code, response.json()["code"]


def test_when_it_says_ready_it_is(server: Server) -> None:
    response = server.client.get("/readyz")
    (model,) = response.json()["models"]
    assert (response.status_code, model["name"], model["version"]) == (200, "tiny", 1)
    assert model["engine"] == "openvino"


def test_a_picture_comes_back_as_a_mask_of_its_own_size(server: Server, photo: UInt8Array) -> None:
    response = server.client.post("/v1/segment", content=encoded(photo, "JPEG"))
    mask = Image.open(BytesIO(response.content))
    assert (response.status_code, mask.mode, mask.size) == (200, "P", (photo.shape[1], photo.shape[0]))


def test_the_same_picture_gives_the_same_bytes_here_and_on_the_command_line(
    server: Server, environment: dict[str, str], photo: UInt8Array, tmp_path: Path
) -> None:
    picture = encoded(photo, "JPEG", quality=90)
    source = tmp_path / "photo.jpg"
    source.write_bytes(picture)
    for output in ("color", "overlay"):
        target = tmp_path / f"{output}.png"
        done = run(
            environment, "predict", str(source), "--out", str(target), "--output", output, "--model", "tiny"
        )
        assert done.returncode == 0, done.stderr
        served = server.client.post("/v1/segment", params={"output": output}, content=picture)
        assert target.read_bytes() == served.content


def test_a_body_without_a_declared_length_is_received(server: Server, photo: UInt8Array) -> None:
    picture = encoded(photo)
    chunks = iter([picture[:1], picture[1:1000], picture[1000:]])
    assert server.client.post("/v1/segment", content=chunks).status_code == 200


@pytest.mark.parametrize(
    ("path", "body", "expected"),
    [
        ("/v1/segment", b"", (400, "empty_body")),
        ("/v1/segment?x=1", b"a", (400, "invalid_argument")),
        ("/v1/segment", b"GIF89a", (415, "unsupported_media")),
        ("/v1/models/none:segment", b"a", (404, "model_not_found")),
        ("/elsewhere", b"a", (404, "not_found")),
    ],
)
def test_what_is_wrong_is_said(server: Server, path: str, body: bytes, expected: tuple[int, str]) -> None:
    assert code_of(server.client.post(path, content=body)) == expected


def test_a_client_that_sends_too_much_can_read_why_and_go_on(server: Server, photo: UInt8Array) -> None:
    too_much = server.client.post("/v1/segment", content=bytes(21 << 20))
    assert code_of(too_much) == (413, "payload_too_large")
    assert server.client.post("/v1/segment", content=encoded(photo)).status_code == 200


def test_a_client_that_announces_too_much_is_refused_before_it_sends_it(server: Server) -> None:
    with server.connection() as (raw, reader):
        raw.sendall(b"POST /v1/segment HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999\r\n\r\n")
        assert reader.readline() == b"HTTP/1.1 413 Request Entity Too Large\r\n"


def test_a_page_from_elsewhere_is_not_served(server: Server) -> None:
    response = server.client.get("/v1/models", headers={"Host": "rebound.example"})
    assert code_of(response) == (403, "forbidden")


def test_a_head_has_no_body(server: Server) -> None:
    with server.connection() as (raw, reader):
        raw.sendall(b"HEAD /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        answer = reader.read()
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert answer.endswith(b"\r\n\r\n")


def test_each_request_is_one_line_of_json(server: Server, photo: UInt8Array) -> None:
    server.client.post("/v1/segment", content=encoded(photo), headers={"X-Request-Id": "the-one"})
    server.wait_until_logged('"request_id": "the-one"')
    lines = [json.loads(line) for line in server.log.read_text().splitlines()]
    (line,) = [line for line in lines if line.get("request_id") == "the-one"]
    assert (line["event"], line["route"], line["code"]) == ("request", "/v1/segment", "ok")
    assert {"receive_ms", "decode_ms", "queue_ms", "infer_ms", "post_ms", "encode_ms"} <= set(line)


def test_a_request_that_has_begun_is_answered_after_sigterm(
    environment: dict[str, str], photo: UInt8Array, tmp_path: Path
) -> None:
    picture = encoded(photo)
    head = f"POST /v1/segment HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(picture)}\r\n"
    with started(environment, tmp_path / "log") as server, server.connection() as (raw, reader):
        raw.sendall(f"{head}Expect: 100-continue\r\n\r\n".encode())
        assert reader.readline() == b"HTTP/1.1 100 Continue\r\n"  # now it waits for the body
        reader.readline()
        server.process.send_signal(signal.SIGTERM)
        raw.sendall(picture)
        assert reader.readline() == b"HTTP/1.1 200 OK\r\n"
        reader.read()  # to the end: the connection is closed
        assert server.process.wait(PATIENCE_S) == 0


def test_a_second_signal_cuts_off_what_does_not_end(environment: dict[str, str], tmp_path: Path) -> None:
    with started(environment, tmp_path / "log") as server, server.connection() as (raw, reader):
        raw.sendall(b"POST /v1/segment HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n")
        raw.sendall(b"Expect: 100-continue\r\n\r\n")
        assert reader.readline() == b"HTTP/1.1 100 Continue\r\n"
        server.process.send_signal(signal.SIGTERM)
        wait_until_closed(server)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(PATIENCE_S) == 1


def wait_until_closed(server: Server) -> None:
    """Return when the service no longer listens: the first signal has been taken note of."""
    for _ in range(1000):
        try:
            server.client.get("/livez")
        except httpx2.TransportError:
            return
    pytest.fail("the service still listens")


def test_a_service_that_is_stopped_while_it_loads_stops_cleanly(environment: dict[str, str]) -> None:
    with subprocess.Popen(
        [*BISENET, "serve", "--http-port", "0"], stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stderr is not None
        said = json.loads(process.stderr.readline())
        assert said["event"] == "listening"
        assert {Path(said[token]).name for token in ("token", "scrape_token")} == {
            "admin-token",
            "scrape-token",
        }
        process.send_signal(signal.SIGTERM)
        process.stderr.read()
        assert process.wait(START_PATIENCE_S) == 0


def test_a_taken_port_is_named(environment: dict[str, str]) -> None:
    with listen("127.0.0.1", 0) as holder:
        port = holder.getsockname()[1]
        done = run(environment, "serve", "--http-port", str(port))
    assert (done.returncode, done.stderr) == (
        3,
        f"error: cannot listen on 127.0.0.1 port {port}: Address already in use\n",
    )


def test_a_model_that_is_not_there_is_named(environment: dict[str, str]) -> None:
    with listen("127.0.0.1", 0) as holder:  # it is told before any port is asked for
        port = str(holder.getsockname()[1])
        done = run(environment, "serve", "--http-port", port, "--model", "missing")
    assert (done.returncode, done.stderr) == (2, "error: models.serve: no model 'missing'\n")


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        (["--host", "0.0.0.0"], "server.host"),
        (["--config", "/nonexistent.toml"], "/nonexistent.toml"),
    ],
)
def test_a_wrong_setting_is_named_in_one_line(
    environment: dict[str, str], arguments: list[str], key: str
) -> None:
    done = run(environment, "serve", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert key in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_flag_that_does_not_exist_is_a_usage_error(environment: dict[str, str]) -> None:
    assert run(environment, "serve", "--colour").returncode == 2


def test_python_m_service_is_the_same_command(environment: dict[str, Any]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "service", "--host", "0.0.0.0"],
        capture_output=True,
        text=True,
        env=environment,
        timeout=START_PATIENCE_S,
        check=False,
    )
    assert done.returncode == 2
    assert "server.host" in done.stderr
