"""A small network with random weights and four classes, and its manifest."""

from __future__ import annotations

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
_PARAMETERS = {"head_channels": 16}


def tiny_network() -> SegmentationNetwork:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return build(
            "bisenetv2", TINY_PALETTE.num_classes, _PARAMETERS, mean=_MEAN, std=_STD, with_auxiliary=False
        ).eval()


def tiny_manifest() -> ModelManifest:
    architecture = ARCHITECTURES["bisenetv2"]
    return ModelManifest(
        architecture="bisenetv2",
        generation=architecture.generation,
        parameters=_PARAMETERS,
        upsample=architecture.upsample,
        stride=architecture.stride,
        palette=TINY_PALETTE,
        mean=_MEAN,
        std=_STD,
        precision="f16",
    )
