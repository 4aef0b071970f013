"""The results of clients, the same for HTTP and gRPC.

Axes: H height, W width.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

__all__ = [
    "ClassInfo",
    "Detail",
    "DropReason",
    "Dropped",
    "Failed",
    "Frame",
    "FramePolicy",
    "GoingAway",
    "Interrupted",
    "Mask",
    "MaskForm",
    "Model",
    "ModelChanged",
    "Opened",
    "Result",
    "Segmentation",
    "StreamEvent",
]

MaskForm = Literal["png", "raw", "coco_rle", "overlay"]
"""Palette PNG, one byte a pixel, run lengths as JSON, or the picture with colours over it as JPEG."""

Detail = Literal["reduced", "full"]
"""``reduced``: a large picture is reduced for the network. ``full``: it is labelled tile by tile."""

FramePolicy = Literal["latest", "block"]
"""``latest``: newer frames replace frames that wait. ``block``: every frame is answered."""

DropReason = Literal["superseded", "too_old", "draining"]
"""A newer frame came, the frame waited too long, or the service stops."""


@dataclass(frozen=True)
class ClassInfo:
    """A class of a model.

    Attributes:
        id: value of its pixels in masks.
        name: for people.
        color: red, green and blue, each 0..255.
    """

    id: int
    name: str
    color: tuple[int, int, int]


@dataclass(frozen=True)
class Model:
    """A model version that the service answers with.

    Attributes:
        name: name of the model.
        version: number of the version.
        classes: in the order of their ids.
        ignore_id: value of pixels without a class.
        engine: library that runs the network.
        device: where it runs, ``cpu`` or ``cuda:N``.
        precision: number format that it computes in.
    """

    name: str
    version: int
    classes: tuple[ClassInfo, ...]
    ignore_id: int
    engine: str
    device: str
    precision: str


@dataclass(frozen=True, eq=False)
class Mask:
    """The class of each pixel of a picture.

    Attributes:
        data: bytes as the service sent them.
        form: of the bytes.
        width: width of the upright picture in pixels.
        height: height of the upright picture in pixels.
    """

    data: bytes
    form: MaskForm
    width: int
    height: int

    def labels_HW(self) -> npt.NDArray[np.uint8]:
        """Return the class ids, uint8.

        Raises:
            ValueError: the form is ``coco_rle`` or ``overlay``.
        """
        match self.form:
            case "raw":
                return np.frombuffer(self.data, np.uint8).reshape(self.height, self.width)
            case "png":
                return np.asarray(Image.open(io.BytesIO(self.data), formats=["PNG"]))
        raise ValueError(f"a mask in the form {self.form!r} holds no array of ids: ask for png or raw")


@dataclass(frozen=True, eq=False)
class Segmentation:
    """The answer for one picture.

    Attributes:
        mask: the class of each pixel.
        model: name of the model that answered.
        version: its version.
        timings_ms: time of each stage in the service, in milliseconds.
    """

    mask: Mask
    model: str
    version: int
    timings_ms: Mapping[str, float]


@dataclass(frozen=True, eq=False)
class Frame:
    """A picture of a camera or film for a stream.

    Attributes:
        seq: frame number, larger than that of the frame before.
        data: a JPEG, PNG or WebP file.
        captured_s: when the picture was taken, in seconds since 1970; None = unknown.
    """

    seq: int
    data: bytes
    captured_s: float | None = None


@dataclass(frozen=True)
class Opened:
    """The first event of each connection: the stream is accepted.

    Attributes:
        model: name of the model that answers.
        version: its version.
        max_in_flight: frames that the service works on at the same time.
        max_frame_age_s: age at which the service drops a frame, in seconds.
        classes: of the model, in the order of their ids.
    """

    model: str
    version: int
    max_in_flight: int
    max_frame_age_s: float
    classes: tuple[ClassInfo, ...]


@dataclass(frozen=True, eq=False)
class Result:
    """The answer for one frame.

    Attributes:
        seq: number of the frame.
        mask: the class of each pixel.
        version: version of the model that answered.
        captured_s: as in the frame.
        timings_ms: time of each stage in the service, in milliseconds.
    """

    seq: int
    mask: Mask
    version: int
    captured_s: float | None
    timings_ms: Mapping[str, float]


@dataclass(frozen=True)
class Dropped:
    """Frames that the service did not answer.

    Attributes:
        first_seq: number of the first one.
        last_seq: number of the last one.
        count: how many frames were dropped.
        reason: why.
    """

    first_seq: int
    last_seq: int
    count: int
    reason: DropReason


@dataclass(frozen=True)
class Failed:
    """A frame that the service could not answer.

    Attributes:
        seq: number of the frame.
        code: error code of the service.
    """

    seq: int
    code: str


@dataclass(frozen=True)
class ModelChanged:
    """The results that follow come from another version of the model."""

    version: int


@dataclass(frozen=True)
class GoingAway:
    """The service stops within ``deadline_s`` seconds, and the stream ends before that."""

    deadline_s: float


@dataclass(frozen=True)
class Interrupted:
    """The connection is lost.

    Attributes:
        reason: why, for people.
        delay_s: seconds until the next attempt to connect.
        lost: numbers of the frames that will have no answer.
    """

    reason: str
    delay_s: float
    lost: tuple[int, ...] = field(default=())


StreamEvent = Opened | Result | Dropped | Failed | ModelChanged | GoingAway | Interrupted
"""An event of a stream."""
