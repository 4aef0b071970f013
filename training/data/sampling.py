"""The pictures and the randomness of a step: pure functions of (seed, step), so there is no state to save.

The processes of a run divide the batch of a step; the batch does not depend on their number.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch

# Streams of randomness; a new use takes a new number, which leaves the others unchanged.
AUGMENT_STREAM, NETWORK_STREAM, EPOCH_STREAM, WEIGHTS_STREAM = range(4)


def step_generator(seed: int, step: int, stream: int) -> torch.Generator:
    """Return a generator that depends on its arguments alone: this makes a resumed run exact."""
    return torch.Generator().manual_seed(step_seed(seed, step, stream))


def step_seed(seed: int, step: int, stream: int, part: int = 0) -> int:
    """Mix run seed, step, stream and part of the batch into 63 bits."""
    words = [seed, step, stream, part] if part else [seed, step, stream]
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> 1)


def batch_indices(seed: int, step: int, *, batch_size: int, size: int) -> list[int]:
    """Choose the pictures of one step: every epoch has each picture once, in its own random order.

    Batches continue across the end of an epoch; no picture is dropped or repeated.

    Args:
        seed: of the run.
        step: from 0.
        batch_size: pictures a step.
        size: pictures in the set.
    """
    first = step * batch_size
    epochs = range(first // size, (first + batch_size - 1) // size + 1)
    orders = {epoch: _epoch_order(seed, epoch, size) for epoch in epochs}
    return [orders[position // size][position % size] for position in range(first, first + batch_size)]


@lru_cache(maxsize=4)
def _epoch_order(seed: int, epoch: int, size: int) -> list[int]:
    order: list[int] = torch.randperm(size, generator=step_generator(seed, epoch, EPOCH_STREAM)).tolist()
    return order
