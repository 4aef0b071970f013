"""Streams over broken connections: no frame number is lost, none comes twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest
from breaking_proxy import Break, breaking_proxy, go_away, hang_up, http_error, reset
from fakes import PATIENCE_S
from grpc_site import GrpcSite, open_grpc_site
from http_site import encoded

from service.client.answers import Dropped, Failed, Frame, Interrupted, Mask, ModelChanged, Opened, Result
from service.client.backoff import ReconnectBackoff
from service.client.errors import ProtocolError, RefusedError, SourceError, UnreachableError
from service.client.grpc_client import AsyncGrpcClient
from service.client.reconnecting_stream import FrameFeed, ReconnectingStream, StreamOptions

PICTURE = encoded(np.zeros((16, 16, 3), np.uint8))


class ListFeed:
    """Frames that are there already."""

    def __init__(self, count: int, data: bytes = PICTURE) -> None:
        self._frames = [Frame(seq, data, captured_s=1000.5) for seq in range(1, count + 1)]

    async def next(self) -> Frame | None:
        return self._frames.pop(0) if self._frames else None


async def events_of(stream: ReconnectingStream) -> list[Any]:
    return [event async for event in stream.events()]


async def no_pause(_: float) -> None:
    await asyncio.sleep(0)


@pytest.fixture
async def site() -> AsyncIterator[GrpcSite]:
    async with open_grpc_site() as site:
        yield site


async def test_the_outcome_of_every_frame_is_told(site: GrpcSite) -> None:
    async with AsyncGrpcClient(site.address) as client:
        stream = ReconnectingStream(client, ListFeed(100), StreamOptions(policy="block"))
        opened, *results = await events_of(stream)
    assert isinstance(opened, Opened)
    assert [e.seq for e in results if isinstance(e, Result)] == list(range(1, 101))
    assert {e.captured_s for e in results if isinstance(e, Result)} == {1000.5}
    assert (stream.ledger.sent, dict(stream.ledger.outcomes)) == (100, {"answered": 100})


async def test_with_latest_replaced_frames_are_counted(site: GrpcSite) -> None:
    async with AsyncGrpcClient(site.address) as client:
        stream = ReconnectingStream(client, ListFeed(200), StreamOptions(policy="latest"))
        events = await events_of(stream)
    assert not [event for event in events if isinstance(event, (Failed, ModelChanged))]
    outcomes = stream.ledger.outcomes
    assert outcomes["answered"] + outcomes["superseded"] == stream.ledger.sent == 200
    assert sum(e.count for e in events if isinstance(e, Dropped)) == outcomes["superseded"]


BREAKS = {
    **{f"RST_STREAM {code}": reset(code) for code in range(14)},
    **{f"GOAWAY {code}": go_away(code) for code in (0, 2, 11)},
    **{f"HTTP {status}": http_error(status) for status in (408, 429, 500, 502, 503, 504)},
    "hang-up": hang_up(),
}


class TestProxies:
    @pytest.mark.parametrize("way", BREAKS.values(), ids=BREAKS)
    async def test_however_a_proxy_breaks_a_stream_each_frame_is_answered_once(
        self, site: GrpcSite, way: Break
    ) -> None:
        async with breaking_proxy(site.address, way, way) as address, AsyncGrpcClient(address) as client:
            options = StreamOptions(policy="block")
            stream = ReconnectingStream(client, ListFeed(60), options, pause=no_pause)
            events = await events_of(stream)
        assert [e.seq for e in events if isinstance(e, Result)] == list(range(1, 61))
        assert (stream.ledger.sent, dict(stream.ledger.outcomes)) == (60, {"answered": 60})
        interrupted = [event for event in events if isinstance(event, Interrupted)]
        assert len(interrupted) >= 2
        assert all(event.reason and not event.lost for event in interrupted)

    @pytest.mark.parametrize("way", [reset(2), go_away(0), hang_up()], ids=["reset", "goaway", "hang-up"])
    async def test_with_latest_lost_frames_are_told_and_no_number_comes_twice(
        self, site: GrpcSite, way: Break
    ) -> None:
        async with breaking_proxy(site.address, way) as address, AsyncGrpcClient(address) as client:
            stream = ReconnectingStream(client, ListFeed(200), StreamOptions(policy="latest"), pause=no_pause)
            events = await events_of(stream)
        answered = [event.seq for event in events if isinstance(event, Result)]
        assert answered == sorted(set(answered))
        lost = [seq for event in events if isinstance(event, Interrupted) for seq in event.lost]
        assert len(lost) == stream.ledger.outcomes["lost"]
        assert not set(lost) & set(answered)
        assert sum(stream.ledger.outcomes.values()) == stream.ledger.sent == 200

    async def test_the_body_limit_of_a_proxy_is_told_with_the_way_out(self, site: GrpcSite) -> None:
        proxy = breaking_proxy(site.address, http_error(413))
        async with proxy as address, AsyncGrpcClient(address) as client:
            stream = ReconnectingStream(client, ListFeed(5), StreamOptions(policy="block"))
            with pytest.raises(RefusedError, match="client_max_body_size") as caught:
                await events_of(stream)
        assert caught.value.code == "payload_too_large"

    @pytest.mark.parametrize(("status", "code"), [(401, "unauthenticated"), (403, "permission_denied")])
    async def test_a_proxy_that_asks_for_credentials_is_not_asked_again(
        self, site: GrpcSite, status: int, code: str
    ) -> None:
        proxy = breaking_proxy(site.address, http_error(status))
        async with proxy as address, AsyncGrpcClient(address) as client:
            stream = ReconnectingStream(client, ListFeed(5), StreamOptions(policy="block"))
            with pytest.raises(RefusedError) as caught:
                await events_of(stream)
        assert caught.value.code == code


class TestStoppingService:
    @pytest.mark.parametrize("policy", ["block", "latest"])
    async def test_a_stream_goes_on_after_a_drain(self, policy: Any) -> None:
        async with open_grpc_site() as first, open_grpc_site() as second:
            clients = [AsyncGrpcClient(site.address) for site in (first, second)]
            stream = ReconnectingStream(
                clients[0], ListFeed(60), StreamOptions(policy=policy), pause=no_pause
            )
            interrupted: list[Interrupted] = []
            answered: list[int] = []
            async for event in stream.events():
                if isinstance(event, Result):
                    answered.append(event.seq)
                    if not interrupted:
                        first.drain()
                if isinstance(event, Interrupted):
                    interrupted.append(event)
                    stream._client = clients[1]  # what a load balancer does
            assert len(interrupted) == 1
            assert sum(stream.ledger.outcomes.values()) == stream.ledger.sent == 60
            if policy == "block":
                assert stream.ledger.outcomes == {"answered": 60}
                assert answered == list(range(1, 61))
            for client in clients:
                await client.close()

    async def test_a_film_loses_nothing_when_the_service_is_cut_off(self) -> None:
        async with open_grpc_site() as first, open_grpc_site() as second:
            clients = [AsyncGrpcClient(site.address) for site in (first, second)]
            stream = ReconnectingStream(
                clients[0], ListFeed(60), StreamOptions(policy="block"), pause=no_pause
            )
            answered: list[int] = []
            async for event in stream.events():
                if isinstance(event, Result):
                    answered.append(event.seq)
                    if len(answered) == 5:
                        first.server.stop()
                        first.server.cut()
                if isinstance(event, Interrupted):
                    stream._client = clients[1]
            assert answered == list(range(1, 61))
            assert stream.ledger.outcomes["answered"] == stream.ledger.sent == 60
            for client in clients:
                await client.close()

    async def test_a_stream_that_is_refused_for_good_is_not_tried_again(self, site: GrpcSite) -> None:
        async with AsyncGrpcClient(site.address) as client:
            stream = ReconnectingStream(client, ListFeed(3), StreamOptions(model="nobody"))
            with pytest.raises(RefusedError, match="model_not_found"):
                await events_of(stream)


class ScriptedClient:
    """Streams whose events are known beforehand; an error is raised in its place."""

    def __init__(self, *connections: list[Any]) -> None:
        self.sent: list[list[int]] = []
        self._connections = [*connections]

    @asynccontextmanager
    async def stream(self, **_: Any) -> AsyncIterator[ScriptedCall]:
        self.sent.append([])
        yield ScriptedCall(self._connections.pop(0), self.sent[-1])


class ScriptedCall:
    """Gives an event once the frames before it have come: a number in the script waits for that frame."""

    def __init__(self, script: list[Any], sent: list[int]) -> None:
        self._script = script
        self._sent = sent
        self._changed = asyncio.Condition()
        self._has_ended = False

    async def send(self, frame: Frame) -> None:
        async with self._changed:
            self._sent.append(frame.seq)
            self._changed.notify_all()

    async def end(self) -> None:
        async with self._changed:
            self._has_ended = True
            self._changed.notify_all()

    async def next_event(self) -> Any:
        event = self._script.pop(0) if self._script else None
        async with self._changed:
            if isinstance(event, int):
                await asyncio.wait_for(self._changed.wait_for(lambda: event in self._sent), PATIENCE_S)
            elif not isinstance(event, Opened):
                await asyncio.wait_for(self._changed.wait_for(lambda: self._has_ended), PATIENCE_S)
        if isinstance(event, int):
            event = self._script.pop(0)
        if isinstance(event, Exception):
            raise event
        return event


OPENED = Opened("fake", 3, 4, 30.0, ())
DRAINING = RefusedError("draining", "the service is about to stop", retry_after_s=0.1)


def result(seq: int) -> Result:
    return Result(seq, Mask(b"", "raw", 0, 0), 3, None, {})


def stream_of(
    client: ScriptedClient, feed: FrameFeed, policy: Any = "block", **options: Any
) -> ReconnectingStream:
    return ReconnectingStream(client, feed, StreamOptions(policy=policy), pause=no_pause, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("end", [DRAINING, None])
async def test_frames_that_a_stopping_service_dropped_are_sent_again_in_order(end: Exception | None) -> None:
    dropped = Dropped(2, 3, 2, "draining") if end else Dropped(2, 4, 3, "draining")
    client = ScriptedClient([OPENED, result(1), dropped, end], [OPENED, result(2), result(3), result(4)])
    stream = stream_of(client, ListFeed(4))
    events = await events_of(stream)
    assert client.sent == [[1, 2, 3, 4], [2, 3, 4]]
    assert not [event for event in events if isinstance(event, Dropped)]
    assert (stream.ledger.sent, stream.ledger.outcomes) == (4, {"answered": 4})


@pytest.mark.parametrize("policy", ["block", "latest"])
async def test_after_the_last_answer_a_lost_connection_is_not_opened_again(policy: Any) -> None:
    client = ScriptedClient([OPENED, result(1), UnreachableError("gone")])
    stream = stream_of(client, ListFeed(1), policy)
    assert [type(event) async for event in stream.events()] == [Opened, Result]
    assert stream.ledger.outcomes == {"answered": 1}


async def test_a_stream_that_a_proxy_ends_early_is_opened_again() -> None:
    client = ScriptedClient([OPENED, 1, result(1), 2, None], [OPENED, 2, result(2), result(3)])
    stream = stream_of(client, ListFeed(3))
    events = await events_of(stream)
    assert [event.seq for event in events if isinstance(event, Result)] == [1, 2, 3]
    (interrupted,) = (event for event in events if isinstance(event, Interrupted))
    assert "ended before every frame was answered" in interrupted.reason


async def test_a_frame_without_an_answer_on_several_connections_is_told() -> None:
    gone = UnreachableError("reset")
    connections = [[OPENED, 1, gone] for _ in range(4)]
    client = ScriptedClient(*connections, [OPENED, 1, result(1), 2, gone], [OPENED, 2, result(2)])
    reasons = [
        e.reason for e in await events_of(stream_of(client, ListFeed(2))) if isinstance(e, Interrupted)
    ]
    assert reasons[:2] == ["reset", "reset"]
    assert all(f"frame 1 of {len(PICTURE)} bytes" in reason for reason in reasons[2:4])
    assert "after 4 connections" in reasons[3]
    assert reasons[4:] == ["reset"]


async def test_after_a_loss_one_frame_is_sent_until_there_is_an_answer() -> None:
    client = ScriptedClient(
        [OPENED, 3, UnreachableError("reset")],
        [OPENED, 1, UnreachableError("reset")],
        [OPENED, 1, result(1), result(2), result(3)],
    )
    await events_of(stream_of(client, ListFeed(3)))
    assert client.sent == [[1, 2, 3], [1], [1, 2, 3]]


class SlowFeed:
    """A camera whose second picture comes when it is asked for."""

    def __init__(self, *, has_more: bool = True) -> None:
        self.asked = 0
        self.next_is_there = asyncio.Event()
        self._has_more = has_more

    async def next(self) -> Frame | None:
        self.asked += 1
        if self.asked == 1:
            return Frame(1, PICTURE)
        await self.next_is_there.wait()
        return Frame(2, PICTURE) if self._has_more and self.asked <= 3 else None


@pytest.mark.parametrize("policy", ["block", "latest"])
async def test_an_idle_connection_that_a_proxy_cut_is_opened_again_with_the_next_frame(policy: Any) -> None:
    client = ScriptedClient([OPENED, 1, result(1), 1, UnreachableError("cut")], [OPENED, 2, result(2)])
    feed = SlowFeed()
    stream = stream_of(client, feed, policy)
    events = []
    async for event in stream.events():
        events.append(event)
        if isinstance(event, Interrupted):
            asyncio.get_running_loop().call_later(0.05, feed.next_is_there.set)
            assert len(client.sent) == 1
    assert [event.seq for event in events if isinstance(event, Result)] == [1, 2]
    assert client.sent == [[1], [2]]


async def test_an_idle_connection_is_not_opened_again_for_nothing() -> None:
    client = ScriptedClient([OPENED, 1, result(1), 1, UnreachableError("cut")])
    feed = SlowFeed(has_more=False)
    async for event in stream_of(client, feed).events():
        if isinstance(event, Interrupted):
            feed.next_is_there.set()
    assert client.sent == [[1]]


async def test_the_error_of_a_feed_comes_after_the_answers() -> None:
    class BrokenFeed(ListFeed):
        async def next(self) -> Frame | None:
            frame = await super().next()
            if frame is None:
                raise SourceError("the cable is out")
            return frame

    stream = stream_of(ScriptedClient([OPENED, result(1), result(2)]), BrokenFeed(2))
    with pytest.raises(SourceError, match="cable"):
        await events_of(stream)
    assert stream.ledger.outcomes == {"answered": 2}


async def test_an_answer_that_fits_no_frame_is_an_error() -> None:
    client = ScriptedClient([OPENED, result(7)])
    with pytest.raises(ProtocolError):
        await events_of(stream_of(client, ListFeed(1)))


async def test_the_wait_grows_while_the_service_is_away_and_starts_anew_with_an_answer() -> None:
    waits: list[float] = []

    async def pause(seconds: float) -> None:
        waits.append(seconds)

    gone = [UnreachableError("gone")]
    client = ScriptedClient(
        [OPENED, 1, result(1), 2, *gone], [OPENED, 2, *gone], [OPENED, 2, result(2), *gone]
    )
    backoff = ReconnectBackoff(first_s=1.0, spread=lambda _, high: high)
    stream = ReconnectingStream(
        client,  # type: ignore[arg-type]
        ListFeed(2),
        StreamOptions(policy="block"),
        backoff=backoff,
        pause=pause,
    )
    await events_of(stream)
    assert stream.ledger.outcomes == {"answered": 2}
    assert waits == [1.0, 2.0]
