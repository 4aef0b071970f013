"""Settings, artifact, engine and exit codes of the commands that run a model in their own process."""

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
    """Print errors that users can cause as one line on stderr. Defects of the program keep their traceback.

    Raises:
        typer.Exit: with 2 for a wrong configuration, registry URL or reference, with 1 for other errors.
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
    """Return the settings, and from now on log only warnings, to stderr.

    Args:
        flags: values from the command line. They override the environment, which overrides the file.
        config: TOML file; None = no file.

    Raises:
        SettingsError: a key is unknown or a value is wrong.
    """
    configure_logging(LogOptions(level="warning"))
    return load_settings(config, flags)


def open_artifact(settings: Settings) -> tuple[ModelVersion, Artifact]:
    """Return the first model of the settings, its int8 version if they ask for int8, and its artifact.

    Raises:
        RegistryError: the model does not exist, or the registry failed.
        ArtifactError: the artifact is damaged.
    """
    registry = open_registry(settings)
    version = registry.resolve(settings.models.serve[0], int8=settings.models.precision == "int8")
    return version, registry.open(version)


@dataclass(frozen=True, eq=False)
class ChosenModel:
    """The first model of the settings, and how this machine runs it.

    Attributes:
        version: the chosen version of the model.
        artifact: its verified artifact.
        chooser: chose the version, and knows how its engine is built.
    """

    version: ModelVersion
    artifact: Artifact
    chooser: EngineChooser

    @property
    def tuning(self) -> EngineTuning:
        """How the engine of the model is built."""
        return self.chooser.tuning(self.version, self.artifact.manifest)


def choose_model(settings: Settings) -> ChosenModel:
    """Choose version and engine of the first model of the settings. At the first use, engines are timed.

    Raises:
        RegistryError: the model does not exist, or the registry failed.
        ArtifactError: the artifact is damaged.
        EngineUnavailableError: the cache folder cannot be used.
    """
    registry = open_registry(settings)
    chooser = EngineChooser(settings, registry, announce=partial(typer.echo, err=True))
    version = chooser.version(settings.models.serve[0])
    return ChosenModel(version, registry.open(version), chooser)


@contextmanager
def open_segmenter(settings: Settings) -> Iterator[tuple[Segmenter, LoadedModel]]:
    """Load the first model of the settings. Yield a segmenter for pictures, and the model.

    Raises:
        ModelError: the model does not exist or must not be used.
        EngineUnavailableError: this machine cannot run the engine.
    """
    model = choose_model(settings)
    options = engine_options(settings)
    device = Device(engine_builder(settings.models.engine, options.device), options)
    with open_core(settings, InProcessRunner(device), model.chooser.tuning) as core:
        yield core.segmenter, core.host.load(model.version, model.artifact)
