"""How good the network is now: whole pictures at their own size, one scale, scored as everywhere.

Axes: N images in a batch, K classes, H height, W width, h w = the raw scores' own height and width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from model.labels import ClassPalette, UInt8Array
from model.manifest import Upsample
from model.metrics import ConfusionMatrix, confusion_matrix
from model.network import Architecture, SegmentationNetwork
from model.preprocess import ImageSize
from training.data import ResidentImages


@torch.no_grad()
def validate(
    network: SegmentationNetwork,
    pictures: ResidentImages,
    *,
    architecture: Architecture,
    palette: ClassPalette,
) -> ConfusionMatrix:
    """Score a network in evaluation mode on whole pictures (protocol ``ss``).

    Args:
        network: on the device of the pictures.
        pictures: with labels.
        architecture: how its raw scores become full-size ones.
        palette: of the labels.
    """
    total = ConfusionMatrix.zeros(palette.num_classes)
    for image_3HW, label_HW in zip(pictures.images, pictures.labels, strict=True):
        with torch.autocast(image_3HW.device.type, torch.bfloat16):
            raw_Khw = network(image_3HW.permute(1, 2, 0)[None])[0].float()
        size = ImageSize(*label_HW.shape)
        guess_HW = _labels(raw_Khw, architecture, size)
        total += confusion_matrix(
            label_HW.cpu().numpy(), guess_HW, num_classes=palette.num_classes, ignore_id=palette.ignore_id
        )
    return total


def _labels(raw_Khw: Tensor, architecture: Architecture, size: ImageSize) -> UInt8Array:
    if raw_Khw.is_cuda:
        return device_labels(raw_Khw, upsample=architecture.upsample, size=size)
    # A machine that trains on a GPU need not have numba, which the decoder compiles with.
    from model.decode import labels  # noqa: PLC0415

    return labels(
        raw_Khw.numpy(),
        upsample=architecture.upsample,
        stride=architecture.stride,
        padded=size.padded(),
        content=size,
        original=size,
    )


def device_labels(raw_Khw: Tensor, *, upsample: Upsample, size: ImageSize) -> UInt8Array:
    """Do what ``model.decode.labels`` does where the scores are, so that only labels leave the device.

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
