"""Why a stream has ended stays known, also when a message was on its way."""

from __future__ import annotations

from collections.abc import AsyncIterator

import grpc
import pytest
from breaking_proxy import breaking_proxy, http_error
from fakes import PATIENCE_S
from grpc_site import GrpcSite, open_grpc_site

from service.client.grpc_write import StreamCall, WriteError, end_writing, write
from service.client.messages import open_request
from service.wire.segmentation_pb2_grpc import SegmentationStub

OPEN = open_request("", "raw", "block", 0, 0.0)


@pytest.fixture
async def site() -> AsyncIterator[GrpcSite]:
    async with open_grpc_site() as site:
        yield site


async def write_for_ever(call: StreamCall) -> None:
    while True:
        await write(call, OPEN)


async def test_the_status_is_that_of_the_peer_after_a_write_that_came_too_late(site: GrpcSite) -> None:
    for _ in range(5):
        async with (
            breaking_proxy(site.address, http_error(413)) as address,
            grpc.aio.insecure_channel(address) as channel,
        ):
            call: StreamCall = SegmentationStub(channel).SegmentStream(timeout=PATIENCE_S)  # type: ignore[assignment]
            with pytest.raises(WriteError):
                await write_for_ever(call)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call.read()
            assert (caught.value.code(), "413" in str(caught.value.details())) == (
                grpc.StatusCode.UNKNOWN,
                True,
            )


async def test_messages_arrive_and_the_end_as_well(site: GrpcSite) -> None:
    async with grpc.aio.insecure_channel(site.address) as channel:
        call: StreamCall = SegmentationStub(channel).SegmentStream(timeout=PATIENCE_S)  # type: ignore[assignment]
        await write(call, OPEN)
        message = await call.read()
        assert message.WhichOneof("kind") == "opened"  # type: ignore[union-attr]
        await end_writing(call)
        assert await call.read() is grpc.aio.EOF
        with pytest.raises(WriteError):
            await write(call, OPEN)


async def test_without_a_service_nothing_is_written() -> None:
    async with grpc.aio.insecure_channel("127.0.0.1:9") as channel:
        call: StreamCall = SegmentationStub(channel).SegmentStream(timeout=PATIENCE_S)  # type: ignore[assignment]
        with pytest.raises(WriteError):
            await write(call, OPEN)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
