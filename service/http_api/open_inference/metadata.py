"""``/v2``: health, metadata, configuration and statistics."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from service.core.models.loaded_model import LoadedModel
from service.core.models.model_host import ModelHost, version_number
from service.core.readiness import Readiness
from service.http_api.health import check_ready
from service.http_api.open_inference.documents import (
    LiveDocument,
    ModelConfigDocument,
    ModelMetadataDocument,
    ModelNamesDocument,
    ModelReadyDocument,
    PlainErrorDocument,
    ReadyDocument,
    ServerDocument,
    StatisticsDocument,
    config_document,
    metadata_document,
)
from service.http_api.problems import PLAIN_ERROR_TYPE
from service.open_inference.metadata import (
    EXTENSIONS,
    SERVER_NAME,
    model_metadata,
    server_version,
)
from service.open_inference.statistics import InferenceStatistics

PLAIN_ERROR_RESPONSE: dict[int | str, dict[str, Any]] = {
    "default": {
        "description": "An error.",
        "content": {PLAIN_ERROR_TYPE: {"schema": PlainErrorDocument.model_json_schema()}},
    }
}
"""How the OpenAPI document describes every error below ``/v2``."""


def open_inference_router(
    host: ModelHost, lifecycle: Readiness, statistics: InferenceStatistics
) -> APIRouter:
    """Return the routes that only read; health needs no key.

    Args:
        host: what is served.
        lifecycle: read at each probe.
        statistics: of all requests of the protocol.
    """
    router = APIRouter(prefix="/v2", tags=["open inference protocol"], responses=PLAIN_ERROR_RESPONSE)
    _add_server_routes(router, host, lifecycle)
    _add_model_routes(router, _Models(host, statistics))
    return router


def _add_server_routes(router: APIRouter, host: ModelHost, lifecycle: Readiness) -> None:
    async def server_metadata() -> ServerDocument:
        """Name the server, its version and the extensions that it has."""
        return ServerDocument(name=SERVER_NAME, version=server_version(), extensions=list(EXTENSIONS))

    router.add_api_route("", server_metadata)
    router.add_api_route("/", server_metadata, include_in_schema=False)

    @router.get("/health/live")
    async def server_live() -> LiveDocument:
        """Tell whether the process answers at all."""
        return LiveDocument()

    @router.get("/health/ready")
    async def server_ready() -> ReadyDocument:
        """Tell whether to send requests here; else 503."""
        check_ready(host, lifecycle)
        return ReadyDocument()


def _add_model_routes(router: APIRouter, models: _Models) -> None:
    router.add_api_route("/models", models.names, name="model_names")
    # Before {model}, or it would be one.
    router.add_api_route("/models/stats", models.all_statistics, name="all_model_statistics")
    for kind, path in (("model", "/models/{model}"), ("version", "/models/{model}/versions/{version}")):
        router.add_api_route(path, models.metadata, name=f"{kind}_metadata")
        router.add_api_route(f"{path}/ready", models.ready, name=f"{kind}_ready")
        router.add_api_route(f"{path}/config", models.config, name=f"{kind}_config")
        router.add_api_route(f"{path}/stats", models.statistics, name=f"{kind}_statistics")


class _Models:
    """What is told of the served models; the docstrings are those of the OpenAPI document."""

    def __init__(self, host: ModelHost, statistics: InferenceStatistics) -> None:
        self._host = host
        self._statistics = statistics

    async def names(self) -> ModelNamesDocument:
        """Name the served models, the default one first."""
        return ModelNamesDocument(models=list(dict.fromkeys(one.version.name for one in self._host.models)))

    async def metadata(self, model: str, version: str | None = None) -> ModelMetadataDocument:
        """Describe the tensors of a model; -1 is an axis whose length a request chooses."""
        return metadata_document(model_metadata(self._host, self._found(model, version)))

    async def ready(self, model: str, version: str | None = None) -> ModelReadyDocument:
        """Tell whether a version is served; else 404 or 503."""
        return ModelReadyDocument(name=self._found(model, version).version.name)

    async def config(self, model: str, version: str | None = None) -> ModelConfigDocument:
        """Describe a model in the terms of Triton's model configuration."""
        return config_document(model_metadata(self._host, self._found(model, version)))

    async def statistics(self, model: str, version: str | None = None) -> StatisticsDocument:
        """Count the requests of this protocol for one version."""
        found = self._found(model, version)
        return StatisticsDocument(model_stats=[self._statistics.document(found.version)])

    async def all_statistics(self) -> StatisticsDocument:
        """Count the requests of this protocol for each served version."""
        return StatisticsDocument(
            model_stats=[self._statistics.document(one.version) for one in self._host.models]
        )

    def _found(self, model: str, version: str | None) -> LoadedModel:
        return self._host.find(model, None if version is None else version_number(version))
