"""``grpc.health.v1.Health``: whether to send work here, asked once or watched."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from service.grpc_api.edge import Context

_LOOK_AGAIN_S = 0.25
"""Readiness is a question, not an event: those who watch learn of a change within this time."""


class HealthService(health_pb2_grpc.HealthServicer):
    """Tells what ``is_ready`` says in this moment, for each service and for all together (the empty name).

    The library's own servicer keeps states that somebody would have to set, and a client that watches but
    does not read could make that wait.

    Args:
        is_ready: whether work may be sent here.
        services: full names.
        stopping: set when the server stops; those who watch are told so and let go.
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
                async with asyncio.timeout(_LOOK_AGAIN_S):
                    await self._stopping.wait()

    def _response(self, service: str) -> health_pb2.HealthCheckResponse:
        states = health_pb2.HealthCheckResponse
        if service not in self._services:
            return states(status=states.SERVICE_UNKNOWN)
        is_serving = self._is_ready() and not self._stopping.is_set()
        return states(status=states.SERVING if is_serving else states.NOT_SERVING)
