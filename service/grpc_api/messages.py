"""Between the wire and the core: pictures in, masks and descriptions out."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import partial

from model.artifacts.manifest import ModelReference, ModelVersion
from model.errors import InvalidReferenceError
from model.labels import MAX_CLASSES, ClassPalette, LabelMap
from model.pictures.preprocess import ImageSize, size_of
from service.core.errors import EmptyBodyError, InvalidArgumentError, PayloadTooLargeError
from service.core.models.loaded_model import LoadedModel
from service.core.pictures import codec
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
        number: of the version; None = the one that is served under the name.
    """

    name: str | None
    number: int | None

    @classmethod
    def parse(cls, text: str) -> Target:
        """Read ``NAME`` or ``NAME@VERSION``; nothing = the default model.

        Raises:
            InvalidArgumentError: it is neither.
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
    """How a client wants its mask.

    Attributes:
        encoding: one of the wire's, never UNSPECIFIED.
        keep: the classes to show, others become the ignore id; None = all.
        confidence: what is told of the probability of labels.
    """

    encoding: wire.MaskEncoding.ValueType
    keep: frozenset[int] | None = None
    confidence: wire.ConfidenceDetail.ValueType = wire.CONFIDENCE_DETAIL_UNSPECIFIED

    @classmethod
    def parse(
        cls, encoding: int, classes: Sequence[int], palette: ClassPalette, confidence: int = 0
    ) -> MaskRequest:
        """Check what a client asked for.

        Raises:
            InvalidArgumentError: there is no such encoding, no such class, more than any model has, or no
                such detail of confidence.
        """
        if confidence not in wire.ConfidenceDetail.values():
            raise InvalidArgumentError(f"confidence: there is no detail {confidence}")
        if encoding not in _ENCODERS and encoding != wire.MASK_ENCODING_UNSPECIFIED:
            raise InvalidArgumentError(f"mask: there is no encoding {encoding}")
        if len(classes) > MAX_CLASSES:  # a message has room for millions
            raise InvalidArgumentError(f"classes: no model has {len(classes)}")
        unknown = [class_id for class_id in classes if class_id >= palette.num_classes]
        if unknown:
            raise InvalidArgumentError(f"classes: there is no class {unknown[0]}")
        known = wire.MaskEncoding.ValueType(encoding or wire.PNG)
        keep = frozenset(classes) if classes else None
        return cls(known, keep, wire.ConfidenceDetail.ValueType(confidence))

    @property
    def encode_bytes(self) -> int:
        """Memory that ``mask_of`` takes beside the segmentation, in bytes a pixel."""
        shows_confidence = self.confidence == wire.CONFIDENCE_PNG
        return _ENCODE_BYTES[self.encoding] + (self.keep is not None) + shows_confidence


def segmented(
    segmenter: Segmenter,
    model: LoadedModel,
    image: wire.Image,
    wanted: MaskRequest,
    *,
    deadline_s: float,
    max_bytes: int,
    lane: Lane = Lane.INTERACTIVE,
    source: str | None = None,
    labelled: Callable[[Answer], None] | None = None,
) -> AbstractAsyncContextManager[Encoded]:
    """Answer a picture of the wire, whatever its encoding is; see ``Segmenter.segment``.

    Args:
        segmenter: answers it.
        model: the model that answers.
        image: encoded or raw.
        wanted: how the mask is encoded.
        deadline_s: when nobody waits for the labels any more, on the clock of ``time.monotonic``.
        max_bytes: more than these are refused.
        lane: how urgent it is.
        source: who asks.
        labelled: called in the event loop as soon as the device has answered.

    Raises:
        EmptyBodyError: there are no bytes.
        PayloadTooLargeError: there are too many.
        InvalidArgumentError: there is no such encoding, or raw pixels come without a size.
    """
    return segmenter.segment(
        model,
        _picture(image, max_bytes),
        partial(encode, wanted=wanted),
        deadline_s=deadline_s,
        render_bytes=wanted.encode_bytes,
        confidence=wanted.confidence != wire.CONFIDENCE_DETAIL_UNSPECIFIED,
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
class Encoded:
    """A mask on its way out, which model made it, and where the time went."""

    mask: wire.Mask
    confidence: wire.Confidence | None
    version: ModelVersion
    stages_s: Mapping[Stage, float]
    batch_size: int

    @property
    def timings(self) -> wire.Timings:
        """What the client is told of the stages."""
        stages_s = self.stages_s
        return wire.Timings(
            decode_ms=1e3 * (stages_s["decode"] + stages_s["preprocess"]),
            queue_ms=1e3 * stages_s["queue"],
            infer_ms=1e3 * stages_s["infer"],
            post_ms=1e3 * stages_s["post"],
            encode_ms=1e3 * stages_s["encode"],
            batch_size=self.batch_size,
        )


def encode(segmentation: Segmentation, wanted: MaskRequest) -> Encoded:
    """Encode an answer as the client wants it; runs in a thread, never in the event loop."""
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
    stages_s = _stages_s(segmentation, time.monotonic() - started_s)
    return Encoded(mask, confidence, segmentation.version, stages_s, segmentation.batch_size)


def _confidence(
    segmentation: Segmentation, label_map: LabelMap, wanted: MaskRequest
) -> wire.Confidence | None:
    if segmentation.confidence_HW is None:
        return None
    counts = codec.confidence_histogram(label_map, segmentation.confidence_HW)
    means = map(codec.mean_confidence, counts[: label_map.palette.num_classes])
    shows_pixels = wanted.confidence == wire.CONFIDENCE_PNG
    return wire.Confidence(
        classes=[
            wire.ClassConfidence(id=class_id, mean=mean)
            for class_id, mean in enumerate(means)
            if mean is not None
        ],
        png=codec.encode_grey_png(segmentation.confidence_HW) if shows_pixels else b"",
    )


def _stages_s(segmentation: Segmentation, encode_s: float) -> Mapping[Stage, float]:
    timings = segmentation.timings
    return {
        "decode": timings.decode_s,
        "preprocess": timings.preprocess_s,
        "queue": timings.queue_s,
        "infer": timings.infer_s,
        "post": timings.post_s,
        "encode": encode_s,
    }


_Encoder = Callable[[Segmentation, LabelMap], bytes]

_ENCODERS: Mapping[int, _Encoder] = {
    wire.PNG: lambda _, label_map: codec.encode_palette_png(label_map),
    wire.RAW: lambda _, label_map: label_map.ids_HW.tobytes(),
    wire.COCO_RLE: lambda _, label_map: json.dumps(codec.coco_rle(label_map)).encode(),
    wire.OVERLAY_JPEG: lambda segmentation, label_map: codec.encode_jpeg(
        codec.overlay(segmentation.image_HW3, label_map)
    ),
}

_ENCODE_BYTES: Mapping[int, int] = {wire.PNG: 1, wire.RAW: 1, wire.COCO_RLE: 3, wire.OVERLAY_JPEG: 5}


def class_infos(palette: ClassPalette) -> list[wire.ClassInfo]:
    """Describe the classes of a model."""
    return [
        wire.ClassInfo(id=class_id, name=name, red=red, green=green, blue=blue)
        for class_id, (name, (red, green, blue)) in enumerate(zip(palette.names, palette.colors, strict=True))
    ]


def model_info(served: LoadedModel) -> wire.ModelInfo:
    """Describe a version that is served."""
    return wire.ModelInfo(
        name=served.version.name,
        version=served.version.number,
        classes=class_infos(served.manifest.palette),
        ignore_id=served.manifest.palette.ignore_id,
        architecture=served.manifest.architecture,
        engine=served.engine.engine,
        device=served.engine.device,
        precision=served.engine.precision,
    )
