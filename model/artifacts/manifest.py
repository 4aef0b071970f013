"""The manifest of a published model, ``manifest.json``, and the names of versions."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, cast, get_args

from model.errors import InvalidReferenceError, ManifestError, PaletteError
from model.labels import ClassPalette
from model.pictures.preprocess import ImageSize, PreprocessSpec, Rgb

__all__ = ["ModelManifest", "ModelReference", "ModelVersion"]

SCHEMA_VERSION = 1
MANIFEST_FILE = "manifest.json"
WEIGHTS_FILE = "model.safetensors"
GOLDEN_FILE = "golden.npz"
GRAPH_FILE = "openvino/graph.xml"
GRAPH_WEIGHTS_FILE = "openvino/graph.bin"
ARTIFACT_FILES = (WEIGHTS_FILE, GOLDEN_FILE, GRAPH_FILE, GRAPH_WEIGHTS_FILE)

RANDOM_WEIGHTS = "random weights"
"""``started_from`` in the provenance of a model that was trained from scratch."""

Upsample = Literal["bilinear", "bilinear_aligned", "pixel_shuffle"]
WeightsPrecision = Literal["f32", "f16", "int8"]
Parameter = int | float | bool | str

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")
_VERSION = re.compile(r"[1-9][0-9]{0,8}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_MAX_NAME = 128
_MAX_STRIDE = 32
_SEAL = "manifest_digest"


def check_name(name: str) -> str:
    """Return ``name`` if it may name a model or an alias.

    Raises:
        InvalidReferenceError: it does not match ``[a-z0-9][a-z0-9._-]*`` or is over 128 characters.
    """
    if len(name) > _MAX_NAME or not _NAME.fullmatch(name):
        raise InvalidReferenceError(f"not a model name: {name[:_MAX_NAME]!r}")
    return name


@dataclass(frozen=True, order=True)
class ModelVersion:
    """One immutable published model: name and number from 1; printed ``name@number``."""

    name: str
    number: int

    def __post_init__(self) -> None:
        """Refuse malformed names and numbers."""
        check_name(self.name)
        if not _VERSION.fullmatch(str(self.number)):
            raise InvalidReferenceError(f"not a version number: {self.number!r}")

    def __str__(self) -> str:
        """Return ``name@number``."""
        return f"{self.name}@{self.number}"

    @classmethod
    def parse(cls, text: str) -> ModelVersion:
        """Read ``name@number``.

        Raises:
            InvalidReferenceError: the text has another form.
        """
        reference = ModelReference.parse(text)
        if reference.number is None:
            raise InvalidReferenceError(f"not a version: {text!r}")
        return cls(reference.name, reference.number)


@dataclass(frozen=True)
class ModelReference:
    """A reference to a model: ``NAME``, ``NAME:ALIAS`` or ``NAME@VERSION``."""

    name: str
    alias: str | None = None
    number: int | None = None

    @classmethod
    def parse(cls, text: str) -> ModelReference:
        """Read a reference.

        Raises:
            InvalidReferenceError: the text has none of the three forms.
        """
        name, at, number = text.partition("@")
        if at:
            if not _VERSION.fullmatch(number):
                raise InvalidReferenceError(f"not a version number: {number[:_MAX_NAME]!r}")
            return cls(check_name(name), number=int(number))
        name, colon, alias = text.partition(":")
        return cls(check_name(name), alias=check_name(alias) if colon else None)

    def __str__(self) -> str:
        """Return the text of the reference."""
        if self.number is not None:
            return f"{self.name}@{self.number}"
        return self.name if self.alias is None else f"{self.name}:{self.alias}"


@dataclass(frozen=True)
class ModelManifest:
    """The properties of one version that an engine or a user needs.

    Attributes:
        architecture: key of ``model.networks.segmentation_network.ARCHITECTURES``, for example ``bisenetv2``.
        generation: published form of the architecture and its weights, for example ``v2-g4``.
        parameters: constructor arguments of the architecture (``head_channels``, ...).
        upsample: up-sampling from raw output to full-size scores.
        stride: input pixels per cell of the raw output.
        palette: names, colours and ignore id.
        mean: RGB, of values 0..1; subtracted inside the network.
        std: RGB, of values 0..1; divided by inside the network.
        training_size: size of the training crops.
        precision: precision of the stored weights.
        files: SHA-256 (64 hex digits) of each file of the artifact, by relative path.
        derived_from: ``name@version`` of the original of an int8 version.
        provenance: command, configuration, code version, data fingerprint, scores: JSON values.

    Raises:
        ManifestError: no engine could serve a value, or JSON cannot hold it.
    """

    architecture: str
    generation: str
    parameters: Mapping[str, Parameter]
    upsample: Upsample
    stride: int
    palette: ClassPalette
    mean: Rgb
    std: Rgb
    precision: WeightsPrecision
    training_size: ImageSize | None = None
    files: Mapping[str, str] = field(default_factory=dict)
    derived_from: str | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        """Refuse values that no engine could serve."""
        for key, text in (("architecture", self.architecture), ("generation", self.generation)):
            _string(key, text)
        for name in self.palette.names:
            _string("palette.names", name)
        if self.schema_version != SCHEMA_VERSION:
            raise ManifestError(f"schema version {self.schema_version}, this program reads {SCHEMA_VERSION}")
        if self.upsample not in get_args(Upsample) or self.precision not in get_args(WeightsPrecision):
            raise ManifestError(f"unknown upsample {self.upsample!r} or precision {self.precision!r}")
        if not 1 <= self.stride <= _MAX_STRIDE:
            raise ManifestError(f"stride must be 1..{_MAX_STRIDE}, not {self.stride}")
        if not all(0 <= v <= 1 for v in self.mean) or not all(0 < v <= 1 for v in self.std):
            raise ManifestError(f"mean and std are of values 0..1: {self.mean}, {self.std}")
        for name, digest in self.files.items():
            if name not in ARTIFACT_FILES or not _DIGEST.fullmatch(digest):
                raise ManifestError(f"not an artifact file with its SHA-256: {name!r}: {digest!r}")
        if self.derived_from is not None:
            _check_version(self.derived_from)
        _check_json("parameters", self.parameters)
        _check_json("provenance", self.provenance)

    @property
    def preprocess(self) -> PreprocessSpec:
        """The preparation of pictures for this model."""
        return PreprocessSpec(self.mean)

    @property
    def digest(self) -> str:
        """SHA-256 of the weights; caches are keyed by it."""
        return self.files[WEIGHTS_FILE]

    def to_json(self) -> str:
        """Return the manifest as indented JSON with sorted keys, sealed with its own SHA-256."""
        plain = _plain(self)
        return _dump({**plain, _SEAL: hashlib.sha256(_dump(plain).encode()).hexdigest()})

    @classmethod
    def from_json(cls, text: str | bytes) -> ModelManifest:
        """Read the JSON of ``to_json``; one changed byte is an error.

        Raises:
            ManifestError: not JSON; a key is missing, unknown or of the wrong type; a value is out of range;
                or the text was edited or damaged.
        """
        try:
            data = text.encode() if isinstance(text, str) else text
            raw = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise ManifestError(f"{MANIFEST_FILE} is not JSON") from error
        if not isinstance(raw, dict):
            raise ManifestError(f"{MANIFEST_FILE} is not an object")
        raw.pop(_SEAL, None)
        manifest = _from_plain(raw)
        # One comparison covers the seal, the layout, repeated keys and other spellings such as 1E5 for 1e5.
        if manifest.to_json().encode() != data:
            raise ManifestError(f"{MANIFEST_FILE} was edited or damaged after it was written")
        return manifest


def _dump(plain: Mapping[str, Any]) -> str:
    return json.dumps(plain, indent=2, sort_keys=True, allow_nan=False) + "\n"


def _check_json(key: str, value: Mapping[str, Any]) -> None:
    try:
        # Not escaped to ASCII: half a surrogate pair could not be answered over HTTP either.
        json.dumps(dict(value), allow_nan=False, sort_keys=True, ensure_ascii=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise ManifestError(f"{key} must hold finite, plain JSON values") from error


def _check_version(text: str) -> None:
    try:
        ModelVersion.parse(text)
    except InvalidReferenceError as error:
        raise ManifestError(f"derived_from: {error}") from error


def _plain(manifest: ModelManifest) -> dict[str, Any]:
    size = manifest.training_size
    fields = {item.name: getattr(manifest, item.name) for item in dataclasses.fields(manifest)}
    return fields | {
        "parameters": dict(manifest.parameters),
        "palette": dataclasses.asdict(manifest.palette),
        "training_size": None if size is None else [size.height, size.width],
        "files": dict(manifest.files),
        "provenance": dict(manifest.provenance),
    }


def _from_plain(raw: dict[str, Any]) -> ModelManifest:
    names = {f.name for f in dataclasses.fields(ModelManifest)}
    required = {f.name for f in dataclasses.fields(ModelManifest) if not _has_default(f)}
    if unknown := raw.keys() - names:
        raise ManifestError(f"unknown keys: {', '.join(sorted(unknown))}")
    if missing := required - raw.keys():
        raise ManifestError(f"missing keys: {', '.join(sorted(missing))}")
    values: dict[str, Any] = {name: _READERS[name](name, raw[name]) for name in raw}
    return ModelManifest(**values)


def _has_default(item: dataclasses.Field[Any]) -> bool:
    return item.default is not dataclasses.MISSING or item.default_factory is not dataclasses.MISSING


def _string(key: str, value: object) -> str:
    if not isinstance(value, str) or not value or not value.isprintable():
        raise ManifestError(f"{key} must be a printable string that is not empty")
    return value


def _optional_string(key: str, value: object) -> str | None:
    return None if value is None else _string(key, value)


def _integer(key: str, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ManifestError(f"{key} must be an integer")
    return value


def _object(key: str, value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ManifestError(f"{key} must be an object")
    return value


def _parameters(key: str, value: object) -> dict[str, Parameter]:
    parameters = _object(key, value)
    if not all(isinstance(v, int | float | bool | str) for v in parameters.values()):
        raise ManifestError(f"{key} must hold numbers, booleans and strings only")
    return parameters


def _digests(key: str, value: object) -> dict[str, str]:
    return {name: _string(key, digest) for name, digest in _object(key, value).items()}


def _rgb(key: str, value: object) -> Rgb:
    numbers = _sequence(key, value, length=3)
    if not all(isinstance(v, int | float) and not isinstance(v, bool) for v in numbers):
        raise ManifestError(f"{key} must be three numbers")
    return cast("Rgb", tuple(numbers))


def _sequence(key: str, value: object, *, length: int | None = None) -> list[Any]:
    if not isinstance(value, list) or (length is not None and len(value) != length):
        raise ManifestError(f"{key} must be a list" + ("" if length is None else f" of {length}"))
    return value


def _size(key: str, value: object) -> ImageSize | None:
    if value is None:
        return None
    height, width = (_integer(key, v) for v in _sequence(key, value, length=2))
    try:
        return ImageSize(height, width)
    except ValueError as error:
        raise ManifestError(f"{key}: {error}") from error


def _palette(key: str, value: object) -> ClassPalette:
    raw = _object(key, value)
    if raw.keys() != {"names", "colors", "ignore_id"}:
        raise ManifestError(f"{key} must have names, colors and ignore_id, nothing else")
    names = tuple(_string("palette.names", v) for v in _sequence("palette.names", raw["names"]))
    colors = [_sequence("palette.colors", v, length=3) for v in _sequence("palette.colors", raw["colors"])]
    triples = tuple(
        (_integer("palette.colors", r), _integer("palette.colors", g), _integer("palette.colors", b))
        for r, g, b in colors
    )
    try:
        return ClassPalette(names, triples, _integer("palette.ignore_id", raw["ignore_id"]))
    except PaletteError as error:
        raise ManifestError(f"{key}: {error}") from error


_READERS = {
    "architecture": _string,
    "generation": _string,
    "parameters": _parameters,
    "upsample": _string,
    "stride": _integer,
    "palette": _palette,
    "mean": _rgb,
    "std": _rgb,
    "precision": _string,
    "training_size": _size,
    "files": _digests,
    "derived_from": _optional_string,
    "provenance": _object,
    "schema_version": _integer,
}
