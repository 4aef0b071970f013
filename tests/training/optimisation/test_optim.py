from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.networks.segmentation_network import SegmentationNetwork, build
from training.errors import ConfigError
from training.optimisation.optim import (
    MovingAverage,
    OptimizerConfig,
    OptimizerName,
    build_optimizer,
    learning_rate,
    set_learning_rate,
)

WEIGHT = "architecture.head.conv.conv.weight"
MEAN = "architecture.head.conv.bn.running_mean"
COUNTER = "architecture.head.conv.bn.num_batches_tracked"
CONFIG = OptimizerConfig(
    name="adamw",
    lr=0.01,
    weight_decay=0.05,
    warmup=0.1,
    poly_power=0.9,
    head_lr_factor=10.0,
    ema_decay=0.99,
)


@pytest.fixture(scope="module")
def network() -> SegmentationNetwork:
    return build("bisenetv2", 3, {"head_channels": 8}, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_every_weight_is_in_exactly_one_of_four_groups(
    network: SegmentationNetwork, name: OptimizerName
) -> None:
    optimizer = build_optimizer(network, dataclasses.replace(CONFIG, name=name))
    grouped = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    assert len(optimizer.param_groups) == 4
    assert sorted(grouped) == sorted(id(parameter) for parameter in network.parameters())


def test_normalisation_and_biases_do_not_decay(network: SegmentationNetwork) -> None:
    groups = build_optimizer(network, CONFIG).param_groups
    decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    for name, parameter in network.named_parameters():
        assert (id(parameter) in decayed) == (parameter.ndim == 4), name


def test_heads_learn_faster_by_their_factor(network: SegmentationNetwork) -> None:
    optimizer = build_optimizer(network, CONFIG)
    set_learning_rate(optimizer, 0.5)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in network.architecture.named_parameters():
        is_head = name.startswith(("head.", "aux"))
        assert rates[id(parameter)] == (5.0 if is_head else 0.5), name


def test_the_backbone_learns_slower_by_its_factor() -> None:
    network = build("bisenetv1-lite", 3, {}, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))
    optimizer = build_optimizer(network, dataclasses.replace(CONFIG, backbone_lr_factor=0.25))
    set_learning_rate(optimizer, 0.5)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in network.architecture.named_parameters():
        part = name.split(".")[0]
        wanted = {"backbone": 0.125, "cp": 0.5, "detail": 0.5}.get(part, 5.0)
        assert rates[id(parameter)] == wanted, name


def test_a_factor_for_a_backbone_that_there_is_not_is_refused(network: SegmentationNetwork) -> None:
    with pytest.raises(ConfigError, match="backbone_lr_factor: this architecture has no pretrained backbone"):
        build_optimizer(network, dataclasses.replace(CONFIG, backbone_lr_factor=0.25))


@given(total=st.integers(2, 10_000), warmup=st.floats(0, 0.5))
def test_the_rate_rises_to_its_peak_and_then_only_falls(total: int, warmup: float) -> None:
    config = dataclasses.replace(CONFIG, warmup=warmup)
    rates = [learning_rate(config, step, total) for step in range(total)]
    peak = rates.index(max(rates))
    assert rates[peak] == pytest.approx(config.lr)
    assert rates[:peak] == sorted(rates[:peak])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert min(rates) > 0


def test_the_rate_follows_the_published_formula() -> None:
    assert learning_rate(CONFIG, 0, 1000) == pytest.approx(0.01 / 100)
    assert learning_rate(CONFIG, 550, 1000) == pytest.approx(0.01 * 0.5**0.9)


def stepped(optimizer: torch.optim.Optimizer, weights: list[torch.nn.Parameter], *, steps: int) -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        for weight in weights:
            weight.grad = torch.randn(weight.shape, generator=generator)
        optimizer.step()


def test_a_skipped_first_step_leaves_sgd_no_memory_of_it(network: SegmentationNetwork) -> None:
    found = []
    for skips in (0, 1):
        moved = copy.deepcopy(network)
        optimizer = build_optimizer(moved, dataclasses.replace(CONFIG, name="sgd"))
        weights = list(moved.parameters())
        garbage = [torch.full_like(weight, 1e9) for weight in weights]  # what memory was used for before
        del garbage
        optimizer.found_inf = torch.ones(())  # type: ignore[attr-defined]  # read by step()
        stepped(optimizer, weights, steps=skips)
        optimizer.found_inf = torch.zeros(())  # type: ignore[attr-defined]  # read by step()
        stepped(optimizer, weights, steps=2)
        found.append(weights)
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_sgd_moves_as_torch_says(network: SegmentationNetwork) -> None:
    ours, theirs = copy.deepcopy(network), copy.deepcopy(network)
    optimizer = build_optimizer(ours, dataclasses.replace(CONFIG, name="sgd"))
    kept = {id(weight): number for number, weight in enumerate(ours.parameters())}
    weights = list(theirs.parameters())
    groups = [
        {**group, "params": [weights[kept[id(weight)]] for weight in group["params"]]}
        for group in optimizer.param_groups
    ]
    stepped(optimizer, list(ours.parameters()), steps=3)
    stepped(torch.optim.SGD(groups, lr=CONFIG.lr, momentum=CONFIG.momentum, fused=True), weights, steps=3)
    assert all(torch.equal(one, other) for one, other in zip(ours.parameters(), weights, strict=True))


