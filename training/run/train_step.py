"""One training step: loss, gradients, optimiser, moving average.

Axes: N images in a batch, H height, W width, 3 = red green blue.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from model.networks.segmentation_network import SegmentationNetwork, build
from training.config import TrainingConfig
from training.data.sampling import NETWORK_STREAM, WEIGHTS_STREAM, step_seed
from training.data.splits import TrainingData
from training.distributed import Ranks
from training.errors import ConfigError
from training.optimisation.distillation import Teacher
from training.optimisation.losses import SegmentationLoss, class_weights
from training.optimisation.optim import MovingAverage, build_optimizer, set_learning_rate
from training.optimisation.precision import ComputeConfig

Cut = Callable[[int], tuple[Tensor, Tensor]]
"""Part of a batch -> images_NHW3, labels_NHW."""


class TrainStep:
    """The network of a run with its optimiser, loss and moving average.

    Args:
        config: configuration of the run.
        data: gives classes, class weights, normalisation and device.
        ranks: the processes that share a batch.
        teacher: what the main head also learns from; None = the labels alone.

    Attributes:
        network: the network that is trained.
        average: moving average of its weights; it is validated and published.
        is_compiled: torch compiles the network in the first step, which takes a minute.
    """

    def __init__(
        self, config: TrainingConfig, data: TrainingData, ranks: Ranks, teacher: Teacher | None = None
    ) -> None:
        self.config = config
        self.teacher = teacher
        self.device = data.device
        self.ranks = ranks
        network = _initial_network(config, data)
        # Copied before batches are normalised together, which the average never needs.
        self.average = MovingAverage(network, config.optimizer.ema_decay)
        self.network = _in_sync(network, self.device) if _is_in_sync(config.compute, ranks) else network
        self.optimizer = build_optimizer(self.network, config.optimizer)
        self.scaler = config.compute.scaler(data.device)
        self.loss = _loss(config, data)
        self.is_compiled = _is_compiled(config.compute, ranks, data.device)
        self._heads = _parallel(_Heads(self.network), ranks, is_compiled=self.is_compiled)

    def restart_average(self) -> None:
        """Set the average to the present weights."""
        self.average.network.load_state_dict(self.network.state_dict())

    def step(self, step: int, lr: float, cut: Cut) -> Tensor:
        """Learn from one batch; the result depends on weights, configuration, data and arguments alone.

        Where the loss is NaN or infinite, the weights stay as they are.

        Args:
            step: number of the step, from 0.
            lr: learning rate of this step.
            cut: returns a part of the batch by its number.

        Returns:
            The loss, summed over all heads, mean over the batch: a scalar on the device.
        """
        set_learning_rate(self.optimizer, lr)
        self.optimizer.zero_grad(set_to_none=True)
        self.network.train()
        accumulate = self.config.schedule.accumulate
        total = torch.zeros((), device=self.device)
        for own in range(accumulate):
            part = self.ranks.rank * accumulate + own
            alone = self._alone() if own + 1 < accumulate else nullcontext()
            with alone, self.config.compute.searching(self.device):
                loss = self._loss_of(step, part, *cut(part)) / accumulate
                self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            total += loss.detach()
        total = self.ranks.mean(total)
        if self._is_usable(total):
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.average.update(self.network, step)
        return total

    def is_finite(self) -> bool:
        """Return whether all weights, averages and statistics are finite. Waits for the device."""
        networks = (self.network, self.average.network)
        floats = [v for one in networks for v in one.state_dict().values() if v.is_floating_point()]
        return bool(torch.stack([value.isfinite().all() for value in floats]).all())

    def state(self) -> dict[str, Any]:
        """Return everything that later steps depend on."""
        return {
            "network": self.network.state_dict(),
            "average": self.average.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore the result of ``state``."""
        self.network.load_state_dict(state["network"])
        self.average.network.load_state_dict(state["average"])
        self.optimizer.load_state_dict(
            _with_backbone_groups(state["optimizer"], self.optimizer, self.network)
        )
        self.scaler.load_state_dict(state["scaler"])

    def _loss_of(self, step: int, part: int, images_NHW3: Tensor, labels_NHW: Tensor) -> Tensor:
        # Dropout draws from the global generators; a seed of the part's own makes resuming exact.
        torch.manual_seed(step_seed(self.config.seed, step, NETWORK_STREAM, part))
        with self.config.compute.autocast(self.device):
            heads = self._heads(images_NHW3)
            taught = self.teacher.loss(heads[0], images_NHW3) if self.teacher else 0.0
        return self.loss.total(heads, labels_NHW) + taught

    def _is_usable(self, loss: Tensor) -> bool:
        if self.device.type == "cpu":
            return math.isfinite(loss.item())
        if not self.scaler.is_enabled():
            # The fused optimisers skip the step themselves: the host need not wait for the loss.
            self.optimizer.found_inf = (~loss.isfinite()).float()  # type: ignore[attr-defined]  # read by step()
        return True

    def _alone(self) -> AbstractContextManager[object]:
        """Return the context in which gradients stay in this process."""
        if isinstance(self._heads, DistributedDataParallel):
            return self._heads.no_sync()
        return nullcontext()


