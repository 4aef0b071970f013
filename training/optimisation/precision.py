"""In which numbers a run computes, and how its network is compiled."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch

from training.errors import ConfigError

Precision = Literal["auto", "bf16", "fp16", "f32"]
_BF16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "bf16")  # of x86 and of ARM, by torch's names
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class ComputeConfig:
    """How a step is computed; another choice gives other roundings, and so another run.

    Args:
        precision: ``bf16`` and ``fp16`` mean automatic mixed precision; ``fp16`` scales the loss, which
            ``bf16`` needs not; weights and averages are always float32. ``auto``: ``bf16`` where the device
            multiplies in it, else ``fp16`` on a GPU and ``f32`` on a CPU.
        compile: on a GPU, let torch fuse the network's operations for the one shape that crops have; the
            first step takes a minute.
        sync_bn: normalise over the batches of all processes, not of each on its own; needs CUDA.
        deterministic: refuse kernels whose result depends on the order of their threads; slower on CUDA.

    Raises:
        ConfigError: no such precision.
    """

    precision: Precision = "auto"
    compile: bool = True
    sync_bn: bool = False
    deterministic: bool = False

    def __post_init__(self) -> None:
        """Refuse unknown precisions."""
        if self.precision not in get_args(Precision):
            raise ConfigError(
                f"compute.precision must be one of {get_args(Precision)}, not {self.precision!r}"
            )

    def on(self, device: torch.device) -> ComputeConfig:
        """Return the same with the precision that ``auto`` means on a device: what a run remembers."""
        return replace(self, precision=_resolved(self.precision, device))

    def set_up(self, device: torch.device) -> None:
        """Tell torch once, for the whole process, which kernels may be chosen; before a GPU is used."""
        if self.deterministic and device.type == "cuda":
            # Without it cuBLAS refuses: its streams would share memory for what they add up.
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(self.deterministic)
        if device.type == "cuda":
            torch.set_float32_matmul_precision("high")

    @contextmanager
    def searching(self, device: torch.device) -> Iterator[None]:
        """Return the context in which cuDNN times its algorithms: for shapes that come at every step.

        Pictures that are validated may have a size each, and a search takes seconds.
        """
        before = torch.backends.cudnn.benchmark
        torch.backends.cudnn.benchmark = device.type == "cuda" and not self.deterministic
        try:
            yield
        finally:
            torch.backends.cudnn.benchmark = before

    def autocast(self, device: torch.device) -> AbstractContextManager[object]:
        """Return the context in which a network runs forward."""
        dtype = _DTYPES.get(_resolved(self.precision, device))
        return nullcontext() if dtype is None else torch.autocast(device.type, dtype)

    def scaler(self, device: torch.device) -> torch.amp.GradScaler:
        """Return what keeps small fp16 gradients from vanishing; does nothing in other precisions."""
        return torch.amp.GradScaler(device.type, enabled=_resolved(self.precision, device) == "fp16")


def _resolved(precision: Precision, device: torch.device) -> Precision:
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    # Without instructions for it bf16 is emulated: a step of BiSeNetV2 took 8 times as long as in f32.
    capabilities = torch.cpu.get_capabilities()
    return "bf16" if any(capabilities.get(name) for name in _BF16_INSTRUCTIONS) else "f32"
