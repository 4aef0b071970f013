"""The training set, decoded once and held in memory, and which of it each step sees.

Axes: N images in a batch, H height, W width, 3 = red green blue.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from model.dataset import DatasetSpec, LabeledImages
from model.preprocess import Rgb
from training.errors import ConfigError

_BYTE = 256
_MAX_VALUE = 255.0
_DIGITS = 4
# Streams of randomness; a new use takes a new number and disturbs no other.
AUGMENT_STREAM, NETWORK_STREAM, EPOCH_STREAM, WEIGHTS_STREAM = range(4)


@dataclass(frozen=True)
class DataConfig:
    """Which data set is learned and which is looked at meanwhile.

    Args:
        dataset: a preset (``camvid``) or the path of a data-set TOML.
        root: replaces the root of the data set; a preset needs it; empty = as the file says.
        train_splits: learned from, all together.
        val_split: validated on.

    Raises:
        ConfigError: there is no training split.
    """

    dataset: str
    train_splits: tuple[str, ...]
    val_split: str
    root: str = ""

    def __post_init__(self) -> None:
        """Refuse a run that would learn from nothing."""
        if not self.train_splits:
            raise ConfigError("data.train_splits names no split")

    def spec(self) -> DatasetSpec:
        """Read the data set's description.

        Raises:
            model.errors.DatasetError: there is none, or it is malformed.
        """
        return DatasetSpec.load(self.dataset, root=Path(self.root) if self.root else None)


@dataclass(frozen=True, eq=False)
class ResidentImages:
    """Pictures and labels of some splits, decoded, in memory.

    Attributes:
        images: each (3, H, W) uint8 RGB.
        labels: each (H, W) uint8; class ids or the ignore id.
        fingerprint: SHA-256 over the splits' fingerprints, 64 hex digits.
    """

    images: tuple[Tensor, ...]
    labels: tuple[Tensor, ...]
    fingerprint: str

    @classmethod
    def load(cls, spec: DatasetSpec, splits: Sequence[str], device: torch.device) -> ResidentImages:
        """Decode every pair of the splits onto a device.

        Raises:
            model.errors.DatasetError: a list or a file is unusable.
        """
        parts = [LabeledImages(spec, split) for split in splits]
        images, labels = [], []
        for part in parts:
            for index in range(len(part)):
                image_HW3, label_HW = part[index]
                images.append(torch.from_numpy(image_HW3.transpose(2, 0, 1).copy()).to(device))
                labels.append(torch.from_numpy(label_HW).to(device))
        digests = "".join(part.fingerprint for part in parts)
        return cls(tuple(images), tuple(labels), hashlib.sha256(digests.encode()).hexdigest())

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.images)


@dataclass(frozen=True, eq=False)
class TrainingData:
    """What a run learns from and validates on, and what follows from it alone.

    Attributes:
        spec: the data set.
        train: the training splits, all together.
        val: the validation split.
        mean: RGB of the training pictures, of values 0..1; what the network normalises with.
        std: the same for the standard deviation.
    """

    spec: DatasetSpec
    train: ResidentImages
    val: ResidentImages
    mean: Rgb
    std: Rgb

    @classmethod
    def load(cls, config: DataConfig, device: torch.device) -> TrainingData:
        """Decode everything onto a device, and measure the training pictures.

        Raises:
            model.errors.DatasetError: the data set is unusable.
        """
        spec = config.spec()
        train = ResidentImages.load(spec, config.train_splits, device)
        mean, std = color_statistics(train.images)
        return cls(spec, train, ResidentImages.load(spec, [config.val_split], device), mean, std)

    @property
    def device(self) -> torch.device:
        """Where the pictures are, and so where the run computes."""
        return self.train.images[0].device

    @property
    def fingerprint(self) -> str:
        """Of the data that weights depend on: 64 hex digits."""
        return self.train.fingerprint

    @property
    def summary(self) -> str:
        """One line for people."""
        return (
            f"{self.spec.name}: {len(self.train)} pictures to learn from, {len(self.val)} to validate on,"
            f" {self.device}; mean {self.mean}, std {self.std}"
        )


def color_statistics(images: Sequence[Tensor]) -> tuple[Rgb, Rgb]:
    """Measure what the network normalises with.

    Args:
        images: each (3, H, W) uint8.

    Returns:
        mean and standard deviation, RGB, of values 0..1, rounded to four digits.
    """
    counts_3V = np.zeros((3, _BYTE), np.int64)
    for image in images:
        channels = image.cpu().numpy()
        counts_3V += np.stack([np.bincount(channel.reshape(-1), minlength=_BYTE) for channel in channels])
    values = np.arange(_BYTE) / _MAX_VALUE
    weights_3V = counts_3V / counts_3V.sum(axis=1, keepdims=True)
    mean = weights_3V @ values
    std = np.sqrt(weights_3V @ values**2 - mean**2)
    return _rounded(mean.tolist()), _rounded(std.tolist())


def class_frequencies(labels: Sequence[Tensor], num_classes: int) -> Tensor:
    """Measure the share of each class among the labelled pixels: shape (K,) float32, sums to 1.

    Args:
        labels: each (H, W) uint8; ids outside [0, K) are not counted.
        num_classes: K.
    """
    counts = np.zeros(_BYTE, np.int64)
    for label in labels:
        counts += np.bincount(label.cpu().numpy().reshape(-1), minlength=_BYTE)
    scored = counts[:num_classes]
    return torch.from_numpy(scored / max(1, scored.sum())).float()


def step_generator(seed: int, step: int, stream: int) -> torch.Generator:
    """Return randomness that depends on nothing but its arguments: what makes a resumed run exact."""
    return torch.Generator().manual_seed(step_seed(seed, step, stream))


def step_seed(seed: int, step: int, stream: int) -> int:
    """Mix run seed, step and stream into 63 bits."""
    return int(np.random.SeedSequence([seed, step, stream]).generate_state(1, np.uint64)[0] >> 1)


def batch_indices(seed: int, step: int, *, batch_size: int, size: int) -> list[int]:
    """Choose the pictures of one step: every epoch sees each of them once, in an order of its own.

    Batches run on across the end of an epoch; nothing is dropped or repeated.

    Args:
        seed: of the run.
        step: from 0.
        batch_size: pictures a step.
        size: pictures in the set.
    """
    first = step * batch_size
    epochs = range(first // size, (first + batch_size - 1) // size + 1)
    orders = {epoch: _epoch_order(seed, epoch, size) for epoch in epochs}
    return [orders[position // size][position % size] for position in range(first, first + batch_size)]


def _epoch_order(seed: int, epoch: int, size: int) -> list[int]:
    order: list[int] = torch.randperm(size, generator=step_generator(seed, epoch, EPOCH_STREAM)).tolist()
    return order


def _rounded(values: Sequence[float]) -> Rgb:
    red, green, blue = (round(value, _DIGITS) for value in values)
    return red, green, blue
