"""The methods as gRPC wants to have them registered: bytes in, bytes out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError, Message

from service.grpc_api.edge import SERVICE_NAME
from service.grpc_api.servicer import Servicer
from service.wire import segmentation_pb2 as wire


def method_handlers(servicer: Servicer) -> grpc.GenericRpcHandler:
    """Return what a server calls for each method of the service.

    The generated registration is not used: with it, bytes that are no message never reach the servicer, and
    write a traceback into the log each time. Here they arrive as None. All methods read their messages
    themselves, those with a single one too: so a call can be refused, and is known to the servicer, before
    its picture is received.
    """
    return grpc.method_handlers_generic_handler(
        SERVICE_NAME,
        {
            "ListModels": _unary(servicer.ListModels, wire.ListModelsRequest),
            "Segment": _unary(servicer.Segment, wire.SegmentRequest),
            "SegmentStream": grpc.stream_stream_rpc_method_handler(
                servicer.SegmentStream,
                request_deserializer=_reader(wire.StreamRequest),
                response_serializer=_written,
            ),
        },
    )


def _unary(method: Callable[..., Any], request: type[Message]) -> Any:
    return grpc.stream_unary_rpc_method_handler(
        method, request_deserializer=_reader(request), response_serializer=_written
    )


def _reader(kind: type[Message]) -> Callable[[bytes], Message | None]:
    def read(data: bytes) -> Message | None:
        try:
            return kind.FromString(data)
        except DecodeError:
            return None

    return read


def _written(message: Message) -> bytes:
    return message.SerializeToString()
