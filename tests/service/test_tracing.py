"""Traces, as a receiver of OTLP sees them."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager

import grpc
import numpy as np
import pytest
from fakes import FakeEngine
from grpc_site import open_grpc_site
from http_site import encoded, open_site, picture_of
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from otlp_receiver import OtlpReceiver, attributes_of, otlp_receiver

from service.bootstrap import _open_tracing
from service.core.device.engine import Float32Array, ImageBatch
from service.settings import SettingsError, TracingSettings
from service.spans import BatchRun
from service.tracing import OpenTelemetry, TracingOptions
from service.wire import segmentation_pb2 as wire
from service.wire.segmentation_pb2_grpc import SegmentationStub

DARK = encoded(picture_of(np.ones((32, 32), np.uint8)))
CALLER = "0af7651916cd43dd8448eb211c80319c"
SAMPLED = f"00-{CALLER}-b7ad6b7169203331-01"
NOT_SAMPLED = f"00-{CALLER}-b7ad6b7169203331-00"


@pytest.fixture
def receiver() -> Iterator[OtlpReceiver]:
    with otlp_receiver() as receiver:
        yield receiver


@contextmanager
def tracing(receiver: OtlpReceiver, sampling: float = 1.0) -> Iterator[OpenTelemetry]:
    with closing(OpenTelemetry(TracingOptions(receiver.url, sampling, "test"))) as traced:
        yield traced


def assert_inside(child: Span, parent: Span) -> None:
    assert parent.start_time_unix_nano <= child.start_time_unix_nano <= child.end_time_unix_nano
    assert child.end_time_unix_nano <= parent.end_time_unix_nano


async def test_a_picture_over_http_leaves_one_tree_from_its_head_to_the_engine(
    receiver: OtlpReceiver,
) -> None:
    with tracing(receiver) as traced:
        async with open_site(tracing=traced) as site:
            answer = await site.client.post("/v1/segment", content=DARK, headers={"X-Request-Id": "mine-1"})
            assert answer.status_code == 200
    (root,) = receiver.named("POST /v1/segment")
    stages = receiver.children(root)
    assert set(stages) >= {"receive", "decode", "preprocess", "queue", "infer", "encode"}
    for stage in stages.values():
        assert_inside(stage, root)
    begun = [stages[name].start_time_unix_nano for name in ("receive", "decode", "preprocess", "encode")]
    assert begun == sorted(begun)
    assert not root.parent_span_id
    assert receiver.services == {"test"}
    told = attributes_of(root)
    assert told["bisenet.request_id"] == "mine-1"
    assert told["http.response.status_code"] == 200
    assert (told["bisenet.model"], told["bisenet.version"]) == (
        "fake",
        int(answer.headers["X-Model-Version"]),
    )


async def test_a_batch_and_the_pictures_in_it_are_linked_in_both_directions(receiver: OtlpReceiver) -> None:
    now_s = time.monotonic()
    with tracing(receiver) as traced:
        spans = [traced.begin({}, time.monotonic()), traced.begin({}, time.monotonic())]
        traced.batch(
            BatchRun("fake@1", 3, now_s, 0.02, 0.01),
            [(span, now_s - 0.05) for span in spans if span is not None],
        )
        for number, span in enumerate(spans):
            assert span is not None
            span.end(f"picture {number}", {})
    (batch,) = receiver.named("batch")
    roots = receiver.named("picture 0") + receiver.named("picture 1")
    assert {link.span_id for link in batch.links} == {root.span_id for root in roots}
    assert batch.end_time_unix_nano - batch.start_time_unix_nano == pytest.approx(30e6, abs=1e6)
    assert attributes_of(batch) == {"bisenet.model": "fake@1", "bisenet.batch_size": 3}
    for root in roots:
        stages = receiver.children(root)
        assert [link.span_id for link in stages["infer"].links] == [batch.span_id]
        queue = stages["queue"]
        assert queue.end_time_unix_nano - queue.start_time_unix_nano == pytest.approx(50e6, abs=1e6)
        assert stages["post"].start_time_unix_nano == pytest.approx(
            stages["infer"].end_time_unix_nano, abs=1e6
        )


async def test_the_trace_of_the_caller_is_continued_and_his_decision_kept(receiver: OtlpReceiver) -> None:
    with tracing(receiver, sampling=0.0) as traced:
        async with open_site(tracing=traced) as site:
            await site.client.get("/v1/models", headers={"traceparent": SAMPLED})
            await site.client.get("/v1/models")
    (root,) = receiver.spans
    assert root.trace_id.hex() == CALLER
    assert root.parent_span_id.hex() == "b7ad6b7169203331"
    with tracing(receiver, sampling=1.0) as traced:
        assert traced.begin({"traceparent": NOT_SAMPLED}, time.monotonic()) is None
        assert traced.begin({"traceparent": "nonsense"}, time.monotonic()) is not None


async def test_a_call_over_grpc_continues_the_trace_in_its_metadata(receiver: OtlpReceiver) -> None:
    with tracing(receiver, sampling=0.0) as traced:
        async with open_grpc_site(tracing=traced) as site:
            request = wire.SegmentRequest(image=wire.Image(data=DARK))
            await SegmentationStub(site.channel).Segment(request, metadata=(("traceparent", SAMPLED),))
    (root,) = receiver.named("segmentation.v1.Segmentation/Segment")
    assert root.trace_id.hex() == CALLER
    assert set(receiver.children(root)) >= {"receive", "decode", "preprocess", "queue", "infer", "encode"}


async def test_each_frame_of_a_stream_is_a_trace_of_its_own_linked_to_the_stream(
    receiver: OtlpReceiver,
) -> None:
    with tracing(receiver) as traced:
        async with open_grpc_site(tracing=traced) as site:
            call = await site.stream(policy=wire.BLOCK)
            for seq in (1, 2):
                frame = wire.Frame(seq=seq, image=wire.Image(data=DARK))
                await call.write(wire.StreamRequest(frame=frame))
            await call.done_writing()
            while await call.read() is not grpc.aio.EOF:
                pass
    (stream,) = receiver.named("segmentation.v1.Segmentation/SegmentStream")
    frames = receiver.named("frame")
    assert {attributes_of(frame)["bisenet.seq"] for frame in frames} == {1, 2}
    for frame in frames:
        assert frame.trace_id != stream.trace_id
        assert [link.span_id for link in frame.links] == [stream.span_id]
        assert {"decode", "infer", "encode"} <= set(receiver.children(frame))


async def test_a_frame_that_the_service_is_to_blame_for_is_an_error_and_a_bad_frame_is_not(
    receiver: OtlpReceiver,
) -> None:
    def broken(_: ImageBatch) -> Float32Array:
        raise RuntimeError("defect")

    with tracing(receiver) as traced:
        async with open_grpc_site(FakeEngine(answer=broken), tracing=traced) as site:
            call = await site.stream(policy=wire.BLOCK)
            for seq, data in ((1, b"GIF89a"), (2, DARK)):
                frame = wire.Frame(seq=seq, image=wire.Image(data=data))
                await call.write(wire.StreamRequest(frame=frame))
            await call.done_writing()
            while await call.read() is not grpc.aio.EOF:
                pass
    bad, failed = sorted(receiver.named("frame"), key=lambda frame: attributes_of(frame)["bisenet.seq"])
    assert (bad.status.code, attributes_of(bad)["bisenet.code"]) == (0, "unsupported_media")
    assert (failed.status.code, attributes_of(failed)["error.type"]) == (2, "internal")


async def test_an_answer_that_the_service_is_to_blame_for_is_an_error_and_a_bad_picture_is_not(
    receiver: OtlpReceiver,
) -> None:
    with tracing(receiver) as traced:
        async with open_site(tracing=traced) as site:
            await site.client.post("/v1/segment", content=b"no picture")
            await site.client.post("/v1/models/missing:segment", content=DARK)
    roots = [span for span in receiver.spans if not span.parent_span_id]
    codes = {attributes_of(span)["bisenet.code"] for span in roots}
    assert codes == {"unsupported_media", "model_not_found"}
    assert all(span.status.code == 0 for span in receiver.spans)
    with tracing(receiver) as traced:
        span = traced.begin({}, time.monotonic())
        assert span is not None
        span.end("failed", {}, "internal")
    (failed,) = receiver.named("failed")
    assert failed.status.code == 2
    assert attributes_of(failed)["error.type"] == "internal"


async def test_probes_are_not_traced(receiver: OtlpReceiver) -> None:
    with tracing(receiver) as traced:
        async with open_site(tracing=traced) as site:
            assert (await site.client.get("/readyz")).status_code == 200
    assert not receiver.spans


async def test_the_duration_of_a_traced_request_has_its_trace_as_exemplar(receiver: OtlpReceiver) -> None:
    with tracing(receiver) as traced:
        async with open_site(tracing=traced) as site:
            await site.client.get("/v1/models", headers={"traceparent": SAMPLED})
            text, _ = site.metrics.exposition("application/openmetrics-text; version=1.0.0")
    assert f'# {{trace_id="{CALLER}"}}' in text.decode()


def test_a_receiver_that_is_gone_costs_neither_requests_nor_much_time_in_the_end() -> None:
    with otlp_receiver() as gone:
        url = gone.url
    traced = OpenTelemetry(TracingOptions(url, 1.0))
    for _ in range(10):
        span = traced.begin({}, time.monotonic())
        assert span is not None
        span.end("lost", {})
    traced.close()


def test_a_share_of_the_requests_is_traced(receiver: OtlpReceiver) -> None:
    with tracing(receiver, sampling=0.5) as traced:
        traced_count = sum(traced.begin({}, time.monotonic()) is not None for _ in range(2000))
    assert 800 < traced_count < 1200


@pytest.mark.parametrize(("endpoint", "is_imported"), [("None", False), ("'http://127.0.0.1:1'", True)])
def test_the_library_is_imported_only_if_there_is_a_receiver(endpoint: str, *, is_imported: bool) -> None:
    program = f"""
import sys
import service.cli, service.bootstrap
from service.settings import TracingSettings
with service.bootstrap._open_tracing(TracingSettings(endpoint={endpoint})):
    names = ("opentelemetry.sdk", "opentelemetry.exporter", "service.tracing")
    print(any(name.startswith(names) for name in sys.modules))
"""
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert ran.stdout.strip() == str(is_imported)


def test_without_the_extra_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "service.tracing", None)
    with (
        pytest.raises(SettingsError, match=r"pip install 'bisenet-service\[tracing\]'"),
        _open_tracing(TracingSettings(endpoint="http://127.0.0.1:4318")),
    ):
        pass
