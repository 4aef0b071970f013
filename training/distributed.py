"""The processes of one run: how they share work and agree. ``torchrun`` starts and restarts them.

In a run of one process every call here returns its argument at once.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import torch
from torch import Tensor, distributed, nn
from torch.nn import functional

from model.evaluation.metrics import ConfusionMatrix

_VARIABLES = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
_WAIT = timedelta(minutes=30)
"""How long processes wait for each other: one may need so long to read a data set."""


@dataclass(frozen=True)
class Ranks:
    """One process among those of a run.

    Attributes:
        rank: number of the process, from 0.
        world: number of processes.
        local_rank: number of the process on its machine, from 0.
        local_world: number of processes on its machine.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process writes checkpoints, logs and the artifact."""
        return self.rank == 0

    def share(self, count: int) -> range:
        """Return the indices of this process among ``count`` items; each item belongs to one process."""
        return range(self.rank, count, self.world)

    def any(self, flag: bool, device: torch.device) -> bool:  # noqa: FBT001 - it is the value, not an option
        """Return whether the flag is set in any process."""
        if self.world == 1:
            return flag
        votes = torch.tensor([flag], dtype=torch.int32, device=device)
        distributed.all_reduce(votes, distributed.ReduceOp.MAX)
        return bool(votes.item())

    def total(self, matrix: ConfusionMatrix, device: torch.device) -> ConfusionMatrix:
        """Add the matrices of all processes, in int64: exactly."""
        if self.world == 1:
            return matrix
        counts = torch.from_numpy(matrix.counts_KK.copy()).to(device)
        distributed.all_reduce(counts)
        return ConfusionMatrix(counts.cpu().numpy().astype(np.int64))

    def from_first(self, values: Sequence[float], device: torch.device) -> list[float]:
        """Return the numbers of the first process."""
        if self.world == 1:
            return list(values)
        sent = torch.tensor(values, dtype=torch.float64, device=device)
        distributed.broadcast(sent, 0)
        found: list[float] = sent.tolist()
        return found

    def texts(self, own: str, device: torch.device) -> list[str]:
        """Return the text of each process, in the order of their ranks."""
        if self.world == 1:
            return [own]
        data = torch.frombuffer(bytearray(own.encode() or b" "), dtype=torch.uint8).to(device)
        sizes = [torch.zeros(1, dtype=torch.int64, device=device) for _ in range(self.world)]
        distributed.all_gather(sizes, torch.tensor([len(data)], device=device))
        longest = max(int(size) for size in sizes)
        heard = [torch.empty(longest, dtype=torch.uint8, device=device) for _ in sizes]
        distributed.all_gather(heard, functional.pad(data, (0, longest - len(data))))
        return [
            bytes(text[: int(size)].cpu().numpy()).decode() for text, size in zip(heard, sizes, strict=True)
        ]

    def mean(self, value: Tensor) -> Tensor:
        """Return the mean over all processes."""
        if self.world == 1:
            return value
        value = value.detach().clone()
        distributed.all_reduce(value)
        return value / self.world

    def copy_from_first(self, network: nn.Module) -> None:
        """Copy weights and statistics of the first process into this network."""
        if self.world > 1:
            for value in network.state_dict().values():
                distributed.broadcast(value, 0)

    def wait_for_all(self) -> None:
        """Return when every process has called this."""
        if self.world > 1:
            distributed.barrier()


ALONE = Ranks()
"""A run of one process."""


@contextmanager
def joined(device: torch.device) -> Iterator[Ranks]:
    """Join the processes that ``torchrun`` started; without it the run has one process.

    Args:
        device: of this process; GPUs communicate by NCCL, CPUs by gloo.
    """
    ranks = ranks_here()
    if ranks.world == 1:
        yield ranks
        return
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=_WAIT)
    try:
        yield ranks
    finally:
        distributed.destroy_process_group()


def ranks_here() -> Ranks:
    """Read the numbers of this process from the environment that ``torchrun`` sets."""
    return Ranks(*(int(os.environ.get(name, default)) for name, default in _VARIABLES.items()))
