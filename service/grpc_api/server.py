"""The gRPC server: its port, what it lets a peer do, and how it ends."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from service.grpc_api.edge import SERVICE_NAME
from service.grpc_api.health import HealthService
from service.grpc_api.limits import PeerLimits
from service.grpc_api.methods import method_handlers
from service.grpc_api.servicer import Servicer

_LINGER_S = 0.5
"""A call that was accepted in the last moment has reached the servicer by then."""

_HEALTH_NAME = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name


class GrpcBindError(Exception):
    """The address cannot be listened on; the message names it."""


class GrpcServer:
    """Serves the methods, health and reflection in the running event loop.

    Args:
        servicer: the methods.
        is_ready: whether work may be sent here.
        limits: of its peers.
        grace_s: how long calls may take to finish once it stops.

    Attributes:
        cut_off: calls were cut off in the end, by ``cut`` or because they took too long.
    """

    def __init__(
        self, servicer: Servicer, is_ready: Callable[[], bool], limits: PeerLimits, *, grace_s: float
    ) -> None:
        self.cut_off = False
        self._servicer = servicer
        self._grace_s = grace_s
        self._stopping = asyncio.Event()
        self._cutting = asyncio.Event()
        self._server = grpc.aio.server(
            options=limits.channel_options(), maximum_concurrent_rpcs=limits.max_rpcs
        )
        self._server.add_generic_rpc_handlers((method_handlers(servicer),))
        health = HealthService(is_ready, (SERVICE_NAME,), self._stopping)
        health_pb2_grpc.add_HealthServicer_to_server(health, self._server)
        names = (SERVICE_NAME, _HEALTH_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)

    def bind(self, host: str, port: int) -> str:
        """Open the port before anything slow begins, so that a taken one is told at once.

        Args:
            host: a name or an address.
            port: 0 = one that is free.

        Returns:
            The address to give to clients, ``HOST:PORT``.

        Raises:
            GrpcBindError: the port is taken or not allowed, or there is no such address here.
        """
        name = f"[{host}]" if ":" in host else host
        try:
            return f"{name}:{self._server.add_insecure_port(f'{name}:{port}')}"
        except RuntimeError as error:
            raise GrpcBindError(f"cannot listen on {host} port {port} for gRPC") from error

    async def answer(self) -> None:
        """Answer until ``stop`` is called and everything is answered, or its grace is over."""
        await self._server.start()
        await self._stopping.wait()
        self._servicer.drain(time.monotonic() + self._grace_s)
        ending = asyncio.create_task(self._server.stop(2 * self._grace_s))
        answering = asyncio.create_task(self._all_answered(ending))
        cutting = asyncio.create_task(self._cutting.wait())
        await asyncio.wait((answering, cutting), timeout=self._grace_s, return_when=asyncio.FIRST_COMPLETED)
        self.cut_off = not answering.done()
        await self._server.stop(None)
        answering.cancel()
        cutting.cancel()
        await ending

    async def _all_answered(self, ending: asyncio.Task[None]) -> None:
        """Return when no call of the servicer is left: others, to reflection, may never end by themselves."""
        while not ending.done():
            await self._servicer.until_idle()
            await asyncio.wait((ending,), timeout=_LINGER_S)
            if self._servicer.is_idle:
                return

    def stop(self) -> None:
        """Accept no call any more; streams end once what they sent is answered."""
        self._stopping.set()

    def cut(self) -> None:
        """Do not even wait for that."""
        self._stopping.set()
        self._cutting.set()
