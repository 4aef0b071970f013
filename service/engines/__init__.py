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
from importlib import metadata
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
NO_GPU = "needs an NVIDIA GPU, and this machine has none"
_GPU_ENGINES = ("tensorrt", "torch")
"""The engines of ``auto`` on a GPU, the fastest first."""

_DRIVER_FILES = ("/proc/driver/nvidia/version", "/dev/nvidiactl", "/dev/dxg")


def has_gpu() -> bool:
    """Return whether the driver of an NVIDIA GPU is installed; torch is not imported."""
    return any(Path(file).exists() for file in _DRIVER_FILES)


def tell_missing_gpu(choice: str) -> None:
    """Write into the log that the CPU is used, where torch is installed and a GPU would have been taken.

    Args:
        choice: ``cpu``, ``cuda:N`` or ``auto``.
    """
    import structlog  # noqa: PLC0415 - tests/gpu run on machines without it

    if choice == "auto" and not has_gpu() and any(metadata.distributions(name="torch")):
        structlog.get_logger().info(
            "GPU is not used",
            reason="there is no driver of an NVIDIA GPU here; a container gets it by `docker run --gpus all`",
        )


def resolve_device(choice: str, engine: str = "auto") -> str:
    """Return the device of an engine.

    Args:
        choice: ``cpu``, ``cuda:N`` or ``auto``.
        engine: a name, or ``auto``.

    Returns:
        ``cpu`` or ``cuda:N``; ``auto`` where the engine is ``auto`` too and may run on a GPU or on the CPU.
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
    """Return a function that builds an engine and imports its library at its first call.

    Args:
        choice: as for ``engine_builder``, whose errors the function raises.
    """

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
    """Return the precisions of an engine on a device, the default first.

    Raises:
        EngineUnavailableError: the engine cannot run there; the message says why.
    """
    return cast("tuple[Precision, ...]", _module(name).precisions(device))


def _build_fastest(device: str, artifact: Artifact, options: EngineOptions) -> InferenceEngine:
    """Build the first engine of ``auto`` that can run; its info says why those before it cannot.

    Raises:
        EngineUnavailableError: the last one cannot run.
        GoldenMismatchError: the last one does not reproduce the golden sample.
    """
    import structlog  # noqa: PLC0415 - tests/gpu run on machines without it

    refused = _refused_gpu_engines(device)
    *faster, last = _auto_engines(device)
    for name, engine_device in faster:
        try:
            return _build(name, engine_device, artifact, options, refused)
        except (EngineUnavailableError, GoldenMismatchError) as error:
            structlog.get_logger().warning(
                "engine is not used", engine=name, device=engine_device, reason=str(error)
            )
            refused[name] = str(error)
    return _build(*last, artifact, options, refused)


def _auto_engines(device: str) -> list[tuple[str, str]]:
    """Return the engines of ``auto`` with their devices, the fastest first."""
    if device == "cpu":
        return [("openvino", "cpu")]
    gpu = FIRST_GPU if device == AUTO_DEVICE else device
    fallback = [("openvino", "cpu")] if device == AUTO_DEVICE else []
    return [*((name, gpu) for name in _GPU_ENGINES), *fallback]


def _refused_gpu_engines(device: str) -> dict[str, str]:
    """Return why the GPU engines are not tried, by name."""
    reason = "the settings ask for the CPU" if has_gpu() else NO_GPU
    return dict.fromkeys(_GPU_ENGINES, reason) if device == "cpu" else {}


def _build(
    name: str, device: str, artifact: Artifact, options: EngineOptions, refused: Mapping[str, str]
) -> InferenceEngine:
    reasons = "; ".join(f"{other}: {reason}" for other, reason in refused.items())
    build = cast("EngineBuilder", _module(name).build)
    return build(artifact, dataclasses.replace(options, device=device, refused=reasons))


def _module(name: str) -> ModuleType:
    try:
        return importlib.import_module(ENGINES.get(name, name))
    except ImportError as error:
        raise EngineUnavailableError(f"{name} is not installed ({error})") from error
