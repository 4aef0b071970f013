"""Streams of frames over gRPC: each seq has one answer, in order, whatever happens to it."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from typing import Any

import grpc
import numpy as np
import pytest
from fakes import PATIENCE_S, FakeEngine, until
from google.protobuf.timestamp_pb2 import Timestamp
from grpc_site import GrpcSite, Messages, StreamCall, details_of, open_grpc_site, reason_of
from http_site import FAKE_VERSIONS, encoded, picture_of

from model.artifacts.manifest import ModelVersion
from service.core.scheduling.dispatcher import Answer
from service.core.scheduling.memory_budget import MemoryBudget
from service.core.streams.frame_permits import FramePermits
from service.core.streams.stream_session import FramePolicy, StreamRules
from service.grpc_api.messages import MaskRequest, Target
from service.grpc_api.servicer import ServicerOptions
from service.grpc_api.streams import FrameStream, StreamLimits, StreamResources, _Permit
from service.telemetry import Metrics
from service.wire import segmentation_pb2 as wire
from service.wire.segmentation_pb2_grpc import SegmentationStub

DARK_HW3 = picture_of(np.ones((32, 32), np.uint8))
DARK = encoded(DARK_HW3)


@pytest.fixture
async def site() -> AsyncIterator[GrpcSite]:
    async with open_grpc_site() as site:
        yield site


@pytest.fixture
async def held() -> AsyncIterator[GrpcSite]:
    async with open_grpc_site(FakeEngine(held=True)) as site:
        yield site
        site.engine.go_on(100)


async def send(call: StreamCall, *seqs: int, data: bytes = DARK, **image: Any) -> None:
    for seq in seqs:
        frame = wire.Frame(seq=seq, image=wire.Image(data=data, **image))
        await call.write(wire.StreamRequest(frame=frame))


async def rest(call: StreamCall) -> Messages:
    """Say that no frame will come any more, and return what still comes."""
    await call.done_writing()
    messages, error = await until_the_end(call)
    assert error is None, error
    return messages


async def until_the_end(call: StreamCall) -> tuple[Messages, grpc.aio.AioRpcError | None]:
    messages: Messages = []
    try:
        while (message := await call.read()) is not grpc.aio.EOF:
            messages.append(message)
    except grpc.aio.AioRpcError as error:
        return messages, error
    return messages, None


async def until_refused(call: StreamCall) -> tuple[Messages, grpc.aio.AioRpcError]:
    messages, error = await until_the_end(call)
    assert error is not None
    return messages, error


async def next_of(call: StreamCall, kind: str) -> Any:
    """Return the next message, which must be of this kind."""
    message = await call.read()
    assert message is not grpc.aio.EOF, await call.details()
    assert message.WhichOneof("kind") == kind, message
    return getattr(message, kind)


async def refusal(call: StreamCall) -> grpc.aio.AioRpcError:
    return (await until_refused(call))[1]


def seqs_of(messages: Messages) -> list[tuple[str, int]]:
    found = []
    for message in messages:
        kind = message.WhichOneof("kind")
        match kind:
            case "dropped":
                found.append((kind, message.dropped.last_seq))
            case "result" | "error":
                found.append((kind, getattr(message, kind).seq))
            case _:
                found.append((str(kind), 0))
    return found


async def test_a_stream_that_asks_for_it_gets_the_confidence_of_each_frame(site: GrpcSite) -> None:
    call = await site.stream(policy=wire.BLOCK, mask=wire.RAW, confidence=wire.CONFIDENCE_MEAN)
    await send(call, 1)
    results = [message.result for message in await rest(call) if message.HasField("result")]
    (only,) = results[0].confidence.classes
    assert (only.id, len(results)) == (1, 1)
    assert only.mean > 0.99


async def test_each_frame_of_a_film_is_answered_in_order(site: GrpcSite) -> None:
    call = await site.stream(policy=wire.BLOCK, mask=wire.RAW)
    await send(call, *range(5, 45, 2))
    opened, *results = await rest(call)
    assert opened.opened.model == "fake"
    assert seqs_of(results) == [("result", seq) for seq in range(5, 45, 2)]
    assert all(set(message.result.mask.data) == {1} for message in results)
    assert await call.code() is grpc.StatusCode.OK


async def test_the_first_answer_says_what_was_agreed_on(site: GrpcSite) -> None:
    call = await site.stream(model="fake", max_in_flight=2, max_frame_age_ms=700)
    opened = await next_of(call, "opened")
    assert (opened.model, opened.version) == ("fake", 3)
    assert (opened.max_in_flight, opened.max_frame_age_ms) == (2, 700)
    assert [c.name for c in opened.classes] == ["black", "dark", "light", "white"]
    assert not await rest(call)


async def test_more_than_the_limits_is_not_agreed_on(site: GrpcSite) -> None:
    call = await site.stream(max_in_flight=1000, max_frame_age_ms=10**9)
    opened = await next_of(call, "opened")
    assert (opened.max_in_flight, opened.max_frame_age_ms) == (4, 30_000)
    await rest(call)


async def test_what_the_camera_said_of_a_frame_comes_back(site: GrpcSite) -> None:
    call = await site.stream()
    when = Timestamp(seconds=1_700_000_000, nanos=5)
    frame = wire.Frame(seq=1, capture_time=when, image=wire.Image(data=DARK))
    await call.write(wire.StreamRequest(frame=frame))
    _, result = await rest(call)
    assert result.result.capture_time == when
    assert (result.result.version, result.result.mask.encoding) == (3, wire.PNG)
    assert result.result.timings.decode_ms > 0
    assert result.result.timings.batch_size == 1


async def test_raw_frames_need_no_decoding(site: GrpcSite) -> None:
    call = await site.stream(mask=wire.RAW)
    pixels = DARK_HW3.tobytes()
    await send(call, 1, data=pixels, encoding=wire.BGR8, width=32, height=32)
    _, result = await rest(call)
    assert set(result.result.mask.data) == {1}


async def test_the_newest_frame_wins_and_the_others_are_reported(held: GrpcSite) -> None:
    call = await held.stream(max_in_flight=1)
    await next_of(call, "opened")
    await send(call, 1)
    await asyncio.to_thread(held.engine.wait_until_busy)
    await send(call, 2, 3, 5, 8)
    await call.done_writing()
    held.engine.go_on(2)
    messages, _ = await until_the_end(call)
    assert seqs_of(messages) == [("result", 1), ("dropped", 5), ("result", 8)]
    dropped = messages[1].dropped
    assert (dropped.first_seq, dropped.count, dropped.reason) == (2, 3, wire.SUPERSEDED)
    assert held.metric('bisenet_stream_frames_total{outcome="superseded"}') == 3


async def test_a_frame_that_got_too_old_is_dropped_and_the_stream_goes_on(held: GrpcSite) -> None:
    call = await held.stream(max_frame_age_ms=50)
    await next_of(call, "opened")
    await send(call, 1)
    dropped = await next_of(call, "dropped")
    assert (dropped.first_seq, dropped.reason) == (1, wire.TOO_OLD)
    held.engine.go_on(1)
    assert not await rest(call)


async def test_a_broken_frame_does_not_end_the_stream(site: GrpcSite) -> None:
    call = await site.stream(policy=wire.BLOCK)
    await send(call, 1)
    await send(call, 2, data=DARK[:60])
    await send(call, 3, data=b"")
    await send(call, 4, data=b"garbage")
    await send(call, 5, data=b"12345", encoding=wire.RGB8, width=1, height=1)
    await send(call, 6, encoding=77)
    await send(call, 7)
    _, *answers = await rest(call)
    errors = [answer.error for answer in answers if answer.WhichOneof("kind") == "error"]
    assert [(error.seq, error.code) for error in errors] == [
        (2, "undecodable_image"),
        (3, "empty_body"),
        (4, "unsupported_media"),
        (5, "invalid_argument"),
        (6, "invalid_argument"),
    ]
    assert {error.grpc_code for error in errors} == {grpc.StatusCode.INVALID_ARGUMENT.value[0]}
    assert seqs_of(answers)[0] == ("result", 1)
    assert seqs_of(answers)[-1] == ("result", 7)


async def test_a_frame_above_the_limit_is_an_error_of_its_own() -> None:
    options = ServicerOptions(streams=StreamLimits(max_frame_bytes=len(DARK)))
    async with open_grpc_site(options=options) as site:
        call = await site.stream(policy=wire.BLOCK)
        await send(call, 1, data=DARK + b"x")
        await send(call, 2)
        _, error, result = await rest(call)
        assert error.error.code == "payload_too_large"
        assert result.result.seq == 2


@pytest.mark.parametrize(
    ("messages", "code"),
    [
        ([wire.StreamRequest(frame=wire.Frame(seq=1))], "invalid_argument"),
        ([wire.StreamRequest()], "invalid_argument"),
        ([], "invalid_argument"),
        ([wire.StreamRequest(open=wire.StreamOpen(model="nobody"))], "model_not_found"),
        ([wire.StreamRequest(open=wire.StreamOpen(model="fake@2"))], "version_not_found"),
        ([wire.StreamRequest(open=wire.StreamOpen(policy=9))], "invalid_argument"),  # type: ignore[arg-type]
        ([wire.StreamRequest(open=wire.StreamOpen(mask=9))], "invalid_argument"),  # type: ignore[arg-type]
        ([wire.StreamRequest(open=wire.StreamOpen())] * 2, "invalid_argument"),
        ([wire.StreamRequest(open=wire.StreamOpen()), wire.StreamRequest()], "invalid_argument"),
    ],
)
async def test_a_message_out_of_place_ends_the_stream_by_name_and_nothing_else(
    site: GrpcSite, messages: list[wire.StreamRequest], code: str
) -> None:
    error = await asyncio.to_thread(blocking_refusal, site, messages)
    assert reason_of(error) == code
    call = await site.stream()
    await send(call, 1)
    assert seqs_of(await rest(call))[-1] == ("result", 1)


def blocking_refusal(site: GrpcSite, messages: list[wire.StreamRequest]) -> Any:
    """Return the status; of a call that ends while something is written, grpc.aio's client loses it."""
    with grpc.insecure_channel(site.address) as channel:
        answers = SegmentationStub(channel).SegmentStream(iter(messages), timeout=PATIENCE_S)
        with pytest.raises(grpc.RpcError) as caught:
            list(answers)
        return caught.value


