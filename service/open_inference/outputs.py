"""The output tensors: what a request may ask for, and how each is made of the labels of one picture.

Axes: N pictures, H height, W width, K classes.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from model.pictures.preprocess import ImageSize, size_of
from service.core.errors import InvalidArgumentError
from service.core.pictures import codec
from service.core.pictures.segmenter import Segmentation
from service.open_inference.metadata import Datatype
from service.open_inference.parameters import shown

Encode = Callable[[bytes], bytes]
"""From the bytes of one picture's part of a tensor to those that the transport sends."""


@dataclass(frozen=True)
class OutputKind:
    """An output of every model.

    Attributes:
        name: of the tensor.
        datatype: of its elements.
        render: makes the part of one picture, in a thread: one element of BYTES, else raw values.
        axes: those after N, of a picture's size and the number of classes.
        render_bytes: memory that ``render`` takes beside the segmentation, in bytes a pixel.
        needs_one_size: all pictures of a request must have one size.
        needs_confidence: ``render`` needs the confidence of each label, which costs time: the output is made
            only for requests that name it.
    """

    name: str
    datatype: Datatype
    render: Callable[[Segmentation], bytes]
    axes: Callable[[ImageSize, int], tuple[int, ...]]
    render_bytes: int
    needs_one_size: bool = False
    needs_confidence: bool = False


@dataclass(frozen=True)
class WantedOutput:
    """An output that a request asks for.

    Args:
        kind: which one.
        encode: makes what the transport sends; called in a thread.
        encode_bytes: memory that ``encode`` takes, in bytes a pixel.
    """

    kind: OutputKind
    encode: Encode
    encode_bytes: int = 0


@dataclass(frozen=True, eq=False)
class OutputTensor:
    """An output of a request.

    Attributes:
        name: of the tensor.
        datatype: of its elements.
        shape: length of each axis.
        parts: encoded part of each picture, in order.
    """

    name: str
    datatype: Datatype
    shape: tuple[int, ...]
    parts: Sequence[bytes]


def raw_encoding(kind: OutputKind) -> Encode:
    """Return the raw form of the protocol: values as they are in memory, elements behind their length."""
    return _with_length if kind.datatype == "BYTES" else bytes


def output_kind(name: str) -> OutputKind:
    """Return an output by its name.

    Raises:
        InvalidArgumentError: there is no such output.
    """
    if name not in OUTPUT_KINDS:
        raise InvalidArgumentError(f"there is no output {shown(name)}: there are {', '.join(OUTPUT_KINDS)}")
    return OUTPUT_KINDS[name]


def check_unique(names: Sequence[str]) -> None:
    """Refuse a request that asks for an output twice.

    Raises:
        InvalidArgumentError: it does.
    """
    if len(set(names)) != len(names):
        raise InvalidArgumentError("an output is asked for more than once")


class OneSize:
    """Sees to it that the pictures of a request form a tensor; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._size: ImageSize | None = None

    def check(self, size: ImageSize) -> None:
        """Compare the size of a picture with that of the others.

        Raises:
            InvalidArgumentError: it differs.
        """
        with self._lock:
            self._size = self._size or size
        if size != self._size:
            raise InvalidArgumentError(
                f"pictures of {self._size} and of {size} pixels form no tensor of labels: ask for "
                "mask_png or class_pixels, or send one size in a request"
            )


def _labels(segmentation: Segmentation) -> bytes:
    return segmentation.label_map.ids_HW.tobytes()


def _mask_png(segmentation: Segmentation) -> bytes:
    return codec.encode_palette_png(segmentation.label_map)


def _overlay_jpeg(segmentation: Segmentation) -> bytes:
    return codec.encode_jpeg(codec.overlay(segmentation.image_HW3, segmentation.label_map))


def _class_pixels(segmentation: Segmentation) -> bytes:
    label_map = segmentation.label_map
    return label_map.counts[: label_map.palette.num_classes].astype(np.dtype("<i8")).tobytes()


def _confidence(segmentation: Segmentation) -> bytes:
    assert segmentation.confidence_HW is not None
    means = codec.mean_confidences(segmentation.label_map, segmentation.confidence_HW)
    return np.array([mean or 0.0 for mean in means], np.dtype("<f2")).tobytes()


def _class_axis(_size: ImageSize, num_classes: int) -> tuple[int, ...]:
    return (num_classes,)


def _no_axes(_size: ImageSize, _num_classes: int) -> tuple[int, ...]:
    return ()


# A new output belongs here and in ``metadata.output_metadata``.
OUTPUT_KINDS: Mapping[str, OutputKind] = {
    kind.name: kind
    for kind in (
        OutputKind("labels", "UINT8", _labels, lambda size, _: size.shape, 1, needs_one_size=True),
        OutputKind("mask_png", "BYTES", _mask_png, _no_axes, 1),
        OutputKind("overlay_jpeg", "BYTES", _overlay_jpeg, _no_axes, 5),
        OutputKind("class_pixels", "INT64", _class_pixels, _class_axis, 0),
        OutputKind("confidence", "FP16", _confidence, _class_axis, 0, needs_confidence=True),
    )
}
"""All outputs by name, in the order of the metadata."""

DEFAULT_OUTPUTS = tuple(name for name, kind in OUTPUT_KINDS.items() if not kind.needs_confidence)
"""What a request gets that names no outputs."""


def memory_of(wanted: Sequence[WantedOutput]) -> int:
    """Return the memory that rendering takes beside the segmentation, in bytes a pixel."""
    return sum(output.kind.render_bytes + output.encode_bytes for output in wanted)


def rendered(segmentation: Segmentation, wanted: Sequence[WantedOutput], one_size: OneSize) -> list[bytes]:
    """Return the encoded part of each output; runs in a thread.

    Raises:
        InvalidArgumentError: the picture has another size than the others, and an output needs one size.
    """
    if any(output.kind.needs_one_size for output in wanted):
        one_size.check(size_of(segmentation.image_HW3))
    return [output.encode(output.kind.render(segmentation)) for output in wanted]


def _with_length(element: bytes) -> bytes:
    return struct.pack("<I", len(element)) + element
