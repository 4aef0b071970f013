from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from training.budget import TimeBudget
from training.config import TrainingConfig
from training.data import TrainingData
from training.errors import NonFiniteLossError, ResumeError
from training.progress import LOG_FILE, RunLog
from training.state import CheckpointFolder
from training.stop import StopRequest
from training.trainer import Trainer


def trainer_in(
    folder: Path, config: TrainingConfig, data: TrainingData, *, budget: TimeBudget | None = None
) -> Trainer:
    return Trainer(config, data, checkpoints=CheckpointFolder(folder), log=RunLog(folder), budget=budget)


def longer(config: TrainingConfig, steps: int) -> TrainingConfig:
    return dataclasses.replace(config, schedule=dataclasses.replace(config.schedule, steps=steps))


def weights(trainer: Trainer) -> list[torch.Tensor]:
    return [*trainer.network.state_dict().values(), *trainer.average.network.state_dict().values()]


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory, config: TrainingConfig, data: TrainingData) -> Trainer:
    """Return a run that was never interrupted."""
    trainer = trainer_in(tmp_path_factory.mktemp("straight"), config, data)
    assert trainer.run(StopRequest())
    return trainer


@pytest.mark.parametrize("interrupted_after", [1, 3])
def test_a_resumed_run_ends_bit_for_bit_where_the_straight_one_does(
    straight: Trainer, config: TrainingConfig, data: TrainingData, tmp_path: Path, interrupted_after: int
) -> None:
    first = trainer_in(tmp_path, config, data)
    for _ in range(interrupted_after):
        first.take_step()
    first.save("last")
    torch.manual_seed(12345)  # whatever other code drew meanwhile
    second = trainer_in(tmp_path, config, data)
    second.resume()
    assert second.position.step == interrupted_after
    second.run(StopRequest())
    assert all(torch.equal(a, b) for a, b in zip(weights(second), weights(straight), strict=True))


def test_a_run_leaves_its_last_and_its_best_state(straight: Trainer) -> None:
    last, best = (straight.checkpoints.load(kind) for kind in ("last", "best"))
    assert last is not None
    assert best is not None
    assert last["position"]["step"] == 4
    assert best["position"]["step"] == 3  # validated after step 3; the last one is the caller's
    assert best["position"]["best_miou"] == straight.position.best_miou >= 0


def test_a_run_learns(config: TrainingConfig, data: TrainingData, tmp_path: Path) -> None:
    eager = dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, lr=1e-2))
    trainer = trainer_in(tmp_path, longer(eager, 40), data)
    before = trainer.validate(trainer.calibrated()).miou or 0.0
    for _ in range(40):
        trainer.take_step()
    after = trainer.validate(trainer.calibrated()).miou or 0.0
    assert before < 0.3
    assert after > 0.45


def test_a_stop_request_saves_and_ends_early(
    config: TrainingConfig, data: TrainingData, tmp_path: Path
) -> None:
    stop = StopRequest()
    stop.requested = True
    assert not trainer_in(tmp_path, config, data).run(stop)
    again = trainer_in(tmp_path, config, data)
    again.resume()
    assert again.position.step == 0


def test_resuming_where_nothing_was_saved_begins(
    config: TrainingConfig, data: TrainingData, tmp_path: Path
) -> None:
    trainer = trainer_in(tmp_path, config, data)
    trainer.resume()
    assert trainer.position.step == 0


def test_another_configuration_is_not_resumed(
    straight: Trainer, config: TrainingConfig, data: TrainingData
) -> None:
    other = trainer_in(straight.checkpoints.folder, longer(config, 9), data)
    with pytest.raises(ResumeError, match=r"schedule\.steps: 4 -> 9"):
        other.resume()


def test_other_data_are_not_resumed(straight: Trainer, config: TrainingConfig, data: TrainingData) -> None:
    changed = dataclasses.replace(data, train=dataclasses.replace(data.train, fingerprint="0" * 64))
    other = trainer_in(straight.checkpoints.folder, config, changed)
    with pytest.raises(ResumeError, match="fingerprint"):
        other.resume()


def test_a_loss_that_is_no_number_stops_the_run_with_its_step(
    config: TrainingConfig, data: TrainingData, tmp_path: Path
) -> None:
    trainer = trainer_in(tmp_path, config, data)
    trainer.take_step()
    trainer.save("last")
    trainer.network.state_dict()["architecture.head.conv_out.1.bias"].fill_(math.nan)
    with pytest.raises(NonFiniteLossError, match="nan at step 1"):
        trainer.run(StopRequest())
    kept = trainer.checkpoints.load("last")
    assert kept is not None
    assert all(torch.isfinite(value).all() for value in kept["network"].values())


def test_a_time_budget_freezes_the_number_of_steps_into_the_checkpoint(
    config: TrainingConfig, data: TrainingData, tmp_path: Path
) -> None:
    spent = TimeBudget(limit_s=60, started_s=-1e9)  # one step more is all that is left
    trainer = trainer_in(tmp_path, longer(config, 1000), data, budget=spent)
    assert trainer.run(StopRequest())
    assert trainer.position.total_steps == 21
    resumed = trainer_in(tmp_path, longer(config, 1000), data, budget=TimeBudget(1e9, 0))
    resumed.resume()
    assert (resumed.position.total_steps, resumed.position.frozen) == (21, True)
    events = [json.loads(line)["event"] for line in (tmp_path / LOG_FILE).read_text().splitlines()]
    assert events.count("budget") == 1


@given(step=st.integers(0, 1000))
@settings(max_examples=10, deadline=None)
def test_crops_have_ids_that_the_loss_knows(straight: Trainer, step: int) -> None:
    images_NHW3, labels_NHW = straight._batch(step)
    assert images_NHW3.shape == (2, 32, 64, 3)
    assert set(labels_NHW.flatten().tolist()) <= {0, 1, 2, 255}
    again = straight._batch(step)
    assert torch.equal(again[0], images_NHW3)
    assert torch.equal(again[1], labels_NHW)
