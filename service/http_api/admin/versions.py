"""``/admin/v1/models``: aliases and loaded versions."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Annotated, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from model.artifacts.aliases import Alias
from service.core.models.live_versions import LiveVersions, RegisteredModel
from service.core.models.model_host import version_number
from service.http_api.admin.audit import note_change
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


class VersionDocument(BaseModel):
    """A version of the registry."""

    version: int
    served: bool


class RegisteredModelDocument(BaseModel):
    """A model of the registry: its versions, the oldest first, and its aliases."""

    name: str
    versions: list[VersionDocument]
    aliases: list[AliasDocument]
    bare_version: Annotated[
        int | None, Field(description="The served version that the bare name means; null if none is served.")
    ]


class RegistryDocument(BaseModel):
    """All models of the registry."""

    models: list[RegisteredModelDocument]


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
    router = APIRouter(prefix="/admin/v1/models", tags=["versions"])

    def alias_document(model: str, alias: str, moved: Alias) -> AliasDocument:
        served = versions.follows(model, alias)
        return AliasDocument(
            model=model, alias=alias, version=moved.version, previous=list(moved.previous), served=served
        )

    async def moved(request: Request, model: str, alias: str, move: Callable[[], Alias]) -> AliasDocument:
        before = await asyncio.to_thread(versions.alias, model, alias)
        after = await asyncio.to_thread(move)
        note_change(
            request,
            before=None if before is None else {"version": before.version},
            after={"version": after.version},
        )
        return alias_document(model, alias, after)

    @router.get("")
    async def list_models() -> RegistryDocument:
        """List the models of the registry, and which of their versions are served here."""
        found = await asyncio.to_thread(versions.overview)
        return RegistryDocument(models=[registered(model) for model in found])

    def registered(model: RegisteredModel) -> RegisteredModelDocument:
        return RegisteredModelDocument(
            name=model.name,
            versions=[
                VersionDocument(version=number, served=is_served)
                for number, is_served in model.versions.items()
            ],
            aliases=[alias_document(model.name, alias, one) for alias, one in sorted(model.aliases.items())],
            bare_version=model.bare_version,
        )

    @router.put("/{model}/aliases/{alias}", openapi_extra=_PROMOTION)
    async def promote(request: Request, model: str, alias: str) -> AliasDocument:
        """Point an alias at a version. If the alias is served here, the version is loaded and proved first.

        `served` in the answer says whether the alias is served here.
        """
        number = (await read_document(request, PromotionDocument)).version
        return await moved(request, model, alias, partial(versions.promote, model, alias, number))

    @router.post("/{model}/aliases/{alias}:rollback")
    async def roll_back(request: Request, model: str, alias: str) -> AliasDocument:
        """Point an alias at its earlier version; if it is served here, that is loaded and proved first."""
        return await moved(request, model, alias, partial(versions.rollback, model, alias))

    @router.post("/{model}/versions/{version}:load")
    async def load(request: Request, model: str, version: str) -> EngineDocument:
        """Serve a version under its number, beside the others."""
        before = versions.loaded(model)
        served = await asyncio.to_thread(versions.load, model, version_number(version))
        note_change(request, before={"loaded": before}, after={"loaded": versions.loaded(model)})
        return engine_document(served)

    @router.post("/{model}/versions/{version}:unload")
    async def unload(request: Request, model: str, version: str) -> UnloadedDocument:
        """Unload a version after its last picture is answered; 409 if the bare name means this version."""
        number = version_number(version)
        before = versions.loaded(model)
        await asyncio.to_thread(versions.unload, model, number)
        note_change(request, before={"loaded": before}, after={"loaded": versions.loaded(model)})
        return UnloadedDocument(name=model, version=number)

    return router
