"""Probes: whether the process is alive, has started, and accepts work."""

from __future__ import annotations

from fastapi import APIRouter

from service.core.errors import DrainingError, LoadingError, NoWorkerError
from service.core.models.model_host import ModelHost
from service.core.readiness import Readiness
from service.http_api.documents import ProbeDocument, ReadinessDocument, engine_document
from service.http_api.edge import READY_PATHS


def health_router(host: ModelHost, lifecycle: Readiness) -> APIRouter:
    """Return the routes ``/livez``, ``/startupz`` and ``/readyz`` with its other names; they need no key.

    Args:
        host: its models must be loaded.
        lifecycle: read at each probe.
    """
    router = APIRouter(tags=["health"])

    @router.get("/livez")
    async def live() -> ProbeDocument:
        """Tell whether the process answers; if not, restart it."""
        return ProbeDocument(status="live")

    @router.get("/startupz")
    async def started() -> ProbeDocument:
        """Tell whether the models were loaded; until then 503 `loading`."""
        if not lifecycle.started:
            raise LoadingError("the models are being loaded")
        return ProbeDocument(status="started")

    async def ready() -> ReadinessDocument:
        """Tell whether to send work here, and which engines run; the same at `/healthz`, `/health`, `/ping`.

        Else 503 `loading` or `draining`, or `no_worker` while a worker that died is started again.
        """
        check_ready(host, lifecycle)
        return ReadinessDocument(models=[engine_document(served) for served in host.models])

    for path in READY_PATHS:
        router.add_api_route(path, ready, include_in_schema=path == READY_PATHS[0])
    return router


def check_ready(host: ModelHost, lifecycle: Readiness) -> None:
    """Return if requests are answered.

    Raises:
        DrainingError: the service is about to stop.
        NoWorkerError: a worker that died is being started again.
        LoadingError: the models are being loaded.
    """
    if lifecycle.draining:
        raise DrainingError("the service is about to stop")
    if not host.ready and lifecycle.started:
        raise NoWorkerError("the worker is being started again")
    if not host.ready:
        raise LoadingError("the models are being loaded")
