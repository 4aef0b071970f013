"""What the status of a failed call means to a client."""

from __future__ import annotations

import grpc
import pytest

from service.client.errors import ClientError, ProtocolError, RefusedError, UnreachableError
from service.client.messages import error_of, event_of, stream_error_of
from service.wire import segmentation_pb2 as wire


def failed(code: grpc.StatusCode, text: str) -> grpc.RpcError:
    """Return the error of a call that gRPC itself or a proxy ended: without details of the service."""
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), text)


@pytest.mark.parametrize(
    ("code", "text", "kind"),
    [
        (grpc.StatusCode.UNAVAILABLE, "failed to connect to all addresses", UnreachableError),
        (grpc.StatusCode.UNAVAILABLE, "Received http2 header with status: 502", UnreachableError),
        (grpc.StatusCode.CANCELLED, "Received RST_STREAM with error code 8", UnreachableError),
        (grpc.StatusCode.INTERNAL, "Received RST_STREAM with error code 2", UnreachableError),
        (grpc.StatusCode.UNKNOWN, "Stream removed", UnreachableError),
        (grpc.StatusCode.PERMISSION_DENIED, "Received RST_STREAM with error code 12", UnreachableError),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "Concurrent RPC limit exceeded!", UnreachableError),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "Received message larger than max (9 vs. 4)", RefusedError),
        (grpc.StatusCode.UNKNOWN, "Received http2 header with status: 413", RefusedError),
        (grpc.StatusCode.PERMISSION_DENIED, "Received http2 header with status: 403", RefusedError),
        (grpc.StatusCode.UNIMPLEMENTED, "Method not found!", RefusedError),
        (grpc.StatusCode.INTERNAL, "Exception deserializing response!", ProtocolError),
    ],
)
def test_an_error_without_details_is_one_of_the_connection_or_a_refusal(
    code: grpc.StatusCode, text: str, kind: type[ClientError]
) -> None:
    for read in (error_of, stream_error_of):
        error = read(failed(code, text))
        assert type(error) is kind
        assert not isinstance(error, RefusedError) or error.retry_after_s is None


def test_a_deadline_is_the_callers_own_but_on_a_stream_that_of_a_proxy() -> None:
    error = failed(grpc.StatusCode.DEADLINE_EXCEEDED, "stream timeout")
    refused = error_of(error)
    assert isinstance(refused, RefusedError)
    assert refused.code == "deadline_exceeded"
    assert isinstance(stream_error_of(error), UnreachableError)


@pytest.mark.parametrize(
    "message",
    [
        wire.StreamResponse(),
        wire.StreamResponse(notice=wire.StreamNotice(kind=0)),
        wire.StreamResponse(dropped=wire.FramesDropped(first_seq=1, last_seq=1, count=1)),
        wire.StreamResponse(result=wire.FrameResult(seq=1)),
    ],
)
def test_a_message_of_a_newer_service_is_an_error_of_its_own(message: wire.StreamResponse) -> None:
    with pytest.raises(ProtocolError, match="does not know"):
        event_of(message)
