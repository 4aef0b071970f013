from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.dataset import DatasetSpec
from training.config import TrainingConfig
from training.data import (
    AUGMENT_STREAM,
    EPOCH_STREAM,
    DataConfig,
    ResidentImages,
    TrainingData,
    batch_indices,
    class_frequencies,
    color_statistics,
    step_generator,
    step_seed,
)
from training.errors import ConfigError


@given(
    seed=st.integers(0, 2**40),
    size=st.integers(1, 30),
    batch_size=st.integers(1, 12),
    epochs=st.integers(1, 4),
)
def test_every_epoch_sees_every_picture_once(seed: int, size: int, batch_size: int, epochs: int) -> None:
    steps = -(-size * epochs // batch_size)
    seen = [i for step in range(steps) for i in batch_indices(seed, step, batch_size=batch_size, size=size)]
    for epoch in range(epochs):
        assert sorted(seen[epoch * size : (epoch + 1) * size]) == list(range(size))


def test_epochs_differ_in_their_order() -> None:
    first, second = (batch_indices(0, step, batch_size=50, size=50) for step in range(2))
    assert first != second


def test_randomness_depends_on_seed_step_and_stream() -> None:
    arguments = [(0, 0, AUGMENT_STREAM), (1, 0, AUGMENT_STREAM), (0, 1, AUGMENT_STREAM), (0, 0, EPOCH_STREAM)]
    assert len({step_seed(*each) for each in arguments}) == len(arguments)
    draws = [torch.rand(3, generator=step_generator(7, 8, AUGMENT_STREAM)) for _ in range(2)]
    assert torch.equal(*draws)


def test_colour_statistics_are_mean_and_deviation_over_all_pixels() -> None:
    generator = torch.Generator().manual_seed(0)
    images = [
        torch.randint(0, high, (3, 20, width), generator=generator, dtype=torch.uint8)
        for high, width in ((50, 10), (256, 30))
    ]
    mean, std = color_statistics(images)
    pixels = np.concatenate([image.numpy().reshape(3, -1) for image in images], axis=1) / 255
    assert mean == pytest.approx(pixels.mean(axis=1), abs=1e-4)
    assert std == pytest.approx(pixels.std(axis=1), abs=1e-4)


def test_class_frequencies_leave_out_what_is_no_class() -> None:
    label = torch.tensor([[0, 0, 0, 1, 255, 255]], dtype=torch.uint8)
    assert class_frequencies([label, label], 3).tolist() == [0.75, 0.25, 0]


def test_several_splits_are_learned_from_together(dataset_file: Path) -> None:
    spec, cpu = DatasetSpec.from_toml(dataset_file), torch.device("cpu")
    train = ResidentImages.load(spec, ["train"], cpu)
    both = ResidentImages.load(spec, ["train", "val"], cpu)
    assert (len(train), len(both)) == (5, 7)
    assert both.fingerprint != train.fingerprint


def test_the_fingerprint_is_that_of_the_training_pictures(config: TrainingConfig, data: TrainingData) -> None:
    again = TrainingData.load(config.data, torch.device("cpu"))
    assert again.fingerprint == data.fingerprint == data.train.fingerprint != data.val.fingerprint


def test_a_run_without_a_training_split_is_refused() -> None:
    with pytest.raises(ConfigError, match="train_splits"):
        DataConfig(dataset="camvid", train_splits=(), val_split="val")
