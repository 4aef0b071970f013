"""Writes to a gRPC stream without hiding why the stream has ended.

A stream may end while a message is on its way. ``write`` of grpc.aio 1.85 then replaces the status of the
stream by "Internal error from Core" (github.com/grpc/grpc/issues/36066), so that a refusal looks like a
defect. The names used here are private to grpcio; ``pyproject.toml`` has an upper bound for its version.
"""

from __future__ import annotations

import asyncio

import grpc
from grpc._cython import cygrpc  # type: ignore[attr-defined]

from service.wire import segmentation_pb2 as wire

StreamCall = grpc.aio.StreamStreamCall[wire.StreamRequest, wire.StreamResponse]

_NOT_STARTED = "grpc_call_start_batch"


class WriteError(Exception):
    """The stream is over; the next read tells why."""


async def write(call: StreamCall, message: wire.StreamRequest) -> None:
    """Send a message; return when the connection has room for the next one.

    Raises:
        WriteError: the stream is over.
    """
    try:
        await call.wait_for_connection()
        await call._cython_call.send_serialized_message(message.SerializeToString())  # type: ignore[attr-defined]  # noqa: SLF001
    except (grpc.RpcError, asyncio.InvalidStateError) as error:
        raise WriteError(str(error)) from error
    except cygrpc.InternalError as error:
        if _NOT_STARTED in str(error):  # then no status would ever come
            call._cython_call.set_internal_error(str(error))  # type: ignore[attr-defined]  # noqa: SLF001
        raise WriteError(str(error)) from error


async def end_writing(call: StreamCall) -> None:
    """Tell the peer that no more messages come.

    Raises:
        WriteError: the stream is over.
    """
    try:
        await call.done_writing()
    except (grpc.RpcError, asyncio.InvalidStateError, cygrpc.InternalError) as error:
        raise WriteError(str(error)) from error
