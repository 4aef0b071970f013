"""``/admin/v1/models``: aliases and loaded versions."""

from __future__ import annotations

import asyncio
from typing import Annotated, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from model.artifacts.aliases import Alias
from service.core.models.live_versions import LiveVersions
from service.core.models.model_host import version_number
from service.http_api.documents import EngineDocument, engine_document
from service.http_api.segment.body import read_document


class PromotionDocument(BaseModel):
    """The new version of an alias."""

    model_config = ConfigDict(extra="forbid", strict=True)

    version: Annotated[int, Field(ge=1, le=999_999_999)]


class AliasDocument(BaseModel):
    """The version of an alias, and its earlier versions, the latest first."""

    model: str
    alias: str
    version: int
    previous: list[int]
    served: Annotated[
        bool,
        Field(
            description="Whether this service serves the version of the alias. It follows the models that it "
            "was started with (NAME or NAME:ALIAS). For others only the registry changes, and a version is "
            "served after it is loaded by its number."
        ),
    ]


class UnloadedDocument(BaseModel):
    """A version that is not served any more."""

    name: str
    version: int
    state: Literal["unloaded"] = "unloaded"


_PROMOTION = {
    "requestBody": {"content": {"application/json": {"schema": PromotionDocument.model_json_schema()}}}
}


def versions_router(versions: LiveVersions) -> APIRouter:
    """Return the routes that change the served versions.

    Args:
        versions: makes the changes, in threads: each takes seconds.
    """
    router = APIRouter(prefix="/admin/v1/models/{model}", tags=["versions"])

    def alias_document(model: str, alias: str, moved: Alias) -> AliasDocument:
        served = versions.follows(model, alias)
        return AliasDocument(
            model=model, alias=alias, version=moved.version, previous=list(moved.previous), served=served
        )

    @router.put("/aliases/{alias}", openapi_extra=_PROMOTION)
    async def promote(request: Request, model: str, alias: str) -> AliasDocument:
        """Point an alias at a version. If the alias is served here, the version is loaded and proved first.

        `served` in the answer says whether the alias is served here.
        """
        number = (await read_document(request, PromotionDocument)).version
        moved = await asyncio.to_thread(versions.promote, model, alias, number)
        return alias_document(model, alias, moved)

    @router.post("/aliases/{alias}:rollback")
    async def roll_back(model: str, alias: str) -> AliasDocument:
        """Point an alias at its earlier version; if it is served here, that is loaded and proved first."""
        return alias_document(model, alias, await asyncio.to_thread(versions.rollback, model, alias))

    @router.post("/versions/{version}:load")
    async def load(model: str, version: str) -> EngineDocument:
        """Serve a version under its number, beside the others."""
        served = await asyncio.to_thread(versions.load, model, version_number(version))
        return engine_document(served)

    @router.post("/versions/{version}:unload")
    async def unload(model: str, version: str) -> UnloadedDocument:
        """Unload a version after its last picture is answered; 409 if the bare name means this version."""
        number = version_number(version)
        await asyncio.to_thread(versions.unload, model, number)
        return UnloadedDocument(name=model, version=number)

    return router
