"""``POST /v1/segment`` and its two longer forms: a picture in, a mask out."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Query, Request, Response
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from service.core.errors import ServiceError
from service.core.models.model_host import LoadedModel, ModelHost
from service.core.pictures.segmenter import Segmenter
from service.core.scheduling.memory_budget import MemoryBudget
from service.http_api.documents import SegmentationDocument
from service.http_api.exchange import Exchange
from service.http_api.problems import disconnected_response, service_error_response, unexpected_error_response
from service.http_api.segment.body import BodyLimits, read_picture
from service.http_api.segment.body_budget import (
    DEFAULT_MAX_ANSWER_BYTES_IN_FLIGHT,
    DEFAULT_MAX_BODY_BYTES_IN_FLIGHT,
    BodyBudget,
)
from service.http_api.segment.form import FILE_FIELD
from service.http_api.segment.negotiation import JPEG, NPY, PNG, RAW, negotiate
from service.http_api.segment.overload import ROUTES
from service.http_api.segment.parameters import (
    SegmentQuery,
    class_ids,
    refuse_repeats,
    segment_query,
    timeout_s,
    version_number,
    wanted_model,
)
from service.http_api.segment.rendering import Rendering, RenderingRequest, encode_bytes, render

ResultT = TypeVar("ResultT")

PIECE_BYTES = 256 * 1024
"""Of an answer, that are sent at once; larger ones need room until their last piece is sent."""


@dataclass(frozen=True)
class SegmentOptions:
    """How segmentation requests are received.

    Args:
        body: what one may send.
        max_body_bytes_in_flight: what all together may send.
        max_answer_bytes_in_flight: of all answers larger than 256 KiB that clients have not taken yet.
        default_timeout_s: how long a client waits that does not say so.
    """

    body: BodyLimits = field(default_factory=BodyLimits)
    max_body_bytes_in_flight: int = DEFAULT_MAX_BODY_BYTES_IN_FLIGHT
    max_answer_bytes_in_flight: int = DEFAULT_MAX_ANSWER_BYTES_IN_FLIGHT
    default_timeout_s: float = 30.0


class SegmentEndpoint:
    """Receives a picture, has it segmented and encodes the answer; one for all routes.

    Args:
        segmenter: answers pictures.
        host: knows the served models.
        options: limits of a request.
    """

    def __init__(self, segmenter: Segmenter, host: ModelHost, options: SegmentOptions) -> None:
        self._segmenter = segmenter
        self._host = host
        self._options = options
        self._room = BodyBudget(options.max_body_bytes_in_flight, options.body)
        self._unsent = MemoryBudget(options.max_answer_bytes_in_flight)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request whose route was found: ``path_params`` says which model it wants, if it does."""
        request = Request(scope, receive)
        try:
            query = segment_query(request)
            response = await self._answer(request, query, *wanted_model(request.path_params))
        except ServiceError as error:
            response = await service_error_response(request, error)
        except ClientDisconnect as error:
            response = await disconnected_response(request, error)
        except Exception as error:
            await (await unexpected_error_response(request, error))(scope, receive, send)
            raise
        await response(scope, receive, send)

    async def segment(self, request: Request, query: Annotated[SegmentQuery, Query()]) -> Response:
        """Segment a picture with the default model."""
        return await self._answer(request, query)

    async def segment_with_model(
        self, request: Request, query: Annotated[SegmentQuery, Query()], model: str
    ) -> Response:
        """Segment a picture with a model by name."""
        return await self._answer(request, query, model)

    async def segment_with_version(
        self, request: Request, query: Annotated[SegmentQuery, Query()], model: str, version: str
    ) -> Response:
        """Segment a picture with one version of a model."""
        return await self._answer(request, query, model, version_number(version))

    async def _answer(
        self, request: Request, query: SegmentQuery, model: str | None = None, version: int | None = None
    ) -> Response:
        with self._host.hold(model, version) as served:
            return await self._answer_with(served, request, query)

    async def _answer_with(self, served: LoadedModel, request: Request, query: SegmentQuery) -> Response:
        """Refuse by the head alone what can be; then receive the body, and stop when the client leaves."""
        refuse_repeats(request)
        exchange = Exchange.of(request.scope)
        exchange.served = served.version.name, served.version.number
        deadline_s = exchange.started_s + timeout_s(request, query, default_s=self._options.default_timeout_s)
        wanted = RenderingRequest(
            media_type=negotiate(request.headers.getlist("accept"), query.output),
            output=query.output,
            alpha=query.alpha,
            mask=query.mask,
            keep=class_ids(query.classes, served.manifest.palette),
        )
        async with self._room.holding(request, deadline_s=deadline_s) as hold:
            data = await read_picture(request, self._options.body, hold)
            exchange.received = True
            receive_s = time.monotonic() - exchange.started_s
            work = self._segment(data, exchange, wanted, receive_s=receive_s, deadline_s=deadline_s)
            rendering = await while_connected(request.receive, work)
        exchange.stages_s = rendering.stages_s
        exchange.notes.update(rendering.notes, bytes_in=len(data), bytes_out=len(rendering.body))
        return _InPieces(rendering.body, headers=rendering.headers, media_type=wanted.media_type)

    async def _segment(
        self,
        data: bytes,
        exchange: Exchange,
        wanted: RenderingRequest,
        *,
        receive_s: float,
        deadline_s: float,
    ) -> Rendering:
        assert exchange.served
        model, version = exchange.served
        async with self._segmenter.segment(
            data,
            partial(render, wanted=wanted, receive_s=receive_s),
            deadline_s=deadline_s,
            model=model,
            version=version,
            encode_bytes=encode_bytes(wanted),
            source=exchange.source,
        ) as rendering:
            await self._hold(rendering.body, exchange, deadline_s - time.monotonic())
            return rendering

    async def _hold(self, body: bytes, exchange: Exchange, timeout_s: float) -> None:
        """Wait for room for a large answer, while the picture's own room is still taken."""
        if len(body) > PIECE_BYTES:
            place = await self._unsent.acquire(len(body), timeout_s=timeout_s)
            exchange.held.callback(self._unsent.release, place)


