"""How good the network is now: whole pictures at their own size, one scale, scored as everywhere.

Axes: N images in a batch, K classes, H height, W width, h w = the raw scores' own height and width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from model.artifacts.manifest import Upsample
from model.evaluation.evaluation import ScoredImage
from model.evaluation.metrics import ConfusionMatrix
from model.labels import ClassPalette, UInt8Array
from model.networks.segmentation_network import Architecture, SegmentationNetwork
from model.pictures.preprocess import ImageSize
from training.data.pictures import PictureSource, iterate_pictures
from training.distributed import Ranks
from training.optimisation.precision import ComputeConfig


@dataclass(frozen=True, eq=False)
class Scores:
    """How good a network is on a split.

    Attributes:
        matrix: of all pictures together.
        images: what each picture adds, of those that this process looked at.
    """

    matrix: ConfusionMatrix
    images: tuple[ScoredImage, ...]


@torch.no_grad()
def validate(
    network: SegmentationNetwork,
    pictures: PictureSource,
    *,
    architecture: Architecture,
    palette: ClassPalette,
    compute: ComputeConfig,
    ranks: Ranks,
    before_each: Callable[[], None] = lambda: None,
) -> Scores:
    """Score a network in evaluation mode on whole pictures (protocol ``ss``).

    Each picture is scored by exactly one process and none twice; what they add up are int64 counts.

    Args:
        network: on the device of the pictures.
        pictures: with labels.
        architecture: how its raw scores become full-size ones.
        palette: of the labels.
        compute: in which numbers.
        ranks: the processes that share the work.
        before_each: called before each picture; what it raises ends the work.
    """

    def scored(index: int, image_HW3: Tensor, label_HW: Tensor) -> ScoredImage:
        guess_HW = segment(network, image_HW3, architecture=architecture, compute=compute)
        return ScoredImage.of(index, pictures.names[index], label_HW.cpu().numpy(), guess_HW, palette)

    share = ranks.share(len(pictures.names))
    pairs = zip(share, iterate_pictures(pictures, share, before_each), strict=True)
    images = tuple(scored(index, *pair) for index, pair in pairs)
    parts = (image.matrix(palette.num_classes) for image in images)
    own = sum(parts, ConfusionMatrix.zeros(palette.num_classes))
    return Scores(ranks.total(own, next(network.parameters()).device), images)


@torch.no_grad()
def segment(
    network: SegmentationNetwork, image_HW3: Tensor, *, architecture: Architecture, compute: ComputeConfig
) -> UInt8Array:
    """Return labels_HW, uint8, of one picture on the network's device."""
    with compute.autocast(image_HW3.device):
        raw_Khw = network(image_HW3[None])[0].float()
    return _labels(raw_Khw, architecture, ImageSize(*image_HW3.shape[:2]))


def _labels(raw_Khw: Tensor, architecture: Architecture, size: ImageSize) -> UInt8Array:
    if raw_Khw.is_cuda:
        return device_labels(raw_Khw, upsample=architecture.upsample, size=size)
    # A machine that trains on a GPU need not have numba, which the decoder compiles with.
    from model.decoding.decode import labels  # noqa: PLC0415

    return labels(
        raw_Khw.numpy(),
        upsample=architecture.upsample,
        stride=architecture.stride,
        padded=size.padded(),
        content=size,
        original=size,
    )


def device_labels(raw_Khw: Tensor, *, upsample: Upsample, size: ImageSize) -> UInt8Array:
    """Decode scores to labels on their own device, as ``model.decoding.decode.labels`` does on the CPU.

    Args:
        raw_Khw: a bilinear head's raw output for one picture, float32.
        upsample: ``bilinear`` or ``bilinear_aligned``.
        size: of the picture, which was padded to multiples of 32.

    Returns:
        labels_HW of ``size``, uint8.
    """
    padded = size.padded()
    scores_1KHW = functional.interpolate(
        raw_Khw[None],
        size=(padded.height, padded.width),
        mode="bilinear",
        align_corners=upsample == "bilinear_aligned",
    )
    best_HW = scores_1KHW[0, :, : size.height, : size.width].argmax(0)
    labels_HW: UInt8Array = best_HW.to(torch.uint8).cpu().numpy()
    return labels_HW