def _with_backbone_groups(
    saved: dict[str, Any], optimizer: torch.optim.Optimizer, network: nn.Module
) -> dict[str, Any]:
    """Return a saved state in the groups of today: older ones have the backbone among the trunk.

    Args:
        saved: ``state_dict`` of an optimiser of the same network.
        optimizer: has groups for trunk, heads and backbone, each with and without weight decay.
        network: of the optimiser.
    """
    groups = [group["params"] for group in optimizer.param_groups]
    if len(saved["param_groups"]) == len(groups):
        return saved
    place = {parameter: index for index, parameter in enumerate(network.parameters())}
    decayed, plain, *heads, decayed_backbone, plain_backbone = groups
    both = decayed + decayed_backbone, plain + plain_backbone
    trunk = [sorted(parameters, key=place.__getitem__) for parameters in both]
    number = {parameter: index for index, parameter in enumerate(chain(*groups))}
    states = {
        number[parameter]: saved["state"][index]
        for index, parameter in enumerate(chain(*trunk, *heads))
        if index in saved["state"]
    }
    return {"state": states, "param_groups": optimizer.state_dict()["param_groups"]}


class _Heads(nn.Module):
    """A network whose ``forward`` is ``forward_train``, for torch.compile and DistributedDataParallel."""

    def __init__(self, network: SegmentationNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, images_NHW3: Tensor) -> tuple[Tensor, ...]:
        """Return the raw scores of all heads."""
        return self.network.forward_train(images_NHW3)


def _parallel(heads: nn.Module, ranks: Ranks, *, is_compiled: bool) -> nn.Module:
    if is_compiled:
        heads = torch.compile(heads, dynamic=False)  # type: ignore[assignment]  # a module stays a module
    if ranks.world == 1:
        return heads
    return DistributedDataParallel(heads, gradient_as_bucket_view=True)


def _is_in_sync(compute: ComputeConfig, ranks: Ranks) -> bool:
    return compute.sync_bn and ranks.world > 1


def _is_compiled(compute: ComputeConfig, ranks: Ranks, device: torch.device) -> bool:
    # Each normalisation talks to other processes, and between two of them little is left to fuse.
    return compute.compile and device.type == "cuda" and not _is_in_sync(compute, ranks)


def _in_sync(network: SegmentationNetwork, device: torch.device) -> SegmentationNetwork:
    if device.type != "cuda":
        raise ConfigError(f"compute.sync_bn needs GPUs, and this run's device is {device}")
    synced: SegmentationNetwork = nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
    return synced


def _initial_network(config: TrainingConfig, data: TrainingData) -> SegmentationNetwork:
    torch.manual_seed(step_seed(config.seed, 0, WEIGHTS_STREAM))
    network = build(
        config.network.architecture,
        data.spec.palette.num_classes,
        config.network.parameters,
        mean=data.mean,
        std=data.std,
        with_auxiliary=config.loss.auxiliary_weight > 0,
    )
    network.to(data.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in torch's stubs
    return network


def _loss(config: TrainingConfig, data: TrainingData) -> SegmentationLoss:
    frequencies_K = torch.tensor(data.class_frequencies, dtype=torch.float32)
    weights_K = class_weights(frequencies_K, config.loss).to(data.device)
    return SegmentationLoss(config.loss, weights_K, data.spec.palette.ignore_id)
