"""The weights file of an int8 version: 8 bits for each weight of a kernel, and a scale for each channel.

Axes: C output channels of a kernel, the first axis; the others are its own.

A kernel ``a.weight`` becomes two tensors: ``a.weight``, int8, and ``a.weight_scale``, float32, with as many
axes: (C, 1, 1, 1). All other tensors, 1 % of the bytes, stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

SCALE_SUFFIX = "_scale"

_LARGEST = 127
_TensorT = TypeVar("_TensorT")


def packed(state: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
    """Round kernels (the tensors of more than one axis) to 8 bits; the largest error is half a step.

    Args:
        state: float16 or float32 tensors by key, finite; integers of one axis or none.
    """
    small: dict[str, npt.NDArray[Any]] = {}
    for key, value in state.items():
        if value.ndim > 1:
            small[key], small[key + SCALE_SUFFIX] = _rounded(value.astype(np.float32))
        else:
            small[key] = value
    return small


def _rounded(kernel: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    largest = np.abs(kernel).max(axis=tuple(range(1, kernel.ndim)), keepdims=True)
    scale = np.where(largest > 0, largest / _LARGEST, 1).astype(np.float32)
    return np.rint(kernel / scale).astype(np.int8), scale


def unpacked(state: Mapping[str, _TensorT]) -> dict[str, _TensorT]:
    """Multiply int8 kernels by their scales; other tensors are returned as they are.

    Args:
        state: tensors of numpy or of torch by key. A scale without its kernel, or a kernel without its scale,
            is returned as it is; the network refuses it.
    """
    scales = {key for key in state if key.removesuffix(SCALE_SUFFIX) in state and key.endswith(SCALE_SUFFIX)}
    return {
        key: _product(value, state[key + SCALE_SUFFIX]) if key + SCALE_SUFFIX in scales else value
        for key, value in state.items()
        if key not in scales
    }


def _product(kernel: Any, scale: Any) -> Any:
    # int8 by float32 is float32, in numpy as in torch.
    return kernel * scale
