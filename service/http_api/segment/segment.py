"""The routes that segment: a picture in, masks out."""

from __future__ import annotations

import time

from starlette.requests import Request
from starlette.responses import Response

from model.evaluation.protocols import Protocol
from model.labels import ClassPalette
from service.core.models.loaded_model import LoadedModel
from service.core.pictures.segmenter import Segmenter
from service.http_api.exchange import Exchange
from service.http_api.segment import hugging_face
from service.http_api.segment.body import read_picture
from service.http_api.segment.client_connection import PIECE_BYTES, PiecewiseResponse, while_connected
from service.http_api.segment.intake import Intake
from service.http_api.segment.parameters import SegmentQuery, rendering_request, segment_query, timeout_s
from service.http_api.segment.rendering import Plan, Rendering, Task, plan
from service.http_api.segment.routes import SegmentTarget


class SegmentEndpoint:
    """Answers the requests of the service's own routes.

    Args:
        segmenter: segments pictures.
        intake: admits requests.
    """

    def __init__(self, segmenter: Segmenter, intake: Intake) -> None:
        self._segmenter = segmenter
        self._intake = intake

    async def answer(self, request: Request, exchange: Exchange, target: SegmentTarget) -> Response:
        """Check the head, then receive the body and answer; stop when the client leaves.

        Raises:
            ServiceError: the request is refused, or failed.
            ClientDisconnect: the client left.
        """
        options = self._intake.options
        with self._intake.model(request, exchange, target) as model:
            query = segment_query(request)
            deadline_s = exchange.started_s + timeout_s(request, query, options.default_timeout_s)
            model.refuse_early(deadline_s=deadline_s, source=exchange.source)
            task_of = _plan(request, query, target, model.manifest.palette)
            async with self._intake.bodies.holding(request, deadline_s=deadline_s) as hold:
                data = await read_picture(request, options.body, hold)
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
                await self._intake.keep(len(rendering.body), exchange, deadline_s=deadline_s)
            return rendering


def _plan(request: Request, query: SegmentQuery, target: SegmentTarget, palette: ClassPalette) -> Plan:
    content_type = request.headers.get("content-type", "")
    if target.is_hugging_face:
        return hugging_face.plan(content_type, query)
    return plan(content_type, rendering_request(request, query, palette))
