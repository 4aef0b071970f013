"""The calls of the gRPC interface, and how their messages become the types of ``answers``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc.error_details_pb2 import ErrorInfo, RequestInfo, RetryInfo
from google.rpc.status_pb2 import Status

from service.client.answers import (
    ClassInfo,
    Detail,
    Dropped,
    DropReason,
    Failed,
    Frame,
    FramePolicy,
    GoingAway,
    Mask,
    MaskForm,
    Model,
    ModelChanged,
    Opened,
    Result,
    Segmentation,
    StreamEvent,
)
from service.client.errors import ClientError, ProtocolError, RefusedError, UnreachableError
from service.wire import segmentation_pb2 as wire

_FORMS: Mapping[MaskForm, wire.MaskEncoding.ValueType] = {
    "png": wire.PNG,
    "raw": wire.RAW,
    "coco_rle": wire.COCO_RLE,
    "overlay": wire.OVERLAY_JPEG,
}
_FORM_OF: Mapping[int, MaskForm] = {encoding: form for form, encoding in _FORMS.items()}
_DETAILS: Mapping[Detail, wire.Detail.ValueType] = {
    "reduced": wire.DETAIL_UNSPECIFIED,
    "full": wire.DETAIL_FULL,
}
_POLICIES: Mapping[FramePolicy, wire.FramePolicy.ValueType] = {
    "latest": wire.LATEST_WINS,
    "block": wire.BLOCK,
}
_REASONS: Mapping[int, DropReason] = {
    wire.SUPERSEDED: "superseded",
    wire.TOO_OLD: "too_old",
    wire.DRAINING: "draining",
}
ValueT = TypeVar("ValueT")
AnswerT = TypeVar("AnswerT")

_DETAILS_KEY = "grpc-status-details-bin"

_BROKEN_CONNECTION = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,  # no connection, GOAWAY, and a proxy's 429, 502, 503 and 504
        grpc.StatusCode.CANCELLED,  # RST_STREAM with CANCEL
        grpc.StatusCode.INTERNAL,  # RST_STREAM with most other numbers
        grpc.StatusCode.UNKNOWN,  # a proxy's 408 and 500
        grpc.StatusCode.RESOURCE_EXHAUSTED,  # RST_STREAM with ENHANCE_YOUR_CALM; too many calls at once
    }
)
"""Status codes of gRPC itself and of proxies. The service attaches details to its errors of these codes."""

# Texts of gRPC that tell causes which share a status code.
_RESET = "RST_STREAM"
_BODY_LIMIT_OF_PROXY = "status: 413"
_MESSAGE_LIMIT = "larger than max"
_UNREADABLE = "Exception deserializing"

_NANO = 1_000_000_000


@dataclass(frozen=True)
class UnaryCall(Generic[AnswerT]):
    """One question to the service, for blocking clients and for asyncio.

    Attributes:
        method: name of the method.
        request: its message.
        read: turns the response into the answer.
    """

    method: str
    request: Any
    read: Callable[[Any], AnswerT]


def segment_call(
    picture: bytes, model: str, mask: MaskForm, classes: Sequence[int], detail: Detail = "reduced"
) -> UnaryCall[Segmentation]:
    """Return the call that segments one picture.

    Args:
        picture: a JPEG, PNG or WebP file.
        model: NAME or NAME@VERSION; empty = the default model.
        mask: form of the answer.
        classes: ids to keep; empty = all.
        detail: how much of a large picture the network sees.
    """
    request = wire.SegmentRequest(
        image=wire.Image(data=picture, encoding=wire.ENCODED),
        model=model,
        mask=_FORMS[mask],
        classes=classes,
        detail=_DETAILS[detail],
    )
    return UnaryCall("Segment", request, _segmentation)


def models_call() -> UnaryCall[list[Model]]:
    """Return the call that lists the models."""
    return UnaryCall("ListModels", wire.ListModelsRequest(), _models)


def open_request(
    model: str, mask: MaskForm, policy: FramePolicy, max_in_flight: int, max_frame_age_s: float
) -> wire.StreamRequest:
    """Return the first message of a stream.

    Args:
        model: NAME or NAME@VERSION; empty = the default model.
        mask: form of the results.
        policy: which frames are answered.
        max_in_flight: frames in work at the same time; 0 = the limit of the service.
        max_frame_age_s: age at which a frame is dropped, in seconds; 0 = the limit of the service.
    """
    return wire.StreamRequest(
        open=wire.StreamOpen(
            model=model,
            mask=_FORMS[mask],
            policy=_POLICIES[policy],
            max_in_flight=max_in_flight,
            max_frame_age_ms=round(1e3 * max_frame_age_s),
        )
    )


def frame_request(frame: Frame) -> wire.StreamRequest:
    """Return the message of a frame."""
    message = wire.Frame(seq=frame.seq, image=wire.Image(data=frame.data, encoding=wire.ENCODED))
    if frame.captured_s is not None:
        seconds, nanos = divmod(round(_NANO * frame.captured_s), _NANO)
        message.capture_time.CopyFrom(Timestamp(seconds=seconds, nanos=nanos))
    return wire.StreamRequest(frame=message)


def event_of(message: wire.StreamResponse) -> StreamEvent:
    """Return a message of a stream as an event.

    Raises:
        ProtocolError: this client does not know the message.
    """
    match message.WhichOneof("kind"):
        case "opened":
            opened = message.opened
            age_s = opened.max_frame_age_ms / 1e3
            classes = _classes(opened.classes)
            return Opened(opened.model, opened.version, opened.max_in_flight, age_s, classes)
        case "result":
            return _result(message.result)
        case "dropped":
            dropped = message.dropped
            reason = _known(_REASONS, dropped.reason)
            return Dropped(dropped.first_seq, dropped.last_seq, dropped.count, reason)
        case "error":
            return Failed(message.error.seq, message.error.code)
        case "notice":
            return _notice(message.notice)
    raise ProtocolError("the service sent a message of a kind that this client does not know: update it")


def error_of(error: grpc.RpcError) -> ClientError:
    """Return a failed call as an error of this package."""
    code, text, details = _status_code(error), str(error.details()), _details(error)
    if "info" not in details:
        if _BODY_LIMIT_OF_PROXY in text:
            return RefusedError(
                "payload_too_large",
                "a proxy in front of the service limits the size of a body: with nginx, set "
                "client_max_body_size to 0 for gRPC",
            )
        if _UNREADABLE in text:
            return ProtocolError("the answer is not one of this service: is another program at this address?")
        if _RESET in text or (code in _BROKEN_CONNECTION and _MESSAGE_LIMIT not in text):
            return UnreachableError(text)
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return RefusedError("deadline_exceeded", text)
    return RefusedError(
        str(details.get("info", code.name)).lower(),
        text,
        retry_after_s=_seconds(details.get("retry")),
        request_id=str(details.get("request", "")),
    )


def stream_error_of(error: grpc.RpcError) -> ClientError:
    """Return a failed stream as an error of this package.

    Streams have no deadline: one that passed was set by a proxy.
    """
    if _status_code(error) is grpc.StatusCode.DEADLINE_EXCEEDED and "info" not in _details(error):
        return UnreachableError(f"a proxy ended the stream: {error.details()}")
    return error_of(error)


def _segmentation(message: wire.SegmentResponse) -> Segmentation:
    return Segmentation(_mask(message.mask), message.model, message.version, _timings_ms(message.timings))


def _models(message: wire.ListModelsResponse) -> list[Model]:
    return [
        Model(
            model.name,
            model.version,
            _classes(model.classes),
            model.ignore_id,
            model.engine,
            model.device,
            model.precision,
        )
        for model in message.models
    ]


def _result(result: wire.FrameResult) -> Result:
    captured_s = None
    if result.HasField("capture_time"):
        captured_s = result.capture_time.seconds + result.capture_time.nanos / _NANO
    return Result(result.seq, _mask(result.mask), result.version, captured_s, _timings_ms(result.timings))


def _notice(notice: wire.StreamNotice) -> ModelChanged | GoingAway:
    match notice.kind:
        case wire.MODEL_CHANGED:
            return ModelChanged(notice.version)
        case wire.GOING_AWAY:
            return GoingAway(notice.deadline_ms / 1e3)
    raise ProtocolError(f"the service sent a notice that this client does not know: {notice.kind}")


def _mask(mask: wire.Mask) -> Mask:
    return Mask(mask.data, _known(_FORM_OF, mask.encoding), mask.width, mask.height)


def _known(table: Mapping[int, ValueT], number: int) -> ValueT:
    if number not in table:
        raise ProtocolError(f"the service sent a value that this client does not know: {number}")
    return table[number]


def _classes(classes: Iterable[wire.ClassInfo]) -> tuple[ClassInfo, ...]:
    return tuple(ClassInfo(c.id, c.name, (c.red, c.green, c.blue)) for c in classes)


def _timings_ms(timings: wire.Timings) -> dict[str, float]:
    return {
        "decode": timings.decode_ms,
        "queue": timings.queue_ms,
        "infer": timings.infer_ms,
        "post": timings.post_ms,
        "encode": timings.encode_ms,
    }


def _status_code(error: grpc.RpcError) -> grpc.StatusCode:
    code = error.code()
    assert isinstance(code, grpc.StatusCode)
    return code


def _details(error: grpc.RpcError) -> dict[str, object]:
    found: dict[str, object] = {}
    metadata = cast("Iterable[tuple[str, str | bytes]] | None", error.trailing_metadata())
    for key, value in metadata or ():
        if key == _DETAILS_KEY and isinstance(value, bytes):
            for detail in Status.FromString(value).details:
                found |= _detail(detail)
    return found


def _detail(detail: AnyMessage) -> dict[str, object]:
    info, request, retry = ErrorInfo(), RequestInfo(), RetryInfo()
    if detail.Unpack(info):
        return {"info": info.reason}
    if detail.Unpack(request):
        return {"request": request.request_id}
    return {"retry": retry.retry_delay.ToMilliseconds() / 1e3} if detail.Unpack(retry) else {}


def _seconds(value: object) -> float | None:
    return value if isinstance(value, float) else None
