"""Hostile peers on the gRPC port: their calls end, with a named error where possible; the service goes on."""

from __future__ import annotations

import asyncio
import csv
import os
import socket
import struct
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack, suppress
from pathlib import Path

import grpc
import numpy as np
import pytest
from fakes import LEAKED, PATIENCE_S, until
from grpc_site import GrpcSite, open_grpc_site, reason_of
from http2_bytes import (
    CALL_HEADERS,
    END_HEADERS,
    HEADERS,
    PING,
    PREFACE,
    RST_STREAM,
    SETTINGS,
    frame,
    stream_of,
)
from http_site import encoded

from service.core.memory import release_free_memory
from service.core.pictures.segmenter import SegmenterLimits
from service.grpc_api.limits import PeerLimits
from service.wire import segmentation_pb2 as wire

PICTURE = encoded(np.zeros((8, 8, 3), np.uint8))
DATA = os.environ.get("BISENET_DATA_ROOT")
METHODS = ("Segment", "SegmentStream", "ListModels")

needs_data = pytest.mark.skipif(DATA is None, reason="BISENET_DATA_ROOT is not set")


@pytest.fixture
async def site() -> AsyncIterator[GrpcSite]:
    async with open_grpc_site(connections=PeerLimits(handshake_s=1.0)) as site:
        yield site


def hostile(part: str) -> list[bytes]:
    return [path.read_bytes() for path in sorted((Path(DATA or "") / "hostile_requests" / part).iterdir())]


async def assert_alive(site: GrpcSite) -> None:
    """Ask on a connection of one's own, as the others may have been cut."""
    async with grpc.aio.insecure_channel(site.address) as channel:
        call = channel.unary_unary(
            "/segmentation.v1.Segmentation/Segment",
            request_serializer=wire.SegmentRequest.SerializeToString,
            response_deserializer=wire.SegmentResponse.FromString,
        )
        response = await call(wire.SegmentRequest(image=wire.Image(data=PICTURE)), timeout=PATIENCE_S)
        assert response.mask.width == 8


def send_and_read(site: GrpcSite, data: bytes, *, half_close: bool = True) -> bytes:
    """Send bytes on a connection of their own, and read until the service closes it."""
    with socket.create_connection(("127.0.0.1", site.port), timeout=PATIENCE_S) as peer:
        with suppress(ConnectionError):
            peer.sendall(data)
            if half_close:
                peer.shutdown(socket.SHUT_WR)
        return read_to_the_end(peer)


def peer_cpu_s(site: GrpcSite, data: bytes) -> float:
    """Send and read, and return what it took this thread of the processor."""
    began_s = time.thread_time()
    send_and_read(site, data)
    return time.thread_time() - began_s


def read_to_the_end(peer: socket.socket) -> bytes:
    answer = b""
    with suppress(ConnectionError):
        while chunk := peer.recv(65536):
            answer += chunk
    return answer


EXPECTED = {
    "ok": None,
    "undecodable": "undecodable_image",
    "unsupported_format": "unsupported_media",
    "too_many_pixels": "too_many_pixels",
}
"""What the service says where the corpus of pictures says the key."""


@pytest.mark.guarantee("G1", "G26")
@needs_data
@pytest.mark.data
async def test_every_hostile_picture_gets_its_answer() -> None:
    folder = Path(DATA or "") / "hostile_images"
    with (folder / "manifest.tsv").open(newline="") as lines:
        rows = list(csv.DictReader(lines, delimiter="\t"))
    assert len(rows) == 1358
    wrong = []
    async with open_grpc_site(limits=SegmenterLimits()) as site:
        for row in rows:
            code, details = await refusal_of(site, (folder / row["file"]).read_bytes())
            if code != EXPECTED[row["expected_code"]] or LEAKED.search(details):
                wrong.append(f"{row['file']} ({row['whats_wrong']}): {code} {details}")
        await assert_alive(site)
    assert not wrong


async def refusal_of(site: GrpcSite, picture: bytes) -> tuple[str | None, str]:
    """Return the service's code and the message of a picture's status; None if it is answered."""
    try:
        await site.stub.Segment(wire.SegmentRequest(image=wire.Image(data=picture)), timeout=PATIENCE_S)
    except grpc.aio.AioRpcError as error:
        return reason_of(error), error.details() or ""
    return None, ""


@pytest.mark.guarantee("G4")
@needs_data
@pytest.mark.data
async def test_garbage_instead_of_http2_closes_its_connection_only(site: GrpcSite) -> None:
    for data in [b"", b"\x00" * 100, b"GET / HTTP/1.1\r\n\r\n", *hostile("http2"), *hostile("httpreq")[:20]]:
        await asyncio.to_thread(send_and_read, site, data)
        await asyncio.to_thread(send_and_read, site, PREFACE + frame(SETTINGS, 0, 0) + data)
    await assert_alive(site)


