"""The gRPC server: its port, its limits, and how it stops."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from service.core.tls import CertificateFollower, Pem
from service.grpc_api.edge import SERVICE_NAME
from service.grpc_api.health import HealthService
from service.grpc_api.limits import PeerLimits
from service.grpc_api.methods import method_handlers, open_inference_handlers
from service.grpc_api.open_inference import OPEN_INFERENCE_NAME, OpenInferenceServicer
from service.grpc_api.servicer import Servicer

_LINGER_S = 0.5
"""Time in which a call that was just accepted reaches the servicer."""

_REFUSING_S = 1.0
"""Time in which calls that are cut off are told so, at most; more than ``_LINGER_S``."""

_HEALTH_NAME = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name


class GrpcBindError(Exception):
    """The server cannot listen on the address, which the message names."""


class GrpcServer:
    """Serves the methods, health and reflection in the running event loop.

    Args:
        servicer: the methods of this project's own service.
        open_inference: the methods of the Open Inference Protocol.
        is_ready: whether clients should send work here.
        limits: of a peer.
        grace_s: time that calls have to finish after ``stop``, in seconds.

    Attributes:
        cut_off: some calls were cut off, by ``cut`` or after the grace time.
    """

    def __init__(
        self,
        servicer: Servicer,
        open_inference: OpenInferenceServicer,
        is_ready: Callable[[], bool],
        limits: PeerLimits,
        *,
        grace_s: float,
    ) -> None:
        self.cut_off = False
        self._servicer = servicer
        self._grace_s = grace_s
        self._stopping = asyncio.Event()
        self._cutting = asyncio.Event()
        self._server = grpc.aio.server(
            options=limits.channel_options(), maximum_concurrent_rpcs=limits.max_rpcs
        )
        handlers = (method_handlers(servicer), open_inference_handlers(open_inference))
        self._server.add_generic_rpc_handlers(handlers)
        services = (SERVICE_NAME, OPEN_INFERENCE_NAME)
        health = HealthService(is_ready, services, self._stopping)
        health_pb2_grpc.add_HealthServicer_to_server(health, self._server)
        names = (*services, _HEALTH_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)

    def bind(self, host: str, port: int, tls: CertificateFollower | None = None) -> str:
        """Open the port; called before slow work, so that a port that is in use is reported at once.

        Args:
            host: name or address.
            port: 0 = any free port.
            tls: what connections are encrypted with; None = they are not.

        Returns:
            The address for clients, ``HOST:PORT``.

        Raises:
            GrpcBindError: the port is in use or not allowed, or this machine does not have the address.
        """
        name = f"[{host}]" if ":" in host else host
        address = f"{name}:{port}"
        try:
            if tls is None:
                return f"{name}:{self._server.add_insecure_port(address)}"
            return f"{name}:{self._server.add_secure_port(address, _credentials(tls))}"
        except RuntimeError as error:
            raise GrpcBindError(f"cannot listen on {host} port {port} for gRPC") from error

    async def answer(self) -> None:
        """Answer calls until ``stop``, then until all are answered or the grace time is over."""
        await self._server.start()
        await self._stopping.wait()
        self._servicer.drain(time.monotonic() + self._grace_s)
        ending = asyncio.create_task(self._server.stop(2 * self._grace_s))
        answering = asyncio.create_task(self._all_answered(ending))
        cutting = asyncio.create_task(self._cutting.wait())
        await asyncio.wait((answering, cutting), timeout=self._grace_s, return_when=asyncio.FIRST_COMPLETED)
        self.cut_off = not answering.done()
        if self.cut_off:
            self._servicer.cut()
            await asyncio.wait((answering,), timeout=_REFUSING_S)
        await self._server.stop(None)
        answering.cancel()
        cutting.cancel()
        await ending

    async def _all_answered(self, ending: asyncio.Task[None]) -> None:
        """Wait until the servicer has no open call; calls to reflection may never end by themselves."""
        while not ending.done():
            await self._servicer.until_idle()
            await asyncio.wait((ending,), timeout=_LINGER_S)
            if self._servicer.is_idle:
                return

    def stop(self) -> None:
        """Accept no more calls; streams end when the frames that they sent are answered."""
        self._stopping.set()

    def cut(self) -> None:
        """Stop, and cut off all open calls."""
        self._stopping.set()
        self._cutting.set()


def _credentials(certificates: CertificateFollower) -> grpc.ServerCredentials:
    used = certificates.pem()

    def newest() -> grpc.ServerCertificateConfiguration | None:
        """Return what has changed; gRPC asks at each handshake."""
        nonlocal used
        before, used = used, certificates.pem()
        return None if used is before else _configuration(used)

    return grpc.dynamic_ssl_server_credentials(
        _configuration(used),
        newest,  # type: ignore[arg-type]  # grpc takes None for no change, its stubs do not say so
        require_client_authentication=used[2] is not None,
    )


def _configuration(pem: Pem) -> grpc.ServerCertificateConfiguration:
    cert, key, client_ca = pem
    return grpc.ssl_server_certificate_configuration([(key, cert)], client_ca)