def test_the_average_ramps_up_and_then_keeps_its_decay(network: SegmentationNetwork) -> None:
    average = MovingAverage(network, 0.99)
    value = average.network.state_dict()[WEIGHT]
    start = value.clone()
    moved = build("bisenetv2", 3, {"head_channels": 8}, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))
    target = moved.state_dict()[WEIGHT]
    average.update(moved, 0)
    torch.testing.assert_close(value, 0.1 * start + 0.9 * target)
    before = value.clone()
    average.update(moved, 1_000_000)
    torch.testing.assert_close(value, 0.99 * before + 0.01 * target)


def test_the_average_covers_statistics_and_copies_counters(network: SegmentationNetwork) -> None:
    average = MovingAverage(network, 0.99)
    moved = MovingAverage(network, 0.99).network
    moved.state_dict()[MEAN].fill_(1.0)
    moved.state_dict()[COUNTER].fill_(7)
    average.update(moved, 0)
    values = average.network.state_dict()
    torch.testing.assert_close(values[MEAN], torch.full((8,), 0.9))
    assert values[COUNTER] == 7


def test_the_average_follows_weights_that_were_loaded_or_are_another_network_s(
    network: SegmentationNetwork,
) -> None:
    average = MovingAverage(network, 0.99)
    first, second = copy.deepcopy(network), copy.deepcopy(network)
    average.update(first, 0)
    average.network.load_state_dict(network.state_dict())
    for value in second.state_dict().values():
        value.fill_(2)
    average.update(second, 0)
    first.load_state_dict(second.state_dict())
    average.update(first, 0)
    values, start = average.network.state_dict(), network.state_dict()
    torch.testing.assert_close(values[WEIGHT], 0.01 * start[WEIGHT] + 0.99 * 2)
    assert values[COUNTER] == 2


def test_the_average_is_a_copy_that_does_not_train(network: SegmentationNetwork) -> None:
    average = MovingAverage(network, 0.99)
    assert not average.network.training
    assert not any(parameter.requires_grad for parameter in average.network.parameters())
    shared = {p.data_ptr() for p in network.parameters()} & {
        p.data_ptr() for p in average.network.parameters()
    }
    assert not shared


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", "adam"),
        ("lr", 0.0),
        ("weight_decay", -1.0),
        ("warmup", 1.0),
        ("poly_power", -1.0),
        ("head_lr_factor", 0.0),
        ("ema_decay", 1.0),
        ("momentum", 1.0),
        ("warmup_start", 1.0),
        ("warmup_shape", "cosine"),
        ("warmup_shape", "exponential"),
        ("lr_floor", -0.1),
    ],
)
def test_a_config_out_of_range_is_refused(key: str, value: Any) -> None:
    named = "warmup_start" if value == "exponential" else key
    with pytest.raises(ConfigError, match=named):
        dataclasses.replace(CONFIG, **{key: value})


def test_the_published_warm_up_rises_exponentially_from_a_tenth() -> None:
    config = dataclasses.replace(CONFIG, warmup=0.1, warmup_start=0.1, warmup_shape="exponential")
    assert learning_rate(config, 49, 1000) == pytest.approx(0.01 * 0.1**0.5)
    assert learning_rate(config, 99, 1000) == pytest.approx(0.01)
    linear = dataclasses.replace(CONFIG, warmup=0.1, warmup_start=0.1)
    assert learning_rate(linear, 49, 1000) == pytest.approx(0.01 * 0.55)


def test_the_rate_never_falls_below_its_floor() -> None:
    config = dataclasses.replace(CONFIG, lr_floor=0.01)
    rates = [learning_rate(config, step, 1000) for step in range(1000)]
    assert min(rates[100:]) >= 0.01 * 0.01
    assert learning_rate(config, 999, 1000) == pytest.approx(0.01 * 0.01, rel=0.3)


def test_the_fusion_of_v1_learns_as_fast_as_its_heads() -> None:
    network = build("bisenetv1", 3, {}, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))
    factors = {
        id(p): g["lr_factor"] for g in build_optimizer(network, CONFIG).param_groups for p in g["params"]
    }
    for name, parameter in network.architecture.named_parameters():
        assert factors[id(parameter)] == (10.0 if name.startswith(("ffm.", "conv_out")) else 1.0), name
