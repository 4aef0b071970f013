from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch

from model.errors import DatasetError
from training.config import TrainingConfig, differences, plain
from training.data.splits import DataConfig, TrainingData
from training.errors import ConfigError

CPU = torch.device("cpu")


def test_several_splits_are_learned_from_together(config: TrainingConfig, data: TrainingData) -> None:
    both = dataclasses.replace(config.data, train_splits=("train", "val"))
    together = TrainingData.load(both, CPU)
    assert (len(data.train.names), len(together.train.names)) == (5, 7)
    assert together.train.fingerprint != data.train.fingerprint
    assert both.validates_on_training_pictures
    assert not config.data.validates_on_training_pictures


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
        taken, (place,) = kept.train.fetch([index])
        wanted, (there,) = data.train.fetch([index])
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
    with pytest.raises(DatasetError, match=r"data set: 2\n.*train\.csv:1: .*train0_ids\.png, .*: ids \[2\]"):
        TrainingData.load(moved, CPU)


@pytest.fixture
def with_a_torn_picture(config: TrainingConfig, dataset_file: Path, tmp_path: Path) -> DataConfig:
    shutil.copytree(dataset_file.parent, tmp_path / "data")
    (tmp_path / "data/train1.png").write_bytes(b"torn")
    (tmp_path / "data/val0_ids.png").unlink()
    (tmp_path / "data/more.heic").write_bytes(b"")
    return dataclasses.replace(config.data, dataset=str(tmp_path / "data/blocks.toml"))


def test_broken_pairs_end_a_run_with_the_way_out(with_a_torn_picture: DataConfig) -> None:
    with pytest.raises(
        DatasetError, match=r"data set: 2\n(?s:.*)2 broken pairs can be left out: .*skip_broken"
    ):
        TrainingData.load(with_a_torn_picture, CPU)


@pytest.mark.parametrize("residency", ["device", "files"])
def test_broken_pairs_may_be_left_out_by_name_and_count(
    with_a_torn_picture: DataConfig, data: TrainingData, residency: str
) -> None:
    said: list[str] = []
    config = dataclasses.replace(with_a_torn_picture, skip_broken=True, residency=residency)  # type: ignore[arg-type]
    kept = TrainingData.load(config, CPU, progress=said.append)
    assert kept.train.names == tuple(name for name in data.train.names if name != "train1.png")
    assert kept.val.names == ("val1.png",)
    text = "\n".join(said)
    assert "split train: 1 of 5 pairs are broken and left out" in text
    assert "train1.png: the first bytes are not those of a JPEG" in text
    assert "split val: 1 of 2 pairs are broken and left out" in text
    assert "not taken: .: no split takes 1 .heic (more.heic)" in text
    taken, (place,) = kept.train.fetch([1])
    wanted, (there,) = data.train.fetch([2])
    assert torch.equal(taken.label(place), wanted.label(there))
    assert kept.fingerprint != data.fingerprint
    kept.close()


def test_a_split_of_broken_pairs_alone_is_refused(with_a_torn_picture: DataConfig) -> None:
    (Path(with_a_torn_picture.dataset).parent / "val1.png").unlink()
    config = dataclasses.replace(with_a_torn_picture, skip_broken=True)
    with pytest.raises(DatasetError, match=r"split val: every pair is broken, first .*val0_ids.png: No such"):
        TrainingData.load(config, CPU)


def test_leaving_broken_pairs_out_is_no_other_configuration(config: TrainingConfig) -> None:
    before = plain(config)
    del before["data"]["skip_broken"]
    now = dataclasses.replace(config, data=dataclasses.replace(config.data, skip_broken=True))
    assert differences(before, plain(now)) == []


@pytest.mark.parametrize("change", [{"train_splits": ()}, {"residency": "cloud"}, {"workers": -1}])
def test_a_config_out_of_range_is_refused(change: dict[str, object]) -> None:
    values = {"dataset": "camvid", "train_splits": ("train",), "val_split": "val"} | change
    with pytest.raises(ConfigError, match=next(iter(change))):
        DataConfig(**values)  # type: ignore[arg-type]
