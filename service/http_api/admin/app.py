"""The admin application, put together of one router for each concern."""

from __future__ import annotations

from collections.abc import Iterable

from fastapi import APIRouter
from starlette.types import ASGIApp

from service.core.readiness import Readiness
from service.http_api.access import AccessCheck
from service.http_api.admin.access import AdminPolicy
from service.http_api.admin.audit import AuditLog, AuditTrail
from service.http_api.edge import HttpEdge
from service.http_api.foundation import problem_app
from service.telemetry import Metrics


def create_admin_app(
    routers: Iterable[APIRouter],
    *,
    policy: AdminPolicy,
    lifecycle: Readiness,
    metrics: Metrics,
    audit: AuditLog | None = None,
) -> ASGIApp:
    """Return the application.

    Args:
        routers: of administration (``/admin/v1``), metrics, the page, and the model repository of the Open
            Inference Protocol (``/v2/repository``).
        policy: conditions on each request.
        lifecycle: of the process.
        metrics: counts the answers.
        audit: log of the actions; None = lines of the service log.
    """
    app = problem_app(
        title="BiSeNet segmentation service: administration",
        description="Every request needs `Authorization: Bearer TOKEN`, except those for files of the page.",
    )
    for router in routers:
        app.include_router(router)
    audited = AuditTrail(app, audit or AuditLog(None))
    return HttpEdge(AccessCheck(audited, policy), lifecycle, metrics)
