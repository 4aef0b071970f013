"""``/v2/repository``: which versions there are; on the admin port also loading and unloading."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from fastapi import APIRouter, Request, Response

from model.artifacts.manifest import ModelReference
from model.errors import InvalidReferenceError
from service.core.errors import InvalidArgumentError
from service.core.models.live_versions import LiveVersions
from service.core.models.model_host import ModelHost
from service.http_api.admin.audit import note_change
from service.http_api.open_inference.documents import IndexEntryDocument, IndexQuery
from service.http_api.open_inference.metadata import PLAIN_ERROR_RESPONSE
from service.http_api.segment.body import read_document

_INDEX_BODY = {"requestBody": {"content": {"application/json": {"schema": IndexQuery.model_json_schema()}}}}


def repository_index_router(host: ModelHost) -> APIRouter:
    """Return the route that lists versions.

    Args:
        host: what is served or being loaded.
    """
    router = APIRouter(
        prefix="/v2/repository", tags=["open inference protocol"], responses=PLAIN_ERROR_RESPONSE
    )

    @router.post("/index", openapi_extra=_INDEX_BODY)
    async def repository_index(request: Request) -> list[IndexEntryDocument]:
        """List the served versions, and those that are being loaded unless `ready` is true."""
        query = await read_document(request, IndexQuery, may_be_empty=True)
        served = [_entry(one.version.name, one.version.number, "READY") for one in host.models]
        loading = () if query.ready else host.missing
        return [*served, *(_entry(version.name, version.number, "LOADING") for version in loading)]

    return router


def repository_admin_router(versions: LiveVersions) -> APIRouter:
    """Return the routes that change what is served; they belong to the admin port.

    Args:
        versions: carries the changes out, in threads: each takes seconds.
    """
    router = APIRouter(
        prefix="/v2/repository/models/{model}",
        tags=["open inference protocol"],
        responses=PLAIN_ERROR_RESPONSE,
    )

    @router.post("/load", status_code=200)
    async def repository_load(request: Request, model: str) -> Response:
        """Serve a version under its number: NAME@VERSION, or NAME for the one that the registry means."""
        return await _changed(request, versions, versions.load, model)

    @router.post("/unload", status_code=200)
    async def repository_unload(request: Request, model: str) -> Response:
        """Serve NAME@VERSION no longer, once its last picture is answered; 409 if the bare name means it."""
        return await _changed(request, versions, versions.unload, model)

    return router


async def _changed(
    request: Request, versions: LiveVersions, change: Callable[[str, int | None], object], model: str
) -> Response:
    name, number = _named(model)
    before = versions.loaded(name)
    await asyncio.to_thread(change, name, number)
    note_change(request, before={"loaded": before}, after={"loaded": versions.loaded(name)})
    return Response()


def _named(model: str) -> tuple[str, int | None]:
    try:
        reference = ModelReference.parse(model)
    except InvalidReferenceError as error:
        raise InvalidArgumentError(str(error)) from None
    if reference.alias is not None:
        raise InvalidArgumentError("a model is NAME or NAME@VERSION here")
    return reference.name, reference.number


def _entry(name: str, number: int, state: str) -> IndexEntryDocument:
    return IndexEntryDocument(name=name, version=str(number), state=state)
