"""A network of any architecture with random weights and four classes, and its manifest.

Without an architecture it is a BiSeNetV2 with a narrow head.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from model.artifacts.manifest import ModelManifest
from model.labels import ClassPalette
from model.networks.segmentation_network import ARCHITECTURES, SegmentationNetwork, build

TINY_PALETTE = ClassPalette(
    names=("sky", "road", "car", "tree"),
    colors=((70, 130, 180), (128, 64, 128), (0, 0, 142), (107, 142, 35)),
)
_MEAN = (0.25, 0.5, 0.75)
_STD = (0.25, 0.25, 0.25)
TINY_ARCHITECTURE = "bisenetv2"
_NARROW = {"head_channels": 16}


def tiny_network(name: str = TINY_ARCHITECTURE) -> SegmentationNetwork:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return build(
            name, TINY_PALETTE.num_classes, _parameters(name), mean=_MEAN, std=_STD, with_auxiliary=False
        ).eval()


def _parameters(name: str) -> Mapping[str, int]:
    """Return narrow heads where the architecture lets one choose, and its defaults for the rest."""
    known = ARCHITECTURES[name].parameters
    return {**known, **{key: value for key, value in _NARROW.items() if key in known}}


def tiny_manifest(name: str = TINY_ARCHITECTURE) -> ModelManifest:
    architecture = ARCHITECTURES[name]
    return ModelManifest(
        architecture=name,
        generation=architecture.generation,
        parameters=_parameters(name),
        upsample=architecture.upsample,
        stride=architecture.stride,
        palette=TINY_PALETTE,
        mean=_MEAN,
        std=_STD,
        precision="f16",
    )