@pytest.mark.guarantee("G4")
@needs_data
@pytest.mark.data
@pytest.mark.parametrize("method", METHODS)
async def test_garbage_instead_of_a_message_ends_its_call_by_name(site: GrpcSite, method: str) -> None:
    call = site.channel.stream_stream(f"/segmentation.v1.Segmentation/{method}")
    # Some of it are messages, as far as protobuf can tell.
    named = {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND, grpc.StatusCode.OK}
    for data in hostile("protobuf"):
        assert await status_of(call(iter([data]), timeout=PATIENCE_S)) in named
    await assert_alive(site)


async def status_of(call: grpc.aio.StreamStreamCall[bytes, bytes]) -> grpc.StatusCode:
    try:
        async for _ in call:
            pass
    except grpc.aio.AioRpcError as error:
        return error.code()
    return await call.code()


async def test_garbage_in_the_middle_of_a_stream_ends_that_stream_only(site: GrpcSite) -> None:
    opening = wire.StreamRequest(open=wire.StreamOpen()).SerializeToString()
    call = site.channel.stream_stream("/segmentation.v1.Segmentation/SegmentStream")
    good = await site.stream()
    status = await status_of(call(iter([opening, b"\xff" * 50]), timeout=PATIENCE_S))
    assert status is grpc.StatusCode.INVALID_ARGUMENT
    await good.write(wire.StreamRequest(frame=wire.Frame(seq=1, image=wire.Image(data=PICTURE))))
    assert (await good.read()).WhichOneof("kind") == "opened"
    assert (await good.read()).result.seq == 1
    await good.done_writing()


@pytest.mark.guarantee("G15")
async def test_half_open_peers_are_closed_and_keep_no_client_out(site: GrpcSite) -> None:
    peers = [socket.create_connection(("127.0.0.1", site.port), timeout=PATIENCE_S) for _ in range(50)]
    await assert_alive(site)
    for peer in peers:
        await asyncio.to_thread(read_to_the_end, peer)  # or its time-out says that it was not closed
        peer.close()
    await assert_alive(site)


@pytest.mark.guarantee("G15")
async def test_a_flood_of_pings_ends_the_connection(site: GrpcSite) -> None:
    pings = frame(PING, 0, 0, bytes(8)) * 50
    answer = await asyncio.to_thread(
        send_and_read, site, PREFACE + frame(SETTINGS, 0, 0) + pings, half_close=False
    )
    assert b"too_many_pings" in answer


@pytest.mark.guarantee("G15")
@pytest.mark.soak
async def test_five_thousand_rapid_resets_cost_next_to_nothing(site: GrpcSite) -> None:
    attack = PREFACE + frame(SETTINGS, 0, 0)
    for number in range(5000):
        stream = 2 * number + 1
        attack += frame(HEADERS, END_HEADERS, stream, CALL_HEADERS)
        attack += frame(RST_STREAM, 0, stream, struct.pack(">I", 8))
    before_s = time.process_time()
    peer_s = await asyncio.to_thread(peer_cpu_s, site, attack)
    cost_s = time.process_time() - before_s - peer_s
    print(f"CPU of 5000 resets: {cost_s:.3f} s, beside {peer_s:.3f} s of the peer")  # noqa: T201
    await until(lambda: site.metric("bisenet_stream_active") == 0)
    await assert_alive(site)


@pytest.mark.guarantee("G15")
@pytest.mark.soak
async def test_a_client_that_never_reads_costs_a_few_megabytes() -> None:
    """Masks of 1 MiB each that the client does not take; the growth of the process is their cost."""
    picture = encoded(np.zeros((1024, 1024, 3), np.uint8))
    async with open_grpc_site(limits=SegmenterLimits()) as site:
        with ExitStack() as stack:
            await stuck_clients(stack, site, picture, 1)  # caches and pools are full now
            before_mb = rss_mb()
            await stuck_clients(stack, site, picture, 4)
            cost_mb = (rss_mb() - before_mb) / 4
        print(f"a client that never reads costs {cost_mb:.1f} MB")  # noqa: T201
        assert cost_mb <= 8
        await until(lambda: site.metric("bisenet_stream_active") == 0)


async def stuck_clients(stack: ExitStack, site: GrpcSite, picture: bytes, count: int) -> None:
    """Let clients send frames and read nothing; returns when the service does no more for them."""
    before = len(site.engine.seen)
    for _ in range(count):
        peer = stack.enter_context(socket.create_connection(("127.0.0.1", site.port), timeout=PATIENCE_S))
        peer.sendall(opened_stream(picture, count=40))
    await until(lambda: len(site.engine.seen) >= before + count)
    seen = -1
    while seen != len(site.engine.seen):  # until nothing happens any more
        seen = len(site.engine.seen)
        await asyncio.sleep(1.0)


def opened_stream(picture: bytes, *, count: int) -> bytes:
    """Return a connection's bytes: a stream of frames whose peer never gives the service any window."""
    messages = [wire.StreamRequest(open=wire.StreamOpen(mask=wire.RAW, policy=wire.LATEST_WINS))]
    messages += [
        wire.StreamRequest(frame=wire.Frame(seq=seq, image=wire.Image(data=picture)))
        for seq in range(1, count + 1)
    ]
    return stream_of(*messages)


def rss_mb() -> float:
    release_free_memory()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6
