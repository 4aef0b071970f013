"""``GET /metrics`` for Prometheus."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from service.http_api.admin.access import METRICS_PATH
from service.telemetry import Metrics


def metrics_router(metrics: Metrics) -> APIRouter:
    """Return the route of the metrics.

    Args:
        metrics: read at each request.
    """
    router = APIRouter(tags=["metrics"])

    @router.get(METRICS_PATH, response_class=Response)
    async def show_metrics(request: Request) -> Response:
        """Show every metric as text, or as OpenMetrics if ``Accept`` asks for it."""
        content, media_type = metrics.exposition(request.headers.get("accept", ""))
        return Response(content, media_type=media_type)

    return router
