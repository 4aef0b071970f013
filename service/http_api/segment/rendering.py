"""Renders a segmentation as the bytes and headers of an answer; runs in a thread, not in the event loop."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

from pydantic import BaseModel

from model.labels import LabelMap, UInt8Array
from model.pictures.preprocess import size_of
from service.core.pictures import codec
from service.core.pictures.picture import Picture
from service.core.pictures.segmenter import Segmentation
from service.http_api.documents import (
    ClassShareDocument,
    Confidence,
    ConfidenceDocument,
    MaskDocument,
    MaskEncoding,
    SegmentationDocument,
)
from service.http_api.segment.negotiation import JPEG, JSON, NPY, PNG, RAW, Output
from service.http_api.segment.picture_body import picture_of
from service.telemetry import Stage

_LABEL_BYTES = 1
_CONFIDENCE_BYTES = 2  # its PNG, and that in base64
_RGB_BYTES = 3  # and what run lengths are made of
_JPEG_BYTES = 5  # Pillow's canvas and the file


@dataclass(frozen=True)
class RenderingRequest:
    """The form of an answer.

    Attributes:
        media_type: as negotiated.
        output: content of the answer.
        alpha: opacity of an overlay's colours, 0..1.
        mask: form of the mask in JSON.
        confidence: form of the confidence of labels in JSON.
        keep: ids of the classes to keep; pixels of others get the ignore id. None = all.
    """

    media_type: str
    output: Output
    alpha: float
    mask: MaskEncoding
    confidence: Confidence
    keep: frozenset[int] | None


@dataclass(frozen=True, eq=False)
class Rendering:
    """An answer that is ready to be sent, with its notes for the log and its timings."""

    body: bytes
    headers: Mapping[str, str]
    notes: Mapping[str, object]
    stages_s: Mapping[Stage, float]


@dataclass(frozen=True, eq=False)
class Task:
    """The work for a request whose body is complete.

    Attributes:
        picture: the picture in the body.
        render: makes the answer; its second argument is the time that the request took to arrive, in seconds.
        render_bytes: memory of ``render`` beside the segmentation, in bytes per pixel.
        confidence: whether ``render`` needs the confidence of each label.
        media_type: of the answer.
    """

    picture: Picture
    render: Callable[[Segmentation, float], Rendering]
    render_bytes: int
    confidence: bool
    media_type: str


Plan = Callable[[bytes], Task]
"""The work for a request as far as its head tells; called with the body.

Raises:
    ServiceError: the body is no picture.
