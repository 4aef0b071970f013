"""``POST /v2/models/{model}/infer``: tensors in, tensors out."""

from __future__ import annotations

import asyncio
import time
from functools import partial

from starlette.requests import Request
from starlette.responses import Response

from service.core.errors import EmptyBodyError, ServiceError
from service.core.models.loaded_model import LoadedModel
from service.http_api.exchange import Exchange
from service.http_api.open_inference.message import (
    HEADER_LENGTH,
    InferMessage,
    header_length,
    parse_message,
    raw_message,
)
from service.http_api.open_inference.response import infer_response, wanted_output
from service.http_api.segment.body import read_message
from service.http_api.segment.client_connection import while_connected
from service.http_api.segment.intake import Intake
from service.http_api.segment.parameters import header_timeout_s
from service.http_api.segment.routes import SegmentTarget
from service.open_inference.inference import InferAnswer, Inference, InferRequest
from service.open_inference.outputs import output_kind
from service.open_inference.parameters import lane_of, timeout_s
from service.open_inference.statistics import InferenceStatistics
from service.telemetry import Metrics

_INLINE_JSON_BYTES = 64 * 1024
"""More JSON than this is read in a thread: 19 MiB of numbers take 0.37 s, as much base64 0.04 s."""


class InferEndpoint:
    """Answers infer requests.

    Args:
        inference: answers pictures.
        intake: admits requests.
        metrics: told how long each stage of each picture took.
        statistics: counts requests.
    """

    def __init__(
        self, inference: Inference, intake: Intake, *, metrics: Metrics, statistics: InferenceStatistics
    ) -> None:
        self._inference = inference
        self._intake = intake
        self._metrics = metrics
        self._statistics = statistics

    async def answer(self, request: Request, exchange: Exchange, target: SegmentTarget) -> Response:
        """Refuse by the head alone what can be; then receive the body, and stop when the client leaves.

        Raises:
            ServiceError: the request is refused, or failed.
            ClientDisconnect: the client left.
        """
        with self._intake.model(request, exchange, target) as model:
            try:
                return await self._answer(request, exchange, model)
            except ServiceError:
                self._statistics.failed(model.version, time.monotonic() - exchange.started_s)
                raise

    async def _answer(self, request: Request, exchange: Exchange, model: LoadedModel) -> Response:
        options = self._intake.options
        default_s = header_timeout_s(request, options.default_timeout_s)
        deadline_s = exchange.started_s + default_s
        json_length = header_length(request.headers.get(HEADER_LENGTH))
        model.refuse_early(deadline_s=deadline_s, source=exchange.source)
        async with self._intake.bodies.holding(request, deadline_s=deadline_s) as hold:
            body = await read_message(request, options.body, hold)
            exchange.received_s = time.monotonic() - exchange.started_s
            message = await _message(body, json_length)
            deadline_s = exchange.started_s + timeout_s(message.parameters, default_s)
            work = self._infer(model, message, exchange, deadline_s)
            answer = await while_connected(request.receive, work)
        self._take_note(answer, exchange, bytes_in=len(body))
        return infer_response(answer, message.id, [is_binary for _, is_binary in message.outputs])

    async def _infer(
        self, model: LoadedModel, message: InferMessage, exchange: Exchange, deadline_s: float
    ) -> InferAnswer:
        wanted = InferRequest(
            pictures=message.pictures,
            outputs=[wanted_output(output_kind(name), is_binary=binary) for name, binary in message.outputs],
            deadline_s=deadline_s,
            lane=lane_of(message.parameters),
            source=exchange.source,
        )
        keep = partial(self._intake.keep, exchange=exchange, deadline_s=deadline_s)
        return await self._inference.answer(model, wanted, keep)

    def _take_note(self, answer: InferAnswer, exchange: Exchange, *, bytes_in: int) -> None:
        duration_s = time.monotonic() - exchange.started_s
        self._statistics.succeeded(answer.version, answer.pictures, duration_s)
        for picture in answer.pictures:
            self._metrics.stages_done(picture.stages_s)
        bytes_out = sum(len(part) for tensor in answer.outputs for part in tensor.parts)
        exchange.notes.update(
            model=str(answer.version),
            pictures=len(answer.pictures),
            bytes_in=bytes_in,
            bytes_out=bytes_out,
        )


async def _message(body: bytes, json_length: int | None) -> InferMessage:
    if not body:
        raise EmptyBodyError("there is no body in the request")
    if json_length == 0:
        return raw_message(body)
    if (len(body) if json_length is None else json_length) <= _INLINE_JSON_BYTES:
        return parse_message(body, json_length)
    return await asyncio.to_thread(parse_message, body, json_length)
