"""What clients get, whichever protocol brought it.

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

MaskForm = Literal["png", "raw", "coco_rle", "overlay"]
"""Palette PNG, one byte a pixel, run lengths as JSON, or the picture with colours over it as JPEG."""

FramePolicy = Literal["latest", "block"]
DropReason = Literal["superseded", "too_old", "draining"]


@dataclass(frozen=True)
class ClassInfo:
    """A class: its id in masks, its name, its colour (red, green, blue)."""

    id: int
    name: str
    color: tuple[int, int, int]


@dataclass(frozen=True)
class Model:
    """A version that is served.

    Attributes:
        name: of the model.
        version: its number.
        classes: in the order of their ids.
        ignore_id: marks pixels of no class.
        engine: what runs it.
        device: where.
        precision: in which it computes.
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
    """Which class each pixel belongs to.

    Attributes:
        data: as the service sent it.
        form: what ``data`` is.
        width: of the upright picture, in pixels.
        height: of the upright picture, in pixels.
    """

    data: bytes
    form: MaskForm
    width: int
    height: int

    def labels_HW(self) -> npt.NDArray[np.uint8]:
        """Return the class ids, uint8.

        Raises:
            ValueError: the mask came as run lengths or as an overlay.
        """
        match self.form:
            case "raw":
                return np.frombuffer(self.data, np.uint8).reshape(self.height, self.width)
            case "png":
                return np.asarray(Image.open(io.BytesIO(self.data), formats=["PNG"]))
        raise ValueError(f"a mask in the form {self.form!r} holds no array of ids")


@dataclass(frozen=True, eq=False)
class Segmentation:
    """The answer for one picture; ``timings_ms`` says where the service's time went, by stage."""

    mask: Mask
    model: str
    version: int
    timings_ms: Mapping[str, float]


@dataclass(frozen=True, eq=False)
class Frame:
    """One picture of a camera or film on its way to the service.

    Attributes:
        seq: its number, larger than that of the frame before.
        data: a JPEG, PNG or WebP file.
        captured_s: when it was taken, in seconds since 1970; None = unknown.
    """

    seq: int
    data: bytes
    captured_s: float | None = None


@dataclass(frozen=True)
class Opened:
    """A stream was agreed on."""

    model: str
    version: int
    max_in_flight: int
    max_frame_age_s: float
    classes: tuple[ClassInfo, ...]


@dataclass(frozen=True, eq=False)
class Result:
    """The mask of a frame."""

    seq: int
    mask: Mask
    version: int
    captured_s: float | None
    timings_ms: Mapping[str, float]


@dataclass(frozen=True)
class Dropped:
    """Frames that were not answered, ``count`` of them."""

    first_seq: int
    last_seq: int
    count: int
    reason: DropReason


@dataclass(frozen=True)
class Failed:
    """A frame that could not be answered; ``code`` is the service's own."""

    seq: int
    code: str


@dataclass(frozen=True)
class ModelChanged:
    """Results from here on come from another version."""

    version: int


@dataclass(frozen=True)
class GoingAway:
    """The service stops within ``deadline_s``; the stream is about to end."""

    deadline_s: float


@dataclass(frozen=True)
class Interrupted:
    """The connection is lost; the next attempt begins after ``delay_s``.

    Attributes:
        reason: why, for people.
        delay_s: until the next attempt.
        lost: numbers of the frames that will have no answer.
    """

    reason: str
    delay_s: float
    lost: tuple[int, ...] = field(default=())


StreamEvent = Opened | Result | Dropped | Failed | ModelChanged | GoingAway | Interrupted
