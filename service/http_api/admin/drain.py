"""``POST /admin/v1/drain``: move traffic elsewhere before the process is stopped."""

from __future__ import annotations

from typing import Literal

import structlog
from fastapi import APIRouter, Request
from pydantic import BaseModel

from service.core.readiness import Readiness
from service.http_api.admin.audit import note_change

_log = structlog.get_logger()


class DrainDocument(BaseModel):
    """The service drains."""

    state: Literal["draining"] = "draining"


def drain_router(lifecycle: Readiness) -> APIRouter:
    """Return the route that begins to drain.

    Args:
        lifecycle: of the process.
    """
    router = APIRouter(prefix="/admin/v1", tags=["lifecycle"])

    @router.post("/drain", status_code=202)
    async def drain(request: Request) -> DrainDocument:
        """Turn `/readyz` to 503 and end each connection with its answer.

        Requests that still come are answered; SIGTERM then ends the process. Draining cannot be undone.
        """
        note_change(request, before={"draining": lifecycle.draining}, after={"draining": True})
        if not lifecycle.draining:
            _log.info("draining", by="admin")
        lifecycle.draining = True
        return DrainDocument()

    return router
