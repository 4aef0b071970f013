"""Who works on which request, as log lines and stages see it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import StringIO
from json import loads
from typing import Any

import numpy as np
import pytest
import structlog
from fakes import FakeEngine
from grpc_site import open_grpc_site
from http_site import encoded, open_site, picture_of

from service.core.pictures.picture import EncodedPicture
from service.spans import current_span, stage_done, working_on
from service.telemetry import LogOptions, configure_logging
from service.wire import segmentation_pb2 as wire

DARK = encoded(picture_of(np.ones((32, 32), np.uint8)))


@pytest.fixture
def log() -> Iterator[StringIO]:
    stream = StringIO()
    configure_logging(LogOptions(format="json"), stream)
    yield stream
    structlog.reset_defaults()
    logging.basicConfig(handlers=[], force=True)


def lines_of(log: StringIO) -> list[dict[str, Any]]:
    return [loads(line) for line in log.getvalue().splitlines()]


class _Span:
    trace_id = "a" * 32

    def __init__(self) -> None:
        self.stages: list[tuple[str, float, float]] = []

    def stage(self, name: str, began_s: float, ended_s: float) -> None:
        self.stages.append((name, began_s, ended_s))

    def end(self, *_: object) -> None: ...


def test_a_stage_belongs_to_the_span_that_is_worked_on_and_to_none_otherwise() -> None:
    span = _Span()
    stage_done("before", 0.0, 1.0)
    with working_on(span):
        stage_done("decode", 1.0, 2.0)
        with working_on(None):
            stage_done("of another request", 2.0, 3.0)
    assert current_span() is None
    assert span.stages == [("decode", 1.0, 2.0)]


def test_log_lines_of_a_traced_request_name_its_trace(log: StringIO) -> None:
    with working_on(_Span()):
        structlog.get_logger().info("inside")
    structlog.get_logger().info("outside")
    assert [line.get("trace_id") for line in lines_of(log)] == ["a" * 32, None]


async def test_a_line_that_a_library_logs_while_it_reads_a_picture_has_the_id_of_the_request(
    log: StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    def warn(self: EncodedPicture, limits: object) -> Any:  # noqa: ARG001
        logging.getLogger("PIL").warning("odd file")
        raise ValueError("odd file")

    monkeypatch.setattr(EncodedPicture, "read", warn)
    async with open_site() as site:
        ids = [f"request-{number}" for number in range(4)]
        await asyncio.gather(
            *(site.client.post("/v1/segment", content=DARK, headers={"X-Request-Id": id_}) for id_ in ids)
        )
    lines = lines_of(log)
    of_library = [line["request_id"] for line in lines if line.get("library") == "PIL"]
    assert sorted(of_library) == ids
    for id_ in ids:
        events = [line["event"] for line in lines if line.get("request_id") == id_]
        assert events == ["odd file", "request failed", "request"]


async def test_lines_about_a_frame_have_the_id_of_their_own_stream(
    log: StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Turns are handed from one stream to the next."""

    def warn(self: EncodedPicture, limits: object) -> Any:  # noqa: ARG001
        raise ValueError(self.data.decode())

    monkeypatch.setattr(EncodedPicture, "header", warn)
    async with open_grpc_site(FakeEngine()) as site:
        calls = []
        for name in ("one", "two", "three"):
            call = site.stub.SegmentStream(metadata=(("x-request-id", name),))
            await call.write(wire.StreamRequest(open=wire.StreamOpen(policy=wire.BLOCK)))
            calls.append((name, call))
        for name, call in calls:
            for seq in (1, 2, 3):
                frame = wire.Frame(seq=seq, image=wire.Image(data=name.encode()))
                await call.write(wire.StreamRequest(frame=frame))
        for _, call in calls:
            await call.done_writing()
            async for _ in call:
                pass
    failed = [line for line in lines_of(log) if line["event"] == "frame failed"]
    assert len(failed) == 9
    assert all(line["exception"][0]["exc_value"] == line["request_id"] for line in failed)


def test_a_thread_without_the_context_of_a_request_works_on_none() -> None:
    with ThreadPoolExecutor(1) as pool, working_on(_Span()):
        assert pool.submit(current_span).result() is None
