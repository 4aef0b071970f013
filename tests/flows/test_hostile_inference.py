"""Hostile requests of the Open Inference Protocol against a running service: refused, without a trace."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx2
import numpy as np
import pytest
from fakes import PATIENCE_S, write_pooling_artifact
from hostile_inference import HostileRequest, hostile_requests
from http_site import encoded
from infer_bodies import binary_body, elements
from live_service import Server, serving_environment, started

from model.artifacts.registry import ModelRegistry
from service.wire import open_inference_pb2 as wire

MIB = 1 << 20
PICTURE = encoded(np.zeros((64, 96, 3), np.uint8))
PATH = "/v2/models/pooling/infer"
NUMBER_OF_BODIES = 200


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, shared_cache: Path) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("pooling")
    ModelRegistry(folder / "registry").publish(write_pooling_artifact(folder / "artifact").folder, "pooling")
    with started(
        serving_environment(folder / "registry", shared_cache, folder, "pooling"), folder / "log"
    ) as server:
        yield server
        assert server.stop() == 0
    errors = [line for line in server.log.read_text().splitlines() if '"level": "error"' in line]
    assert not errors


def assert_alive(server: Server) -> None:
    body, headers = binary_body(elements(PICTURE), shape=[1])
    assert server.client.post(PATH, content=body, headers=headers).status_code == 200


def ask(server: Server, request: HostileRequest) -> httpx2.Response:
    return server.client.post(PATH, content=request.body, headers=request.headers)


@pytest.mark.guarantee("G4")
def test_every_hostile_request_is_refused_by_name_and_leaves_no_memory_behind(server: Server) -> None:
    table = hostile_requests(PICTURE)
    assert_alive(server)
    answered = [(request.name, ask(server, request)) for request in table]
    wrong = [
        f"{name}: {response.status_code} {response.text[:200]}"
        for name, response in answered
        if not 400 <= response.status_code < 500 or not response.json()["error"]
    ]
    assert not wrong, "\n".join(wrong)
    slowest_s, name = max((response.elapsed.total_seconds(), name) for name, response in answered)
    before = server.memory_bytes()  # what is allocated once is there now
    with server.peak_memory() as peak:
        for request in table:
            ask(server, request)
    assert_alive(server)
    grown = peak[0] - before
    told = f"{len(table)} requests; slowest {slowest_s:.3f} s ({name}); {grown / MIB:.0f} MiB more"
    print(told)  # noqa: T201
    assert grown <= 128 * MIB
    assert server.memory_bytes() <= before + 16 * MIB


def test_the_table_is_the_same_each_time() -> None:
    table = hostile_requests(PICTURE)
    assert table == hostile_requests(PICTURE)
    assert len({request.body for request in table}) > NUMBER_OF_BODIES


# --- over gRPC ---------------------------------------------------------------------------------------------


def hostile_messages() -> Iterator[tuple[str, bytes]]:
    """Return messages, most of them from the table's tensors."""
    tensor = wire.ModelInferRequest.InferInputTensor
    raw = elements(PICTURE)
    shapes: tuple[list[int], ...] = (
        [], [0], [-1], [65], [1, 1, 1], [1 << 31], [1 << 62], [(1 << 63) - 1], [-(1 << 63)], [1] * 1000,
        [1, 1 << 31, 1 << 31, 3], [1 << 16, 1 << 16, 1 << 31, 3], [1, 8, 8, 4], [1, -8, -8, 3],
    )  # fmt: skip
    for shape in shapes:
        for datatype in ("BYTES", "UINT8", "FP32", ""):
            named = tensor(name="image", datatype=datatype, shape=shape)
            message = wire.ModelInferRequest(inputs=[named], raw_input_contents=[raw])
            yield f"{datatype} {shape[:5]}", message.SerializeToString()
    one = tensor(name="image", datatype="BYTES", shape=[1])
    for data in (b"", b"\x00", raw[:-1], raw + b"x", b"\xff\xff\xff\xff" + PICTURE, b"\x00\x00\x00\x00"):
        message = wire.ModelInferRequest(inputs=[one], raw_input_contents=[data])
        yield f"{len(data)} raw bytes", message.SerializeToString()
    yield (
        "two raw contents",
        wire.ModelInferRequest(inputs=[one], raw_input_contents=[raw, raw]).SerializeToString(),
    )
    yield "1000 inputs", wire.ModelInferRequest(inputs=[one] * 1000).SerializeToString()
    yield "ten million empty inputs", b"\x2a\x00" * 10_000_000
    yield "ten million empty parameters", b"\x22\x00" * 10_000_000
    yield "ten million empty raw contents", b"\x3a\x00" * 10_000_000
    yield "garbage", b"\xff" * 1000
    yield "a group", b"\x2b" * 1000
    for value in (-1, 1 << 62):
        contents = wire.InferTensorContents(
            uint_contents=[max(0, value) % (1 << 32)] * 12, int_contents=[value % 9]
        )
        pixel = tensor(name="image", datatype="UINT8", shape=[1, 2, 3, 3], contents=contents)
        yield f"contents {value}", wire.ModelInferRequest(inputs=[pixel]).SerializeToString()


@pytest.mark.guarantee("G4")
async def test_every_hostile_message_is_an_invalid_argument_and_leaves_no_memory_behind(
    server: Server,
) -> None:
    address = grpc_address(server)
    async with grpc.aio.insecure_channel(address) as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        messages = list(hostile_messages())
        assert len(messages) >= 60
        wrong = [
            f"{name}: {code}" for name, data in messages if (code := await code_of(call, data)) is not None
        ]
        assert not wrong, "\n".join(wrong)
        before = await asyncio.to_thread(server.memory_bytes)
        with server.peak_memory() as peak:
            for _, data in messages:
                await code_of(call, data)
        assert peak[0] <= before + 128 * MIB
    assert_alive(server)


async def code_of(call: Any, data: bytes) -> str | None:
    """Return the status of a message; None = INVALID_ARGUMENT."""
    try:
        await call(data, timeout=PATIENCE_S)
    except grpc.aio.AioRpcError as error:
        return (
            None if error.code() is grpc.StatusCode.INVALID_ARGUMENT else f"{error.code()} {error.details()}"
        )
    return "it was answered"


def grpc_address(server: Server) -> str:
    text = server.log.read_text()
    return text.partition('"grpc_address": "')[2].partition('"')[0]