class _InPieces(Response):
    """An answer that is handed on as the client takes it; a small one at once."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        if len(self.body) <= PIECE_BYTES:
            await super().__call__(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        for start in range(0, len(self.body), PIECE_BYTES):
            # A copy: a view would keep all of the answer until its last piece is sent.
            piece = bytes(self.body[start : start + PIECE_BYTES])
            more = start + PIECE_BYTES < len(self.body)
            await send({"type": "http.response.body", "body": piece, "more_body": more})


def segment_router(endpoint: SegmentEndpoint) -> APIRouter:
    """Return the three routes of an endpoint: what is documented, and what answers other methods.

    The turnstile hands what matches them to the endpoint itself.
    """
    router = APIRouter(tags=["segmentation"])
    handlers: tuple[Callable[..., Any], ...] = (
        endpoint.segment,
        endpoint.segment_with_model,
        endpoint.segment_with_version,
    )
    for path, handler in zip(ROUTES, handlers, strict=True):
        router.add_api_route(
            path,
            handler,
            methods=["POST"],
            response_class=Response,
            responses={200: _ANSWER},
            openapi_extra={"requestBody": _BODY},
        )
    return router


_PICTURE = {"schema": {"type": "string", "format": "binary"}}
_FORM = {
    "schema": {"type": "object", "required": [FILE_FIELD], "properties": {FILE_FIELD: _PICTURE["schema"]}}
}
_BODY = {
    "required": True,
    "content": {
        "image/jpeg": _PICTURE,
        "image/png": _PICTURE,
        "image/webp": _PICTURE,
        "multipart/form-data": _FORM,
    },
}
_ANSWER: dict[str, Any] = {
    "model": SegmentationDocument,
    "description": "The mask in the form that Accept asks for, PNG if it does not say. "
    "Headers: X-Model-Name, X-Model-Version, Server-Timing; X-Inference-Size (height x width) when the "
    "picture was reduced before the network; X-Image-Width and X-Image-Height for arrays.",
    "content": {
        PNG: _PICTURE,
        JPEG: _PICTURE,
        NPY: _PICTURE,
        RAW: _PICTURE,
    },
}


async def while_connected(receive: Receive, work: Coroutine[Any, Any, ResultT]) -> ResultT:
    """Await work, and cancel it when the client leaves.

    Args:
        receive: of a request whose body has been read to its end.
        work: what the client waits for.

    Raises:
        ClientDisconnect: the client left first.
    """
    task = asyncio.current_task()
    assert task is not None
    watch, cancelling = _Watch(task), task.cancelling()
    leaving = asyncio.create_task(_disconnected(receive))
    leaving.add_done_callback(watch.cancel)
    try:
        # In this task: one of its own would begin, and tell of its end, a turn of the event loop later.
        return await work
    except asyncio.CancelledError:
        if watch.has_cancelled and task.cancelling() == cancelling + 1:  # nobody else did
            raise ClientDisconnect from None
        raise
    finally:
        watch.is_over = True
        leaving.cancel()
        if watch.has_cancelled:
            task.uncancel()
        # A failed task holds its error, which holds this frame, which would hold the task and its picture.
        del task, watch, leaving


@dataclass(eq=False)
class _Watch:
    """Cancels a task when another one ends first."""

    task: asyncio.Task[Any]
    is_over: bool = False
    has_cancelled: bool = False

    def cancel(self, watching: asyncio.Task[None]) -> None:
        if not self.is_over:
            self.has_cancelled = self.task.cancel()
        if not watching.cancelled():
            watching.exception()  # or asyncio would report that nobody looked at it


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
