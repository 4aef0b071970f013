"""Chooses the version and the engine of a model on this machine, by a measurement that is stored.

The choice is stored beside the compiled graphs. It holds for one processor, number of cores, version of
OpenVINO and model.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Sequence
from functools import partial

import structlog
from pydantic import TypeAdapter, ValidationError

from model.artifacts.artifact import Artifact
from model.artifacts.manifest import ModelManifest, ModelVersion
from model.artifacts.registry import ModelRegistry
from service.assembly import engine_options
from service.core.child_process import program, with_code
from service.core.device.engine import DEFAULT_TUNING, EngineOptions, EngineTuning, Precision
from service.engines.cache import CompileCache, cache_key
from service.engines.choice import RACE_BUDGET_S, RACE_SIZE
from service.machine import this_machine
from service.settings import LogSettings, Settings
from service.telemetry import LogOptions
from service.worker_config import RACE_MODULE, RaceConfig

_RACE_TIMEOUT_S = 120.0
"""Longest race, its compiling included, in seconds; after that, the model runs without a choice."""

_TUNING = TypeAdapter(EngineTuning)

_log = structlog.get_logger()

RunRace = Callable[[Sequence[Artifact], EngineOptions, float], bytes]
"""Times the engines of a version, or of a version and its int8 version, within a number of seconds.

Returns:
    An ``EngineTuning`` as JSON.

Raises:
    RaceError: it failed or took too long.
