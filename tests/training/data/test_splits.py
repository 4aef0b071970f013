from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from model.errors import DatasetError
from training.config import TrainingConfig
from training.data.splits import DataConfig, TrainingData
from training.errors import ConfigError

CPU = torch.device("cpu")


def test_several_splits_are_learned_from_together(config: TrainingConfig, data: TrainingData) -> None:
    both = dataclasses.replace(config.data, train_splits=("train", "val"))
    together = TrainingData.load(both, CPU)
    assert (len(data.train.names), len(together.train.names)) == (5, 7)
    assert together.train.fingerprint != data.train.fingerprint
    assert both.validates_on_learned
    assert not config.data.validates_on_learned


def test_the_fingerprint_is_that_of_all_pictures(config: TrainingConfig, data: TrainingData) -> None:
    assert TrainingData.load(config.data, CPU).fingerprint == data.fingerprint
    swapped = dataclasses.replace(data, train=data.val, val=data.train)
    assert len({data.fingerprint, swapped.fingerprint, data.train.fingerprint, data.val.fingerprint}) == 4


@pytest.mark.parametrize("residency", ["device", "host", "files"])
def test_pictures_are_the_same_from_wherever_they_come(
    config: TrainingConfig, data: TrainingData, residency: str
) -> None:
    kept = TrainingData.load(dataclasses.replace(config.data, residency=residency), CPU)  # type: ignore[arg-type]
    for index in (4, 0, 4):
        taken, (place,) = kept.train.take([index])
        wanted, (there,) = data.train.take([index])
        assert torch.equal(taken.image(place), wanted.image(there))
        assert torch.equal(taken.label(place), wanted.label(there))
    kept.close()


def test_a_run_never_starts_on_data_with_a_mistake_in_them(
    config: TrainingConfig, dataset_file: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.toml"
    text = dataset_file.read_text().replace('name = "blue"', 'name = "blue2"').replace("[splits]", "[splits]")
    first_two = text[: text.rindex("[[classes]]")]
    broken.write_text(first_two)
    moved = dataclasses.replace(config.data, dataset=str(broken), root=str(dataset_file.parent))
    with pytest.raises(DatasetError, match=r"7 problems .*\n.*train\.csv:1: .*train0_ids\.png: ids \[2\]"):
        TrainingData.load(moved, CPU)


@pytest.mark.parametrize("change", [{"train_splits": ()}, {"residency": "cloud"}, {"workers": -1}])
def test_a_config_out_of_range_is_refused(change: dict[str, object]) -> None:
    values = {"dataset": "camvid", "train_splits": ("train",), "val_split": "val"} | change
    with pytest.raises(ConfigError, match=next(iter(change))):
        DataConfig(**values)  # type: ignore[arg-type]
