"""Scores of the network on the validation split: whole pictures at their own size.

Axes: K classes, H height, W width, h w = the raw scores' own height and width, n cells.
"""

from __future__ import annotations

import json
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
        loss: cross-entropy, mean over the labelled cells of all pictures (``cell_loss``); None without any.
    """

    matrix: ConfusionMatrix
    images: tuple[ScoredImage, ...]
    loss: float | None


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
    losses = []

    def scored(index: int, image_HW3: Tensor, label_HW: Tensor) -> ScoredImage:
        raw_Khw = _raw_scores(network, image_HW3, compute)
        losses.append(
            cell_loss(raw_Khw, label_HW, upsample=architecture.upsample, ignore_id=palette.ignore_id)
        )
        guess_HW = _labels(raw_Khw, architecture, ImageSize(*image_HW3.shape[:2]))
        return ScoredImage.of(index, pictures.names[index], label_HW.cpu().numpy(), guess_HW, palette)

    share = ranks.share(len(pictures.names))
    pairs = zip(share, iterate_pictures(pictures, share, before_each), strict=True)
    images = tuple(scored(index, *pair) for index, pair in pairs)
    parts = (image.matrix(palette.num_classes) for image in images)
    own = sum(parts, ConfusionMatrix.zeros(palette.num_classes))
    device = next(network.parameters()).device
    return Scores(ranks.total(own, device), images, _mean_loss(losses, ranks, device))


@torch.no_grad()
def segment(
    network: SegmentationNetwork, image_HW3: Tensor, *, architecture: Architecture, compute: ComputeConfig
) -> UInt8Array:
    """Return labels_HW, uint8, of one picture on the device of the network."""
    raw_Khw = _raw_scores(network, image_HW3, compute)
    return _labels(raw_Khw, architecture, ImageSize(*image_HW3.shape[:2]))


def cell_loss(raw_Khw: Tensor, label_HW: Tensor, *, upsample: Upsample, ignore_id: int) -> tuple[float, int]:
    """Return the cross-entropy where the network has scores: at the centre of each cell of its output.

    At a stride of 8 these are 1/64 of the values of full-size scores.

    Args:
        raw_Khw: raw output of a bilinear head for one picture, float32.
        label_HW: uint8 class ids or the ignore id, at the size of the picture.
        upsample: ``bilinear`` or ``bilinear_aligned``: where the centres lie.
        ignore_id: id of pixels that do not count.

    Returns:
        Sum over the labelled cells, and their number.
    """
    size = ImageSize(*label_HW.shape)
    padded = size.padded()
    rows = _centres(raw_Khw.shape[1], padded.height, upsample)
    columns = _centres(raw_Khw.shape[2], padded.width, upsample)
    inside_rows, inside_columns = rows < size.height, columns < size.width
    cells_n = label_HW[rows[inside_rows]][:, columns[inside_columns]].long().flatten()
    scores_nK = raw_Khw[:, inside_rows][:, :, inside_columns].flatten(1).T
    # One axis of cells: on a GPU torch has no deterministic loss over two.
    total = functional.cross_entropy(scores_nK, cells_n, ignore_index=ignore_id, reduction="sum")
    return float(total), int((cells_n != ignore_id).sum())


def _centres(cells: int, pixels: int, upsample: Upsample) -> Tensor:
    """Return the pixel nearest to the centre of each cell along an axis."""
    if upsample == "bilinear_aligned":
        return torch.linspace(0, pixels - 1, cells).round().long()
    return ((torch.arange(cells) + 0.5) * pixels / cells).long()


def _mean_loss(losses: list[tuple[float, int]], ranks: Ranks, device: torch.device) -> float | None:
    own = json.dumps([sum(total for total, _ in losses), sum(count for _, count in losses)])
    parts = [json.loads(text) for text in ranks.texts(own, device)]
    count = sum(count for _, count in parts)
    return sum(total for total, _ in parts) / count if count else None


def _raw_scores(network: SegmentationNetwork, image_HW3: Tensor, compute: ComputeConfig) -> Tensor:
    with compute.autocast(image_HW3.device):
        raw_Khw: Tensor = network(image_HW3[None])[0].float()
    return raw_Khw


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
