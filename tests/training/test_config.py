from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from training.config import TrainingConfig, differences, from_plain, load_config, plain, recipes
from training.errors import ConfigError


@pytest.mark.parametrize("name", recipes())
def test_every_recipe_is_complete_and_typed(name: str) -> None:
    config = load_config(name, ["data.root=somewhere"])
    assert config.data.root == "somewhere"


def test_the_recipe_of_the_shipped_model_is_what_its_card_says() -> None:
    config = load_config("camvid-v2")
    assert config.network.parameters == {"head_channels": 128}
    assert config.augment.crop == (256, 320)
    assert (config.schedule.batch_size, config.optimizer.lr, config.seed) == (8, 2e-3, 0)


def test_a_configuration_survives_json(config: TrainingConfig) -> None:
    assert from_plain(json.loads(json.dumps(plain(config)))) == config


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("seed=9", ("seed",), 9),
        ("optimizer.lr = 1", ("optimizer", "lr"), 1.0),
        ("augment.crop=[64, 96]", ("augment", "crop"), (64, 96)),
        ('data.train_splits=["train","val"]', ("data", "train_splits"), ("train", "val")),
        ("data.root=/some/where else", ("data", "root"), "/some/where else"),
        ("network.parameters.head_channels=16", ("network", "parameters"), {"head_channels": 16}),
    ],
)
def test_an_override_replaces_one_value(override: str, path: tuple[str, ...], value: object) -> None:
    found: object = load_config("camvid-v2", [override])
    for name in path:
        found = getattr(found, name)
    assert found == value


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.rate=1", r"unknown key optimizer\.rate"),
        ("nothing.at=1", "unknown key nothing"),
        ("optimizer.lr=fast", r"optimizer\.lr = 'fast': input should be a valid number"),
        ("optimizer.lr=true", r"optimizer\.lr = True"),
        ("optimizer.lr=nan", r"optimizer\.lr = nan: input should be a finite number"),
        ("augment.scale=[0.5, inf]", r"augment\.scale\.1 = inf: input should be a finite number"),
        ("optimizer.name=adam", r"optimizer\.name"),
        ("augment.crop=[64]", r"missing key augment\.crop\.1"),
        ("augment.crop=[64, 3.5]", r"augment\.crop\.1 = 3\.5: input should be a valid integer"),
        ("network.parameters.head_channels=[1]", r"network\.parameters\.head_channels"),
        ("loss=1", "loss must be a table"),
        ("seed.x=1", "seed is not a table"),
        ("seed", "not of the form"),
        ("=1", "not of the form"),
        ("seed=-1", "seed"),
        ("schedule.batch_size=1", "batch_size"),
        ("schedule.steps=0", "steps"),
        ("schedule.accumulate=3", r"batch_size = 8 does not divide into 3 parts \(1 processes"),
        ("schedule.accumulate=8", "of at least 2"),
        ("schedule.patience=-1", "patience"),
        ("schedule.keep_every=-1", "keep_every"),
        ("compute.precision=int4", r"compute\.precision"),
    ],
)
def test_an_override_that_does_not_fit_is_refused_by_name(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config("camvid-v2", [override])


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text("seed = 1\n[loss]\nohem_threshold = 0.7\n")
    with pytest.raises(ConfigError, match="missing key network; missing key data; missing key augment; "):
        load_config(str(path))


def test_a_file_that_is_no_toml_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text("seed = ")
    with pytest.raises(ConfigError, match="not TOML"):
        load_config(str(path))


@pytest.mark.parametrize(
    ("reference", "message"), [("camvid-v9", "camvid-v2"), ("missing.toml", "cannot be read")]
)
def test_a_configuration_that_is_not_there_is_refused(reference: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(reference)


def test_differences_name_what_changes_the_result_and_nothing_else(config: TrainingConfig) -> None:
    moved = dataclasses.replace(
        config,
        seed=4,
        device="cuda",
        data=dataclasses.replace(config.data, root="elsewhere"),
        optimizer=dataclasses.replace(config.optimizer, lr=0.5),
    )
    assert differences(plain(config), plain(config)) == []
    assert differences(plain(config), plain(moved)) == ["optimizer.lr: 0.001 -> 0.5", "seed: 3 -> 4"]


def test_an_option_that_a_checkpoint_is_older_than_is_no_difference(config: TrainingConfig) -> None:
    before = plain(config)
    del before["optimizer"]["lr_floor"]
    assert differences(before, plain(config)) == []
    changed = dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, lr_floor=0.5))
    assert differences(before, plain(changed)) == ["optimizer.lr_floor: 0.0 -> 0.5"]


def test_an_option_that_no_longer_exists_is_a_difference(config: TrainingConfig) -> None:
    before = plain(config)
    before["optimizer"]["nesterov"] = True
    assert differences(before, plain(config)) == ["optimizer.nesterov: True -> None"]


def test_all_that_does_not_fit_is_named_at_once() -> None:
    with pytest.raises(ConfigError, match=r"seed = 'x': .* integer; unknown key optimizer\.rate"):
        load_config("camvid-v2", ["optimizer.rate=1", "seed=x"])


def test_a_batch_is_shared_by_the_processes_of_a_run() -> None:
    schedule = load_config("camvid-v2").schedule
    assert [schedule.part_size(processes) for processes in (1, 2, 4)] == [8, 4, 2]
    with pytest.raises(ConfigError, match="8 processes"):
        schedule.part_size(8)
