"""Registration of the methods of both services with gRPC: bytes in, bytes out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError, Message

from service.grpc_api.edge import SERVICE_NAME
from service.grpc_api.open_inference import OPEN_INFERENCE_NAME, OpenInferenceServicer
from service.grpc_api.open_inference_messages import infer_request_of
from service.grpc_api.servicer import Servicer
from service.wire import open_inference_pb2 as oip
from service.wire import segmentation_pb2 as wire


def method_handlers(servicer: Servicer) -> grpc.GenericRpcHandler:
    """Return the handlers of the service's methods.

    They replace the generated registration, with which bytes that are no message never reach the servicer and
    log a traceback each time; here they arrive as None. Every method reads its messages itself, also a single
    one, so that a call can be refused before its picture is received.
    """
    return grpc.method_handlers_generic_handler(
        SERVICE_NAME,
        {
            "ListModels": _unary(servicer.ListModels, wire.ListModelsRequest),
            "Segment": _unary(servicer.Segment, wire.SegmentRequest),
            "SegmentStream": grpc.stream_stream_rpc_method_handler(
                servicer.SegmentStream,
                request_deserializer=_deserializer(wire.StreamRequest),
                response_serializer=_serialize,
            ),
        },
    )


def open_inference_handlers(servicer: OpenInferenceServicer) -> grpc.GenericRpcHandler:
    """Return the handlers of the Open Inference Protocol's methods."""
    return grpc.method_handlers_generic_handler(
        OPEN_INFERENCE_NAME,
        {
            "ServerLive": _unary(servicer.ServerLive, oip.ServerLiveRequest),
            "ServerReady": _unary(servicer.ServerReady, oip.ServerReadyRequest),
            "ServerMetadata": _unary(servicer.ServerMetadata, oip.ServerMetadataRequest),
            "ModelReady": _unary(servicer.ModelReady, oip.ModelReadyRequest),
            "ModelMetadata": _unary(servicer.ModelMetadata, oip.ModelMetadataRequest),
            "RepositoryIndex": _unary(servicer.RepositoryIndex, oip.RepositoryIndexRequest),
            "ModelInfer": grpc.stream_unary_rpc_method_handler(
                servicer.ModelInfer,
                request_deserializer=infer_request_of,
                response_serializer=_serialize,
            ),
            "ModelStreamInfer": grpc.stream_stream_rpc_method_handler(
                servicer.ModelStreamInfer,
                request_deserializer=infer_request_of,
                response_serializer=_serialize,
            ),
        },
    )


def _unary(method: Callable[..., Any], request: type[Message]) -> Any:
    return grpc.stream_unary_rpc_method_handler(
        method, request_deserializer=_deserializer(request), response_serializer=_serialize
    )


def _deserializer(kind: type[Message]) -> Callable[[bytes], Message | None]:
    def deserialize(data: bytes) -> Message | None:
        try:
            return kind.FromString(data)
        except DecodeError:
            return None

    return deserialize


def _serialize(message: Message) -> bytes:
    return message.SerializeToString()
