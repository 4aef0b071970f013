from __future__ import annotations

import dataclasses

import pytest
import torch

from model.artifacts.artifact import Artifact
from training.errors import ConfigError
from training.optimisation.distillation import DistillConfig, Teacher, divergence

CPU = torch.device("cpu")


def scores(seed: int, *, height: int = 4, width: int = 6) -> torch.Tensor:
    return torch.randn(2, 4, height, width, generator=torch.Generator().manual_seed(seed))


def test_the_divergence_is_that_of_the_formula() -> None:
    own, taught, temperature = scores(1), scores(2), 2.0
    p, q = (taught / temperature).softmax(1), (own / temperature).softmax(1)
    expected = temperature**2 * (p * (p / q).log()).sum(1).mean()
    assert divergence(own, taught, temperature).item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_head_that_agrees_with_its_teacher_has_no_divergence_and_no_gradient() -> None:
    own = scores(1).requires_grad_()
    found = divergence(own, own.detach() + 3.0, 1.0)  # a constant changes no probability
    found.backward()
    assert found.item() == pytest.approx(0, abs=1e-6)
    assert own.grad is not None
    assert own.grad.abs().max().item() < 1e-6


def test_a_teacher_of_a_coarser_stride_is_up_sampled() -> None:
    taught = torch.zeros(1, 4, 2, 3)
    taught[:, 1] = 5.0
    own = taught.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert divergence(own, taught, 1.0).item() == pytest.approx(0, abs=1e-6)


def teacher(artifact: Artifact, config: DistillConfig) -> Teacher:
    return Teacher.of(artifact, config, artifact.manifest.palette.names, CPU)


def test_a_network_moves_towards_its_teacher_by_the_gradient(tiny_artifact: Artifact) -> None:
    taught = teacher(tiny_artifact, DistillConfig("tiny", weight=3.0))
    images = torch.rand(2, 32, 64, 3, generator=torch.Generator().manual_seed(0)) * 255
    raw = torch.zeros(2, 4, 4, 8, requires_grad=True)
    before = taught.loss(raw, images)
    before.backward()
    assert raw.grad is not None
    after = taught.loss(raw.detach() - raw.grad, images)
    assert before.item() == pytest.approx(3 * divergence(raw, taught.network(images), 1.0).item())
    assert after < before
    assert all(not parameter.requires_grad for parameter in taught.network.parameters())


def test_a_teacher_of_other_classes_is_refused_by_both_lists(tiny_artifact: Artifact) -> None:
    with pytest.raises(ConfigError, match=r"'tiny' has other classes than the data set: .*; there are red"):
        Teacher.of(tiny_artifact, DistillConfig("tiny"), ["red"], CPU)


def test_a_teacher_whose_scores_are_not_bilinear_is_refused(tiny_artifact: Artifact) -> None:
    manifest = dataclasses.replace(tiny_artifact.manifest, upsample="pixel_shuffle")
    with pytest.raises(ConfigError, match="up-sampled by pixel_shuffle, a teacher's must be bilinear"):
        teacher(Artifact(tiny_artifact.folder, manifest), DistillConfig("tiny"))


@pytest.mark.parametrize("value", [{"weight": 0.0}, {"temperature": -1.0}])
def test_weights_and_temperatures_of_nothing_are_refused(value: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="above 0"):
        DistillConfig("tiny", **value)
