"""The clients with the real frontends: one interface over two protocols, blocking or for asyncio."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn
from certificates import make_certificate, needs_openssl
from fakes import PATIENCE_S, until
from grpc_site import GrpcSite, open_grpc_site
from http_site import encoded, picture_of

from service.client import grpc_client
from service.client.answers import Opened
from service.client.backoff import ReconnectBackoff
from service.client.errors import ClientError, RefusedError, UnreachableError
from service.client.grpc_client import AsyncGrpcClient, GrpcClient
from service.client.http_client import AsyncHttpClient, HttpClient

IDS_hw = np.array([[0, 0, 2, 2], [3, 3, 1, 1]], np.uint8)
PICTURE = encoded(picture_of(np.repeat(np.repeat(IDS_hw, 16, 0), 8, 1)))
Call = Callable[..., Awaitable[Any]]


@asynccontextmanager
async def http_url(site: GrpcSite) -> AsyncIterator[str]:
    """Run uvicorn in this loop; yields its URL."""
    config = uvicorn.Config(site.site.app, port=0, lifespan="off", log_config=None)
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    await until(lambda: server.started)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    await serving


@pytest.fixture(params=["grpc", "http", "asyncio grpc", "asyncio http"])
async def client(request: pytest.FixtureRequest) -> AsyncIterator[tuple[Call, Call]]:
    """Return ``segment`` and ``models`` of each client, to be awaited."""
    async with open_grpc_site() as site, http_url(site) as url:
        match request.param:
            case "grpc":
                with GrpcClient(site.address) as blocking:
                    yield in_thread(blocking.segment), in_thread(blocking.models)
            case "http":
                with HttpClient(url) as blocking:
                    yield in_thread(blocking.segment), in_thread(blocking.models)
            case "asyncio grpc":
                async with AsyncGrpcClient(site.address) as waiting:
                    yield waiting.segment, waiting.models
            case "asyncio http":
                async with AsyncHttpClient(url) as waiting:
                    yield waiting.segment, waiting.models


def in_thread(method: Callable[..., Any]) -> Call:
    async def call(*args: Any, **options: Any) -> Any:
        return await asyncio.to_thread(method, *args, **options)

    return call


@pytest.mark.parametrize("form", ["png", "raw"])
async def test_a_mask_has_the_ids_of_the_picture(client: tuple[Call, Call], form: str) -> None:
    answer = await client[0](PICTURE, mask=form)
    assert (answer.model, answer.version) == ("fake", 3)
    assert (answer.mask.width, answer.mask.height) == (32, 32)
    assert np.array_equal(answer.mask.labels_HW()[8::16, 4::8], IDS_hw)
    assert answer.timings_ms["infer"] >= 0


async def test_run_lengths_and_overlays_come_as_the_service_sends_them(client: tuple[Call, Call]) -> None:
    runs = (await client[0](PICTURE, mask="coco_rle")).mask
    assert [entry["id"] for entry in json.loads(runs.data)] == [0, 1, 2, 3]
    overlay = (await client[0](PICTURE, mask="overlay", model="other@1")).mask
    assert overlay.data.startswith(b"\xff\xd8")
    with pytest.raises(ValueError, match="overlay"):
        overlay.labels_HW()


async def test_classes_can_be_chosen(client: tuple[Call, Call]) -> None:
    answer = await client[0](PICTURE, mask="raw", classes=[2])
    assert set(np.unique(answer.mask.labels_HW())) == {2, 255}


async def test_a_picture_can_be_labelled_at_full_detail(client: tuple[Call, Call]) -> None:
    segment, _ = client
    large = encoded(np.full((64, 1056, 3), 170, np.uint8))
    masks = [(await segment(large, mask="raw", detail=detail)).mask for detail in ("reduced", "full")]
    assert all((mask.labels_HW() == 2).all() for mask in masks)


async def test_models_are_listed_with_their_classes(client: tuple[Call, Call]) -> None:
    default, other = await client[1]()
    assert (default.name, default.version, other.name) == ("fake", 3, "other")
    assert (default.classes[2].name, default.classes[2].color) == ("light", (170, 170, 170))
    assert default.ignore_id == 255


@pytest.mark.parametrize(
    ("picture", "model", "code"),
    [(b"GIF89a", "", "unsupported_media"), (PICTURE, "nobody", "model_not_found"), (b"", "", "empty_body")],
)
async def test_a_refusal_carries_the_services_code(
    client: tuple[Call, Call], picture: bytes, model: str, code: str
) -> None:
    with pytest.raises(RefusedError) as caught:
        await client[0](picture, model=model)
    assert caught.value.code == code
    assert caught.value.request_id
    assert caught.value.retry_after_s is None


@pytest.mark.parametrize("kind", [GrpcClient, HttpClient])
def test_a_service_that_is_not_there_is_an_error_of_its_own(kind: type[Any]) -> None:
    address = "127.0.0.1:9" if kind is GrpcClient else "http://127.0.0.1:9"
    with kind(address) as client, pytest.raises(UnreachableError):
        client.segment(PICTURE)


def test_a_channel_connects_again_sooner_than_its_user_asks() -> None:
    longest_ms = dict(grpc_client._OPTIONS)["grpc.max_reconnect_backoff_ms"]
    assert longest_ms < 1e3 * ReconnectBackoff(spread=lambda _, high: high)._max_s


async def test_a_service_without_a_model_says_when_to_try_again() -> None:
    async with open_grpc_site(versions=()) as site, AsyncGrpcClient(site.address) as client:
        with pytest.raises(RefusedError) as caught:
            await client.segment(PICTURE)
        assert caught.value.code == "loading"
        assert caught.value.retry_after_s


def test_the_grpc_client_loads_no_framework_and_no_engine() -> None:
    heavy = ["torch", "openvino", "numba", "fastapi", "pydantic", "av"]
    program = (
        "import sys, service.client.grpc_client, service.client.reconnecting_stream; "
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=PATIENCE_S, check=True
    )
    assert done.stdout.strip() == "[]"


def test_every_error_of_a_client_is_a_client_error() -> None:
    for error in (RefusedError("internal", "x"), UnreachableError("x")):
        assert isinstance(error, ClientError)


@needs_openssl
async def test_grpc_clients_use_tls_with_services_that_they_trust(tmp_path: Path) -> None:
    certificate = await make_certificate(tmp_path)
    async with open_grpc_site(credentials=certificate.server_credentials()) as site:
        ca = certificate.file.read_bytes()
        async with AsyncGrpcClient(site.address, ca=ca) as client:
            answer = await client.segment(PICTURE)
            assert (await client.models())[0].name == answer.model
            async with client.stream(policy="block") as call:
                assert isinstance(await call.next_event(), Opened)
        with GrpcClient(site.address, ca=ca) as blocking:
            assert (await asyncio.to_thread(blocking.segment, PICTURE)).mask.data == answer.mask.data
        for flags in ({"tls": True}, {}):
            async with AsyncGrpcClient(site.address, **flags) as stranger:
                with pytest.raises(UnreachableError):
                    await stranger.models()
