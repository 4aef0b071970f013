"""What the commands share that run a model in their own process: settings, artifact, engine, exit codes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import typer

from model.artifacts.artifact import Artifact
from model.artifacts.manifest import ModelVersion
from model.errors import InvalidReferenceError, MissingRootError, ModelError, RegistryUrlError
from service.assembly import engine_options, open_core
from service.core.device.device import Device
from service.core.device.engine import EngineTuning, EngineUnavailableError
from service.core.device.in_process import InProcessRunner
from service.core.errors import ServiceError
from service.core.models.loaded_model import LoadedModel
from service.core.pictures.segmenter import Segmenter
from service.engine_choice import EngineChooser
from service.engines import engine_builder
from service.registry import open_registry
from service.settings import Layer, Settings, SettingsError, load_settings
from service.telemetry import LogOptions, configure_logging

EXIT_FAILED = 1
EXIT_USAGE = 2


@contextmanager
def exit_on_errors() -> Iterator[None]:
    """Turn what users can cause into one line on stderr and an exit code; defects keep their traceback.

    Raises:
        typer.Exit: 2 for a wrong configuration, registry URL or reference, 1 for what failed.
    """
    try:
        yield
    except (SettingsError, RegistryUrlError, InvalidReferenceError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(EXIT_USAGE) from error
    except MissingRootError as error:
        typer.echo(f"error: {error}: --root DIR", err=True)
        raise typer.Exit(EXIT_FAILED) from error
    except (ModelError, EngineUnavailableError, ServiceError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(EXIT_FAILED) from error


def local_settings(flags: Layer, config: Path | None = None) -> Settings:
    """Return the settings under the given flags; from here on only warnings are logged, to stderr.

    Args:
        flags: what the command line said.
        config: a TOML file; None = none.

    Raises:
        SettingsError: a value is wrong.
    """
    configure_logging(LogOptions(level="warning"))
    return load_settings(config, flags)


def open_artifact(settings: Settings) -> tuple[ModelVersion, Artifact]:
    """Return the first model of the settings, verified: its int8 version if the settings ask for int8.

    Raises:
        RegistryError: there is no such model, or the registry failed.
        ArtifactError: it is damaged.
    """
    registry = open_registry(settings)
    version = registry.resolve(settings.models.serve[0], int8=settings.models.precision == "int8")
    return version, registry.open(version)


@dataclass(frozen=True, eq=False)
class ChosenModel:
    """The first model of the settings, and how it runs here.

    Attributes:
        version: that was chosen.
        artifact: of it, verified.
        chooser: that chose.
    """

    version: ModelVersion
    artifact: Artifact
    chooser: EngineChooser

    @property
    def tuning(self) -> EngineTuning:
        """How its engine is built."""
        return self.chooser.tuning(self.version, self.artifact.manifest)


def choose_model(settings: Settings) -> ChosenModel:
    """Choose the version and the engine of the first model; at its first use its engines are timed.

    Raises:
        RegistryError: there is no such model, or the registry failed.
        ArtifactError: it is damaged.
        EngineUnavailableError: the cache folder cannot be used.
    """
    registry = open_registry(settings)
    chooser = EngineChooser(settings, registry, announce=partial(typer.echo, err=True))
    version = chooser.version(settings.models.serve[0])
    return ChosenModel(version, registry.open(version), chooser)


@contextmanager
def open_segmenter(settings: Settings) -> Iterator[tuple[Segmenter, LoadedModel]]:
    """Load the first model of the settings; yields what answers pictures, and what was loaded.

    Raises:
        ModelError: the model is not there, or must not be used.
        EngineUnavailableError: this machine cannot run the engine.
    """
    model = choose_model(settings)
    options = engine_options(settings)
    device = Device(engine_builder(settings.models.engine, options.device), options)
    with open_core(settings, InProcessRunner(device), model.chooser.tuning) as core:
        yield core.segmenter, core.host.load(model.version, model.artifact)
