"""The clients against the real frontends: one interface, two protocols, blocking or not."""

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
from service.client.answers import Dropped, Failed, Frame, Interrupted, Mask, ModelChanged, Opened, Result
from service.client.backoff import ReconnectBackoff
from service.client.errors import ClientError, RefusedError, UnreachableError
from service.client.grpc_client import AsyncGrpcClient, GrpcClient
from service.client.http_client import AsyncHttpClient, HttpClient
from service.client.reconnecting_stream import ReconnectingStream, StreamOptions

IDS_hw = np.array([[0, 0, 2, 2], [3, 3, 1, 1]], np.uint8)
PICTURE = encoded(picture_of(np.repeat(np.repeat(IDS_hw, 16, 0), 8, 1)))
Call = Callable[..., Awaitable[Any]]


@asynccontextmanager
async def http_url(site: GrpcSite) -> AsyncIterator[str]:
    """Let a real uvicorn answer in this loop."""
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


async def test_other_forms_come_as_they_are(client: tuple[Call, Call]) -> None:
    runs = (await client[0](PICTURE, mask="coco_rle")).mask
    assert [entry["id"] for entry in json.loads(runs.data)] == [0, 1, 2, 3]
    overlay = (await client[0](PICTURE, mask="overlay", model="other@1")).mask
    assert overlay.data.startswith(b"\xff\xd8")
    with pytest.raises(ValueError, match="overlay"):
        overlay.labels_HW()


async def test_classes_can_be_chosen(client: tuple[Call, Call]) -> None:
    answer = await client[0](PICTURE, mask="raw", classes=[2])
    assert set(np.unique(answer.mask.labels_HW())) == {2, 255}


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
def test_nobody_there_is_an_error_of_its_own(kind: type[Any]) -> None:
    address = "127.0.0.1:9" if kind is GrpcClient else "http://127.0.0.1:9"
    with kind(address) as client, pytest.raises(UnreachableError):
        client.segment(PICTURE)


def test_a_channel_connects_again_sooner_than_its_user_asks() -> None:
    longest_ms = dict(grpc_client._OPTIONS)["grpc.max_reconnect_backoff_ms"]
    assert longest_ms < 1e3 * ReconnectBackoff(spread=lambda _, high: high)._max_s


async def test_a_service_that_has_no_model_yet_says_when_to_come_back() -> None:
    async with open_grpc_site(versions=()) as site, AsyncGrpcClient(site.address) as client:
        with pytest.raises(RefusedError) as caught:
            await client.segment(PICTURE)
        assert caught.value.code == "loading"
        assert caught.value.retry_after_s


class ListFeed:
    """Frames that are there already."""

    def __init__(self, count: int, data: bytes = PICTURE) -> None:
        self._frames = [Frame(seq, data, captured_s=1000.5) for seq in range(1, count + 1)]

    async def next(self) -> Frame | None:
        return self._frames.pop(0) if self._frames else None


async def no_pause(_: float) -> None:
    await asyncio.sleep(0)


async def test_a_follower_tells_what_became_of_every_frame() -> None:
    async with open_grpc_site() as site, AsyncGrpcClient(site.address) as client:
        follower = ReconnectingStream(client, ListFeed(100), StreamOptions(policy="block"))
        opened, *results = [event async for event in follower.events()]
        assert isinstance(opened, Opened)
        assert [e.seq for e in results if isinstance(e, Result)] == list(range(1, 101))
        assert {e.captured_s for e in results if isinstance(e, Result)} == {1000.5}
        assert (follower.ledger.sent, dict(follower.ledger.outcomes)) == (100, {"answered": 100})


async def test_latest_wins_and_the_rest_is_accounted_for() -> None:
    async with open_grpc_site() as site, AsyncGrpcClient(site.address) as client:
        follower = ReconnectingStream(client, ListFeed(200), StreamOptions(policy="latest"))
        events = [event async for event in follower.events()]
        assert not [event for event in events if isinstance(event, (Failed, ModelChanged))]
        outcomes = follower.ledger.outcomes
        assert outcomes["answered"] + outcomes["superseded"] == follower.ledger.sent == 200
        assert sum(e.count for e in events if isinstance(e, Dropped)) == outcomes["superseded"]