@pytest.mark.parametrize("seq", [3, 2, 0])
async def test_a_seq_that_goes_backwards_ends_the_stream(site: GrpcSite, seq: int) -> None:
    call = await site.stream(policy=wire.BLOCK)
    await next_of(call, "opened")
    await send(call, 3)
    assert (await next_of(call, "result")).seq == 3
    await send(call, seq)
    assert reason_of(await refusal(call)) == "invalid_argument"


async def test_a_new_version_is_announced_in_the_middle_of_a_stream() -> None:
    async with open_grpc_site(versions=FAKE_VERSIONS[:1]) as site:
        call = await site.stream(policy=wire.BLOCK)
        await next_of(call, "opened")
        await send(call, 1)
        assert (await next_of(call, "result")).version == 3
        site.site.load(ModelVersion("fake", 4))
        site.site.host.serve(ModelVersion("fake", 4))
        await send(call, 2)
        notice = await next_of(call, "notice")
        assert (notice.kind, notice.version) == (wire.MODEL_CHANGED, 4)
        assert (await next_of(call, "result")).version == 4
        assert not await rest(call)


async def test_a_stream_that_drains_answers_what_it_took_says_goodbye_and_is_unavailable(
    held: GrpcSite,
) -> None:
    call = await held.stream(max_in_flight=1)
    await next_of(call, "opened")
    await send(call, 1)
    await asyncio.to_thread(held.engine.wait_until_busy)
    held.drain()
    await send(call, 2, 3)
    await asyncio.sleep(0.05)  # frames that come even later are not answered; either is right
    held.engine.go_on(1)
    messages, error = await until_refused(call)
    kinds = [kind for kind, _ in seqs_of(messages)]
    assert kinds[0] == "result"
    assert kinds[-1] == "notice"
    assert set(kinds[1:-1]) <= {"dropped"}
    assert messages[-1].notice.kind == wire.GOING_AWAY
    assert 0 < messages[-1].notice.deadline_ms <= 1e3 * PATIENCE_S
    assert (error.code(), reason_of(error)) == (grpc.StatusCode.UNAVAILABLE, "draining")
    assert "RetryInfo" in details_of(error)