"""


def plan(content_type: str, wanted: RenderingRequest) -> Plan:
    """Return the plan for a request of the native routes.

    Args:
        content_type: of the request, or empty.
        wanted: form of the answer.
    """

    def task(body: bytes) -> Task:
        return Task(
            picture_of(content_type, body),
            partial(render, wanted),
            render_bytes(wanted),
            confidence=wanted.confidence != "none",
            media_type=wanted.media_type,
        )

    return task


def render(wanted: RenderingRequest, segmentation: Segmentation, receive_s: float) -> Rendering:
    """Encode a segmentation.

    Args:
        wanted: form of the answer.
        segmentation: from the segmenter.
        receive_s: time in which the request arrived, for the timings, in seconds.
    """
    started_s = time.monotonic()
    label_map = segmentation.label_map
    if wanted.keep is not None:
        label_map = label_map.keep(wanted.keep)
    if wanted.media_type == JSON:
        document = _document(segmentation, label_map, wanted)
        stages_s = _stages_s(segmentation, receive_s, time.monotonic() - started_s)
        document.timings_ms = _in_ms(stages_s)
        body = document.model_dump_json().encode()
    else:
        body = _picture(segmentation.image_HW3, label_map, wanted)
        stages_s = _stages_s(segmentation, receive_s, time.monotonic() - started_s)
    return _rendering(body, segmentation, stages_s, _array_headers(segmentation, wanted.media_type))


def render_masks(
    elements: Callable[[Segmentation], Sequence[BaseModel]], segmentation: Segmentation, receive_s: float
) -> Rendering:
    """Encode a segmentation as a JSON list.

    Args:
        elements: makes the documents of the list.
        segmentation: from the segmenter.
        receive_s: how long the request took to arrive, for the timings.
    """
    started_s = time.monotonic()
    body = b"[%s]" % b",".join(element.model_dump_json().encode() for element in elements(segmentation))
    return _rendering(body, segmentation, _stages_s(segmentation, receive_s, time.monotonic() - started_s))


def render_bytes(wanted: RenderingRequest) -> int:
    """Return the memory of ``render`` beside the segmentation, in bytes per pixel."""
    if wanted.media_type == JPEG:
        num_bytes = _JPEG_BYTES
    elif wanted.output == "labels" or (wanted.media_type, wanted.output) == (PNG, "color"):
        num_bytes = _LABEL_BYTES
    else:
        num_bytes = _RGB_BYTES
    num_bytes += _CONFIDENCE_BYTES if wanted.confidence == "png" else 0
    return num_bytes if wanted.keep is None else num_bytes + _LABEL_BYTES


def _picture(image_HW3: UInt8Array, label_map: LabelMap, wanted: RenderingRequest) -> bytes:
    if wanted.media_type == PNG and wanted.output != "overlay":
        return codec.encode_palette_png(label_map)
    match wanted.output:
        case "labels":
            pixels = codec.raster_of(label_map.ids_HW)
        case "color":
            pixels = codec.colorize(label_map)
        case "overlay":
            pixels = codec.overlay(image_HW3, label_map, alpha=wanted.alpha)
    return _ENCODERS[wanted.media_type](pixels)


_ENCODERS: Mapping[str, Callable[[codec.Raster], bytes]] = {
    PNG: codec.encode_rgb_png,
    JPEG: codec.encode_jpeg,
    NPY: codec.encode_npy,
    RAW: codec.encode_raw,
}


def _mask_document(label_map: LabelMap, encoding: MaskEncoding) -> MaskDocument:
    match encoding:
        case "png":
            data = base64.b64encode(codec.encode_palette_png(label_map)).decode()
            return MaskDocument(encoding=encoding, data=data)
        case "coco_rle":
            return MaskDocument(encoding=encoding, data=codec.coco_rle(label_map))
        case "none":
            return MaskDocument(encoding=encoding, data=None)


def _document(
    segmentation: Segmentation, label_map: LabelMap, wanted: RenderingRequest
) -> SegmentationDocument:
    size = size_of(segmentation.image_HW3)
    shares = [ClassShareDocument(**share) for share in codec.class_statistics(label_map)]
    confidence = None
    if segmentation.confidence_HW is not None:
        means = codec.mean_confidences(label_map, segmentation.confidence_HW)
        for share, mean in zip(shares, means, strict=True):
            share.confidence = mean
        if wanted.confidence == "png":
            data = base64.b64encode(codec.encode_grey_png(segmentation.confidence_HW)).decode()
            confidence = ConfidenceDocument(data=data)
    return SegmentationDocument(
        model=segmentation.version.name,
        version=segmentation.version.number,
        width=size.width,
        height=size.height,
        classes=shares,
        mask=_mask_document(label_map, wanted.mask),
        confidence=confidence,
        timings_ms={},
    )


def _stages_s(segmentation: Segmentation, receive_s: float, encode_s: float) -> dict[Stage, float]:
    return {"receive": receive_s, **segmentation.timings.by_stage(encode_s=encode_s)}


def _in_ms(stages_s: Mapping[Stage, float]) -> dict[str, float]:
    """Return the timings for clients; preparation counts as decoding there."""
    told_s = {str(stage): seconds for stage, seconds in stages_s.items()}
    told_s["decode"] += told_s.pop("preprocess")
    return {stage: round(1e3 * seconds, 3) for stage, seconds in told_s.items()}


def _rendering(
    body: bytes,
    segmentation: Segmentation,
    stages_s: Mapping[Stage, float],
    more_headers: Mapping[str, str] = MappingProxyType({}),
) -> Rendering:
    stages_ms = _in_ms(stages_s)
    size = size_of(segmentation.image_HW3)
    headers = {
        "X-Model-Name": segmentation.version.name,
        "X-Model-Version": str(segmentation.version.number),
        "Server-Timing": ", ".join(f"{stage};dur={ms}" for stage, ms in stages_ms.items()),
        **more_headers,
    }
    if segmentation.inference_size != size:
        headers["X-Inference-Size"] = str(segmentation.inference_size)
    notes = {
        "model": str(segmentation.version),
        "size": str(size),
        **{f"{stage}_ms": ms for stage, ms in stages_ms.items()},
    }
    return Rendering(body, headers, notes, stages_s)


def _array_headers(segmentation: Segmentation, media_type: str) -> dict[str, str]:
    size = size_of(segmentation.image_HW3)
    is_array = media_type in (NPY, RAW)
    return {"X-Image-Width": str(size.width), "X-Image-Height": str(size.height)} if is_array else {}
