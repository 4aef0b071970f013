"""gRPC of ``bisenet serve`` as users start it, to its end."""

from __future__ import annotations

import io
import json
import queue
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from fakes import PATIENCE_S
from grpc_health.v1 import health_pb2, health_pb2_grpc
from live_service import Server, serving_environment, started
from PIL import Image

from model.labels import UInt8Array
from service.client.errors import RefusedError
from service.client.grpc_client import GrpcClient
from service.wire import segmentation_pb2 as wire
from service.wire.segmentation_pb2_grpc import SegmentationStub

KEY = "a-key-of-a-client"


@pytest.fixture
def server(tiny_registry: Path, shared_cache: Path, tmp_path: Path) -> Iterator[Server]:
    environment = serving_environment(tiny_registry, shared_cache, tmp_path / "home", "tiny")
    with started(environment | {"BISENET_AUTH__KEYS": KEY}, tmp_path / "stderr") as server:
        yield server


@pytest.fixture
def address(server: Server) -> str:
    """Return where it listens, as its first log line says."""
    lines = [json.loads(line) for line in server.log.read_text().splitlines() if line.startswith("{")]
    return str(next(line["grpc_address"] for line in lines if line["event"] == "listening"))


def jpeg(photo: UInt8Array) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(photo).save(stream, "JPEG")
    return stream.getvalue()


def test_one_process_answers_both_protocols_alike_and_its_streams_end_by_name(
    server: Server, address: str, photo: UInt8Array
) -> None:
    picture = jpeg(photo)
    with GrpcClient(address, key=KEY) as client, GrpcClient(address) as stranger:
        with pytest.raises(RefusedError, match="unauthenticated"):
            stranger.models()
        mask = client.segment(picture, mask="png").mask
        headers = {"Authorization": f"Bearer {KEY}"}
        over_http = server.client.post("/v1/segment", content=picture, headers=headers)
        assert mask.data == over_http.content
    with grpc.insecure_channel(address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        watching = health.Watch(health_pb2.HealthCheckRequest(), timeout=PATIENCE_S)
        assert next(watching).status == health_pb2.HealthCheckResponse.SERVING
        messages: queue.SimpleQueue[wire.StreamRequest | None] = queue.SimpleQueue()
        messages.put(wire.StreamRequest(open=wire.StreamOpen()))
        messages.put(frame(1, picture))
        metadata = (("authorization", f"Bearer {KEY}"),)
        answers = SegmentationStub(channel).SegmentStream(
            iter(messages.get, None), timeout=PATIENCE_S, metadata=metadata
        )
        assert [next(answers).WhichOneof("kind") for _ in range(2)] == ["opened", "result"]
        server.process.terminate()
        assert next(answers).notice.kind == wire.GOING_AWAY
        with pytest.raises(grpc.RpcError) as caught:
            next(answers)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        messages.put(None)
        assert [state.status for state in watching] == [health_pb2.HealthCheckResponse.NOT_SERVING]
        assert server.process.wait(PATIENCE_S) == 0


def frame(seq: int, picture: bytes) -> wire.StreamRequest:
    return wire.StreamRequest(frame=wire.Frame(seq=seq, image=wire.Image(data=picture)))
