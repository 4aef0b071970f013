"""The WebSocket of the camera page: the rules of gRPC's streams, behind the access rules of HTTP."""

from __future__ import annotations

import asyncio
import base64
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from fakes import PATIENCE_S, FakeEngine, key_ring, until
from grpc_site import GrpcSite, open_grpc_site
from http_site import encoded, picture_of
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from service.core.pictures.segmenter import Segmenter
from service.http_api.access import LOOPBACK_HOSTS, AccessPolicy
from service.http_api.app import HttpOptions, create_app
from service.http_api.camera import CAMERA_PATH, SUBPROTOCOL
from service.http_api.connection.connection_limits import ConnectionLimits
from service.http_api.connection.server import HttpServer, listen
from service.wire import segmentation_pb2 as wire

ROOT = Path(__file__).parents[3]
PICTURE = encoded(picture_of(np.ones((32, 32), np.uint8)))


@dataclass(frozen=True)
class CameraSite:
    streams: GrpcSite
    server: HttpServer
    address: str

    def connect(self, *subprotocols: str, **options: Any) -> connect:
        url = f"ws://{self.address}{CAMERA_PATH}"
        return connect(url, subprotocols=[SUBPROTOCOL, *subprotocols], proxy=None, **options)  # type: ignore[arg-type]


@asynccontextmanager
async def open_camera_site(engine: FakeEngine | None = None, **options: Any) -> AsyncIterator[CameraSite]:
    async with open_grpc_site(engine) as streams:
        pool = ThreadPoolExecutor(1)  # no picture comes by plain HTTP here: it starts no thread
        site = streams.site
        app = create_app(
            Segmenter(pool),
            site.host,
            lifecycle=site.lifecycle,
            metrics=site.metrics,
            options=HttpOptions(page=True, **options),
            frames=streams.servicer.answer_messages,
        )
        listener = listen("127.0.0.1", 0)
        server = HttpServer(
            app,
            listener,
            grace_s=PATIENCE_S,
            limits=ConnectionLimits(),
            metrics=site.metrics,
            websocket_paths=frozenset({CAMERA_PATH}),
        )
        running = asyncio.create_task(server.answer())
        try:
            yield CameraSite(streams, server, f"127.0.0.1:{listener.getsockname()[1]}")
        finally:
            server.stop()
            await running


async def begin(socket: ClientConnection, **wanted: Any) -> wire.StreamOpened:
    await socket.send(wire.StreamRequest(open=wire.StreamOpen(**wanted)).SerializeToString())
    return (await answer(socket)).opened


async def send(socket: ClientConnection, *seqs: int) -> None:
    for seq in seqs:
        frame = wire.Frame(seq=seq, image=wire.Image(data=PICTURE))
        await socket.send(wire.StreamRequest(frame=frame).SerializeToString())


async def answer(socket: ClientConnection) -> wire.StreamResponse:
    data = await asyncio.wait_for(socket.recv(), PATIENCE_S)
    assert isinstance(data, bytes)
    return wire.StreamResponse.FromString(data)


async def closing(socket: ClientConnection) -> tuple[int, str]:
    """Return code and reason of the end."""
    try:
        while True:
            await answer(socket)
    except ConnectionClosed as ended:
        return (ended.rcvd.code, ended.rcvd.reason) if ended.rcvd else (1006, "")


async def test_a_frame_gets_its_mask_and_the_end_of_the_frames_closes_the_stream() -> None:
    async with open_camera_site() as site, site.connect() as socket:
        opened = await begin(socket)
        assert (opened.model, opened.version) == ("fake", 3)
        await send(socket, 1)
        result = (await answer(socket)).result
        assert (result.seq, result.mask.width, result.mask.height) == (1, 32, 32)
        assert result.mask.data.startswith(b"\x89PNG")
        await socket.send("end")
        assert await closing(socket) == (1000, "")


async def test_the_latest_frame_wins_and_every_other_one_is_accounted_for() -> None:
    engine = FakeEngine(held=True)
    async with open_camera_site(engine) as site, site.connect() as socket:
        await begin(socket, max_in_flight=1)
        await send(socket, 1)
        await asyncio.to_thread(engine.wait_until_busy)
        await send(socket, 2, 3, 4)
        await socket.send("end")
        await until(lambda: site.streams.metric("bisenet_stream_active") == 1)
        engine.go_on(2)
        answers = [await answer(socket) for _ in range(3)]
        assert [one.WhichOneof("kind") for one in answers] == ["result", "dropped", "result"]
        assert (answers[1].dropped.first_seq, answers[1].dropped.count) == (2, 2)
        assert answers[2].result.seq == 4


async def test_a_client_that_leaves_ends_its_stream() -> None:
    engine = FakeEngine(held=True)
    async with open_camera_site(engine) as site:
        async with site.connect() as socket:
            await begin(socket)
            await send(socket, 1)
            await asyncio.to_thread(engine.wait_until_busy)
        await until(lambda: site.streams.metric("bisenet_stream_active") == 0)
        engine.go_on()


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (b"\xff\xff", "invalid_argument: the bytes are not a message of this service"),
        (b"", "invalid_argument: the first message of a stream is open"),
        (
            wire.StreamRequest(open=wire.StreamOpen(model="unknown")).SerializeToString(),
            "model_not_found: ",
        ),
    ],
)
async def test_a_stream_that_cannot_go_on_is_closed_with_the_reason(message: bytes, reason: str) -> None:
    async with open_camera_site() as site, site.connect() as socket:
        await socket.send(message)
        code, said = await closing(socket)
        assert code == 1008
        assert said.startswith(reason)


