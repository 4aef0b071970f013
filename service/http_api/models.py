"""The served models: ``/v1/models``."""

from __future__ import annotations

from fastapi import APIRouter

from service.core.models.loaded_model import LoadedModel
from service.core.models.model_host import ModelHost
from service.core.models.scoreboard import Scoreboard
from service.http_api.documents import ModelDocument, ModelListDocument, model_document


def models_router(host: ModelHost, scoreboard: Scoreboard | None) -> APIRouter:
    """Return the routes that describe the served models.

    Args:
        host: the served models.
        scoreboard: results of evaluations; None = there are none.
    """
    router = APIRouter(prefix="/v1/models", tags=["models"])

    def describe(served: LoadedModel, *, default: bool) -> ModelDocument:
        scores = () if scoreboard is None else scoreboard.of(served.version)
        return model_document(served, default=default, scores=scores)

    @router.get("")
    async def list_models() -> ModelListDocument:
        """List the served versions, the default one first."""
        served = host.models
        return ModelListDocument(models=[describe(m, default=m is served[0]) for m in served])

    @router.get("/{model}")
    async def show_model(model: str) -> ModelDocument:
        """Describe the version that answers for a model."""
        served = host.find(model)
        return describe(served, default=served is host.find())

    return router