"""


class RaceError(Exception):
    """The engines of a model cannot be timed; the message says why."""


class EngineChooser:
    """Chooses version, precision, threads and streams of each model that runs here; thread-safe.

    If precision is ``auto`` and OpenVINO runs on the CPU, the engines of a model are timed at its first use.
    Otherwise the settings decide.

    Args:
        settings: engine, device, precision and cache folder.
        registry: has the versions.
        announce: called with a line for people before a race and after it.
        run_race: times engines; None = a separate process does.

    Raises:
        EngineUnavailableError: the cache folder cannot be used.
    """

    def __init__(
        self,
        settings: Settings,
        registry: ModelRegistry,
        *,
        announce: Callable[[str], None] = lambda _: None,
        run_race: RunRace | None = None,
    ) -> None:
        self._precision = settings.models.precision
        self._options = engine_options(settings)
        self._registry = registry
        self._announce = announce
        self._run_race = run_race or partial(_race_process, settings.log)
        runs_openvino = settings.models.engine in ("auto", "openvino") and self._options.device == "cpu"
        self._cache = (
            CompileCache(self._options.cache_folder / "choices")
            if runs_openvino and self._precision == "auto"
            else None
        )
        self._meant: dict[tuple[ModelVersion, ...], ModelVersion] = {}
        self._tunings: dict[ModelVersion, EngineTuning] = {}

    def version(self, reference: str, *, budget_s: float = RACE_BUDGET_S) -> ModelVersion:
        """Return the version that a reference means; times its engines if there is no stored choice.

        Args:
            reference: ``NAME``, ``NAME:ALIAS`` or ``NAME@VERSION``.
            budget_s: time for the measurements, without compiling, in seconds.

        Raises:
            RegistryError: there is no such model, version or alias, or the registry failed.
            ArtifactError: a version is damaged.
        """
        family = self._family(reference)
        if self._cache is None:
            return family[-1 if self._precision == "int8" else 0]
        artifacts = [self._registry.open(version) for version in family]
        key = self._key([artifact.manifest for artifact in artifacts])
        tuning = self._kept(key) or self._measured(reference, artifacts, key, budget_s)
        chosen = family[-1 if tuning.precision == "int8" else 0]
        self._tunings[chosen] = tuning
        self._meant[family] = chosen
        return chosen

    def known(self, reference: str) -> tuple[ModelVersion, Precision | None]:
        """Return the version that a reference means and its precision; times nothing.

        Args:
            reference: ``NAME``, ``NAME:ALIAS`` or ``NAME@VERSION``.

        Returns:
            The choice of ``version``. For a model without a choice: its original version and the precision of
            the settings, None for ``auto``.

        Raises:
            RegistryError: there is no such model, version or alias, or the registry failed.
        """
        family = self._family(reference)
        if self._precision != "auto":
            return family[-1 if self._precision == "int8" else 0], self._precision
        version = self._meant.get(family, family[0])
        precision = self._tunings.get(version, DEFAULT_TUNING).precision
        return version, None if precision == "auto" else precision

    def tuning(self, version: ModelVersion, manifest: ModelManifest) -> EngineTuning:
        """Return the tuning of a version's engine; times nothing.

        A version that is loaded while others answer requests is not timed: it would take the processor from
        them. Without a stored choice, its engine takes the first precision that reproduces the golden sample.
        """
        if version in self._tunings or self._cache is None:
            return self._tunings.get(version, DEFAULT_TUNING)
        return self._kept(self._key([manifest])) or DEFAULT_TUNING

    def _family(self, reference: str) -> tuple[ModelVersion, ...]:
        """Return the version that a reference means, and the int8 version that may run in its place."""
        original = self._registry.resolve(reference)
        quantized = self._registry.resolve(reference, int8=True)
        return (original,) if original == quantized else (original, quantized)

    def _key(self, manifests: Sequence[ModelManifest]) -> str:
        machine, options = this_machine(), self._options
        return cache_key(
            processor=machine.processor,
            vector_flags=machine.vector_flags,
            cores=machine.cores,
            openvino=machine.versions["openvino"],
            models=[(manifest.precision, dict(manifest.files)) for manifest in manifests],
            size=str(RACE_SIZE),
            threads=options.threads,
            streams=options.streams,
            max_batch=options.max_batch,
        )

    def _kept(self, key: str) -> EngineTuning | None:
        if self._cache is None or (document := self._cache.load(key)) is None:
            return None
        try:
            return _TUNING.validate_json(document)
        except ValidationError:  # written by another version of this program
            return None

    def _measured(
        self, reference: str, artifacts: Sequence[Artifact], key: str, budget_s: float
    ) -> EngineTuning:
        assert self._cache is not None
        self._announce(f"{reference}: timing its engines on this processor, once; up to a minute")
        began_s = time.monotonic()
        try:
            document = self._run_race(artifacts, self._options, budget_s)
            tuning = _TUNING.validate_json(document)
        except (RaceError, ValidationError) as error:
            _log.warning(
                "engines are not timed: the original version runs", model=reference, reason=str(error)
            )
            return DEFAULT_TUNING
        self._cache.store(key, document)
        seconds = round(time.monotonic() - began_s, 1)
        _log.info("engine chosen", model=reference, measured=described(tuning), seconds=seconds)
        self._announce(f"{reference}: {described(tuning)}")
        return tuning


def described(tuning: EngineTuning) -> str:
    """Return the measurements in words: ``int8 128 ms, f32 227 ms at 512x1024``; empty if there are none."""
    if not tuning.choice:
        return ""
    shown_ms: dict[Precision, float] = {}
    for one in tuning.choice:
        shown_ms.setdefault(one.precision, one.latency_ms)
    times = ", ".join(f"{precision} {latency_ms:.0f} ms" for precision, latency_ms in shown_ms.items())
    return f"{times} at {RACE_SIZE}"


def _race_process(
    log: LogSettings, artifacts: Sequence[Artifact], options: EngineOptions, budget_s: float
) -> bytes:
    folders = tuple(artifact.folder.absolute() for artifact in artifacts)
    config = RaceConfig(folders, options, budget_s, LogOptions(log.level, log.format))
    try:
        done = subprocess.run(  # noqa: S603 - this Python, a module of ours
            program(RACE_MODULE, config.to_json()),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            env=with_code(os.environ),
            timeout=_RACE_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise RaceError(f"{RACE_MODULE} took more than {_RACE_TIMEOUT_S:.0f} s") from None
    if done.returncode:
        raise RaceError(f"{RACE_MODULE} ended with {done.returncode}")
    return done.stdout
