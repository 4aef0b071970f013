from __future__ import annotations

import copy
import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from training.config import TrainingConfig
from training.data.splits import TrainingData
from training.distributed import ALONE, Ranks
from training.errors import ConfigError, NonFiniteLossError, ResumeError, TimeLimitError
from training.run.checkpoint import CheckpointFolder
from training.run.progress import LOG_FILE, RunLog
from training.run.stop_signals import StopRequest
from training.run.time_budget import Costs, TimeBudget
from training.run.train_step import TrainStep
from training.run.trainer import Trainer


def trainer_in(folder: Path, config: TrainingConfig, data: TrainingData) -> Trainer:
    return Trainer(config, data, checkpoints=CheckpointFolder(folder), log=RunLog(folder))


def longer(config: TrainingConfig, steps: int) -> TrainingConfig:
    return dataclasses.replace(config, schedule=dataclasses.replace(config.schedule, steps=steps))


def changed(config: TrainingConfig, part: str, **values: Any) -> TrainingConfig:
    return dataclasses.replace(config, **{part: dataclasses.replace(getattr(config, part), **values)})


def weights(trainer: Trainer) -> list[torch.Tensor]:
    learner = trainer.learner
    return [*learner.network.state_dict().values(), *learner.average.network.state_dict().values()]


def resume(trainer: Trainer) -> None:
    state = trainer.checkpoints.load("last")
    assert state is not None
    trainer.resume(state)


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
    resume(second)
    assert second.position.step == interrupted_after
    second.run(StopRequest())
    assert all(torch.equal(a, b) for a, b in zip(weights(second), weights(straight), strict=True))


def test_a_run_leaves_its_last_and_its_best_state(straight: Trainer) -> None:
    last, best = (straight.checkpoints.load(kind) for kind in ("last", "best"))
    assert last is not None
    assert best is not None
    assert last["position"]["step"] == 4
    assert best["position"]["step"] == straight.position.best_step in {3, 4}
    assert best["position"]["best_miou"] == straight.position.best_miou >= 0
    assert last["position"]["validated_step"] == 4


def test_a_run_learns(config: TrainingConfig, data: TrainingData, tmp_path: Path) -> None:
    eager = dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, lr=1e-2))
    trainer = trainer_in(tmp_path, longer(eager, 40), data)
    before = trainer.validate().matrix.miou or 0.0
    for _ in range(40):
        trainer.take_step()
    after = trainer.validate().matrix.miou or 0.0
    assert before < 0.3
    assert after > 0.45


def test_a_stop_request_saves_and_ends_early(
    config: TrainingConfig, data: TrainingData, tmp_path: Path
) -> None:
    stop = StopRequest()
    stop.requested = True
    assert not trainer_in(tmp_path, config, data).run(stop)
    again = trainer_in(tmp_path, config, data)
    resume(again)
    assert again.position.step == 0


@pytest.mark.parametrize("part", ["train", "val"])
def test_a_stop_request_leaves_a_validation_which_is_made_up_for(
    straight: Trainer, config: TrainingConfig, data: TrainingData, tmp_path: Path, part: str
) -> None:
    """``train`` is read to calibrate, then ``val`` to score; the stop comes with its first picture."""
    stop = StopRequest()
    stopping = copy.copy(getattr(data, part))

    def fetch(indices: Sequence[int]) -> Any:
        stop.requested = trainer.position.step == 3
        return getattr(data, part).fetch(indices)

    stopping.fetch = fetch
    trainer = trainer_in(tmp_path, config, dataclasses.replace(data, **{part: stopping}))
    assert not trainer.run(stop)
    assert (trainer.position.step, trainer.position.validated_step) == (3, 0)
    again = trainer_in(tmp_path, config, data)
    resume(again)
    assert again.run(StopRequest())
    assert again.position == straight.position
    assert all(torch.equal(a, b) for a, b in zip(weights(again), weights(straight), strict=True))


def test_another_configuration_is_not_resumed(
    straight: Trainer, config: TrainingConfig, data: TrainingData
) -> None:
    other = trainer_in(straight.checkpoints.folder, longer(config, 9), data)
    with pytest.raises(ResumeError, match=r"schedule\.steps: 4 -> 9"):
        resume(other)


@pytest.mark.parametrize("part", ["train", "val"])
def test_other_data_are_not_resumed(
    straight: Trainer, config: TrainingConfig, data: TrainingData, part: str
) -> None:
    changed = copy.copy(getattr(data, part))
    changed.fingerprint = "0" * 64
    other = trainer_in(straight.checkpoints.folder, config, dataclasses.replace(data, **{part: changed}))
    with pytest.raises(ResumeError, match=f"data fingerprint: {data.fingerprint} -> "):
        resume(other)


