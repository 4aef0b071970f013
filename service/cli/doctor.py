"""``bisenet doctor``: the engines that this machine can run, and why it cannot run the others."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Annotated

import typer

from model.errors import ModelError
from service.assembly import engine_options
from service.cli.local import (
    EXIT_FAILED,
    choose_model,
    exit_on_errors,
    local_settings,
)
from service.core.device.engine import EngineChoice, EngineUnavailableError, private_folder
from service.engine_choice import described
from service.engines import ENGINES, FIRST_GPU, NO_GPU, engine_builder, engine_precisions, has_gpu
from service.machine import Machine, this_machine
from service.registry import open_registry
from service.settings import Settings

_EXTRAS = {"tensorrt": ("torch_tensorrt", "gpu"), "torch": ("torch", "torch")}
"""Module that an engine needs beyond the base installation, and the extra that installs it."""


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        name: of the engine or the requirement.
        ok: whether it can be used.
        detail: how it is used, or why it cannot be used.
    """

    name: str
    ok: bool
    detail: str


@dataclass(frozen=True)
class Diagnosis:
    """The results of all checks.

    Attributes:
        machine: on which they ran.
        engines: every engine.
        checks: every requirement of serving.
        choice: engines of the model that were timed, the chosen one first; empty if the settings decide.
    """

    machine: Machine
    engines: tuple[Finding, ...]
    checks: tuple[Finding, ...]
    choice: tuple[EngineChoice, ...]

    @property
    def can_serve(self) -> bool:
        """Whether every requirement is met; one engine that can run is enough."""
        return all(finding.ok for finding in self.checks)

    def __str__(self) -> str:
        """Return one line for each result."""
        machine = self.machine
        flags = ", ".join(machine.vector_flags) or "no vector extensions for networks"
        lines = [
            f"{machine.processor}, {machine.cores} cores ({flags}), {machine.system}",
            ", ".join(f"{name} {version}" for name, version in machine.versions.items()),
        ]
        findings = [*self.engines, *self.checks]
        return "\n".join([*lines, *(f"{'ok' if f.ok else 'no':<4}{f.name:<14}{f.detail}" for f in findings)])


def doctor(
    *,
    registry: Annotated[str | None, typer.Option(metavar="URL", help="Where published models are.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Report on stdout as JSON.")] = False,
) -> None:
    """Say which engines this machine can run, and why it cannot run the others; exit 1 if it cannot serve.

    Examples:
        bisenet doctor
        bisenet doctor --json
    """
    with exit_on_errors():
        diagnosis = examine(local_settings({"registry": {"url": registry}}))
    typer.echo(json.dumps(dataclasses.asdict(diagnosis), indent=2) if as_json else str(diagnosis))
    if not diagnosis.can_serve:
        raise typer.Exit(EXIT_FAILED)


def examine(settings: Settings) -> Diagnosis:
    """Check everything that serving needs under these settings."""
    names = dict.fromkeys([*ENGINES, *_plug_ins(settings)])
    engines = [_advised(_finding(name, partial(_precisions, name))) for name in names]
    checks = {"cache folder": _cache_folder, "registry": _registry}
    found = [_finding(name, partial(check, settings)) for name, check in checks.items()]
    model, choice = _model(settings)
    return Diagnosis(this_machine(), tuple(engines), (*found, model), choice)


def _plug_ins(settings: Settings) -> list[str]:
    name = settings.models.engine.partition(":")[0]
    return [] if name == "auto" else [name]


def _finding(name: str, check: Callable[[], str]) -> Finding:
    try:
        return Finding(name, ok=True, detail=check())
    except (EngineUnavailableError, ModelError) as error:
        return Finding(name, ok=False, detail=str(error))


def _advised(engine: Finding) -> Finding:
    """Name the extra that installs an engine, where only a package may be missing."""
    if engine.ok or (engine.name == "tensorrt" and not has_gpu()):
        return engine
    module, extra = _EXTRAS.get(engine.name, ("", ""))
    if not module or find_spec(module) is not None:
        return engine
    return dataclasses.replace(engine, detail=f"{engine.detail}: pip install 'bisenet-service[{extra}]'")


def _precisions(name: str) -> str:
    """Return the precisions of an engine on each device that it can use.

    Raises:
        EngineUnavailableError: it can use no device; the message says why.
    """
    if name == "tensorrt" and not has_gpu():
        raise EngineUnavailableError(NO_GPU)
    known, refused = [], []
    for device in ("cpu", *([FIRST_GPU] if has_gpu() else [])):
        try:
            known.append(f"{', '.join(engine_precisions(name, device))} on {device}")
        except EngineUnavailableError as error:
            refused.append(str(error))
    if not known:
        raise EngineUnavailableError("; ".join(refused))
    return "; ".join(known + refused)


def _cache_folder(settings: Settings) -> str:
    folder = private_folder(settings.models.cache_folder / "openvino")
    return f"{folder} is writable, by its owner only"


def _registry(settings: Settings) -> str:
    return f"{settings.registry.url} can be read: {len(open_registry(settings).models())} models"


def _model(settings: Settings) -> tuple[Finding, tuple[EngineChoice, ...]]:
    try:
        model = choose_model(settings)
        options = engine_options(settings).tuned(model.tuning)
        engine = engine_builder(settings.models.engine, options.device)(model.artifact, options)
    except (EngineUnavailableError, ModelError) as error:
        return Finding("model", ok=False, detail=str(error)), ()
    engine.close()
    runs = f"{engine.info.engine} {engine.info.precision} reproduces its golden sample"
    timed = f"; {described(model.tuning)}" if model.tuning.choice else ""
    detail = f"{model.version} is intact, {runs}{timed}"
    return Finding("model", ok=True, detail=detail), model.tuning.choice
