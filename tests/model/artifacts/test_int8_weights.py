from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from model.artifacts.int8_weights import packed, unpacked

kernels = arrays.arrays(
    np.float32,
    arrays.array_shapes(min_dims=2, max_dims=4, max_side=4),
    elements=st.floats(-1e4, 1e4, width=32, allow_subnormal=False),
)


@given(kernels)
def test_no_weight_moves_by_more_than_half_a_step_of_its_channel(kernel: np.ndarray) -> None:
    back = unpacked(packed({"a.weight": kernel}))["a.weight"]
    steps_C = np.abs(kernel).reshape(len(kernel), -1).max(axis=1) / 127
    error = np.abs(back - kernel).reshape(len(kernel), -1)
    assert back.dtype == np.float32
    assert (error <= steps_C[:, None] * 0.5001).all()


def test_kernels_take_one_byte_a_weight_and_the_rest_stays_as_it_is() -> None:
    state = {
        "conv.weight": np.ones((2, 3, 1, 1), np.float16),
        "bn.weight": np.float32([0.1, 0.2]),
        "bn.num_batches_tracked": np.array(7, np.int64),
    }
    small = packed(state)
    assert small["conv.weight"].dtype == np.int8
    assert small["conv.weight_scale"].shape == (2, 1, 1, 1)
    assert small["bn.weight"] is state["bn.weight"]
    assert small["bn.num_batches_tracked"] is state["bn.num_batches_tracked"]
    assert unpacked(small).keys() == state.keys()


def test_a_channel_without_any_weight_stays_zero() -> None:
    kernel = np.float32([[0, 0], [1, -1]])
    assert unpacked(packed({"w": kernel}))["w"].tolist() == [[0, 0], [1, -1]]


def test_tensors_of_torch_are_unpacked_as_those_of_numpy() -> None:
    small = packed({"w": np.random.default_rng(0).normal(size=(3, 2, 3, 3)).astype(np.float32)})
    tensors = unpacked({key: torch.from_numpy(value) for key, value in small.items()})
    assert tensors["w"].dtype == torch.float32
    np.testing.assert_array_equal(tensors["w"].numpy(), unpacked(small)["w"])


@pytest.mark.parametrize("keys", [{"a"}, {"a_scale"}, {"a_scale", "b"}])
def test_weights_of_other_versions_pass_as_they_are(keys: set[str]) -> None:
    state = dict.fromkeys(keys, np.float32(1))
    assert unpacked(state) == state