@pytest.mark.parametrize("policy", ["block", "latest"])
async def test_a_follower_comes_back_after_a_drain(policy: Any) -> None:
    async with open_grpc_site() as first, open_grpc_site() as second:
        places = [AsyncGrpcClient(site.address) for site in (first, second)]
        follower = ReconnectingStream(places[0], ListFeed(60), StreamOptions(policy=policy), pause=no_pause)
        interrupted: list[Interrupted] = []
        answered: list[int] = []
        async for event in follower.events():
            if isinstance(event, Result):
                answered.append(event.seq)
                if not interrupted:
                    first.drain()
            if isinstance(event, Interrupted):
                interrupted.append(event)
                follower._client = places[1]  # what a load balancer does
        assert len(interrupted) == 1
        assert sum(follower.ledger.outcomes.values()) == follower.ledger.sent == 60
        if policy == "block":
            assert follower.ledger.outcomes == {"answered": 60}
            assert answered == list(range(1, 61))
        for client in places:
            await client.close()


class ScriptedClient:
    """Streams whose every event is known beforehand; an error is raised in its place."""

    def __init__(self, *connections: list[Any]) -> None:
        self.sent: list[list[int]] = []
        self._connections = [*connections]

    @asynccontextmanager
    async def stream(self, **_: Any) -> AsyncIterator[ScriptedCall]:
        self.sent.append([])
        yield ScriptedCall(self._connections.pop(0), self.sent[-1])


class ScriptedCall:
    """Says the next event once as many frames have come as it needs."""

    def __init__(self, events: list[Any], sent: list[int]) -> None:
        self._events = events
        self._sent = sent
        self._ended = asyncio.Event()

    async def send(self, frame: Frame) -> None:
        self._sent.append(frame.seq)

    async def end(self) -> None:
        self._ended.set()

    async def next_event(self) -> Any:
        event = self._events.pop(0) if self._events else None
        if not isinstance(event, Opened):
            await self._ended.wait()
        if isinstance(event, Exception):
            raise event
        return event


OPENED = Opened("fake", 3, 4, 30.0, ())
DRAINING = RefusedError("draining", "the service is about to stop", retry_after_s=0.1)


def result(seq: int) -> Result:
    return Result(seq, Mask(b"", "raw", 0, 0), 3, None, {})


@pytest.mark.parametrize("end", [DRAINING, None])
async def test_a_film_sends_again_in_order_what_a_draining_service_dropped(end: Exception | None) -> None:
    dropped = Dropped(2, 3, 2, "draining")
    client = ScriptedClient([OPENED, result(1), dropped, end], [OPENED, result(2), result(3), result(4)])
    follower = ReconnectingStream(client, ListFeed(4), StreamOptions(policy="block"), pause=no_pause)  # type: ignore[arg-type]
    if end is None:
        client._connections[0][2] = Dropped(2, 4, 3, "draining")
    events = [event async for event in follower.events()]
    assert client.sent == [[1, 2, 3, 4], [2, 3, 4]]
    assert not [event for event in events if isinstance(event, Dropped)]
    assert (follower.ledger.sent, follower.ledger.outcomes) == (4, {"answered": 4})


@pytest.mark.parametrize("policy", ["block", "latest"])
async def test_who_has_all_answers_does_not_come_back_after_a_loss(policy: Any) -> None:
    client = ScriptedClient([OPENED, result(1), UnreachableError("gone")])
    follower = ReconnectingStream(client, ListFeed(1), StreamOptions(policy=policy), pause=no_pause)  # type: ignore[arg-type]
    assert [type(event) async for event in follower.events()] == [Opened, Result]
    assert follower.ledger.outcomes == {"answered": 1}


async def test_a_broken_connection_is_opened_again_and_a_film_loses_nothing() -> None:
    async with open_grpc_site() as first, open_grpc_site() as second:
        places = [AsyncGrpcClient(site.address) for site in (first, second)]
        follower = ReconnectingStream(places[0], ListFeed(60), StreamOptions(policy="block"), pause=no_pause)
        answered: list[int] = []
        async for event in follower.events():
            if isinstance(event, Result):
                answered.append(event.seq)
                if len(answered) == 5:
                    first.server.stop()
                    first.server.cut()
            if isinstance(event, Interrupted):
                follower._client = places[1]
        assert answered == list(range(1, 61))
        assert follower.ledger.outcomes["answered"] == follower.ledger.sent == 60
        for client in places:
            await client.close()


async def test_who_will_never_be_answered_does_not_try_again() -> None:
    async with open_grpc_site() as site, AsyncGrpcClient(site.address) as client:
        follower = ReconnectingStream(client, ListFeed(3), StreamOptions(model="nobody"))
        with pytest.raises(RefusedError, match="model_not_found"):
            async for _ in follower.events():
                pass


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
async def test_grpc_clients_speak_tls_with_whom_they_trust(tmp_path: Path) -> None:
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
