"""``bisenet serve`` behind nginx and HAProxy: nothing is lost and nothing comes twice, whatever they cut."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, aclosing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from fakes import write_pooling_artifact
from live_service import Server, serving_environment, started
from PIL import Image
from proxies import BODY_LIMIT, Proxy, Upstream, haproxy, needs_haproxy, needs_nginx, nginx

from service.client.answers import Frame, Interrupted, Result, StreamEvent
from service.client.errors import ClientError, UnreachableError
from service.client.grpc_client import AsyncGrpcClient, GrpcClient
from service.client.http_client import AsyncHttpClient, HttpClient
from service.client.reconnecting_stream import ReconnectingStream, StreamOptions

Open = Callable[..., AbstractContextManager[Proxy]]

both_proxies = pytest.mark.parametrize(
    "open_proxy",
    [
        pytest.param(nginx, marks=needs_nginx, id="nginx"),
        pytest.param(haproxy, marks=needs_haproxy, id="HAProxy"),
    ],
)


@pytest.fixture(scope="module")
def server(shared_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("service")
    (folder / "models" / "red").mkdir(parents=True)  # tells red from the other colours
    write_pooling_artifact(folder / "models" / "red" / "1", seed=1)
    environment = serving_environment(folder, shared_cache, folder / "home", "red")
    with started(environment, folder / "stderr") as server:
        yield server


@pytest.fixture(scope="module")
def upstream(server: Server) -> Upstream:
    """Return the ports of the service, the second one as its first log line says."""
    lines = [json.loads(line) for line in server.log.read_text().splitlines() if line.startswith("{")]
    address = str(next(line["grpc_address"] for line in lines if line["event"] == "listening"))
    port = server.client.base_url.port
    assert port is not None
    return Upstream(port, int(address.rpartition(":")[2]))


@dataclass(frozen=True)
class Sample:
    """A picture, and the mask that the service itself answers with."""

    picture: bytes
    mask: bytes


@pytest.fixture(scope="module")
def samples(upstream: Upstream) -> list[Sample]:
    random = np.random.default_rng(0)
    with HttpClient(f"http://127.0.0.1:{upstream.http}") as client:
        pictures = [picture(random, 64, 64) for _ in range(20)]
        samples = [Sample(data, client.segment(data, mask="png").mask.data) for data in pictures]
    assert len({sample.mask for sample in samples}) > 10  # or a mix-up would not be noticed
    return samples


def picture(random: np.random.Generator, height: int, width: int) -> bytes:
    grid = random.integers(0, 256, (5, 7, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC).save(stream, "PNG")
    return stream.getvalue()


async def ask_over_http(
    url: str, samples: list[Sample], count: int, *, pause_every: int, pause_s: float
) -> int:
    """Ask for masks, some at the same time, with pauses; return how many were right."""
    right = 0
    numbers = iter(range(count))

    async def work(client: AsyncHttpClient) -> None:
        nonlocal right
        for number in numbers:
            sample = samples[number % len(samples)]
            answer = await client.segment(sample.picture)
            right += answer.mask.data == sample.mask
            if number % pause_every == pause_every - 1:
                await asyncio.sleep(pause_s)

    async with AsyncHttpClient(url) as client:
        await asyncio.gather(*(work(client) for _ in range(4)))
    return right


@dataclass
class PausingFeed:
    """Frames with pauses that are longer than the idle time-out of the proxy."""

    samples: list[Sample]
    count: int
    pause_every: int
    pause_s: float
    sent: int = 0

    async def next(self) -> Frame | None:
        if self.sent == self.count:
            return None
        if self.sent and self.sent % self.pause_every == 0:
            await asyncio.sleep(self.pause_s)
        self.sent += 1
        return Frame(self.sent, self.samples[self.sent % len(self.samples)].picture)


@dataclass
class StreamOutcome:
    """What a client saw of one stream."""

    numbers: list[int] = field(default_factory=list)
    wrong: int = 0
    reasons: list[str] = field(default_factory=list)


async def follow(address: str, feed: PausingFeed) -> StreamOutcome:
    outcome = StreamOutcome()
    async with AsyncGrpcClient(address) as client:
        stream = ReconnectingStream(client, feed, StreamOptions(mask="png", policy="block"))
        async for event in stream.events():
            match event:
                case Result(seq=seq, mask=mask):
                    outcome.numbers.append(seq)
                    outcome.wrong += mask.data != feed.samples[seq % len(feed.samples)].mask
                case Interrupted(reason=reason):
                    outcome.reasons.append(reason)
    return outcome


async def follow_all(address: str, feeds: list[PausingFeed]) -> list[StreamOutcome]:
    return await asyncio.gather(*(follow(address, feed) for feed in feeds))


@both_proxies
async def test_pictures_and_streams_outlive_idle_time_outs(
    open_proxy: Open, upstream: Upstream, samples: list[Sample], tmp_path: Path
) -> None:
    with open_proxy(tmp_path / "proxy", upstream, idle_s=1) as proxy:
        pictures, outcomes = await asyncio.gather(
            ask_over_http(proxy.http_url, samples, 200, pause_every=25, pause_s=1.1),
            follow_all(proxy.grpc_address, [PausingFeed(samples, 20, 10, 2.5) for _ in range(4)]),
        )
    assert pictures == 200
    for outcome in outcomes:
        assert outcome.numbers == list(range(1, 21))
        assert outcome.wrong == 0
        assert len(outcome.reasons) == 1  # the proxy has cut the stream in its pause


@both_proxies
async def test_a_prefix_is_stripped_and_upload_limits_are_told(
    open_proxy: Open, upstream: Upstream, samples: list[Sample], tmp_path: Path
) -> None:
    with open_proxy(tmp_path / "proxy", upstream, idle_s=5) as proxy:
        async with AsyncHttpClient(f"{proxy.http_url}/masks") as client:
            assert (await client.segment(samples[0].picture)).mask.data == samples[0].mask
            # A proxy that closes at once may cut off its own answer.
            with pytest.raises(ClientError, match=r"client_max_body_size|a proxy may refuse bodies"):
                await client.segment(bytes(BODY_LIMIT + 1))


@needs_nginx
async def test_the_body_limit_of_nginx_costs_connections_but_no_frame(
    upstream: Upstream, samples: list[Sample], tmp_path: Path
) -> None:
    large = [Sample(sample.picture + bytes(BODY_LIMIT // 4), sample.mask) for sample in samples]
    with nginx(tmp_path / "proxy", upstream, idle_s=5) as proxy:
        outcome = await follow(proxy.small_grpc_address, PausingFeed(large, 12, 100, 0))
    assert outcome.numbers == list(range(1, 13))
    assert outcome.wrong == 0
    assert outcome.reasons


@needs_nginx
async def test_a_frame_above_the_body_limit_of_nginx_is_told_with_the_way_out(
    upstream: Upstream, samples: list[Sample], tmp_path: Path
) -> None:
    feed = PausingFeed([Sample(samples[0].picture + bytes(BODY_LIMIT), b"")], 1, 100, 0)
    with nginx(tmp_path / "proxy", upstream, idle_s=5) as proxy:
        async with AsyncGrpcClient(proxy.small_grpc_address) as client:
            stream = ReconnectingStream(client, feed, StreamOptions(policy="block"))
            async with aclosing(stream.events()) as events:
                reasons = [event.reason async for event in first_interruptions(events, 3)]
    assert "client_max_body_size" not in reasons[0]
    assert "frame 1 of" in reasons[2]
    assert "client_max_body_size to 0" in reasons[2]


async def first_interruptions(
    events: AsyncGenerator[StreamEvent, None], count: int
) -> AsyncIterator[Interrupted]:
    async for event in events:
        if isinstance(event, Interrupted):
            yield event
            count -= 1
            if not count:
                return


@both_proxies
async def test_a_proxy_without_a_service_is_told_as_unreachable(open_proxy: Open, tmp_path: Path) -> None:
    with open_proxy(tmp_path / "proxy", Upstream(9, 9), idle_s=5) as proxy:
        with HttpClient(proxy.http_url) as client, pytest.raises(UnreachableError, match=r"502|503"):
            await asyncio.to_thread(client.models)
        with GrpcClient(proxy.grpc_address) as grpc_client, pytest.raises(UnreachableError, match=r"502|503"):
            await asyncio.to_thread(grpc_client.models)


@pytest.mark.soak
@both_proxies
async def test_ten_thousand_pictures_and_twenty_streams(
    open_proxy: Open, upstream: Upstream, samples: list[Sample], tmp_path: Path
) -> None:
    """With idle time-outs of 5 s, and workers of the proxy that are replaced while it works."""

    async def reload_sometimes(proxy: Proxy) -> None:
        for _ in range(3):
            await asyncio.sleep(15)
            proxy.reload()

    with open_proxy(tmp_path / "proxy", upstream, idle_s=5) as proxy:
        pictures, outcomes, _ = await asyncio.gather(
            ask_over_http(proxy.http_url, samples, 10_000, pause_every=1_000, pause_s=5.5),
            follow_all(proxy.grpc_address, [PausingFeed(samples, 200, 50, 15) for _ in range(20)]),
            reload_sometimes(proxy),
        )
    assert pictures == 10_000
    assert sum(outcome.wrong for outcome in outcomes) == 0
    assert [outcome.numbers for outcome in outcomes] == [list(range(1, 201))] * 20
    assert min(len(outcome.reasons) for outcome in outcomes) >= 1  # each stream was cut in its pauses


@pytest.mark.soak
@needs_haproxy
async def test_keep_alive_holds_a_stream_open_through_a_proxy_for_tcp(
    upstream: Upstream, samples: list[Sample], tmp_path: Path
) -> None:
    feeds = [PausingFeed(samples, 6, pause_every=2, pause_s=3 * 5) for _ in range(20)]
    with haproxy(tmp_path / "proxy", upstream, idle_s=5) as proxy:
        outcomes = await follow_all(proxy.tcp_address, feeds)
    assert [outcome.numbers for outcome in outcomes] == [[1, 2, 3, 4, 5, 6]] * 20
    assert [outcome.reasons for outcome in outcomes] == [[]] * 20
