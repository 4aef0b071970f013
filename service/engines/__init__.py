"""The libraries that can run a network, by name; each is imported only when it is asked for."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from types import MappingProxyType, ModuleType
from typing import cast

from model.artifact import Artifact
from service.core.engine import (
    EngineBuilder,
    EngineOptions,
    EngineUnavailableError,
    InferenceEngine,
    Precision,
)
from service.engines import fault

ENGINES: Mapping[str, str] = MappingProxyType(
    {"openvino": "service.engines.openvino", "torch": "service.engines.torch"}
)
"""Name -> module with ``build``, an ``EngineBuilder``, and ``precisions``, what a device computes in."""


def resolve_device(choice: str) -> str:
    """Return the device that a choice means: ``auto`` is ``cpu``, the only one that needs no asking."""
    return "cpu" if choice == "auto" else choice


def engine_builder(choice: str, device: str) -> EngineBuilder:
    """Return what builds the chosen engine.

    Args:
        choice: a name; ``auto`` = the fastest for the device. What is asked for by name is never replaced.
        device: ``cpu`` or ``cuda:N``.

    Raises:
        EngineUnavailableError: no such engine, or its library is not installed.
    """
    if choice.startswith(fault.PREFIX):
        return fault.builder(choice)
    if choice == "auto":
        choice = "openvino" if device == "cpu" else "torch"
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


def _module(name: str) -> ModuleType:
    if name not in ENGINES:
        raise EngineUnavailableError(f"no engine is called {name!r}; there are {', '.join(ENGINES)}")
    try:
        return importlib.import_module(ENGINES[name])
    except ImportError as error:
        raise EngineUnavailableError(f"{name} is not installed ({error})") from error