async def test_a_stream_whose_frames_have_ended_ends_well_in_spite_of_a_drain(held: GrpcSite) -> None:
    call = await held.stream()
    await next_of(call, "opened")
    await send(call, 1)
    await asyncio.to_thread(held.engine.wait_until_busy)
    await call.done_writing()
    (stream,) = held.servicer._streams
    await until(lambda: stream._session.is_input_over)
    held.drain()
    held.engine.go_on(1)
    messages, error = await until_the_end(call)
    assert error is None
    assert seqs_of(messages) == [("result", 1)]


async def test_an_idle_stream_drains_at_once_and_no_new_one_is_opened(site: GrpcSite) -> None:
    call = await site.stream()
    await next_of(call, "opened")
    site.drain()
    messages, _ = await until_refused(call)
    assert seqs_of(messages) == [("notice", 0)]
    assert reason_of(await refusal(await site.stream())) == "draining"


async def test_two_streams_share_the_device_frame_by_frame() -> None:
    async with open_grpc_site(options=ServicerOptions(max_started_frames=1)) as site:
        calls = [await site.stream(policy=wire.BLOCK) for _ in range(2)]
        order: list[int] = []

        async def converse(number: int) -> None:
            await asyncio.gather(send(calls[number], *range(1, 21)), listen(number))

        async def listen(number: int) -> None:
            for _ in range(21):
                message = await calls[number].read()
                order.append(number)
                assert message is not grpc.aio.EOF
            await calls[number].done_writing()

        await asyncio.gather(converse(0), converse(1))
        assert sorted(order[:22]).count(0) in range(8, 15)


