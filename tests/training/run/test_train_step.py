from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from training.config import NetworkConfig, TrainingConfig
from training.data.splits import TrainingData
from training.distributed import ALONE, Ranks
from training.optimisation.precision import ComputeConfig
from training.run.train_step import TrainStep, _is_compiled


class Recorder:
    """A loss that remembers the main head's scores of each part."""

    def __init__(self) -> None:
        self.scores: list[Tensor] = []

    def total(self, heads: Sequence[Tensor], labels_NHW: Tensor) -> Tensor:
        self.scores.append(heads[0].detach().clone())
        return torch.stack([head.float().mean() for head in heads]).sum() + 0 * labels_NHW.sum()


def learner_of(config: TrainingConfig, data: TrainingData, *, accumulate: int) -> TrainStep:
    schedule = dataclasses.replace(config.schedule, batch_size=2 * accumulate, accumulate=accumulate)
    return TrainStep(dataclasses.replace(config, schedule=schedule), data, ALONE)


def test_each_part_of_a_batch_drops_features_of_its_own(config: TrainingConfig, data: TrainingData) -> None:
    learner, recorder = learner_of(config, data, accumulate=2), Recorder()
    learner.loss = recorder  # type: ignore[assignment]
    images, labels = torch.full((2, 32, 64, 3), 99.0), torch.zeros((2, 32, 64), dtype=torch.uint8)
    images[0] = 7.0
    learner.step(0, 0.0, lambda _: (images, labels))
    assert not torch.equal(*recorder.scores)


def test_a_step_depends_on_nothing_that_other_code_drew(config: TrainingConfig, data: TrainingData) -> None:
    images = torch.rand((2, 32, 64, 3), generator=torch.Generator().manual_seed(0)) * 255
    labels = torch.ones((2, 32, 64), dtype=torch.uint8)
    found = []
    for seed in (1, 2):
        learner = learner_of(config, data, accumulate=1)
        torch.manual_seed(seed)
        found.append(learner.step(3, 1e-3, lambda _: (images, labels)))
    assert torch.equal(*found)


def test_the_average_can_begin_at_adopted_weights(config: TrainingConfig, data: TrainingData) -> None:
    learner = learner_of(config, data, accumulate=1)
    learner.network.state_dict()["architecture.detail.S1.0.conv.weight"].fill_(0.5)
    learner.restart_average()
    own, average = learner.network.state_dict(), learner.average.network.state_dict()
    assert all(torch.equal(own[key], average[key]) for key in own)


def older_state(learner: TrainStep) -> dict[str, Any]:
    """Return the state of the optimiser as it was saved when trunk and backbone shared two groups."""
    architecture = learner.network.architecture
    heads = [architecture.main_head(), *architecture.auxiliary_heads().values(), architecture.ffm]
    of_heads = {id(parameter) for head in heads for parameter in head.parameters()}
    groups: dict[tuple[bool, bool], list[torch.nn.Parameter]] = {
        (head, decay): [] for head in (False, True) for decay in (True, False)
    }
    for parameter in learner.network.parameters():
        groups[id(parameter) in of_heads, parameter.ndim > 1].append(parameter)
    older = torch.optim.AdamW([{"params": parameters} for parameters in groups.values()])
    older.state.update(learner.optimizer.state)
    return older.state_dict()


def test_an_optimiser_that_was_saved_without_groups_of_the_backbone_is_restored(
    config: TrainingConfig, data: TrainingData
) -> None:
    first_version = dataclasses.replace(config, network=NetworkConfig("bisenetv1"))
    learner, again = (TrainStep(first_version, data, ALONE) for _ in range(2))
    for parameter in learner.network.parameters():
        parameter.grad = torch.randn_like(parameter)
    learner.optimizer.step()
    state = learner.state()
    assert len(state["optimizer"]["param_groups"]) == 6
    again.load_state(state | {"optimizer": older_state(learner)})
    moments = [
        [one.optimizer.state[parameter]["exp_avg"] for parameter in one.network.parameters()]
        for one in (learner, again)
    ]
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*moments, strict=True))
    factors = [[group["lr_factor"] for group in one.optimizer.param_groups] for one in (learner, again)]
    assert factors[0] == factors[1]


@pytest.mark.parametrize(
    ("compute", "ranks", "device", "compiled"),
    [
        (ComputeConfig(), ALONE, "cuda", True),
        (ComputeConfig(), ALONE, "cpu", False),
        (ComputeConfig(compile=False), ALONE, "cuda", False),
        (ComputeConfig(), Ranks(0, 2, 0), "cuda", True),
        (ComputeConfig(sync_bn=True), ALONE, "cuda", True),
        (ComputeConfig(sync_bn=True), Ranks(0, 2, 0), "cuda", False),
    ],
)
def test_what_stops_at_every_normalisation_is_not_compiled(
    compute: ComputeConfig, ranks: Ranks, device: str, *, compiled: bool
) -> None:
    assert _is_compiled(compute, ranks, torch.device(device)) is compiled
