"""The pictures that a run learns from and validates on, checked before anything is computed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import torch

from model.datasets.coverage import describe_untaken, files_not_taken
from model.datasets.dataset import DatasetSpec, LabeledImages
from model.errors import DatasetError
from model.pictures.preprocess import PreprocessSpec, Rgb
from model.quotas import usable_cores
from training.data.findings import describe_notes, refuse_problems
from training.data.inspection import inspect_split
from training.data.pictures import PictureSource, Residency, choose_residency, free_bytes, load_pictures
from training.data.split_facts import SplitFacts, class_shares, color_statistics
from training.errors import ConfigError

ResidencyChoice = Literal["auto", "device", "host", "files"]


@dataclass(frozen=True)
class DataConfig:
    """The data set of a run.

    Args:
        dataset: a preset (``camvid``) or the path of a data-set TOML.
        train_splits: splits to learn from, all together.
        val_split: split to validate on.
        root: replaces the root of the data set; a preset needs it; empty = as the file says.
        residency: where the decoded pictures are: on the ``device``, on the ``host``, or decoded from their
            ``files`` as steps need them; ``auto`` = the first of these that holds them.
        workers: threads that decode; 0 = one a core.
        skip_broken: leave out pairs whose files are broken, and say which; otherwise they end the run.

    Raises:
        ConfigError: there is no training split, or a value is out of range.
    """

    dataset: str
    train_splits: tuple[str, ...]
    val_split: str
    root: str = ""
    residency: ResidencyChoice = "auto"
    workers: int = 0
    skip_broken: bool = False

    def __post_init__(self) -> None:
        """Refuse a run without training pictures, and values out of range."""
        if not self.train_splits:
            raise ConfigError("data.train_splits names no split")
        if self.residency not in get_args(ResidencyChoice):
            raise ConfigError(
                f"data.residency must be one of {get_args(ResidencyChoice)}, not {self.residency!r}"
            )
        if self.workers < 0:
            raise ConfigError(f"data.workers must not be negative: {self.workers}")

    def spec(self) -> DatasetSpec:
        """Read the data set's description.

        Raises:
            model.errors.DatasetError: there is none, or it is malformed.
        """
        return DatasetSpec.load(self.dataset, root=Path(self.root) if self.root else None)

    @property
    def threads(self) -> int:
        """Number of threads that decode."""
        return self.workers or usable_cores()

    @property
    def validates_on_training_pictures(self) -> bool:
        """Whether the run learns from the pictures that it validates on, so that its scores say nothing."""
        return self.val_split in self.train_splits


@dataclass(frozen=True, eq=False)
class TrainingData:
    """The pictures of a run, and the values that follow from them alone.

    Attributes:
        spec: the data set.
        train: pictures of all training splits.
        val: pictures of the validation split.
        facts: facts of each training split.
        device: device on which crops are cut.
        mean: mean that the network normalises with, RGB, of values 0..1.
        std: standard deviation that the network normalises with, RGB, of values 0..1.
    """

    spec: DatasetSpec
    train: PictureSource
    val: PictureSource
    facts: tuple[SplitFacts, ...]
    device: torch.device
    mean: Rgb
    std: Rgb

    @classmethod
    def load(
        cls,
        config: DataConfig,
        device: torch.device,
        *,
        cache_folder: Path | None = None,
        processes: int = 1,
        progress: Callable[[str], None] = lambda line: None,  # noqa: ARG005 - nothing is shown
    ) -> TrainingData:
        """Check every pair, then bring the pictures as near to the device as they fit.

        Args:
            config: the data set.
            device: where crops are cut.
            cache_folder: keeps the facts of sound splits; None = nowhere.
            processes: number of processes of this run that share the memory of this machine.
            progress: called with a line on each thing that is done or left out.

        Raises:
            model.errors.DatasetError: a list, a file or an id is unusable; the message names it.
        """
        spec = config.spec()
        names = (*config.train_splits, config.val_split)
        opened = [LabeledImages(spec, name) for name in dict.fromkeys(names)]
        progress(f"{spec.name}: reading {sum(map(len, opened))} pairs")
        for untaken in files_not_taken(spec):
            progress(f"not taken: {describe_untaken(untaken, spec)}")
        checked = [
            _check_split(split, config, cache_folder=cache_folder, progress=progress) for split in opened
        ]
        refuse_problems([facts for _, facts in checked], spec)
        splits = {facts.split: split for split, facts in checked}
        facts = {facts.split: facts for _, facts in checked}

        def source(*names: str) -> PictureSource:
            pixels = sum(facts[name].pixels for name in names)
            residency = _residency(config.residency, pixels, device, processes)
            progress(f"{' and '.join(names)}: {pixels / 1e6:.1f} million pixels, from the {residency}")
            return load_pictures(
                [splits[name] for name in names],
                pixels=pixels,
                residency=residency,
                workers=config.threads,
                device=device,
            )

        of_train = tuple(facts[name] for name in config.train_splits)
        mean, std = color_statistics(of_train)
        train, val = source(*config.train_splits), source(config.val_split)
        return cls(spec, train, val, of_train, device, mean, std)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the fingerprints of training and validation pictures: 64 hex digits."""
        both = self.train.fingerprint + self.val.fingerprint
        return hashlib.sha256(both.encode()).hexdigest()

    @property
    def pad_color(self) -> tuple[int, int, int]:
        """Colour outside a picture, RGB 0..255."""
        return PreprocessSpec(self.mean).pad_color

    @property
    def class_frequencies(self) -> list[float]:
        """Share of each class among the labelled training pixels."""
        return class_shares(self.facts, self.spec.palette.num_classes)

    def with_normalisation(self, mean: Rgb, std: Rgb) -> TrainingData:
        """Return the data for a network that normalises with another mean and deviation."""
        return replace(self, mean=mean, std=std)

    def close(self) -> None:
        """End the threads that decode."""
        self.train.close()
        self.val.close()

    @property
    def summary(self) -> str:
        """Counts of pictures, device and normalisation in one line."""
        return (
            f"{self.spec.name}: {len(self.train.names)} pictures to learn from, {len(self.val.names)} to"
            f" validate on, {self.device}; mean {self.mean}, std {self.std}"
        )


def _check_split(
    split: LabeledImages,
    config: DataConfig,
    *,
    cache_folder: Path | None,
    progress: Callable[[str], None],
) -> tuple[LabeledImages, SplitFacts]:
    """Read a split, and leave its broken pairs out where the configuration allows it.

    Raises:
        model.errors.DatasetError: every pair is broken.
    """
    facts = inspect_split(split, workers=config.threads, cache_folder=cache_folder)
    for note in describe_notes(facts, split):
        progress(note)
    if not (config.skip_broken and facts.broken):
        return split, facts
    if len(facts.broken) == len(split):
        raise DatasetError(f"split {split.split}: every pair is broken, first {facts.broken[0].message}")
    progress(f"split {split.split}: {len(facts.broken)} of {len(split)} pairs are broken and left out")
    for pair in facts.broken.values():
        progress(f"left out: {pair.message}")
    kept = LabeledImages(split.spec, split.split, leave_out=facts.broken.keys())
    return kept, replace(facts, broken={}, pictures=len(kept))


def _residency(choice: ResidencyChoice, pixels: int, device: torch.device, processes: int) -> Residency:
    if choice != "auto":
        return choice
    on_device, on_host = free_bytes(device, processes)
    return choose_residency(pixels, on_device=on_device, on_host=on_host)
