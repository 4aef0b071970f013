"""The libraries that can run a network, by name; each is imported only when it is asked for."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import cast

from model.artifacts.artifact import Artifact
from model.errors import GoldenMismatchError
from service.core.device.engine import (
    AUTO_DEVICE,
    EngineBuilder,
    EngineOptions,
    EngineUnavailableError,
    InferenceEngine,
    Precision,
)
from service.engines import fault

ENGINES: Mapping[str, str] = MappingProxyType(
    {
        "openvino": "service.engines.openvino",
        "tensorrt": "service.engines.tensorrt",
        "torch": "service.engines.torch",
    }
)
"""Name -> module with ``build``, an ``EngineBuilder``, and ``precisions``, what a device computes in."""

FIRST_GPU = "cuda:0"
NO_GPU = "needs an NVIDIA GPU; this machine shows none"
_GPU_ENGINES = ("tensorrt", "torch")
"""What ``auto`` takes on a GPU, the fastest first."""

_DRIVER_FILES = ("/proc/driver/nvidia/version", "/dev/nvidiactl", "/dev/dxg")


def has_gpu() -> bool:
    """Return whether the driver of an NVIDIA GPU is there; told without importing torch."""
    return any(Path(file).exists() for file in _DRIVER_FILES)


def resolve_device(choice: str, engine: str = "auto") -> str:
    """Return the device that a choice means.

    Args:
        choice: ``cpu``, ``cuda:N`` or ``auto``.
        engine: a name, or ``auto``.

    Returns:
        ``cpu``, ``cuda:N``; or ``auto`` where ``auto`` engines may take a GPU and fall back on the CPU.
    """
    if choice != "auto":
        return choice
    if engine == "tensorrt":
        return FIRST_GPU
    if engine not in ("auto", "torch") or not has_gpu():
        return "cpu"
    return AUTO_DEVICE if engine == "auto" else FIRST_GPU


def engine_builder(choice: str, device: str) -> EngineBuilder:
    """Return what builds the chosen engine.

    Args:
        choice: a name; ``auto`` = tensorrt, else torch on a GPU, else openvino. What is asked for by name is
            never replaced.
        device: what ``resolve_device`` returned.

    Raises:
        EngineUnavailableError: no such engine, or its library is not installed.
    """
    if choice.startswith(fault.PREFIX):
        return fault.builder(choice)
    if choice == "auto":
        return partial(_build_fastest, device)
    return cast("EngineBuilder", _module(choice).build)


def late_builder(choice: str) -> EngineBuilder:
    """Return what builds the chosen engine and imports its library only then; see ``engine_builder``."""

    def build(artifact: Artifact, options: EngineOptions) -> InferenceEngine:
        return engine_builder(choice, options.device)(artifact, options)

    return build


def engine_precisions(name: str, device: str) -> tuple[Precision, ...]:
    """Return what an engine can compute in on a device, the default first.

    Raises:
        EngineUnavailableError: it cannot run there; the message says why.
    """
    return cast("tuple[Precision, ...]", _module(name).precisions(device))


def _build_fastest(choice: str, artifact: Artifact, options: EngineOptions) -> InferenceEngine:
    """Build the first engine that runs here; its info tells why those before it do not.

    Raises:
        EngineUnavailableError: the last one does not run, either.
        GoldenMismatchError: the last one computes something else.
    """
    import structlog  # noqa: PLC0415 - checks of one engine on a borrowed GPU do without it

    refused = _refused_at_sight(choice)
    *faster, (name, device) = _candidates(choice)
    for one, its_device in faster:
        try:
            return _named(one, artifact, options, its_device, refused)
        except (EngineUnavailableError, GoldenMismatchError) as error:
            structlog.get_logger().warning(
                "engine is not used", engine=one, device=its_device, reason=str(error)
            )
            refused[one] = str(error)
    return _named(name, artifact, options, device, refused)


def _candidates(device: str) -> list[tuple[str, str]]:
    if device == "cpu":
        return [("openvino", "cpu")]
    gpu = FIRST_GPU if device == AUTO_DEVICE else device
    fallback = [("openvino", "cpu")] if device == AUTO_DEVICE else []
    return [*((name, gpu) for name in _GPU_ENGINES), *fallback]


def _refused_at_sight(device: str) -> dict[str, str]:
    reason = "the device was asked to be the CPU" if has_gpu() else NO_GPU
    return dict.fromkeys(_GPU_ENGINES, reason) if device == "cpu" else {}


def _named(
    name: str, artifact: Artifact, options: EngineOptions, device: str, refused: Mapping[str, str]
) -> InferenceEngine:
    told = "; ".join(f"{other}: {reason}" for other, reason in refused.items())
    build = cast("EngineBuilder", _module(name).build)
    return build(artifact, dataclasses.replace(options, device=device, refused=told))


def _module(name: str) -> ModuleType:
    if name not in ENGINES:
        raise EngineUnavailableError(f"no engine is called {name!r}; there are {', '.join(ENGINES)}")
    try:
        return importlib.import_module(ENGINES[name])
    except ImportError as error:
        raise EngineUnavailableError(f"{name} is not installed ({error})") from error
