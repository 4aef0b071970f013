"""Converts between the messages of the gRPC API and the core."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import partial

from model.artifacts.manifest import ModelReference, ModelVersion
from model.errors import InvalidReferenceError
from model.evaluation.protocols import Protocol
from model.labels import MAX_CLASSES, ClassPalette, LabelMap
from model.pictures.preprocess import ImageSize, size_of
from service.core.errors import EmptyBodyError, InvalidArgumentError, PayloadTooLargeError
from service.core.models.loaded_model import LoadedModel
from service.core.pictures import codec
from service.core.pictures.passes import FULL_DETAIL
from service.core.pictures.picture import EncodedPicture, Picture, RawPicture
from service.core.pictures.segmenter import Segmentation, Segmenter
from service.core.scheduling.dispatcher import Answer
from service.core.scheduling.scheduler import Lane
from service.telemetry import Stage
from service.wire import segmentation_pb2 as wire


@dataclass(frozen=True)
class Target:
    """The model that a client names.

    Attributes:
        name: None = the default model.
        number: of the version; None = the one that the name means.
    """

    name: str | None
    number: int | None

    @classmethod
    def parse(cls, text: str) -> Target:
        """Parse ``NAME``, ``NAME@VERSION`` or nothing.

        Raises:
            InvalidArgumentError: the text is none of these.
        """
        if not text:
            return cls(None, None)
        try:
            reference = ModelReference.parse(text)
        except InvalidReferenceError as error:
            raise InvalidArgumentError(str(error)) from None
        if reference.alias is not None:
            raise InvalidArgumentError(f"a model is NAME or NAME@VERSION here, not {text!r}")
        return cls(reference.name, reference.number)


@dataclass(frozen=True)
class MaskRequest:
    """The mask that a client wants.

    Attributes:
        encoding: one of ``wire.MaskEncoding``, never UNSPECIFIED.
        keep: ids of the classes to show, others become the ignore id; None = all.
        confidence: what the answer tells of the probability of labels.
    """

    encoding: wire.MaskEncoding.ValueType
    keep: frozenset[int] | None = None
    confidence: wire.ConfidenceDetail.ValueType = wire.CONFIDENCE_DETAIL_UNSPECIFIED

    @classmethod
    def parse(
        cls, encoding: int, classes: Sequence[int], palette: ClassPalette, confidence: int = 0
    ) -> MaskRequest:
        """Check the fields of a request.

        Raises:
            InvalidArgumentError: no such encoding, class or detail of confidence, or more classes than any
                model has.
        """
        if confidence not in wire.ConfidenceDetail.values():
            raise InvalidArgumentError(f"confidence: there is no detail {confidence}")
        if encoding not in _ENCODERS and encoding != wire.MASK_ENCODING_UNSPECIFIED:
            raise InvalidArgumentError(f"mask: there is no encoding {encoding}")
        if len(classes) > MAX_CLASSES:  # a message can hold millions
            raise InvalidArgumentError(f"classes: no model has {len(classes)}")
        unknown = [class_id for class_id in classes if class_id >= palette.num_classes]
        if unknown:
            raise InvalidArgumentError(f"classes: there is no class {unknown[0]}")
        known = wire.MaskEncoding.ValueType(encoding or wire.PNG)
        keep = frozenset(classes) if classes else None
        return cls(known, keep, wire.ConfidenceDetail.ValueType(confidence))

    @property
    def render_bytes(self) -> int:
        """Memory that ``render_mask`` takes beside the segmentation, in bytes per pixel."""
        shows_confidence = self.confidence == wire.CONFIDENCE_PNG
        return _RENDER_BYTES[self.encoding] + (self.keep is not None) + shows_confidence


def tiles_of(request: wire.SegmentRequest) -> Protocol | None:
    """Return how a picture is labelled tile by tile; None = at once.

    Raises:
        InvalidArgumentError: there is no such detail, or confidence is asked for as well.
    """
    if request.detail == wire.DETAIL_UNSPECIFIED:
        return None
    if request.detail != wire.DETAIL_FULL:
        raise InvalidArgumentError(f"detail: there is no {request.detail}")
    if request.confidence != wire.CONFIDENCE_DETAIL_UNSPECIFIED:
        raise InvalidArgumentError("DETAIL_FULL gives no confidence: leave one of the two out")
    return FULL_DETAIL


def segment_image(
    segmenter: Segmenter,
    model: LoadedModel,
    image: wire.Image,
    wanted: MaskRequest,
    *,
    deadline_s: float,
    max_bytes: int,
    tiles: Protocol | None = None,
    lane: Lane = Lane.INTERACTIVE,
    source: str | None = None,
    labelled: Callable[[Answer], None] | None = None,
) -> AbstractAsyncContextManager[RenderedMask]:
    """Segment an encoded or raw image of a message and render its mask.

    Args:
        segmenter: segments it.
        model: the model version; held until the context is left.
        image: a field of the message.
        wanted: the mask.
        deadline_s: time after which the labels are no longer needed (``time.monotonic``, seconds).
        max_bytes: size of the largest image.
        tiles: how it is labelled tile by tile; None = at once.
        lane: how urgent the image is.
        source: client or stream that sends it; None = unknown.
        labelled: called in the event loop as soon as the device has answered.

    Raises:
        EmptyBodyError: the image has no bytes.
        PayloadTooLargeError: the image has more than ``max_bytes``.
        InvalidArgumentError: there is no such encoding, or raw pixels come without a size.
        ServiceError: an error of ``Segmenter.segment``.
    """
    return segmenter.segment(
        model,
        _picture(image, max_bytes),
        partial(render_mask, wanted=wanted),
        deadline_s=deadline_s,
        render_bytes=wanted.render_bytes,
        confidence=wanted.confidence != wire.CONFIDENCE_DETAIL_UNSPECIFIED,
        tiles=tiles,
        lane=lane,
        source=source,
        labelled=labelled,
    )


def _picture(image: wire.Image, max_bytes: int) -> Picture:
    data, encoding = image.data, image.encoding
    if not data:
        raise EmptyBodyError("there is no picture")
    if len(data) > max_bytes:
        raise PayloadTooLargeError(f"{len(data)} bytes are more than {max_bytes}")
    if encoding in (wire.IMAGE_ENCODING_UNSPECIFIED, wire.ENCODED):
        return EncodedPicture(data)
    if encoding not in (wire.RGB8, wire.BGR8):
        raise InvalidArgumentError(f"image: there is no encoding {encoding}")
    if not (image.width and image.height):
        raise InvalidArgumentError("image: raw pixels need width and height")
    return RawPicture(data, ImageSize(image.height, image.width), bgr=encoding == wire.BGR8)


@dataclass(frozen=True, eq=False)
class RenderedMask:
    """An encoded mask, the version that made it, and the time of each stage."""

    mask: wire.Mask
    confidence: wire.Confidence | None
    version: ModelVersion
    stages_s: Mapping[Stage, float]
    batch_size: int

    @property
    def timings(self) -> wire.Timings:
        """Message with the times; preparing the picture counts as decoding."""
        stages_s = self.stages_s
        return wire.Timings(
            decode_ms=1e3 * (stages_s["decode"] + stages_s["preprocess"]),
            queue_ms=1e3 * stages_s["queue"],
            infer_ms=1e3 * stages_s["infer"],
            post_ms=1e3 * stages_s["post"],
            encode_ms=1e3 * stages_s["encode"],
            batch_size=self.batch_size,
        )


def render_mask(segmentation: Segmentation, wanted: MaskRequest) -> RenderedMask:
    """Encode the mask of a segmentation; takes milliseconds and runs outside the event loop."""
    started_s = time.monotonic()
    label_map = segmentation.label_map
    if wanted.keep is not None:
        label_map = label_map.keep(wanted.keep)
    size = size_of(segmentation.image_HW3)
    mask = wire.Mask(
        data=_ENCODERS[wanted.encoding](segmentation, label_map),
        encoding=wanted.encoding,
        width=size.width,
        height=size.height,
    )
    confidence = _confidence(segmentation, label_map, wanted)
    stages_s = segmentation.timings.by_stage(encode_s=time.monotonic() - started_s)
    return RenderedMask(mask, confidence, segmentation.version, stages_s, segmentation.batch_size)


def _confidence(
    segmentation: Segmentation, label_map: LabelMap, wanted: MaskRequest
) -> wire.Confidence | None:
    if segmentation.confidence_HW is None:
        return None
    means = codec.mean_confidences(label_map, segmentation.confidence_HW)
    shows_pixels = wanted.confidence == wire.CONFIDENCE_PNG
    return wire.Confidence(
        classes=[
            wire.ClassConfidence(id=class_id, mean=mean)
            for class_id, mean in enumerate(means)
            if mean is not None
        ],
        png=codec.encode_grey_png(segmentation.confidence_HW) if shows_pixels else b"",
    )


_Encoder = Callable[[Segmentation, LabelMap], bytes]

_ENCODERS: Mapping[int, _Encoder] = {
    wire.PNG: lambda _, label_map: codec.encode_palette_png(label_map),
    wire.RAW: lambda _, label_map: label_map.ids_HW.tobytes(),
    wire.COCO_RLE: lambda _, label_map: json.dumps(codec.coco_rle(label_map)).encode(),
    wire.OVERLAY_JPEG: lambda segmentation, label_map: codec.encode_jpeg(
        codec.overlay(segmentation.image_HW3, label_map)
    ),
}

_RENDER_BYTES: Mapping[int, int] = {wire.PNG: 1, wire.RAW: 1, wire.COCO_RLE: 3, wire.OVERLAY_JPEG: 5}


def class_infos(palette: ClassPalette) -> list[wire.ClassInfo]:
    """Return the classes of a model as messages."""
    return [
        wire.ClassInfo(id=class_id, name=name, red=red, green=green, blue=blue)
        for class_id, (name, (red, green, blue)) in enumerate(zip(palette.names, palette.colors, strict=True))
    ]


def model_info(model: LoadedModel) -> wire.ModelInfo:
    """Return a served version as a message."""
    return wire.ModelInfo(
        name=model.version.name,
        version=model.version.number,
        classes=class_infos(model.manifest.palette),
        ignore_id=model.manifest.palette.ignore_id,
        architecture=model.manifest.architecture,
        engine=model.engine.engine,
        device=model.engine.device,
        precision=model.engine.precision,
    )
