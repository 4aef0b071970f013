"""The engines by name; each one's library is imported at its first use.

An engine is a module with two functions: ``build``, an ``EngineBuilder``, and ``precisions(device)``, which
returns the precisions of a device, the default first. A plug-in is any other such module that can be found:
``--engine MODULE``, or ``--engine MODULE:ARGUMENTS``, whose text goes to ``EngineOptions.arguments``.
"""

from __future__ import annotations

import dataclasses
import importlib.util
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

ENGINES: Mapping[str, str] = MappingProxyType(
    {
        "openvino": "service.engines.openvino",
        "tensorrt": "service.engines.tensorrt",
        "torch": "service.engines.torch",
    }
)
"""Name -> module, of the engines in this package."""

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
    """Return the function that builds an engine.

    Args:
        choice: a name, or a plug-in with its arguments; ``auto`` = tensorrt, else torch on a GPU, else
            openvino. An engine that is asked for by name is never replaced by another one.
        device: as ``resolve_device`` returns it.

    Raises:
        EngineUnavailableError: there is no such engine, or its library is not installed.
    """
    if choice == "auto":
        return partial(_build_fastest, device)
    if choice in ENGINES:
        return cast("EngineBuilder", _module(choice).build)
    return _plug_in_builder(choice)


def late_builder(choice: str) -> EngineBuilder:
    """Return what builds the chosen engine and imports its library only then; see ``engine_builder``."""

    def build(artifact: Artifact, options: EngineOptions) -> InferenceEngine:
        return engine_builder(choice, options.device)(artifact, options)

    return build


def is_plug_in(choice: str) -> bool:
    """Return whether a choice is ``MODULE`` or ``MODULE:ARGUMENTS`` of a module that can be found.

    The packages around the module are imported.
    """
    name = choice.partition(":")[0]
    try:
        return name not in ENGINES and importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def _plug_in_builder(choice: str) -> EngineBuilder:
    if not is_plug_in(choice):
        raise EngineUnavailableError(
            f"there is no engine {choice!r}: choose {', '.join(ENGINES)} or a Python module that is installed"
        )
    name, _, arguments = choice.partition(":")
    module = _module(name)
    if not hasattr(module, "build"):
        raise EngineUnavailableError(f"the module {name} is no engine: it has no function build")
    return lambda artifact, options: cast("EngineBuilder", module.build)(
        artifact, dataclasses.replace(options, arguments=arguments)
    )


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
    try:
        return importlib.import_module(ENGINES.get(name, name))
    except ImportError as error:
        raise EngineUnavailableError(f"{name} is not installed ({error})") from error