async def test_a_client_that_leaves_takes_its_frames_along(held: GrpcSite) -> None:
    call = await held.stream(max_in_flight=4, policy=wire.BLOCK)
    await send(call, 1, 2, 3)
    await asyncio.to_thread(held.engine.wait_until_busy)
    call.cancel()
    await until(lambda: held.metric("bisenet_stream_active") == 0)
    held.engine.go_on(1)
    other = await held.stream()
    await send(other, 1)
    held.engine.go_on(1)
    assert seqs_of(await rest(other))[-1] == ("result", 1)
    assert len(held.engine.seen) == 2


class ByHand:
    """A stream whose client is this test, and whose pictures are never answered."""

    def __init__(
        self, permits: FramePermits, policy: FramePolicy, budget: MemoryBudget | None = None
    ) -> None:
        self.sent: asyncio.Queue[wire.StreamRequest] = asyncio.Queue()
        self.reads = 0
        self.under_way = 0
        budget = budget or MemoryBudget(1 << 30)
        resources = StreamResources(self, self, permits, budget, Metrics(), StreamLimits())  # type: ignore[arg-type]
        rules = StreamRules(policy, max_in_flight=4, max_frame_age_s=PATIENCE_S)
        stream = FrameStream(
            self,  # type: ignore[arg-type]
            target=Target(None, None),
            version=1,
            wanted=MaskRequest(wire.PNG),
            rules=rules,
            source="by hand",
            resources=resources,
        )
        self.running = asyncio.create_task(stream.answer_frames())

    async def read(self) -> wire.StreamRequest:
        self.reads += 1
        return await self.sent.get()

    def hold(self, *_: object) -> AbstractContextManager[None]:
        return nullcontext()

    @asynccontextmanager
    async def segment(self, *_: object, **__: object) -> AsyncIterator[None]:
        self.under_way += 1
        await asyncio.Event().wait()
        yield

    def send(self, seq: int) -> None:
        frame = wire.Frame(seq=seq, image=wire.Image(data=DARK))
        self.sent.put_nowait(wire.StreamRequest(frame=frame))

    async def end(self) -> None:
        self.running.cancel()
        await asyncio.gather(self.running, return_exceptions=True)


def is_free(permits: FramePermits) -> bool:
    """Return whether a permit is left, and take it."""
    taken: list[bool] = []

    def take() -> bool:
        taken.append(True)
        return True

    permits.request(take)
    permits.remove_stream(take)
    return bool(taken)


async def test_a_stream_that_ends_in_the_moment_of_its_permit_gives_it_back() -> None:
    permits = FramePermits(1)
    assert is_free(permits)
    stream = ByHand(permits, FramePolicy.LATEST_WINS)
    stream.send(1)
    await until(lambda: stream.reads == 2)
    stream.running.cancel()
    permits.release()  # in the same step of the loop: the task of the frame is made, and never begins
    await asyncio.gather(stream.running, return_exceptions=True)
    await asyncio.sleep(0)
    assert stream.under_way == 0
    assert is_free(permits)


async def test_a_film_is_read_on_when_another_stream_gives_its_permit_back() -> None:
    permits = FramePermits(1)
    assert is_free(permits)
    stream = ByHand(permits, FramePolicy.BLOCK)
    stream.send(1)
    await until(stream.sent.empty)
    permits.release()
    await until(lambda: stream.under_way == 1)
    await until(lambda: stream.reads == 2)
    await stream.end()


