"""``bisenet doctor``: what this machine can run, and why not the rest."""

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
"""What an engine imports that is no part of the base, and the extra that installs it."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: of the thing.
        ok: whether it can be used.
        detail: how, or why not.
    """

    name: str
    ok: bool
    detail: str


@dataclass(frozen=True)
class Diagnosis:
    """Everything that was looked at; as a string for people.

    Attributes:
        machine: that this runs on.
        engines: each engine that there is.
        checks: all that serving needs.
        choice: what was timed before the model's engine was chosen, the chosen one first; empty if the
            settings decide.
    """

    machine: Machine
    engines: tuple[Finding, ...]
    checks: tuple[Finding, ...]
    choice: tuple[EngineChoice, ...]

    @property
    def can_serve(self) -> bool:
        """Whether all that serving needs is in order; an engine that cannot run matters to its model only."""
        return all(finding.ok for finding in self.checks)

    def __str__(self) -> str:
        """Return one line a finding."""
        machine = self.machine
        flags = ", ".join(machine.vector_flags) or "no vector extensions that matter"
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
    """Say what this machine can run and, for each engine that it cannot, why; exit 1 if it cannot serve.

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
    """Look at everything that serving under these settings needs."""
    names = dict.fromkeys([*ENGINES, *_plug_ins(settings)])
    engines = [_advised(_finding(name, partial(_precisions, name))) for name in names]
    checks = {"cache folder": _cache_folder, "registry": _registry}
    found = [_finding(name, partial(check, settings)) for name, check in checks.items()]
    model, choice = _model(settings)
    return Diagnosis(this_machine(), tuple(engines), (*found, model), choice)


def _plug_ins(settings: Settings) -> list[str]:
    name = settings.models.engine.partition(":")[0]
    return [] if name == "auto" else [name]


def _finding(name: str, look: Callable[[], str]) -> Finding:
    try:
        return Finding(name, ok=True, detail=look())
    except (EngineUnavailableError, ModelError) as error:
        return Finding(name, ok=False, detail=str(error))


def _advised(engine: Finding) -> Finding:
    """Say what installs an engine, where a package is all that it may lack."""
    if engine.ok or (engine.name == "tensorrt" and not has_gpu()):
        return engine
    module, extra = _EXTRAS.get(engine.name, ("", ""))
    if not module or find_spec(module) is not None:
        return engine
    return dataclasses.replace(engine, detail=f"{engine.detail}: pip install 'bisenet-service[{extra}]'")


def _precisions(name: str) -> str:
    """Return what an engine computes in, on each device that it can use.

    Raises:
        EngineUnavailableError: it can use none; the message says why.
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
