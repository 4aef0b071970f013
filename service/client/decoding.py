"""Between the messages of the wire and what clients get."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar, cast

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc.error_details_pb2 import ErrorInfo, RequestInfo, RetryInfo
from google.rpc.status_pb2 import Status

from service.client.answers import (
    ClassInfo,
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

_DETAILS_KEY = "grpc-status-details-bin"
_WRITE_FAILED = "Internal error from Core"
"""What grpc.aio says when a write comes too late; it hides the status that the call ended with."""

_NANO = 1_000_000_000


def segment_request(
    picture: bytes, model: str, mask: MaskForm, classes: Sequence[int]
) -> wire.SegmentRequest:
    """Return the message that asks for one mask."""
    return wire.SegmentRequest(
        image=wire.Image(data=picture, encoding=wire.ENCODED),
        model=model,
        mask=_FORMS[mask],
        classes=classes,
    )


def open_request(
    model: str, mask: MaskForm, policy: FramePolicy, max_in_flight: int, max_frame_age_s: float
) -> wire.StreamRequest:
    """Return the first message of a stream."""
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


def segmentation_of(message: wire.SegmentResponse) -> Segmentation:
    """Read the answer for one picture."""
    return Segmentation(_mask(message.mask), message.model, message.version, _timings_ms(message.timings))


def models_of(message: wire.ListModelsResponse) -> list[Model]:
    """Read the list of models."""
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


def event_of(message: wire.StreamResponse) -> StreamEvent:
    """Read what the service says on a stream.

    Raises:
        ProtocolError: nothing that this client knows.
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
    raise ProtocolError("a message of a kind that this client does not know")


def error_of(error: grpc.RpcError) -> ClientError:
    """Return what a failed call means."""
    code, details = _status_code(error), _details(error)
    if "info" not in details and code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
        return UnreachableError(_message(error))
    if _message(error) == _WRITE_FAILED:
        return UnreachableError("the stream ended while a message was being sent")
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return RefusedError("deadline_exceeded", _message(error))
    return RefusedError(
        str(details.get("info", code.name)).lower(),
        _message(error),
        retry_after_s=_seconds(details.get("retry")),
        request_id=str(details.get("request", "")),
    )


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
    raise ProtocolError(f"a notice of a kind that this client does not know: {notice.kind}")


def _mask(mask: wire.Mask) -> Mask:
    return Mask(mask.data, _known(_FORM_OF, mask.encoding), mask.width, mask.height)


def _known(table: Mapping[int, ValueT], number: int) -> ValueT:
    if number not in table:
        raise ProtocolError(f"a value that this client does not know: {number}")
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


def _message(error: grpc.RpcError) -> str:
    return str(error.details())


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
