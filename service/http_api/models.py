"""Which models are served: ``/v1/models``."""

from __future__ import annotations

from fastapi import APIRouter

from service.core.host import ModelHost
from service.http_api.documents import ModelDocument, ModelListDocument, model_document


def models_router(host: ModelHost) -> APIRouter:
    """Return the routes that describe the served models.

    Args:
        host: what is served.
    """
    router = APIRouter(prefix="/v1/models", tags=["models"])

    @router.get("")
    async def list_models() -> ModelListDocument:
        """List the served versions, the default one first."""
        served = host.models
        return ModelListDocument(models=[model_document(m, default=m is served[0]) for m in served])

    @router.get("/{model}")
    async def show_model(model: str) -> ModelDocument:
        """Describe the version that answers for a model."""
        served = host.find(model)
        return model_document(served, default=served is host.find())

    return router
