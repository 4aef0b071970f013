"""First weights of a run: the fitting ones of a published model or a checkpoint, and a list of the others."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import safetensors.torch
from torch import Tensor

from model.artifacts.artifact import Artifact, read_artifact
from model.artifacts.int8_weights import unpacked
from model.artifacts.manifest import MANIFEST_FILE, WEIGHTS_FILE
from model.checkpoints.checkpoint import read_checkpoint
from model.checkpoints.conversion import converted
from model.checkpoints.recognition import SIGNATURES, recognise
from model.errors import ForeignCheckpointError
from model.networks.segmentation_network import SegmentationNetwork
from model.pictures.preprocess import Rgb
from training.errors import FinetuneError

if TYPE_CHECKING:
    from model.artifacts.registry import ModelRegistry

_MISSING = "not in the file"
_PARALLEL_PREFIX = "module."
_RESNET = "cp.resnet."
_RESNET_STEM = "layer1.0.conv1.weight"
_EFFICIENTNET = "backbone."
_EFFICIENTNET_STEM = "_blocks.0._depthwise_conv.weight"
_EFFICIENTNET_CLASSIFIER = ("_conv_head.", "_bn1.", "_fc.")
_EFFICIENTNET_NORMALISATION: tuple[Rgb, Rgb] = ((127 / 255,) * 3, (128 / 255,) * 3)
"""Lite was trained on (x - 127) / 128 of bytes, in each colour."""


@dataclass(frozen=True, eq=False)
class FinetuneSource:
    """Weights that a run may begin with.

    Attributes:
        origin: where they come from, for people.
        state: by the keys of our architectures, as far as they are known.
        normalisation: mean and std that they were trained with; None where nothing says so.
    """

    origin: str
    state: Mapping[str, Tensor]
    normalisation: tuple[Rgb, Rgb] | None = None


@dataclass(frozen=True)
class AdoptedWeights:
    """The weights that a network took over.

    Attributes:
        loaded: keys whose values were taken.
        reinitialised: keys that keep their random values, each with the reason.
        unused: keys of the source that the network has no place for.
    """

    loaded: tuple[str, ...]
    reinitialised: tuple[tuple[str, str], ...]
    unused: tuple[str, ...]

    def sentence(self) -> str:
        """Say in one sentence how much was taken over."""
        return (
            f"loaded {len(self.loaded)} tensors; {len(self.reinitialised)} of the network begin at random,"
            f" {len(self.unused)} of the file are unused"
        )

    def lines(self) -> list[str]:
        """Return the whole list for people, counted by part of the network where nothing more can be said."""
        missing = [key for key, reason in self.reinitialised if reason == _MISSING]
        lines = [
            self.sentence(),
            f"  loaded          {_parts(self.loaded)}",
            f"  re-initialised  {_MISSING}: {_parts(missing)}" if missing else "",
            *(f"  re-initialised  {key}: {why}" for key, why in self.reinitialised if why != _MISSING),
            f"  unused          {_parts(self.unused)}" if self.unused else "",
        ]
        return [line for line in lines if line]


def _parts(keys: Iterable[str]) -> str:
    """Return the parts of the network that tensors belong to, and how many belong to each."""
    counts = Counter(key.partition(".")[0] for key in keys)
    return ", ".join(f"{part} {count}" for part, count in counts.items())


def find_source(reference: str, registry: ModelRegistry) -> FinetuneSource:
    """Read the weights that a user names.

    Args:
        reference: the path of a checkpoint (``.pth``, ``.pt``, ``.safetensors``) or of an artifact's folder,
            or a model of the registry: ``NAME``, ``NAME:ALIAS``, ``NAME@VERSION``.
        registry: where models are looked for.

    Raises:
        model.errors.ModelError: there is no such model, or the file is refused.
    """
    path = Path(reference)
    if path.is_file():
        return _of_checkpoint(read_checkpoint(path), reference)
    return _of_artifact(*find_artifact(reference, registry))


def find_artifact(reference: str, registry: ModelRegistry) -> tuple[Artifact, str]:
    """Open the model that a user names.

    Args:
        reference: folder of an artifact, or ``NAME``, ``NAME:ALIAS``, ``NAME@VERSION`` of the registry.
        registry: where models are looked for.

    Returns:
        The model, and its path or ``NAME@VERSION``.

    Raises:
        model.errors.ModelError: there is no such model, or its manifest is refused.
    """
    path = Path(reference)
    if (path / MANIFEST_FILE).is_file():
        return read_artifact(path), reference
    version = registry.resolve(reference, int8=False)
    return registry.open(version), str(version)


def adopt(network: SegmentationNetwork, source: FinetuneSource) -> AdoptedWeights:
    """Copy every weight that has a place of its own shape in the network.

    Args:
        network: keeps its values where the source has none, or of another shape: other classes, other width.
        source: may have more, or fewer.

    Raises:
        FinetuneError: nothing fits.
    """
    own = network.architecture.state_dict()
    fitting = {key: value for key, value in source.state.items() if _fits(value, own.get(key))}
    if not fitting:
        raise FinetuneError(f"no weight of {source.origin} fits the network")
    for key, value in fitting.items():
        own[key].copy_(value)
    return AdoptedWeights(
        loaded=tuple(key for key in own if key in fitting),
        reinitialised=tuple(
            (key, _reason(value, source.state.get(key))) for key, value in own.items() if key not in fitting
        ),
        unused=tuple(sorted(source.state.keys() - own.keys())),
    )


def _of_artifact(artifact: Artifact, origin: str) -> FinetuneSource:
    artifact.verify()
    state = unpacked(safetensors.torch.load(artifact.read(WEIGHTS_FILE)))
    return FinetuneSource(origin, state, (artifact.manifest.mean, artifact.manifest.std))


def _fits(value: Tensor, place: Tensor | None) -> bool:
    return place is not None and place.shape == value.shape


def _reason(place: Tensor, value: Tensor | None) -> str:
    if value is None:
        return _MISSING
    return f"{tuple(value.shape)} in the file, {tuple(place.shape)} here"


def _of_checkpoint(state: Mapping[str, Tensor], reference: str) -> FinetuneSource:
    state = {key.removeprefix(_PARALLEL_PREFIX): value for key, value in state.items()}
    if _EFFICIENTNET_STEM in state:
        origin = f"{reference}, an EfficientNet-Lite0 whose classifier is left out"
        return FinetuneSource(origin, _efficientnet(state), _EFFICIENTNET_NORMALISATION)
    return FinetuneSource(reference, _renamed(state))


def _efficientnet(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Give ImageNet's EfficientNet-Lite0 our keys: its names have an underscore before each part."""
    return {
        _EFFICIENTNET + re.sub(r"(^|\.)_", r"\1", key): value
        for key, value in state.items()
        if not key.startswith(_EFFICIENTNET_CLASSIFIER)
    }


def _renamed(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Give the weights of other programs the keys of ours: BiSeNets of any age, and ImageNet's ResNet-18."""
    if _RESNET_STEM in state:
        return {_RESNET + key: value for key, value in state.items()}
    try:
        generation = recognise({key: tuple(value.shape) for key, value in state.items()}).generation
    except ForeignCheckpointError:  # a backbone alone: its keys are ours already, or nothing will fit
        return state
    return converted(state, SIGNATURES[generation])
