"""Evaluation protocols as plans: sizes and chips of a picture, and how their scores combine.

This module computes sizes only; ``model.evaluation.network_passes`` carries a plan out.

| name  | scales      | flip | the network sees   | sum over views, chips and scales               |
| ----- | ----------- | ---- | ------------------ | ---------------------------------------------- |
| ss    | 1           | no   | the whole picture  | softmax, at the labels' size                   |
| ssc   | 1           | no   | chips of 1024x1024 | softmax, at the scaled size                    |
| msf   | 0.5 to 1.75 | yes  | the whole picture  | softmax of both views, at the labels' size     |
| mscf  | 0.5 to 1.75 | yes  | chips of 1024x1024 | exp(softmax + softmax of the mirrored chip)    |
| slide | 1           | no   | chips              | scores: what mmsegmentation calls slide        |

A whole picture is resized to sides that are multiples of 32. Chips are cut from a picture of any size, which
is laid into the middle of a canvas of the mean colour where it is smaller than a chip; ``slide`` takes a
smaller chip instead, and its mean over chips has the same arg max as their sum.

``ss-old`` to ``mscf-old`` are the older arithmetic of the published programs: sides are not rounded up (what
is no multiple of 32 is padded as the service pads it), chips advance by 5/6 of their side instead of 2/3, and
exp is applied without flip, too.

A protocol may first resize the picture so that its short side has a given length, half-pixel bilinear: the
published ADE20K scores are made so. Labels stay as they are.

Source:
    github.com/CoinCheung/BiSeNet: tools/evaluate.py, and old/evaluate.py for the older arithmetic;
    github.com/open-mmlab/mmsegmentation: EncoderDecoder.slide_inference.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from types import MappingProxyType
from typing import Literal

from model.errors import ProtocolError
from model.pictures.preprocess import PAD_MULTIPLE, ImageSize

__all__ = ["Protocol", "find_protocol"]

Summand = Literal["softmax", "exp", "score"]
"""The term that a chip adds to each class of a pixel: its softmax (and that of its mirrored view), exp of
that sum, or the scores themselves."""

DEFAULT_CROP = 1024

_SINGLE = (1.0,)
_MULTIPLE = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)


@dataclass(frozen=True)
class Protocol:
    """One way to evaluate.

    Attributes:
        name: name on the command line, in jobs and reports.
        scales: scales of the picture; one pass each, all passes add up.
        flip: the network also sees each chip mirrored.
        crop: side of the chips in pixels; None: the whole picture is one chip.
        advance: distance from chip to chip, as a share of ``crop``.
        rounded: whole pictures are resized to sides that are multiples of 32.
        filled: a picture smaller than a chip lies in the middle of a canvas of the chip's size.
        summand: the term that a chip adds.
        short_side: length in pixels that the short side of each picture is first resized to; None: pictures
            stay as they are.
    """

    name: str
    scales: tuple[float, ...] = _SINGLE
    flip: bool = False
    crop: int | None = None
    advance: Fraction = Fraction(2, 3)
    rounded: bool = True
    filled: bool = True
    summand: Summand = "softmax"
    short_side: int | None = None

    def with_crop(self, crop: int) -> Protocol:
        """Return the protocol with chips of another size (the published programs: 1024, 640 or 512).

        Raises:
            ProtocolError: ``crop`` is no positive multiple of 32, or the protocol cuts no chips.
        """
        if self.crop is None:
            raise ProtocolError(f"protocol {self.name} cuts no chips")
        if crop < 1 or crop % PAD_MULTIPLE:
            raise ProtocolError(f"chips need a side that is a multiple of {PAD_MULTIPLE}, not {crop}")
        return replace(self, crop=crop)

    def with_short_side(self, pixels: int | None) -> Protocol:
        """Return the protocol on pictures that are first resized to this short side; None: they are not.

        Raises:
            ProtocolError: ``pixels`` is not positive.
        """
        if pixels is not None and pixels < 1:
            raise ProtocolError(f"a short side has at least 1 pixel, not {pixels}")
        return replace(self, short_side=pixels)

    def __str__(self) -> str:
        """Return the name, the side of the chips and the short side where there are any."""
        chips = f"chips of {self.crop}" if self.crop else ""
        start = f"short side {self.short_side}" if self.short_side else ""
        told = ", ".join(filter(None, (chips, start)))
        return f"{self.name} ({told})" if told else self.name


_SS = Protocol("ss")
_SSC = Protocol("ssc", crop=DEFAULT_CROP)
_MSF = Protocol("msf", scales=_MULTIPLE, flip=True)
_MSCF = Protocol("mscf", scales=_MULTIPLE, flip=True, crop=DEFAULT_CROP, summand="exp")
_OLD_ADVANCE = Fraction(5, 6)

PROTOCOLS: Mapping[str, Protocol] = MappingProxyType(
    {
        protocol.name: protocol
        for protocol in (
            _SS,
            _SSC,
            _MSF,
            _MSCF,
            replace(_SS, name="ss-old", rounded=False),
            replace(_SSC, name="ssc-old", advance=_OLD_ADVANCE, summand="exp"),
            replace(_MSF, name="msf-old", rounded=False),
            replace(_MSCF, name="mscf-old", advance=_OLD_ADVANCE),
            replace(_SSC, name="slide", filled=False, summand="score"),
        )
    }
)
"""Every protocol, by name."""


@dataclass(frozen=True)
class PublishedSizes:
    """Sizes in which the published programs evaluate on one data set.

    Attributes:
        crop: side of the chips of ``ssc`` and ``mscf``.
        short_side: of the pictures; None: as they are.
    """

    crop: int
    short_side: int | None = None


PUBLISHED_SIZES: Mapping[tuple[str, str], PublishedSizes] = MappingProxyType(
    {
        ("ade20k", "bisenetv1"): PublishedSizes(512, 512),
        ("ade20k", "bisenetv2"): PublishedSizes(640, 640),
        ("cocostuff", "bisenetv1"): PublishedSizes(512),
        ("cocostuff", "bisenetv2"): PublishedSizes(640),
    }
)
"""Data-set preset and architecture -> sizes; Cityscapes has those that the protocols begin with."""


def as_published(protocol: Protocol, *, dataset: str, architecture: str) -> Protocol:
    """Return a protocol in the sizes that the published programs use on a data set.

    Args:
        protocol: without a short side, and with chips of the default size if it cuts any.
        dataset: name of a data-set preset; others change nothing.
        architecture: of the model.
    """
    sizes = PUBLISHED_SIZES.get((dataset, architecture))
    if sizes is None or protocol.name == "slide":  # which is not theirs
        return protocol
    if protocol.crop is not None:
        protocol = protocol.with_crop(sizes.crop)
    return protocol if sizes.short_side is None else protocol.with_short_side(sizes.short_side)


def find_protocol(name: str) -> Protocol:
    """Return the protocol of this name.

    Raises:
        ProtocolError: there is none.
    """
    if name not in PROTOCOLS:
        raise ProtocolError(f"no protocol is called {name!r}; there are {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]


@dataclass(frozen=True)
class Chip:
    """A part of the canvas that the network sees at once.

    Attributes:
        top: first row.
        left: first column.
        size: size; the network sees it padded right and bottom to multiples of 32.
    """

    top: int
    left: int
    size: ImageSize


@dataclass(frozen=True)
class Pass:
    """One scale of a plan.

    Attributes:
        scaled: the picture, of the plan's start size, is resized to this, bilinear with aligned corners.
        canvas: size of the canvas of the mean colour that it is laid on.
        top: row of the canvas at which the picture begins.
        left: column of the canvas at which the picture begins.
        chips: parts that the network sees; together they cover the canvas.
    """

    scaled: ImageSize
    canvas: ImageSize
    top: int
    left: int
    chips: tuple[Chip, ...]


@dataclass(frozen=True)
class Plan:
    """The plan for one picture.

    Scores of a whole picture are resized to ``size`` before the softmax. Terms of chips are summed on the
    canvas of their pass, cut back to the scaled picture, and then resized to ``size``. Both are bilinear with
    aligned corners. The label of a pixel is the class of the highest sum over all passes.

    Attributes:
        size: size of the picture and of its labels.
        start: the picture is first resized to this, half-pixel bilinear; equal to ``size``: it is not.
        passes: one for each scale.
        flip: the network also sees each chip mirrored.
        whole: each pass has one chip, the whole picture.
        summand: the term that a chip adds.
    """

    size: ImageSize
    start: ImageSize
    passes: tuple[Pass, ...]
    flip: bool
    whole: bool
    summand: Summand

    @property
    def single(self) -> bool:
        """Whether there is one map of scores: then the softmax does not change the order of classes."""
        return self.whole and not self.flip and len(self.passes) == 1

    @property
    def runs(self) -> int:
        """Number of views that the network sees."""
        return sum(len(one.chips) for one in self.passes) * (2 if self.flip else 1)


def make_plan(protocol: Protocol, size: ImageSize) -> Plan:
    """Return the plan of a protocol for a picture of this size."""
    make_pass = _whole_pass if protocol.crop is None else _chip_pass
    start = _started(size, protocol.short_side)
    passes = tuple(make_pass(protocol, _scaled(start, scale)) for scale in protocol.scales)
    return Plan(size, start, passes, protocol.flip, protocol.crop is None, protocol.summand)


def _started(size: ImageSize, short_side: int | None) -> ImageSize:
    if short_side is None:
        return size
    # In this order: the published code rounds the quotient first.
    if size.height < size.width:
        return ImageSize(short_side, max(1, int(short_side / size.height * size.width)))
    return ImageSize(max(1, int(short_side / size.width * size.height)), short_side)


def _scaled(size: ImageSize, scale: float) -> ImageSize:
    return ImageSize(max(1, int(size.height * scale)), max(1, int(size.width * scale)))


def _whole_pass(protocol: Protocol, scaled: ImageSize) -> Pass:
    size = scaled.padded() if protocol.rounded else scaled
    return Pass(size, size, 0, 0, (Chip(0, 0, size),))


def _chip_pass(protocol: Protocol, scaled: ImageSize) -> Pass:
    assert protocol.crop is not None
    canvas = scaled
    if protocol.filled:
        canvas = ImageSize(max(scaled.height, protocol.crop), max(scaled.width, protocol.crop))
    chip = ImageSize(min(canvas.height, protocol.crop), min(canvas.width, protocol.crop))
    step = math.ceil(protocol.crop * protocol.advance)
    chips = tuple(
        Chip(top, left, chip)
        for top in _starts(canvas.height, chip.height, step)
        for left in _starts(canvas.width, chip.width, step)
    )
    middle = (canvas.height - scaled.height) // 2, (canvas.width - scaled.width) // 2
    return Pass(scaled, canvas, *middle, chips)


def _starts(side: int, chip: int, step: int) -> list[int]:
    """Return where chips begin along one axis; the last one is shifted back inside."""
    count = math.ceil((side - chip) / step) + 1
    return [min(index * step, side - chip) for index in range(count)]
