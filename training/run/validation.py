"""Scores of the network on the validation split: whole pictures at their own size.

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
    """Scores of a network on a split.

    Attributes:
        matrix: counts of all pictures together.
        images: counts of each picture that this process scored.
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
    """Score a network in evaluation mode on whole pictures, padded as the service pads them.

    One process scores each picture; the counts are int64, so their sum is exact.

    Args:
        network: on the device of the pictures.
        pictures: with labels.
        architecture: of the network, for the up-sampling of its scores.
        palette: of the labels.
        compute: precision of the network.
        ranks: the processes that share the work.
        before_each: called before each picture; its exceptions end the work.
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
    """Return labels_HW, uint8, of one picture on the device of the network."""
    with compute.autocast(image_HW3.device):
        raw_Khw = network(image_HW3[None])[0].float()
    return _labels(raw_Khw, architecture, ImageSize(*image_HW3.shape[:2]))


def _labels(raw_Khw: Tensor, architecture: Architecture, size: ImageSize) -> UInt8Array:
    if raw_Khw.is_cuda:
        return device_labels(raw_Khw, upsample=architecture.upsample, size=size)
    # A machine that trains on a GPU may lack numba, which compiles the decoder.
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
    """Decode scores on their own device; ``model.decoding.decode.labels`` does the same on the CPU.

    Args:
        raw_Khw: raw output of a bilinear head for one picture, float32.
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
