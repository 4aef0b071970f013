"""Batch statistics of whole pictures instead of training crops.

Axes: N images in a batch, H height, W width, 3 = red green blue.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from model.networks.segmentation_network import SegmentationNetwork
from model.pictures.preprocess import PAD_MULTIPLE, ImageSize
from training.data.pictures import PictureSource, iterate_pictures
from training.optimisation.precision import ComputeConfig

_MAX_PICTURES = 512
_MIN_BATCH = 2


def calibration_sample(count: int) -> range:
    """Return the indices of an even sample of ``count`` pictures: at most 512."""
    return range(0, count, -(-count // _MAX_PICTURES))


@torch.no_grad()
def calibrated(
    network: SegmentationNetwork,
    pictures: PictureSource,
    *,
    batch_size: int,
    max_pixels: int,
    pad_color: tuple[int, int, int],
    compute: ComputeConfig,
    before_each: Callable[[], None] = lambda: None,
    sample: Sequence[int] | None = None,
) -> SegmentationNetwork:
    """Return a copy whose batch normalisation has the mean and variance of whole pictures.

    The statistics of training come from zoomed, partly empty crops and from earlier weights. They do not fit
    whole pictures and averaged weights: after 6,000 steps, BiSeNetV2 on CamVid had 53.6 mIoU on val with
    them, and 66.8 with these.

    Args:
        network: on the device of the pictures; not changed.
        pictures: of the training split.
        batch_size: pictures that are normalised together, at least 2.
        max_pixels: pixels of a batch; batches of larger pictures have fewer, but at least 2.
        pad_color: RGB 0..255; pads pictures to the size of their batch.
        compute: precision of the network.
        before_each: called before each picture; its exception ends the work.
        sample: indices of the pictures; None = ``calibration_sample`` of all.

    Source:
        "Precise BN", Wu and Johnson, Rethinking "Batch" in BatchNorm, 2021.
    """
    network = copy.deepcopy(network).eval()
    if len(pictures.names) < _MIN_BATCH:
        return network  # one picture has no batch statistics
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d | nn.SyncBatchNorm):
            layer.reset_running_stats()
            layer.momentum = None  # the plain mean over all batches
            layer.train()
    sample = calibration_sample(len(pictures.names)) if sample is None else sample
    # Neighbours in a list are often frames of one film, which vary little: hence a random order.
    order = torch.randperm(len(sample), generator=torch.Generator().manual_seed(0)).tolist()
    pairs = iterate_pictures(pictures, [sample[index] for index in order], before_each)
    for images_NHW3 in _batches((image_HW3 for image_HW3, _ in pairs), batch_size, max_pixels, pad_color):
        with compute.autocast(images_NHW3.device):
            network(images_NHW3)
    return network.eval()


def _batches(
    images: Iterable[Tensor], batch_size: int, max_pixels: int, pad_color: tuple[int, int, int]
) -> Iterator[Tensor]:
    """Stack pictures of one padded size; remaining pictures share batches, and a single one is left out."""

    def count_of(pixels: int) -> int:
        return min(batch_size, max(_MIN_BATCH, max_pixels // pixels))

    waiting: dict[ImageSize, list[Tensor]] = {}
    for image_HW3 in images:
        size = ImageSize(*image_HW3.shape[:2]).padded()
        batch = waiting.setdefault(size, [])
        batch.append(image_HW3)
        if len(batch) == count_of(size.pixels):
            yield _stacked(waiting.pop(size), pad_color)
    rest = [image for size in sorted(waiting, key=lambda size: size.shape) for image in waiting[size]]
    largest = max((ImageSize(*image.shape[:2]).padded().pixels for image in rest), default=1)
    together = count_of(largest)
    for first in range(0, len(rest) - 1, together):
        yield _stacked(rest[first : first + together], pad_color)


def _stacked(images: Sequence[Tensor], pad_color: tuple[int, int, int]) -> Tensor:
    height, width = (-(-max(i.shape[axis] for i in images) // PAD_MULTIPLE) * PAD_MULTIPLE for axis in (0, 1))
    color = torch.tensor(pad_color, dtype=torch.uint8, device=images[0].device)
    canvas_NHW3 = color.repeat(len(images), height, width, 1)
    for place_HW3, image_HW3 in zip(canvas_NHW3, images, strict=True):
        rows, columns, _ = image_HW3.shape
        place_HW3[:rows, :columns] = image_HW3
    return canvas_NHW3
