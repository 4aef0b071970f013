"""The configuration of a training run, read from TOML: a recipe of this package or a user's file."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pydantic import ConfigDict, TypeAdapter, ValidationError

from model.artifacts.manifest import Parameter
from training.data.augment import AugmentConfig
from training.data.splits import DataConfig
from training.errors import ConfigError
from training.optimisation.distillation import DistillConfig
from training.optimisation.losses import LossConfig
from training.optimisation.optim import OptimizerConfig
from training.optimisation.precision import ComputeConfig

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

_MIN_PART = 2  # batch normalisation of the pooled features needs two values a channel

# The result of a run does not depend on these: data are compared by content.
_FREE_KEYS = frozenset(
    {"device", "data.root", "data.residency", "data.skip_broken", "data.workers", "schedule.keep_every"}
)


@dataclass(frozen=True)
class NetworkConfig:
    """The network.

    Args:
        architecture: key of ``model.networks.segmentation_network.ARCHITECTURES``.
        parameters: its constructor arguments, for example ``head_channels``.
    """

    architecture: str
    parameters: Mapping[str, Parameter] = field(default_factory=dict)


@dataclass(frozen=True)
class ScheduleConfig:
    """Length of a run, and the steps between validations and checkpoints.

    Args:
        steps: optimiser steps; a time limit replaces them once the rate is measured.
        batch_size: crops a step, of all processes together.
        validate_every: steps between two validations; the last step always validates.
        save_every: steps between two checkpoints.
        keep_every: steps between two checkpoints that stay for good; 0 = none.
        accumulate: parts into which each process divides its share of a batch. Batch normalisation and the
            choice of hard pixels see one part.
        patience: validations in a row without a better score that end the run; 0 = no early end.

    Raises:
        ConfigError: a number is too small.
    """

    steps: int
    batch_size: int
    validate_every: int
    save_every: int
    keep_every: int = 0
    accumulate: int = 1
    patience: int = 0

    def __post_init__(self) -> None:
        """Refuse runs without a step, and batches that batch normalisation cannot train on."""
        if min(self.steps, self.validate_every, self.save_every) < 1:
            raise ConfigError("schedule: steps, validate_every and save_every are at least 1")
        if min(self.keep_every, self.patience) < 0 or self.accumulate < 1:
            raise ConfigError("schedule: keep_every and patience are at least 0, accumulate at least 1")
        self.part_size(processes=1)

    def part_size(self, processes: int) -> int:
        """Return the number of crops that pass the network together.

        Args:
            processes: number of processes that share a batch.

        Raises:
            ConfigError: the batch is not a multiple of its parts, or a part is too small for batch
                normalisation.
        """
        parts = processes * self.accumulate
        if self.batch_size % parts or self.batch_size // parts < _MIN_PART:
            raise ConfigError(
                f"schedule.batch_size = {self.batch_size} does not divide into {parts} parts"
                f" ({processes} processes, schedule.accumulate = {self.accumulate}) of at least {_MIN_PART}"
            )
        return self.batch_size // parts


@dataclass(frozen=True)
class TrainingConfig:
    """The configuration of a run; equal configurations on equal data give equal weights.

    Args:
        seed: of weights, order and augmentation, from 0.
        network: architecture and its parameters.
        data: data set and splits.
        augment: how crops are drawn.
        loss: weights of pixels, classes and auxiliary heads.
        optimizer: optimiser and learning rate.
        schedule: length, validations, checkpoints.
        compute: precision and compilation.
        distill: a teacher, and how much it counts.
        device: ``auto`` (CUDA when there is one), ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        ConfigError: the seed is negative.
    """

    # The tables below inherit this.
    __pydantic_config__ = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    seed: int
    network: NetworkConfig
    data: DataConfig
    augment: AugmentConfig
    loss: LossConfig
    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    device: str = "auto"

    def __post_init__(self) -> None:
        """Refuse seeds that the generators do not take."""
        if self.seed < 0:
            raise ConfigError(f"seed must not be negative: {self.seed}")


_ADAPTER = TypeAdapter(TrainingConfig)


def load_config(reference: str, overrides: Sequence[str] = ()) -> TrainingConfig:
    """Read a configuration.

    Args:
        reference: a path that ends in ``.toml``, or the name of a recipe (``camvid-v2``).
        overrides: ``a.b=value`` each; a value that is no TOML is a string.

    Raises:
        ConfigError: the file or recipe is missing or no TOML, or a key is unknown, missing or wrong.
    """
    try:
        raw = tomllib.loads(_text(reference))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{reference}: not TOML: {error}") from error
    for override in overrides:
        _override(raw, override)
    return from_plain(raw)


def plain(config: TrainingConfig) -> dict[str, Any]:
    """Return the configuration as JSON values, as checkpoints and artifacts store it."""
    return cast("dict[str, Any]", _ADAPTER.dump_python(config, mode="json"))


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return the options that differ between two configurations and change the result of a run.

    Args:
        before: of a checkpoint; options that did not exist when it was written have their defaults.
        now: of this run.

    Returns:
        ``key: before -> now`` each, sorted; empty when the run may go on.
    """
    with suppress(ConfigError):  # an option that no longer exists is a difference
        before = plain(from_plain(before))
    old, new = _flat(before), _flat(now)
    keys = sorted((old.keys() | new.keys()) - _FREE_KEYS)
    return [f"{key}: {old.get(key)} -> {new.get(key)}" for key in keys if old.get(key) != new.get(key)]


def recipes() -> list[str]:
    """Return the names of the recipes that come with the package, sorted."""
    names = (entry.name for entry in (files("training") / "recipes").iterdir())
    return sorted(name.removesuffix(".toml") for name in names if name.endswith(".toml"))


def from_plain(raw: Mapping[str, Any]) -> TrainingConfig:
    """Build a configuration from parsed TOML, or from the result of ``plain``.

    Raises:
        ConfigError: keys are unknown, missing, of a wrong type or out of range; the message names them.
    """
    try:
        # As JSON: there a list may become a tuple, and nothing else is converted.
        return _ADAPTER.validate_json(json.dumps(raw, default=str))
    except ValidationError as error:
        raise ConfigError("; ".join(dict.fromkeys(map(_explained, error.errors())))) from None


def _explained(error: ErrorDetails) -> str:
    key = ".".join(map(str, error["loc"]))
    if error["type"] == "unexpected_keyword_argument":
        return f"unknown key {key}"
    if error["type"] == "missing":
        return f"missing key {key}"
    if error["type"] == "dataclass_type":
        return f"{key} must be a table, not {error['input']!r}"
    return f"{key} = {error['input']!r}: {error['msg'].lower()}"


def _override(raw: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    *tables, key = path.strip().split(".")
    if not equals or not key:
        raise ConfigError(f"not of the form a.b=value: {override!r}")
    table = raw
    for name in tables:
        table = table.setdefault(name, {})
        if not isinstance(table, dict):
            raise ConfigError(f"{override!r}: {name} is not a table")
    table[key] = _toml_value(text)


def _toml_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text.strip()


def _text(reference: str) -> str:
    if reference.endswith(".toml"):
        try:
            return Path(reference).read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{reference}: cannot be read: {error}") from error
    if reference not in recipes():
        raise ConfigError(f"no recipe {reference!r} and not a .toml file; recipes: {', '.join(recipes())}")
    return (files("training") / "recipes" / f"{reference}.toml").read_text("utf-8")


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, Mapping):
            flat |= _flat(item, f"{prefix}{key}.")
        else:
            flat[prefix + key] = item
    return flat