async def test_a_drain_answers_what_has_come_and_says_that_the_service_goes_away() -> None:
    async with open_camera_site() as site, site.connect() as socket:
        await begin(socket)
        await send(socket, 1)
        assert (await answer(socket)).result.seq == 1
        site.streams.servicer.drain(time.monotonic() + PATIENCE_S)
        assert (await answer(socket)).notice.kind == wire.GOING_AWAY
        assert (await closing(socket))[0] == 1001


async def test_the_end_of_the_server_waits_for_the_frames_that_have_come() -> None:
    engine = FakeEngine(held=True)
    async with open_camera_site(engine) as site, site.connect() as socket:
        await begin(socket)
        await send(socket, 1)
        await asyncio.to_thread(engine.wait_until_busy)
        site.server.stop()
        site.streams.servicer.drain(time.monotonic() + PATIENCE_S)
        engine.go_on()
        assert (await answer(socket)).result.seq == 1
        await closing(socket)


KEYED = AccessPolicy(key_ring("a key"))


def as_subprotocol(key: str) -> str:
    return "bearer." + base64.urlsafe_b64encode(key.encode()).decode().rstrip("=")


async def test_a_key_comes_as_a_subprotocol_or_as_a_header() -> None:
    async with open_camera_site(access=KEYED) as site:
        async with site.connect(as_subprotocol("a key")) as socket:
            assert socket.subprotocol == SUBPROTOCOL
        async with site.connect(additional_headers={"Authorization": "Bearer a key"}):
            pass


@pytest.mark.parametrize(
    ("subprotocols", "options", "status"),
    [
        ((), {}, 401),
        ((as_subprotocol("another"),), {}, 401),
        (("bearer.a",), {}, 400),
        ((as_subprotocol("a key"),), {"origin": "http://elsewhere.example"}, 403),
        ((as_subprotocol("a key"),), {"origin": "null"}, 403),
        ((as_subprotocol("a key"),), {"origin": "http://["}, 400),
    ],
)
async def test_a_handshake_without_a_key_or_of_another_origin_is_refused(
    subprotocols: tuple[str, ...], options: dict[str, Any], status: int
) -> None:
    async with open_camera_site(access=KEYED) as site:
        with pytest.raises(InvalidStatus) as refused:
            await site.connect(*subprotocols, **options).__aenter__()
        assert refused.value.response.status_code == status
        assert refused.value.response.headers["content-type"] == "application/problem+json"


async def test_pages_of_the_service_itself_and_of_listed_origins_may_connect() -> None:
    async with open_camera_site(cors_origins=("https://app.example.org",)) as site:
        for origin in (f"http://{site.address}", "https://app.example.org"):
            async with site.connect(origin=origin) as socket:
                assert (await begin(socket)).model == "fake"


async def test_a_host_that_is_not_allowed_is_refused() -> None:
    async with open_camera_site(access=AccessPolicy(hosts=LOOPBACK_HOSTS)) as site:
        with pytest.raises(InvalidStatus) as refused:
            await site.connect(additional_headers={"Host": "evil.example"}).__aenter__()
        assert refused.value.response.status_code in (400, 403)


async def test_one_stream_more_than_allowed_is_refused_as_busy() -> None:
    async with open_camera_site(max_streams=1) as site, site.connect() as socket:
        await begin(socket)
        with pytest.raises(InvalidStatus) as refused:
            await site.connect().__aenter__()
        assert refused.value.response.status_code == 503
        assert "Retry-After" in refused.value.response.headers


async def test_a_plain_request_is_told_what_the_path_is_and_others_keep_ignoring_upgrades() -> None:
    async with open_camera_site() as site, httpx2.AsyncClient(base_url=f"http://{site.address}") as client:
        plain = await client.get(CAMERA_PATH)
        assert (plain.status_code, plain.json()["code"]) == (400, "invalid_argument")
        upgrade = {"Upgrade": "websocket", "Connection": "Upgrade"}
        assert (await client.get("/livez", headers=upgrade)).status_code == 200


async def test_the_stream_is_one_request_in_the_metrics() -> None:
    async with open_camera_site() as site:
        async with site.connect() as socket:
            await begin(socket)
            assert site.streams.metric("bisenet_inflight") == 0
        labels = f'model="unknown",protocol="http",route="{CAMERA_PATH}",version="unknown"'
        counted = f'bisenet_requests_total{{code="client_closed_request",{labels}}}'
        await until(lambda: site.streams.metric(counted) == 1)


def test_without_the_page_neither_the_route_nor_the_library_is_loaded() -> None:
    program = (
        "import sys, service.bootstrap;"
        "sys.exit(any(name in sys.modules for name in ('service.http_api.camera', 'websockets')))"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)
