"""Optimiser groups, the learning rate of each step, and the moving average of the weights."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from model.networks.bisenetv1 import BiSeNetV1
from model.networks.bisenetv1_lite import BiSeNetV1Lite
from model.networks.layers import SegmentationArchitecture
from model.networks.segmentation_network import SegmentationNetwork
from training.errors import ConfigError

OptimizerName = Literal["adamw", "sgd"]
WarmupShape = Literal["linear", "exponential"]
_MIN_WARMUP_STEPS = 1
_EMA_RAMP = 10


@dataclass(frozen=True)
class OptimizerConfig:
    """The optimiser and the learning rate.

    Args:
        name: ``adamw``, or ``sgd`` with ``momentum``.
        lr: peak learning rate.
        weight_decay: of convolution weights; batch normalisation and biases have none.
        warmup: share of all steps in which the rate rises to ``lr``.
        poly_power: exponent of the fall from ``lr`` over the rest.
        head_lr_factor: the heads learn this many times faster.
        ema_decay: share of the moving average that a step keeps, once it has seen enough of them.
        momentum: of ``sgd``.
        warmup_start: share of ``lr`` that the rise begins with.
        warmup_shape: ``linear`` or ``exponential``; the latter needs a start above 0.
        lr_floor: share of ``lr`` that the fall ends with.
        backbone_lr_factor: the pretrained backbone learns this many times as fast as ``lr`` says.

    Raises:
        ConfigError: a value is out of range.
    """

    name: OptimizerName
    lr: float
    weight_decay: float
    warmup: float
    poly_power: float
    head_lr_factor: float
    ema_decay: float
    momentum: float = 0.9
    warmup_start: float = 0.0
    warmup_shape: WarmupShape = "linear"
    lr_floor: float = 0.0
    backbone_lr_factor: float = 1.0

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        if self.name not in get_args(OptimizerName):
            raise ConfigError(f"optimizer.name must be one of {get_args(OptimizerName)}, not {self.name!r}")
        if min(self.lr, self.head_lr_factor, self.backbone_lr_factor) <= 0:
            raise ConfigError("optimizer: lr, head_lr_factor and backbone_lr_factor are above 0")
        if min(self.weight_decay, self.poly_power) < 0:
            raise ConfigError("optimizer: weight_decay and poly_power are not below 0")
        if not 0 <= self.warmup < 1 or not 0 <= self.ema_decay < 1 or not 0 <= self.momentum < 1:
            raise ConfigError("optimizer: warmup, ema_decay and momentum lie in [0, 1)")
        if not 0 <= self.warmup_start < 1 or not 0 <= self.lr_floor < 1:
            raise ConfigError("optimizer: warmup_start and lr_floor lie in [0, 1)")
        if self.warmup_shape not in get_args(WarmupShape):
            raise ConfigError(f"optimizer.warmup_shape must be one of {get_args(WarmupShape)}")
        if self.warmup_shape == "exponential" and not self.warmup_start:
            raise ConfigError("optimizer.warmup_start must be above 0 for an exponential warm-up")


def learning_rate(config: OptimizerConfig, step: int, total_steps: int) -> float:
    """Return the learning rate of a step: warm-up, then polynomial decay.

    Args:
        config: of the optimiser.
        step: from 0, below ``total_steps``.
        total_steps: of the whole run.

    Source:
        lr (1 - t/T)^0.9, Chen et al., DeepLab, 2016.
    """
    warmup_steps = max(_MIN_WARMUP_STEPS, round(config.warmup * total_steps))
    if step < warmup_steps:
        return config.lr * _risen(config, (step + 1) / warmup_steps)
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    fallen = float((1 - progress) ** config.poly_power)
    return config.lr * (config.lr_floor + (1 - config.lr_floor) * fallen)


def _risen(config: OptimizerConfig, share: float) -> float:
    start = config.warmup_start
    if config.warmup_shape == "exponential":
        return float(start ** (1 - share))
    return start + (1 - start) * share


def build_optimizer(network: SegmentationNetwork, config: OptimizerConfig) -> torch.optim.Optimizer:
    """Build the optimiser with a group for each learning rate, with and without weight decay.

    Each group has ``lr_factor``, by which ``set_learning_rate`` multiplies the rate.

    Raises:
        ConfigError: ``backbone_lr_factor`` is set, and the network has no pretrained backbone.
    """
    groups = _groups(network, config)
    if config.name == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, fused=True)
    return _sgd(groups, config)


def _sgd(groups: list[dict[str, Any]], config: OptimizerConfig) -> torch.optim.SGD:
    optimizer = torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, fused=True)
    # torch 2.13 creates these uninitialised in the first step, and leaves them so if it skips that step, as
    # fp16 does until its scale is found. From zero, the first momentum is the first gradient, as in torch.
    for parameter in (parameter for group in groups for parameter in group["params"] if config.momentum):
        optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every group for the next step."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_factor"]


def _groups(network: SegmentationNetwork, config: OptimizerConfig) -> list[dict[str, Any]]:
    """Return trunk, heads and the pretrained backbone, if any, each with and without weight decay.

    Checkpoints depend on this order, empty groups included.
    """
    architecture = network.architecture
    lr_factors = {"trunk": 1.0, "heads": config.head_lr_factor}
    part_of = dict.fromkeys(map(id, _head_weights(architecture)), "heads")
    backbone = architecture.pretrained_part()
    if backbone is not None:
        lr_factors["backbone"] = config.backbone_lr_factor
        part_of |= dict.fromkeys(map(id, backbone.parameters()), "backbone")
    elif config.backbone_lr_factor != 1:
        raise ConfigError("optimizer.backbone_lr_factor: this architecture has no pretrained backbone")
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {
        (part, decay): [] for part in lr_factors for decay in (True, False)
    }
    for parameter in network.parameters():
        # Batch-normalisation gains and all biases are vectors; decayed weights have more axes.
        groups[part_of.get(id(parameter), "trunk"), parameter.ndim > 1].append(parameter)
    return [
        {
            "params": parameters,
            "weight_decay": config.weight_decay if decay else 0.0,
            "lr_factor": lr_factors[part],
        }
        for (part, decay), parameters in groups.items()
    ]


def _head_weights(architecture: SegmentationArchitecture) -> Iterator[nn.Parameter]:
    heads = [architecture.main_head(), *architecture.auxiliary_heads().values()]
    if isinstance(architecture, BiSeNetV1 | BiSeNetV1Lite):
        heads.append(architecture.ffm)  # as the published code counts it
    return (weight for head in heads for weight in head.parameters())


class MovingAverage:
    """An exponential moving average of a network's weights and buffers, as a network of its own.

    Args:
        network: the average starts as its copy.
        decay: share of the average that an update keeps in the long run.
    """

    def __init__(self, network: SegmentationNetwork, decay: float) -> None:
        self.network = copy.deepcopy(network).eval().requires_grad_(requires_grad=False)
        self.decay = decay
        self._own = _Tensors.of(self.network)
        self._source: tuple[SegmentationNetwork, _Tensors] | None = None

    @torch.no_grad()
    def update(self, network: SegmentationNetwork, step: int) -> None:
        """Move the average towards the network after step ``step``, counted from 0.

        The decay rises as (1 + t) / (10 + t), so that the random start is forgotten at once. Integers (the
        counters of batch normalisation) are copied: their mean has no meaning.
        """
        share = 1 - min(self.decay, (1 + step) / (_EMA_RAMP + step))
        if self._source is None or self._source[0] is not network:
            self._source = network, _Tensors.of(network)
        values = self._source[1]
        torch._foreach_lerp_(self._own.floats, values.floats, share)
        torch._foreach_copy_(self._own.integers, values.integers)


@dataclass(frozen=True, eq=False)
class _Tensors:
    """Weights and buffers of a network, listed once: listing takes longer than moving the average."""

    floats: list[Tensor]
    integers: list[Tensor]

    @classmethod
    def of(cls, network: nn.Module) -> _Tensors:
        tensors = network.state_dict().values()
        floats = [tensor for tensor in tensors if tensor.is_floating_point()]
        return cls(floats, [tensor for tensor in tensors if not tensor.is_floating_point()])
