"""``grpc.health.v1.Health``: whether clients should send work here; ``Check`` and ``Watch``."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from service.grpc_api.edge import Context

_POLL_INTERVAL_S = 0.25
"""Readiness sends no events: ``Watch`` reports a change within this time."""


class HealthService(health_pb2_grpc.HealthServicer):
    """Reports ``is_ready`` for each service, and for all of them under the empty name.

    The library's own servicer keeps states that have to be set, and a client that watches without reading can
    block the setter.

    Args:
        is_ready: whether clients should send work here.
        services: full names.
        stopping: set when the server stops; ends all watches.
    """

    def __init__(
        self, is_ready: Callable[[], bool], services: tuple[str, ...], stopping: asyncio.Event
    ) -> None:
        self._is_ready = is_ready
        self._services = frozenset({"", *services})
        self._stopping = stopping

    async def Check(  # noqa: D102 - the protocol's own
        self, request: health_pb2.HealthCheckRequest, context: Context
    ) -> health_pb2.HealthCheckResponse:
        if request.service not in self._services:
            await context.abort(grpc.StatusCode.NOT_FOUND, "there is no such service")
        return self._response(request.service)

    async def Watch(  # noqa: D102 - the protocol's own
        self, request: health_pb2.HealthCheckRequest, context: Context
    ) -> None:
        last = None
        is_over = False
        while not is_over:
            is_over = self._stopping.is_set()
            response = self._response(request.service)
            if response != last:
                await context.write(response)
                last = response
            with suppress(TimeoutError):
                async with asyncio.timeout(_POLL_INTERVAL_S):
                    await self._stopping.wait()

    def _response(self, service: str) -> health_pb2.HealthCheckResponse:
        states = health_pb2.HealthCheckResponse
        if service not in self._services:
            return states(status=states.SERVICE_UNKNOWN)
        is_serving = self._is_ready() and not self._stopping.is_set()
        return states(status=states.SERVING if is_serving else states.NOT_SERVING)
