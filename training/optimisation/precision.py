"""The precision of a run, and the compilation of its network."""

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
    """The computation of a step; another choice rounds differently and gives another run.

    Args:
        precision: ``bf16`` and ``fp16`` mean automatic mixed precision; ``fp16`` also scales the loss.
            Weights and averages are always float32. ``auto``: ``bf16`` if the device has instructions for
            it, else ``fp16`` on a GPU and ``f32`` on a CPU.
        compile: on a GPU, let torch fuse the network's operations for the shape of the crops; the first step
            takes a minute.
        sync_bn: normalise over the batches of all processes, not of each process; needs CUDA.
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
        """Return the configuration with the precision that ``auto`` means on a device."""
        return replace(self, precision=_resolved(self.precision, device))

    def set_up(self, device: torch.device) -> None:
        """Set torch's choice of kernels for the whole process; call it once, before a GPU is used."""
        if self.deterministic and device.type == "cuda":
            # cuBLAS requires it for deterministic results: its streams must not share a workspace.
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(self.deterministic)
        if device.type == "cuda":
            torch.set_float32_matmul_precision("high")

    @contextmanager
    def searching(self, device: torch.device) -> Iterator[None]:
        """Return the context in which cuDNN times its algorithms, for shapes that come at every step.

        Not for validation: its pictures may all have other sizes, and a search takes seconds.
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
        """Return the scaler that keeps small fp16 gradients from vanishing; it does nothing otherwise."""
        return torch.amp.GradScaler(device.type, enabled=_resolved(self.precision, device) == "fp16")


def _resolved(precision: Precision, device: torch.device) -> Precision:
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    # Without instructions for it bf16 is emulated: a step of BiSeNetV2 took 8 times as long as in f32.
    capabilities = torch.cpu.get_capabilities()
    return "bf16" if any(capabilities.get(name) for name in _BF16_INSTRUCTIONS) else "f32"
