from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from training.data.sampling import AUGMENT_STREAM, EPOCH_STREAM, batch_indices, step_generator, step_seed


@given(
    seed=st.integers(0, 2**40),
    size=st.integers(1, 30),
    batch_size=st.integers(1, 12),
    epochs=st.integers(1, 4),
)
def test_every_epoch_sees_every_picture_once(seed: int, size: int, batch_size: int, epochs: int) -> None:
    steps = -(-size * epochs // batch_size)
    seen = [i for step in range(steps) for i in batch_indices(seed, step, batch_size=batch_size, size=size)]
    for epoch in range(epochs):
        assert sorted(seen[epoch * size : (epoch + 1) * size]) == list(range(size))


def test_epochs_differ_in_their_order() -> None:
    first, second = (batch_indices(0, step, batch_size=50, size=50) for step in range(2))
    assert first != second


def test_randomness_depends_on_seed_step_and_stream() -> None:
    arguments = [(0, 0, AUGMENT_STREAM), (1, 0, AUGMENT_STREAM), (0, 1, AUGMENT_STREAM), (0, 0, EPOCH_STREAM)]
    assert len({step_seed(*each) for each in arguments}) == len(arguments)
    draws = [torch.rand(3, generator=step_generator(7, 8, AUGMENT_STREAM)) for _ in range(2)]
    assert torch.equal(*draws)
