"""The routes that segment: a picture in, masks out."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from starlette.requests import Request
from starlette.responses import Response

from model.evaluation.protocols import Protocol
from model.labels import ClassPalette
from service.core.models.loaded_model import LoadedModel
from service.core.models.model_host import ModelHost
from service.core.pictures.segmenter import Segmenter
from service.core.scheduling.memory_budget import MemoryBudget
from service.http_api.access import AccessPolicy
from service.http_api.exchange import Exchange
from service.http_api.problems import MethodNotAllowedError
from service.http_api.segment import hugging_face
from service.http_api.segment.body import BodyLimits, read_picture
from service.http_api.segment.body_budget import (
    DEFAULT_MAX_ANSWER_BYTES_IN_FLIGHT,
    DEFAULT_MAX_BODY_BYTES_IN_FLIGHT,
    BodyBudget,
)
from service.http_api.segment.client_connection import PIECE_BYTES, PiecewiseResponse, while_connected
from service.http_api.segment.parameters import SegmentQuery, rendering_request, segment_query, timeout_s
from service.http_api.segment.rendering import Plan, Rendering, Task, plan
from service.http_api.segment.routes import SegmentTarget


@dataclass(frozen=True)
class SegmentOptions:
    """Limits of segmentation requests.

    Args:
        body: limits of one body.
        max_body_bytes_in_flight: bytes of all bodies together.
        max_answer_bytes_in_flight: bytes of all unsent answers larger than 256 KiB.
        default_timeout_s: time-out of a request that names none, in seconds.
    """

    body: BodyLimits = field(default_factory=BodyLimits)
    max_body_bytes_in_flight: int = DEFAULT_MAX_BODY_BYTES_IN_FLIGHT
    max_answer_bytes_in_flight: int = DEFAULT_MAX_ANSWER_BYTES_IN_FLIGHT
    default_timeout_s: float = 30.0


class RequestBudgets:
    """Memory of bodies and answers that all protocols of the HTTP port share.

    Args:
        options: how much there is.

    Attributes:
        bodies: of requests that arrive or wait.
        unsent: of answers that clients have not taken yet.
    """

    def __init__(self, options: SegmentOptions) -> None:
        self.bodies = BodyBudget(options.max_body_bytes_in_flight, options.body)
        self.unsent = MemoryBudget(options.max_answer_bytes_in_flight)

    async def keep(self, num_bytes: int, exchange: Exchange, *, deadline_s: float) -> None:
        """Wait for the room of an answer, and hold it until the exchange is over.

        Raises:
            BusyError: there was none before the deadline.
        """
        place = await self.unsent.acquire(num_bytes, timeout_s=deadline_s - time.monotonic())
        exchange.held.callback(self.unsent.release, place)


class SegmentEndpoint:
    """Answers the requests of the service's own routes.

    Args:
        segmenter: segments pictures.
        models: the served models.
        budgets: what bodies and answers may take.
        access: gives the identity of a client.
        options: limits of a request.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        models: ModelHost,
        budgets: RequestBudgets,
        *,
        access: AccessPolicy,
        options: SegmentOptions,
    ) -> None:
        self._segmenter = segmenter
        self._models = models
        self._budgets = budgets
        self._access = access
        self._options = options

    async def answer(self, request: Request, exchange: Exchange, target: SegmentTarget) -> Response:
        """Check the head, then receive the body and answer; stop when the client leaves.

        Raises:
            ServiceError: the request is refused, or failed.
            ClientDisconnect: the client left.
        """
        if request.method != "POST":
            raise MethodNotAllowedError(request.method, "POST")
        exchange.source = self._access.source(request.scope)
        with self._models.hold(target.model, target.version_number) as model:
            exchange.served = model.version.name, model.version.number
            query = segment_query(request)
            deadline_s = exchange.started_s + timeout_s(request, query, self._options.default_timeout_s)
            model.refuse_early(deadline_s=deadline_s, source=exchange.source)
            task_of = _plan(request, query, target, model.manifest.palette)
            async with self._budgets.bodies.holding(request, deadline_s=deadline_s) as hold:
                data = await read_picture(request, self._options.body, hold)
                exchange.received_s = time.monotonic() - exchange.started_s
                task = task_of(data)
                work = self._rendering(model, task, exchange, deadline_s, query.tiles)
                rendering = await while_connected(request.receive, work)
        exchange.stages_s = rendering.stages_s
        exchange.notes.update(rendering.notes, bytes_in=len(data), bytes_out=len(rendering.body))
        return PiecewiseResponse(rendering.body, headers=rendering.headers, media_type=task.media_type)

    async def _rendering(
        self,
        model: LoadedModel,
        task: Task,
        exchange: Exchange,
        deadline_s: float,
        tiles: Protocol | None,
    ) -> Rendering:
        async with self._segmenter.segment(
            model,
            task.picture,
            lambda segmentation: task.render(segmentation, exchange.received_s),
            deadline_s=deadline_s,
            render_bytes=task.render_bytes,
            confidence=task.confidence,
            tiles=tiles,
            source=exchange.source,
        ) as rendering:
            if len(rendering.body) > PIECE_BYTES:  # reserve its memory before that of the picture is released
                await self._budgets.keep(len(rendering.body), exchange, deadline_s=deadline_s)
            return rendering


def _plan(request: Request, query: SegmentQuery, target: SegmentTarget, palette: ClassPalette) -> Plan:
    content_type = request.headers.get("content-type", "")
    if target.is_hugging_face:
        return hugging_face.plan(content_type, query)
    return plan(content_type, rendering_request(request, query, palette))