def test_a_loss_that_is_no_number_stops_the_run_with_its_step_and_pictures(
    config: TrainingConfig, data: TrainingData, tmp_path: Path
) -> None:
    trainer = trainer_in(tmp_path, config, data)
    trainer.take_step()
    trainer.save("last")
    trainer.learner.network.state_dict()["architecture.head.conv_out.1.bias"].fill_(math.nan)
    names = ", ".join(trainer.crops.names(1))
    with pytest.raises(NonFiniteLossError, match=f"no number at step 1; its pictures: {names}"):
        trainer.run(StopRequest())
    with pytest.raises(NonFiniteLossError):
        trainer.save("last")
    kept = trainer.checkpoints.load("last")
    assert kept is not None
    assert all(torch.isfinite(value).all() for value in kept["network"].values())


class StepClock:
    """A clock that moves when it is told."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def timed_trainer(
    folder: Path, config: TrainingConfig, data: TrainingData, limit_s: float, *, step_s: float = 1.0
) -> tuple[Trainer, StepClock]:
    """Return a run with a time limit, whose steps take a scripted time."""
    clock = StepClock()
    trainer = Trainer(
        config,
        data,
        checkpoints=CheckpointFolder(folder),
        log=RunLog(folder),
        budget=TimeBudget(limit_s, 0.0),
        on_validation=lambda *_: setattr(clock, "now_s", clock.now_s + 2),
        clock=clock,
    )
    take_step = trainer.learner.step

    def step(*arguments: Any) -> torch.Tensor:
        clock.now_s += step_s
        return take_step(*arguments)

    trainer.learner.step = step  # type: ignore[method-assign]
    return trainer, clock


def budget_events(folder: Path) -> list[int]:
    events = [json.loads(line) for line in (folder / LOG_FILE).read_text().splitlines()]
    return [event["total_steps"] for event in events if event["event"] == "budget"]


def test_the_steps_that_fit_into_the_time_limit_are_chosen_and_kept_in_the_checkpoint(
    config: TrainingConfig, data: TrainingData, tmp_path: Path
) -> None:
    rare = changed(longer(config, 1000), "schedule", validate_every=500)
    trainer, clock = timed_trainer(tmp_path, rare, data, 30)
    trainer.costs = Costs(validation_s=2, export_s=4)
    assert trainer.run(StopRequest())
    assert budget_events(tmp_path) == [trainer.position.step] == [23]  # 29.4 - 2 - 4
    assert clock.now_s == 25
    resumed, _ = timed_trainer(tmp_path, rare, data, 1e9)
    resume(resumed)
    assert (resumed.position.total_steps, resumed.position.frozen) == (23, True)
    assert resumed.budget is None


def test_a_run_whose_configured_steps_are_done_before_its_rate_is_known_goes_on(
    config: TrainingConfig, data: TrainingData, tmp_path: Path
) -> None:
    trainer, _ = timed_trainer(tmp_path, config, data, 300, step_s=0.5)  # measured after 6 s, or 12 steps
    while not trainer.position.frozen:
        assert trainer._goes_on()
        trainer._take_measured_step()
        trainer._choose_steps()
    assert trainer.position.step == 12 > config.schedule.steps
    assert trainer.position.total_steps > 100


def test_a_limit_that_is_too_short_is_refused_before_the_first_step(
    config: TrainingConfig, data: TrainingData, tmp_path: Path
) -> None:
    trainer, _ = timed_trainer(tmp_path, config, data, 30)
    trainer.costs = Costs(validation_s=25, export_s=10)
    with pytest.raises(TimeLimitError, match=r"--max-minutes 0\.5 is too short"):
        trainer.run(StopRequest())
    assert trainer.position.step == 0


def test_a_run_killed_after_its_steps_were_chosen_keeps_their_number(
    config: TrainingConfig, data: TrainingData, tmp_path: Path
) -> None:
    rare = changed(longer(config, 1000), "schedule", save_every=500, validate_every=500)
    trainer, clock = timed_trainer(tmp_path, rare, data, 30)

    def killed() -> float:
        if trainer.position.frozen:
            raise KeyboardInterrupt
        return clock.now_s

    trainer._clock = killed
    with pytest.raises(KeyboardInterrupt):
        trainer.run(StopRequest())
    again, _ = timed_trainer(tmp_path, rare, data, 1e9)
    resume(again)
    assert (again.position.step, again.position.total_steps) == (2, 29)
    last = json.loads((tmp_path / LOG_FILE).read_text().splitlines()[-1])
    assert (last["event"], last["step"]) == ("resume", 2)


def test_an_end_for_want_of_progress_is_no_time_to_fill(
    config: TrainingConfig, data: TrainingData, tmp_path: Path
) -> None:
    impatient = changed(longer(config, 1000), "schedule", validate_every=4, patience=2)
    trainer, _ = timed_trainer(tmp_path, impatient, data, 300)
    trainer.position.best_miou = 2.0  # never reached
    assert trainer.run(StopRequest())
    assert trainer.position.step == 8


def test_the_network_of_the_best_validation_is_kept_for_the_end(straight: Trainer) -> None:
    best, last = straight.best_validated, straight.last_validated
    assert best is not None
    assert last is not None
    assert (best.step, last.step) == (straight.position.best_step, 4)
    assert best.scores.matrix.miou == straight.position.best_miou
    state = straight.checkpoints.load("best")
    assert state is not None
    weight = "architecture.head.conv_out.1.weight"
    assert torch.equal(best.network.state_dict()[weight], state["average"][weight])


def test_weights_that_are_no_numbers_are_not_saved(
    config: TrainingConfig, data: TrainingData, tmp_path: Path
) -> None:
    trainer = trainer_in(tmp_path, changed(config, "optimizer", name="sgd", lr=1e38), data)
    trainer.save("last")
    trainer.take_step()  # the loss is a number: that of the weights before it
    with pytest.raises(NonFiniteLossError, match="a weight is no number after step 1"):
        trainer.save("last")
    kept = trainer.checkpoints.load("last")
    assert kept is not None
    assert kept["position"]["step"] == 0


def test_a_lone_process_looks_for_a_stop_before_every_step(
    config: TrainingConfig, data: TrainingData, tmp_path: Path
) -> None:
    trainer = trainer_in(tmp_path, config, data)
    trainer.position.step = 1
    trainer.data = dataclasses.replace(data, device=torch.device("cuda"))
    assert trainer._is_time_to_agree()
    trainer.ranks = Ranks(0, 2, 0, 2)
    assert not trainer._is_time_to_agree()


def test_the_best_state_is_kept_though_its_pictures_cannot_be_shown(
    config: TrainingConfig, data: TrainingData, tmp_path: Path
) -> None:
    def fail(*_: object) -> None:
        raise OSError

    folder = CheckpointFolder(tmp_path)
    trainer = Trainer(config, data, checkpoints=folder, log=RunLog(tmp_path), on_validation=fail)
    with pytest.raises(OSError):  # noqa: PT011 - which one does not matter
        trainer.validate()
    assert folder.load("best") is not None


@given(step=st.integers(0, 1000))
@settings(max_examples=10, deadline=None)
def test_crops_have_ids_that_the_loss_knows(straight: Trainer, step: int) -> None:
    images_NHW3, labels_NHW, _ = straight.crops.cut(step, 0)
    assert images_NHW3.shape == (2, 32, 64, 3)
    assert set(labels_NHW.flatten().tolist()) <= {0, 1, 2, 255}
    again = straight.crops.cut(step, 0)
    assert torch.equal(again[0], images_NHW3)
    assert torch.equal(again[1], labels_NHW)


@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.soak), 3])
def test_pictures_from_files_give_the_same_weights_with_any_number_of_workers(
    straight: Trainer, config: TrainingConfig, tmp_path: Path, workers: int
) -> None:
    other = changed(config, "data", residency="files", workers=workers)
    data = TrainingData.load(other.data, torch.device("cpu"))
    first = trainer_in(tmp_path, other, data)
    first.take_step()
    first.save("last")
    data.close()
    data = TrainingData.load(other.data, torch.device("cpu"))
    second = trainer_in(tmp_path, other, data)
    resume(second)
    second.run(StopRequest())
    data.close()
    assert all(torch.equal(a, b) for a, b in zip(weights(second), weights(straight), strict=True))


def test_other_classes_are_not_resumed(
    straight: Trainer, config: TrainingConfig, dataset_file: Path, tmp_path: Path
) -> None:
    more = tmp_path / "more.toml"
    more.write_text(dataset_file.read_text() + '[[classes]]\nname = "gray"\ncolor = [9, 9, 9]\n')
    other = changed(config, "data", dataset=str(more), root=str(dataset_file.parent))
    trainer = trainer_in(tmp_path, other, TrainingData.load(other.data, torch.device("cpu")))
    with pytest.raises(ResumeError, match=r"data\.dataset: .*; data fingerprint: "):
        trainer.resume(straight.checkpoints.load("last") or {})


def test_every_so_many_steps_a_checkpoint_stays(
    config: TrainingConfig, data: TrainingData, tmp_path: Path
) -> None:
    trainer_in(tmp_path, changed(config, "schedule", keep_every=2), data).run(StopRequest())
    assert sorted(path.name for path in tmp_path.glob("kept-*.pt")) == [
        "kept-00000002.pt",
        "kept-00000004.pt",
    ]


def test_a_run_without_progress_ends_early_and_stays_ended(
    config: TrainingConfig, data: TrainingData, tmp_path: Path
) -> None:
    impatient = changed(longer(config, 50), "schedule", validate_every=2, patience=2)
    trainer = trainer_in(tmp_path, impatient, data)
    trainer.position.best_miou = 2.0  # never reached
    assert trainer.run(StopRequest())
    assert (trainer.position.step, trainer.position.total_steps) == (4, 4)
    again = trainer_in(tmp_path, impatient, data)
    resume(again)
    assert again.run(StopRequest())
    assert again.position.step == 4


def test_parts_of_a_batch_add_up_to_its_gradient(config: TrainingConfig, data: TrainingData) -> None:
    # Plain cross entropy without batch statistics and dropout: the mean over the batch is that of its halves.
    plain_loss = changed(
        changed(config, "loss", ohem_threshold=1.0, class_weight_base=0.0), "compute", precision="f32"
    )
    labelled = torch.randint(0, 3, (4, 32, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images = torch.rand((4, 32, 64, 3), generator=torch.Generator().manual_seed(1)) * 255

    def gradients(accumulate: int) -> list[torch.Tensor | None]:
        learner = TrainStep(changed(plain_loss, "schedule", batch_size=4, accumulate=accumulate), data, ALONE)
        network, size = learner.network.eval(), 4 // accumulate
        network.train = lambda: network  # type: ignore[method-assign, misc, assignment]  # statistics are frozen
        learner.step(0, 0.0, lambda part: (images[part * size :][:size], labelled[part * size :][:size]))
        return [parameter.grad for parameter in network.parameters()]

    for whole, halves in zip(gradients(1), gradients(2), strict=True):
        torch.testing.assert_close(whole, halves, rtol=1e-3, atol=1e-5)


def test_auxiliary_heads_without_weight_are_not_built(config: TrainingConfig, data: TrainingData) -> None:
    learner = TrainStep(changed(config, "loss", auxiliary_weight=0.0), data, ALONE)
    images_NHW3, labels_NHW = torch.rand((2, 32, 64, 3)) * 255, torch.ones((2, 32, 64), dtype=torch.uint8)
    learner.step(0, 0.0, lambda _: (images_NHW3, labels_NHW))
    assert not any(name.startswith("architecture.aux") for name, _ in learner.network.named_parameters())
    assert all(parameter.grad is not None for parameter in learner.network.parameters())


def test_normalising_over_processes_without_gpus_is_refused_by_name(
    config: TrainingConfig, data: TrainingData
) -> None:
    with pytest.raises(ConfigError, match=r"compute\.sync_bn needs GPUs, and this run's device is cpu"):
        TrainStep(changed(config, "compute", sync_bn=True), data, Ranks(0, 2, 0, 2))


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_every_precision_takes_finite_steps_and_resumes(
    config: TrainingConfig, data: TrainingData, tmp_path: Path, precision: str
) -> None:
    other = changed(config, "compute", precision=precision)
    trainer = trainer_in(tmp_path, other, data)
    assert torch.isfinite(trainer.take_step())
    trainer.save("last")
    again = trainer_in(tmp_path, other, data)
    resume(again)
    assert torch.equal(trainer.take_step(), again.take_step())


def test_validation_pictures_are_shown_with_the_network_that_was_scored(
    config: TrainingConfig, data: TrainingData, tmp_path: Path
) -> None:
    seen: list[tuple[int, bool]] = []
    trainer = Trainer(
        config,
        data,
        checkpoints=CheckpointFolder(tmp_path),
        log=RunLog(tmp_path),
        on_validation=lambda step, network: seen.append((step, network.training)),
    )
    trainer.run(StopRequest())
    assert seen == [(3, False), (4, False)]
