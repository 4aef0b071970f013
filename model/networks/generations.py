"""The generations of the published BiSeNet code, as data.

Sources: CoinCheung/BiSeNet at the commits named below, Deeachain/BiSeNet, zllrunning/face-parsing.PyTorch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from model.artifacts.manifest import Upsample

_SUB_PIXELS = 64
"""Pixels of a cell at stride 8."""


@dataclass(frozen=True)
class Generation:
    """The network of one generation of the code.

    Attributes:
        architecture: key of ``model.networks.segmentation_network.ARCHITECTURES``.
        title: name for people.
        upsample: how raw output becomes full-size scores.
        stride: input pixels per cell of the raw output.
        form: arguments of the architecture's constructor; others have their defaults.
    """

    architecture: str
    title: str
    upsample: Upsample = "bilinear"
    stride: int = 8
    form: Mapping[str, bool | float] = field(default_factory=dict)

    @property
    def scores_per_class(self) -> int:
        """Channels of the raw output for each class: one, or one for each pixel of a cell."""
        return _SUB_PIXELS if self.upsample == "pixel_shuffle" else 1


_OLD = {"squeezed_fusion": True, "head_bias": False}
_OLD_WITHOUT_PATH = {**_OLD, "spatial_path": False}
_IN_PLACE_ABN = {"negative_slope": 0.01}

GENERATIONS: Mapping[str, Generation] = MappingProxyType(
    {
        "v1-g0": Generation(
            "bisenetv1",
            "BiSeNetV1 with in-place ABN (old/)",
            "bilinear_aligned",
            form={**_OLD, **_IN_PLACE_ABN},
        ),
        "v1-g0d": Generation(
            "bisenetv1-diss",
            "BiSeNetV1 without spatial path, with in-place ABN (old/diss/)",
            "bilinear_aligned",
            form={**_OLD_WITHOUT_PATH, **_IN_PLACE_ABN},
        ),
        "v1-g1": Generation("bisenetv1", "BiSeNetV1 of 0471e80 to aa3876b", "bilinear_aligned", form=_OLD),
        "v1-g2": Generation(
            "bisenetv1", "BiSeNetV1 of 12cd095 to 9bb710f", "pixel_shuffle", form={"squeezed_fusion": True}
        ),
        "v1-g3": Generation("bisenetv1", "BiSeNetV1 of c0422a1", form={"squeezed_fusion": True}),
        "v1-g4": Generation("bisenetv1", "BiSeNetV1 since e40b825"),
        "v1-face": Generation(
            "bisenetv1-diss", "face parsing by zllrunning", "bilinear_aligned", form=_OLD_WITHOUT_PATH
        ),
        "v1-diss": Generation(
            "bisenetv1-diss", "BiSeNetV1 without spatial path, trained here", form=_OLD_WITHOUT_PATH
        ),
        "v1-lite": Generation("bisenetv1-lite", "BiSeNetV1 on EfficientNet-Lite0 with scores at stride 8"),
        "v1-lite4": Generation(
            "bisenetv1-lite", "BiSeNetV1 on EfficientNet-Lite0, trained here", stride=4, form={"sub_cells": 2}
        ),
        "v2-g0": Generation(
            "bisenetv2", "BiSeNetV2 up to aa3876b", "bilinear_aligned", form={"bilinear_context": True}
        ),
        "v2-g2": Generation("bisenetv2", "BiSeNetV2 of 12cd095 to 9bb710f", "pixel_shuffle"),
        "v2-g4": Generation("bisenetv2", "BiSeNetV2 since c0422a1"),
    }
)
"""Name of a generation in manifests -> the generation."""
