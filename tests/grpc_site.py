"""The gRPC server around a fake engine, for tests: it listens on a real port, everything else is real too."""

from __future__ import annotations

import asyncio
import itertools
import re
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import grpc
from fakes import PATIENCE_S, FakeEngine
from google.rpc import error_details_pb2
from google.rpc.status_pb2 import Status
from http_site import FAKE_VERSIONS, Site, open_site

from model.artifacts.manifest import ModelVersion
from service.core.pictures.segmenter import Segmenter, SegmenterLimits
from service.core.tls import CertificateFollower, TlsFiles
from service.grpc_api.limits import PeerLimits
from service.grpc_api.open_inference import OpenInferenceServicer
from service.grpc_api.server import GrpcServer
from service.grpc_api.servicer import Servicer, ServicerOptions
from service.grpc_api.status import DETAILS_KEY
from service.open_inference.inference import Inference
from service.open_inference.statistics import InferenceStatistics
from service.spans import NO_TRACING, Tracing
from service.wire import segmentation_pb2 as wire
from service.wire.segmentation_pb2_grpc import SegmentationStub

Messages = list[wire.StreamResponse]
StreamCall = grpc.aio.StreamStreamCall[wire.StreamRequest, wire.StreamResponse]


@dataclass(frozen=True)
class GrpcSite:
    """A server in this process, and a client that talks to it over a real connection."""

    site: Site
    server: GrpcServer
    servicer: Servicer
    address: str
    channel: grpc.aio.Channel
    answering: asyncio.Task[None]

    @property
    def stub(self) -> Any:
        return SegmentationStub(self.channel)

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])

    @property
    def engine(self) -> FakeEngine:
        return self.site.engine

    async def stream(self, **wanted: Any) -> StreamCall:
        """Begin a stream: its first message is on the way."""
        call: StreamCall = self.stub.SegmentStream(timeout=PATIENCE_S)
        # A stream that is refused at once may end before its first message has left; reading says why.
        with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            await call.write(wire.StreamRequest(open=wire.StreamOpen(**wanted)))
        return call

    def metric(self, name: str) -> float:
        """Return the value of a metric, by its name with its labels."""
        text = self.site.metrics.exposition()[0].decode()
        found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
        return float(found[1]) if found else 0.0

    def drain(self) -> None:
        """Do what the process does first when it is asked to stop."""
        self.site.lifecycle.draining = True
        self.servicer.drain(time.monotonic() + PATIENCE_S)


@asynccontextmanager
async def open_grpc_site(
    engine: FakeEngine | None = None,
    *,
    options: ServicerOptions | None = None,
    connections: PeerLimits | None = None,
    limits: SegmenterLimits | None = None,
    max_waiting: int = 256,
    versions: Sequence[ModelVersion] = FAKE_VERSIONS,
    credentials: grpc.ServerCredentials | None = None,
    tls: TlsFiles | None = None,
    tracing: Tracing = NO_TRACING,
) -> AsyncIterator[GrpcSite]:
    """Serve a fake model; closed, everything that was accepted has been answered or cut off.

    With credentials the address is one with TLS, as that of a proxy would be; with files the server's own.
    """
    async with open_site(engine, max_waiting=max_waiting, versions=versions, tracing=tracing) as site:
        with ThreadPoolExecutor(2) as pool:
            segmenter = Segmenter(pool, limits)
            servicer = Servicer(segmenter, site.host, site.metrics, options or ServicerOptions(), tracing)

            def is_ready() -> bool:
                return site.host.ready and not site.lifecycle.draining

            open_inference = OpenInferenceServicer(
                servicer.calls,
                Inference(segmenter, at_once=4),
                site.host,
                metrics=site.metrics,
                statistics=InferenceStatistics(),
                is_ready=is_ready,
            )
            server = GrpcServer(
                servicer,
                open_inference,
                is_ready,
                connections or PeerLimits(),
                grace_s=PATIENCE_S,
            )
            plain = address = server.bind("127.0.0.1", 0)
            if credentials is not None:
                address = f"127.0.0.1:{server._server.add_secure_port('127.0.0.1:0', credentials)}"
            elif tls is not None:
                follower = CertificateFollower(tls, clock=itertools.count().__next__)  # looks each time
                address = server.bind("127.0.0.1", 0, follower)
            answering = asyncio.create_task(server.answer())
            try:
                async with grpc.aio.insecure_channel(plain) as channel:
                    yield GrpcSite(site, server, servicer, address, channel, answering)
            finally:
                server.cut()
                await answering


def details_of(error: grpc.aio.AioRpcError) -> dict[str, Any]:
    """Return the rich details of a status by the names of their types."""
    for key, value in error.trailing_metadata() or ():
        if key == DETAILS_KEY:
            status = Status.FromString(value)
            assert status.code == error.code().value[0]
            return {any_.TypeName().rpartition(".")[2]: _unpacked(any_) for any_ in status.details}
    return {}


def reason_of(error: grpc.aio.AioRpcError) -> str:
    """Return the service's code of a status."""
    return str(details_of(error)["ErrorInfo"].reason.lower())


def _unpacked(any_: Any) -> Any:
    message = getattr(error_details_pb2, any_.TypeName().rpartition(".")[2])()
    assert any_.Unpack(message)
    return message
