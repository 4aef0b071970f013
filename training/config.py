"""A training run as one typed, frozen object, read from TOML: a recipe of this package or a user's file."""

from __future__ import annotations

import dataclasses
import math
import tomllib
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

from model.artifacts.manifest import Parameter
from training.data.augment import AugmentConfig
from training.data.splits import DataConfig
from training.errors import ConfigError
from training.optimisation.losses import LossConfig
from training.optimisation.optim import OptimizerConfig
from training.optimisation.precision import ComputeConfig

_T = TypeVar("_T")
_MIN_PART = 2  # batch normalisation of the pooled features needs two values a channel

# What a run computes does not depend on these: data are compared by content.
_FREE_KEYS = frozenset(
    {"device", "data.root", "data.residency", "data.skip_broken", "data.workers", "schedule.keep_every"}
)


@dataclass(frozen=True)
class NetworkConfig:
    """What is trained.

    Args:
        architecture: key of ``model.networks.segmentation_network.ARCHITECTURES``.
        parameters: its constructor arguments, for example ``head_channels``.
    """

    architecture: str
    parameters: Mapping[str, Parameter] = field(default_factory=dict)


@dataclass(frozen=True)
class ScheduleConfig:
    """How long, and what happens on the way.

    Args:
        steps: optimiser steps; a time budget replaces them once it has measured the rate.
        batch_size: crops a step, of all processes together.
        validate_every: steps between two validations; the last step always validates.
        save_every: steps between two checkpoints.
        keep_every: steps between two checkpoints that stay for good; 0 = none do.
        accumulate: parts of its share of a batch that each process learns from one after the other; a part
            is what batch normalisation sees and what hard pixels are chosen from.
        patience: validations in a row without a better score that end the run; 0 = it runs to its end.

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
        """Refuse runs of nothing, and batches that batch normalisation cannot train on."""
        if min(self.steps, self.validate_every, self.save_every) < 1:
            raise ConfigError("schedule: steps, validate_every and save_every are at least 1")
        if min(self.keep_every, self.patience) < 0 or self.accumulate < 1:
            raise ConfigError("schedule: keep_every and patience are at least 0, accumulate at least 1")
        self.part_size(processes=1)

    def part_size(self, processes: int) -> int:
        """Return how many crops go through the network together.

        Args:
            processes: that share a batch.

        Raises:
            ConfigError: the batch does not divide so, or batch normalisation cannot train on its parts.
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
    """Everything that decides what a run computes.

    Args:
        seed: of weights, order and augmentation, from 0.
        network: what is trained.
        data: on what.
        augment: how crops are drawn.
        loss: what a wrong pixel costs.
        optimizer: how weights move.
        schedule: how long.
        compute: in which numbers.
        device: ``auto`` (CUDA when there is one), ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        ConfigError: the seed is negative.
    """

    seed: int
    network: NetworkConfig
    data: DataConfig
    augment: AugmentConfig
    loss: LossConfig
    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    device: str = "auto"

    def __post_init__(self) -> None:
        """Refuse seeds that the generators do not take."""
        if self.seed < 0:
            raise ConfigError(f"seed must not be negative: {self.seed}")


def load_config(reference: str, overrides: Sequence[str] = ()) -> TrainingConfig:
    """Read a configuration.

    Args:
        reference: a path that ends in ``.toml``, or the name of a recipe (``camvid-v2``).
        overrides: ``a.b=value`` each; a value is TOML, or else taken as a string.

    Raises:
        ConfigError: no such file or recipe, no TOML, or a key that is unknown, missing or of a wrong type.
    """
    try:
        raw = tomllib.loads(_text(reference))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{reference}: not TOML: {error}") from error
    for override in overrides:
        _override(raw, override)
    return typed(TrainingConfig, raw, "")


def plain(config: TrainingConfig) -> dict[str, Any]:
    """Return the configuration as JSON values: what checkpoints and artifacts remember."""
    return _jsonable(dataclasses.asdict(config))  # type: ignore[no-any-return]  # a dict stays a dict


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Say in which values two plain configurations differ, where it changes what a run computes.

    Returns:
        ``key: before -> now`` each, sorted; empty when a run may go on.
    """
    old, new = _flat(before), _flat(now)
    keys = sorted((old.keys() | new.keys()) - _FREE_KEYS)
    return [f"{key}: {old.get(key)} -> {new.get(key)}" for key in keys if old.get(key) != new.get(key)]


def recipes() -> list[str]:
    """Return the names of the recipes that come with the package, sorted."""
    names = (entry.name for entry in (files("training") / "recipes").iterdir())
    return sorted(name.removesuffix(".toml") for name in names if name.endswith(".toml"))


def typed(kind: type[_T], raw: object, where: str) -> _T:
    """Build a dataclass from the table that configures it, and nothing that it does not know.

    Args:
        kind: a dataclass whose fields are dataclasses, str, int, float, bool, mappings or tuples of these.
        raw: what TOML says.
        where: dotted path of ``raw`` for messages; empty at the top.

    Raises:
        ConfigError: a key is unknown, missing or of a wrong type.
    """
    if not isinstance(raw, dict):
        raise ConfigError(f"{where} must be a table, not {raw!r}")
    prefix = f"{where}." if where else ""
    fields = {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]  # kind is a dataclass
    if unknown := sorted(raw.keys() - fields.keys()):
        raise ConfigError(f"unknown keys: {', '.join(prefix + key for key in unknown)}")
    required = {n for n, f in fields.items() if f.default is f.default_factory is dataclasses.MISSING}
    if missing := sorted(required - raw.keys()):
        raise ConfigError(f"missing keys: {', '.join(prefix + key for key in missing)}")
    hints = typing.get_type_hints(kind)
    return kind(**{key: _value(hints[key], value, prefix + key) for key, value in raw.items()})


def _value(hint: Any, value: object, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return typed(typing.cast("type[Any]", hint), value, where)
    if isinstance(value, list) and origin is tuple:
        if arguments[-1] is not Ellipsis and len(arguments) != len(value):
            raise ConfigError(f"{where} has {len(arguments)} values, not {len(value)}")
        return tuple(_value(arguments[0], item, where) for item in value)
    if isinstance(value, dict) and origin is Mapping:
        return {key: _value(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if origin is typing.Literal and value in arguments:
        return value
    if type(value) is float and not math.isfinite(value):
        raise ConfigError(f"{where} = {value} is not finite")
    # Exact types: a bool is no number here. Only a float may be written without a point.
    if type(value) in (arguments or (hint,)):
        return value
    if hint is float and type(value) is int:
        return float(value)
    raise ConfigError(f"{where} = {value!r} is not of type {getattr(hint, '__name__', hint)}")


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


def _jsonable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _jsonable(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_jsonable(item) for item in value]
    return value


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, Mapping):
            flat |= _flat(item, f"{prefix}{key}.")
        else:
            flat[prefix + key] = item
    return flat