async def test_nothing_is_read_while_there_is_no_room_for_another_frame() -> None:
    budget = MemoryBudget(4 * len(DARK))
    rest_of_it = await budget.acquire(2 * len(DARK), timeout_s=0.0)
    stream = ByHand(FramePermits(2), FramePolicy.LATEST_WINS, budget)
    stream.send(1)
    stream.send(2)
    await until(lambda: stream.under_way == 1)
    for _ in range(10):
        await asyncio.sleep(0)
    assert stream.reads == 1
    budget.release(rest_of_it)
    await until(lambda: stream.under_way == 2)
    await stream.end()
    await budget.acquire(4 * len(DARK), timeout_s=0.0)  # all is given back


async def test_a_frame_without_room_is_refused_and_the_stream_goes_on() -> None:
    options = ServicerOptions(max_image_bytes_in_flight=2 * len(DARK) - 1)
    async with open_grpc_site(FakeEngine(held=True), options=options) as site:
        first, second = await site.stream(), await site.stream()
        for call in (first, second):
            await next_of(call, "opened")
        await send(first, 1)
        await asyncio.to_thread(site.engine.wait_until_busy)
        await send(second, 1)
        error = await next_of(second, "error")
        assert (error.code, error.grpc_code) == ("busy", grpc.StatusCode.UNAVAILABLE.value[0])
        site.engine.go_on(2)
        assert seqs_of(await rest(first)) == [("result", 1)]
        await send(second, 2)
        assert seqs_of(await rest(second)) == [("result", 2)]


async def test_a_stream_that_is_never_opened_ends_in_time() -> None:
    async with open_grpc_site(options=ServicerOptions(receive_timeout_s=0.05)) as site:
        call = site.stub.SegmentStream(timeout=PATIENCE_S)
        error = await refusal(call)
        assert (error.code(), reason_of(error)) == (grpc.StatusCode.DEADLINE_EXCEEDED, "request_too_slow")


async def test_a_stream_has_a_deadline_like_any_call(held: GrpcSite) -> None:
    call = held.stub.SegmentStream(timeout=0.3)
    await call.write(wire.StreamRequest(open=wire.StreamOpen()))
    assert (await refusal(call)).code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await until(lambda: held.metric("bisenet_stream_active") == 0)


async def test_a_client_that_never_reads_stops_the_work_and_not_the_reading(site: GrpcSite) -> None:
    call = await site.stream(mask=wire.RAW)
    big = encoded(np.zeros((512, 1024, 3), np.uint8))
    async with asyncio.timeout(PATIENCE_S):
        for first in itertools.count(1, 50):
            await send(call, *range(first, first + 50), data=big)
            if len(site.engine.seen) >= 4:  # so many may be in flight
                break
    assert len(site.engine.seen) <= 40  # 64 KiB windows hold a few masks of 512 KiB at most
    call.cancel()


class SlowPermits(FramePermits):
    """Delays every permit, and remembers what it was told."""

    def __init__(self) -> None:
        super().__init__(max_frames=2)
        self.told: list[tuple[float, float]] = []
        self.ends: list[str] = []

    def frame_left_device(self, *, lead_s: float, busy_s: float) -> float:
        self.told.append((lead_s, busy_s))
        return 0.01

    def release_delayed(self) -> None:
        self.ends.append("rested")

    def release(self) -> None:
        self.ends.append("done")


async def test_the_permit_of_a_frame_that_the_device_answered_is_given_back_once_after_its_delay() -> None:
    permits = SlowPermits()
    permit = _Permit(permits)
    await asyncio.sleep(0.05)
    permit.frame_left_device(Answer(np.zeros((1, 1), np.uint8), queue_s=0.01, infer_s=0.02, post_s=0.005))
    permit.release()
    assert not permits.ends
    await until(lambda: permits.ends == ["rested"])
    ((lead_s, busy_s),) = permits.told
    assert busy_s == pytest.approx(0.025)
    assert 0.05 - 0.035 <= lead_s < PATIENCE_S


async def test_the_permit_of_a_frame_that_ends_without_an_answer_is_given_back_once() -> None:
    permits = SlowPermits()
    permit = _Permit(permits)
    permit.release()
    permit.release()
    permit.frame_left_device(Answer(np.zeros((1, 1), np.uint8), queue_s=0.0, infer_s=0.02, post_s=0.0))
    await asyncio.sleep(0.05)
    assert (permits.ends, permits.told) == (["done"], [])
