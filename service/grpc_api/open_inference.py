"""``inference.GRPCInferenceService``: the Open Inference Protocol v2 over gRPC."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from service.core.errors import ServiceError, message_for_clients
from service.core.models.loaded_model import LoadedModel
from service.core.models.model_host import ModelHost, version_number
from service.grpc_api.calls import Calls
from service.grpc_api.edge import Call, Context
from service.grpc_api.open_inference_messages import (
    infer_response,
    metadata_message,
    outputs_of,
    parameters_of,
    pictures_of,
    received_bytes,
)
from service.open_inference.inference import InferAnswer, Inference, InferRequest
from service.open_inference.metadata import EXTENSIONS, SERVER_NAME, model_metadata, server_version
from service.open_inference.parameters import lane_of, timeout_s
from service.open_inference.statistics import InferenceStatistics
from service.spans import stage_done
from service.telemetry import Metrics
from service.wire import open_inference_pb2 as wire

OPEN_INFERENCE_NAME = wire.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name

_INLINE_VALUES = 1 << 16
"""More values of ``contents`` than these are converted in a thread."""


class OpenInferenceServicer:
    """Answers the calls of the protocol.

    Every method reads its messages itself, see ``Calls``.

    Args:
        calls: receives calls; shared with the other services of the port.
        inference: answers requests.
        host: the served models.
        metrics: told how long each stage of each picture took.
        statistics: counts requests.
        is_ready: whether clients should send work here.
    """

    def __init__(
        self,
        calls: Calls,
        inference: Inference,
        host: ModelHost,
        *,
        metrics: Metrics,
        statistics: InferenceStatistics,
        is_ready: Callable[[], bool],
    ) -> None:
        self._calls = calls
        self._inference = inference
        self._host = host
        self._metrics = metrics
        self._statistics = statistics
        self._is_ready = is_ready

    async def ServerLive(self, _: object, context: Context) -> wire.ServerLiveResponse:
        """Tell that the server answers."""
        async with self._calls.edge.call(context, "ServerLive", OPEN_INFERENCE_NAME):
            await self._calls.first_message(context, wire.ServerLiveRequest)
            return wire.ServerLiveResponse(live=True)

    async def ServerReady(self, _: object, context: Context) -> wire.ServerReadyResponse:
        """Tell whether to send requests here."""
        async with self._calls.edge.call(context, "ServerReady", OPEN_INFERENCE_NAME):
            await self._calls.first_message(context, wire.ServerReadyRequest)
            return wire.ServerReadyResponse(ready=self._is_ready())

    async def ServerMetadata(self, _: object, context: Context) -> wire.ServerMetadataResponse:
        """Name the server and its extensions."""
        async with self._calls.edge.call(context, "ServerMetadata", OPEN_INFERENCE_NAME):
            await self._calls.first_message(context, wire.ServerMetadataRequest)
            return wire.ServerMetadataResponse(
                name=SERVER_NAME, version=server_version(), extensions=EXTENSIONS
            )

    async def ModelReady(self, _: object, context: Context) -> wire.ModelReadyResponse:
        """Tell whether a model is served; NOT_FOUND or UNAVAILABLE if not."""
        async with self._calls.edge.call(context, "ModelReady", OPEN_INFERENCE_NAME):
            request = await self._calls.first_message(context, wire.ModelReadyRequest)
            self._host.find(*_named(request.name, request.version))
            return wire.ModelReadyResponse(ready=True)

    async def ModelMetadata(self, _: object, context: Context) -> wire.ModelMetadataResponse:
        """Describe the tensors of a model."""
        async with self._calls.edge.call(context, "ModelMetadata", OPEN_INFERENCE_NAME):
            request = await self._calls.first_message(context, wire.ModelMetadataRequest)
            model = self._host.find(*_named(request.name, request.version))
            return metadata_message(model_metadata(self._host, model))

    async def RepositoryIndex(self, _: object, context: Context) -> wire.RepositoryIndexResponse:
        """List the served versions, and those that are being loaded."""
        async with self._calls.edge.call(context, "RepositoryIndex", OPEN_INFERENCE_NAME):
            request = await self._calls.first_message(context, wire.RepositoryIndexRequest)
            entry = wire.RepositoryIndexResponse.ModelIndex
            served = [(model.version, "READY") for model in self._host.models]
            loading = [] if request.ready else [(version, "LOADING") for version in self._host.missing]
            return wire.RepositoryIndexResponse(
                models=[
                    entry(name=version.name, version=str(version.number), state=state)
                    for version, state in (*served, *loading)
                ]
            )

    async def ModelInfer(self, _: object, context: Context) -> wire.ModelInferResponse:
        """Answer one request."""
        async with self._calls.edge.call(context, "ModelInfer", OPEN_INFERENCE_NAME) as call:
            with self._metrics.in_flight():
                request = await self._calls.first_message(context, wire.ModelInferRequest)
                stage_done("receive", call.started_s, time.monotonic())
                return await self._answer(request, call, context)

    async def ModelStreamInfer(self, _: object, context: Context) -> None:
        """Answer requests one after the other until the client has ended them or the service stops."""
        async with self._calls.edge.call(context, "ModelStreamInfer", OPEN_INFERENCE_NAME) as call:
            kind = wire.ModelInferRequest
            request: wire.ModelInferRequest | None = await self._calls.first_of_stream(context, kind)
            while request is not None:
                await context.write(await self._stream_answer(request, call, context))
                request = await self._calls.next_message(context, kind)

    async def _stream_answer(
        self, request: wire.ModelInferRequest, call: Call, context: Context
    ) -> wire.ModelStreamInferResponse:
        try:
            return wire.ModelStreamInferResponse(infer_response=await self._answer(request, call, context))
        except ServiceError as error:
            return wire.ModelStreamInferResponse(
                error_message=message_for_clients(error),
                infer_response=wire.ModelInferResponse(id=request.id),
            )

    async def _answer(
        self, request: wire.ModelInferRequest, call: Call, context: Context
    ) -> wire.ModelInferResponse:
        began_s = time.monotonic()
        # No waiting for memory: the request is in memory already.
        budget = self._calls.image_budget
        memory = await budget.acquire(received_bytes(request), timeout_s=0.0)
        try:
            with self._host.hold(*_named(request.model_name, request.model_version)) as model:
                call.served = model.version.name, model.version.number
                answer = await self._counted(model, request, call, context, began_s)
        finally:
            budget.release(memory)
        bytes_out = sum(len(part) for tensor in answer.outputs for part in tensor.parts)
        call.log_fields.update(pictures=len(answer.pictures), bytes_out=bytes_out)
        return infer_response(answer, request.id)

    async def _counted(
        self,
        model: LoadedModel,
        request: wire.ModelInferRequest,
        call: Call,
        context: Context,
        began_s: float,
    ) -> InferAnswer:
        try:
            answer = await self._inference.answer(model, await self._wanted(request, call, context))
        except ServiceError:
            self._statistics.failed(model.version, time.monotonic() - began_s)
            raise
        self._statistics.succeeded(model.version, answer.pictures, time.monotonic() - began_s)
        for picture in answer.pictures:
            self._metrics.stages_done(picture.stages_s)
        return answer

    async def _wanted(self, request: wire.ModelInferRequest, call: Call, context: Context) -> InferRequest:
        parameters = parameters_of(request.parameters)
        limit_s = timeout_s(parameters, self._calls.timeout_s(context))
        left_s = self._calls.left_s(context)
        if request.inputs and len(request.inputs[0].contents.uint_contents) > _INLINE_VALUES:
            pictures = await asyncio.to_thread(pictures_of, request)
        else:
            pictures = pictures_of(request)
        return InferRequest(
            pictures=pictures,
            outputs=outputs_of(request),
            deadline_s=time.monotonic() + (limit_s if left_s is None else min(limit_s, left_s)),
            lane=lane_of(parameters),
            source=call.source,
        )


def _named(name: str, version: str) -> tuple[str | None, int | None]:
    return name or None, version_number(version) if version else None
