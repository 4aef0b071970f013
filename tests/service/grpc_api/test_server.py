"""The server around the methods: its port, its health, its reflection, its limits."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from certificates import Certificate, make_certificate, needs_openssl
from fakes import PATIENCE_S, FakeEngine, key_ring, until
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_site import GrpcSite, details_of, open_grpc_site, reason_of
from http2_bytes import stream_of

from service.core.tls import TlsError, TlsFiles
from service.grpc_api.edge import SERVICE_NAME
from service.grpc_api.limits import PeerLimits
from service.grpc_api.server import GrpcBindError
from service.grpc_api.servicer import ServicerOptions
from service.wire import segmentation_pb2 as wire

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


async def health(site: GrpcSite, service: str = "") -> int:
    stub = health_pb2_grpc.HealthStub(site.channel)
    response = await stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=PATIENCE_S)
    return int(response.status)


@pytest.mark.parametrize("service", ["", SERVICE_NAME])
async def test_health_follows_the_life_of_the_service(service: str) -> None:
    async with open_grpc_site(versions=()) as site:
        assert await health(site, service) == NOT_SERVING
    async with open_grpc_site() as site:
        assert await health(site, service) == SERVING
        site.drain()
        assert await health(site, service) == NOT_SERVING


async def test_the_health_of_an_unknown_service_is_not_found() -> None:
    async with open_grpc_site() as site:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await health(site, "nobody")
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_who_watches_is_told_of_the_drain_at_once() -> None:
    async with open_grpc_site() as site:
        stub = health_pb2_grpc.HealthStub(site.channel)
        watching = stub.Watch(health_pb2.HealthCheckRequest(), timeout=PATIENCE_S)
        assert (await watching.read()).status == SERVING
        site.drain()
        assert (await watching.read()).status == NOT_SERVING


async def test_health_needs_no_key() -> None:
    async with open_grpc_site(options=ServicerOptions(keys=key_ring("a-key"))) as site:
        assert await health(site) == SERVING


async def test_reflection_names_the_services_and_describes_the_messages() -> None:
    async with open_grpc_site() as site:
        stub = reflection_pb2_grpc.ServerReflectionStub(site.channel)
        asked = [
            reflection_pb2.ServerReflectionRequest(list_services=""),
            reflection_pb2.ServerReflectionRequest(file_containing_symbol=SERVICE_NAME),
        ]
        listed, described = [r async for r in stub.ServerReflectionInfo(iter(asked), timeout=PATIENCE_S)]
        names = {service.name for service in listed.list_services_response.service}
        assert {SERVICE_NAME, "grpc.health.v1.Health"} <= names
        assert wire.DESCRIPTOR.serialized_pb in described.file_descriptor_response.file_descriptor_proto


async def test_a_taken_port_is_told_by_its_number() -> None:
    async with open_grpc_site() as site:
        with pytest.raises(GrpcBindError, match=str(site.port)):
            site.server.bind("127.0.0.1", site.port)


async def test_a_connection_has_no_more_calls_than_the_limit_at_the_same_time() -> None:
    limits = PeerLimits(max_streams=2)
    async with open_grpc_site(FakeEngine(held=True), connections=limits) as site:
        first, second = await site.stream(), await site.stream()
        third = asyncio.create_task(site.stream())
        for call in (first, second):
            assert (await call.read()).WhichOneof("kind") == "opened"
        assert not third.done()
        first.cancel()
        call = await third
        assert (await call.read()).WhichOneof("kind") == "opened"


async def test_all_connections_together_have_no_more_calls_than_the_limit() -> None:
    async with open_grpc_site(options=ServicerOptions(max_calls=1)) as site:
        first = await site.stream()
        assert (await first.read()).WhichOneof("kind") == "opened"
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await site.stub.ListModels(wire.ListModelsRequest(), timeout=PATIENCE_S)
        assert (caught.value.code(), reason_of(caught.value)) == (grpc.StatusCode.UNAVAILABLE, "busy")
        assert "RetryInfo" in details_of(caught.value)
        assert await health(site) == SERVING
        await first.done_writing()
        assert await first.read() is grpc.aio.EOF
        await until(lambda: site.servicer.is_idle)
        assert await site.stub.ListModels(wire.ListModelsRequest(), timeout=PATIENCE_S)


async def test_calls_that_never_end_by_themselves_do_not_hold_up_a_stop() -> None:
    async with open_grpc_site() as site:
        watching = health_pb2_grpc.HealthStub(site.channel).Watch(health_pb2.HealthCheckRequest())
        assert (await watching.read()).status == SERVING
        reflecting = reflection_pb2_grpc.ServerReflectionStub(site.channel).ServerReflectionInfo()
        await reflecting.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        assert await reflecting.read()
        unopened = site.stub.SegmentStream()
        await until(lambda: site.metric("bisenet_stream_active") == 1)
        site.server.stop()
        async with asyncio.timeout(PATIENCE_S / 2):  # the grace is the whole of it
            await site.answering
        assert not site.server.cut_off
        assert (await watching.read()).status == NOT_SERVING
        assert await watching.code() is grpc.StatusCode.OK
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await unopened.read()
        assert reason_of(caught.value) == "draining"


async def test_a_stop_waits_for_a_picture_that_is_still_arriving() -> None:
    async with open_grpc_site() as site:
        call = site.channel.stream_unary(
            "/segmentation.v1.Segmentation/Segment",
            request_serializer=wire.SegmentRequest.SerializeToString,
            response_deserializer=wire.SegmentResponse.FromString,
        )(timeout=PATIENCE_S)
        await until(lambda: site.metric("bisenet_inflight") == 1)
        site.server.stop()
        await asyncio.sleep(0)
        image = wire.Image(data=bytes(32 * 32 * 3), encoding=wire.RGB8, width=32, height=32)
        await call.write(wire.SegmentRequest(image=image))
        assert (await call).mask.data
        await site.answering
        assert not site.server.cut_off


@pytest.mark.guarantee("G6")
async def test_a_stop_answers_what_was_accepted() -> None:
    async with open_grpc_site(FakeEngine(held=True)) as site:
        image = wire.Image(data=bytes(32 * 32 * 3), encoding=wire.RGB8, width=32, height=32)
        call = site.stub.Segment(wire.SegmentRequest(image=image), timeout=PATIENCE_S)
        await asyncio.to_thread(site.engine.wait_until_busy)
        site.server.stop()
        site.engine.go_on(1)
        assert (await call).mask.data
        await site.answering
        assert not site.server.cut_off


async def test_a_cut_tells_the_open_calls_that_the_service_stops() -> None:
    async with open_grpc_site(FakeEngine(held=True)) as site:
        image = wire.Image(data=bytes(32 * 32 * 3), encoding=wire.RGB8, width=32, height=32)
        call = site.stub.Segment(wire.SegmentRequest(image=image), timeout=PATIENCE_S)
        await asyncio.to_thread(site.engine.wait_until_busy)
        site.server.cut()
        with pytest.raises(grpc.aio.AioRpcError, match="stopped before it could answer") as caught:
            await call
        assert (caught.value.code(), reason_of(caught.value)) == (grpc.StatusCode.UNAVAILABLE, "draining")
        await site.answering
        assert site.server.cut_off
        site.engine.go_on(1)


async def test_a_cut_waits_for_no_call() -> None:
    async with open_grpc_site(FakeEngine(held=True)) as site:
        call = await site.stream()
        assert (await call.read()).WhichOneof("kind") == "opened"
        frame = wire.Frame(seq=1, image=wire.Image(data=bytes(3), encoding=wire.RGB8, width=1, height=1))
        await call.write(wire.StreamRequest(frame=frame))
        await asyncio.to_thread(site.engine.wait_until_busy)
        site.server.stop()
        site.server.cut()
        await site.answering
        assert site.server.cut_off
        site.engine.go_on(1)


async def test_a_connection_that_says_nothing_is_closed() -> None:
    async with open_grpc_site(connections=PeerLimits(handshake_s=0.2)) as site:
        with socket.create_connection(("127.0.0.1", site.port), timeout=PATIENCE_S) as silent:
            await asyncio.to_thread(read_to_the_end, silent)


async def test_a_peer_that_vanished_is_gone_after_keepalive_and_timeout() -> None:
    """A peer that opened a stream by hand and then neither answers pings nor closes."""
    limits = PeerLimits(keepalive_s=1.0, keepalive_timeout_s=0.5)
    async with open_grpc_site(connections=limits) as site:
        with socket.create_connection(("127.0.0.1", site.port), timeout=PATIENCE_S) as vanished:
            vanished.sendall(stream_of(wire.StreamRequest(open=wire.StreamOpen())))
            await until(lambda: site.metric("bisenet_stream_active") == 1)
            await asyncio.to_thread(read_to_the_end, vanished)
            await until(lambda: site.metric("bisenet_stream_active") == 0)


def read_to_the_end(connection: socket.socket) -> None:
    while connection.recv(4096):
        pass


@needs_openssl
async def test_calls_are_encrypted_and_clients_show_a_certificate_where_one_is_needed(tmp_path: Path) -> None:
    (tmp_path / "client").mkdir()
    server, known = await make_certificate(tmp_path), await make_certificate(tmp_path / "client")
    root = server.file.read_bytes()
    anonymous = grpc.ssl_channel_credentials(root)
    certified = grpc.ssl_channel_credentials(root, known.key_file.read_bytes(), known.file.read_bytes())
    files = TlsFiles(server.file, server.key_file)
    for tls, credentials, code in (
        (files, anonymous, grpc.StatusCode.OK),
        (replace(files, client_ca=known.file), certified, grpc.StatusCode.OK),
        (replace(files, client_ca=known.file), anonymous, grpc.StatusCode.UNAVAILABLE),
    ):
        async with (
            open_grpc_site(tls=tls) as site,
            grpc.aio.secure_channel(site.address, credentials) as channel,
        ):
            call = health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(), timeout=PATIENCE_S
            )
            assert await call.code() is code


@needs_openssl
async def test_a_certificate_that_is_replaced_is_used_without_a_restart(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    old, new = await make_certificate(tmp_path), await make_certificate(tmp_path / "new")
    trusted = {made: grpc.ssl_channel_credentials(made.file.read_bytes()) for made in (old, new)}
    used = TlsFiles(tmp_path / "used.pem", tmp_path / "used-key.pem")

    async def code_for(site: GrpcSite, server: Certificate) -> grpc.StatusCode:
        async with grpc.aio.secure_channel(site.address, trusted[server]) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            return await stub.Check(health_pb2.HealthCheckRequest(), timeout=PATIENCE_S).code()

    def move_in(made: Certificate) -> None:
        used.key.write_bytes(made.key_file.read_bytes())
        used.cert.write_bytes(made.file.read_bytes())

    move_in(old)
    async with open_grpc_site(tls=used) as site:
        assert await code_for(site, old) is grpc.StatusCode.OK
        move_in(new)
        assert await code_for(site, new) is grpc.StatusCode.OK
        assert await code_for(site, old) is grpc.StatusCode.UNAVAILABLE


async def test_a_certificate_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    with pytest.raises(TlsError, match=r"none\.pem"):
        async with open_grpc_site(tls=TlsFiles(tmp_path / "none.pem", tmp_path / "none.pem")):
            pass
