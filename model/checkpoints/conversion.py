"""Turns a checkpoint of another program into a network of ours that computes the same."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.artifacts.manifest import ModelManifest
from model.checkpoints.checkpoint import read_checkpoint
from model.checkpoints.recognition import SIGNATURES, Recognition, Signature, recognise
from model.errors import ForeignCheckpointError, WeightsError
from model.labels import ClassPalette
from model.networks.generations import GENERATIONS
from model.networks.segmentation_network import (
    SegmentationNetwork,
    blank_network,
    check_state,
    from_manifest,
)
from model.pictures.preprocess import Rgb

_PARALLEL_PREFIX = "module."
_COUNTER = "num_batches_tracked"
_ABN_EPS = 1e-5


@dataclass(frozen=True)
class Conversion:
    """An imported network.

    Attributes:
        network: in evaluation mode, in the deploy form.
        manifest: of an artifact of it, without files.
        recognition: the generation of the checkpoint, and the keys that tell it.
        dropped: the auxiliary heads that were left out.
        untrained: keys of weights, biases and statistics with the values of a new network. They were never
            learned: perhaps the weights of another network were completed.
    """

    network: SegmentationNetwork
    manifest: ModelManifest
    recognition: Recognition
    dropped: tuple[str, ...]
    untrained: tuple[str, ...] = ()


def convert_file(
    path: Path, *, palette: ClassPalette, mean: Rgb, std: Rgb, origin: Mapping[str, str] | None = None
) -> Conversion:
    """Make a network of a checkpoint file.

    Args:
        path: a safetensors file if it ends in ``.safetensors``, else a file of ``torch.save``.
        palette: the classes; the file tells only their number.
        mean: RGB mean of the normalisation, of values 0..1; the file does not tell it.
        std: RGB standard deviation of the normalisation, of values 0..1.
        origin: more entries for the provenance, for example ``url``.

    Raises:
        ForeignCheckpointError: the file is unreadable, of no known generation, or has another number of
            classes.
        WeightsError: a key is missing, unknown or of another shape, or a weight is not finite.
    """
    state = read_checkpoint(path)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    source = {"file": path.name, "sha256": digest, **(origin or {})}
    return convert(state, palette=palette, mean=mean, std=std, source=source)


def convert(
    state: Mapping[str, Tensor], *, palette: ClassPalette, mean: Rgb, std: Rgb, source: Mapping[str, str]
) -> Conversion:
    """Make a network of the state dict of a checkpoint.

    Args:
        state: under the keys of its generation, with or without auxiliary heads, plain or as
            ``DataParallel`` saves it.
        palette: the classes.
        mean: RGB mean of the normalisation, of values 0..1.
        std: RGB standard deviation of the normalisation, of values 0..1.
        source: ``imported_from`` in the provenance of the manifest.

    Raises:
        ForeignCheckpointError: it is of no known generation, or has another number of classes.
        WeightsError: a key is missing, unknown or of another shape.
    """
    state = _without_prefix(state)
    recognition = recognise({key: tuple(tensor.shape) for key, tensor in state.items()})
    if recognition.num_classes != palette.num_classes:
        raise ForeignCheckpointError(
            f"{recognition.generation} with {recognition.num_classes} classes, not {palette.num_classes}"
        )
    provenance = {
        "command": "bisenet models import",
        "imported_from": dict(source),
        "recognised_by": recognition.evidence,
    }
    manifest = _manifest(recognition, palette, mean=mean, std=std, provenance=provenance)
    signature = SIGNATURES[recognition.generation]
    deployed = {key: tensor for key, tensor in state.items() if not signature.is_auxiliary(key)}
    _check(deployed, manifest, signature)
    network = from_manifest(manifest, converted(deployed, signature))
    dropped = {key.partition(".")[0] for key in state.keys() - deployed.keys()}
    return Conversion(network, manifest, recognition, tuple(sorted(dropped)), untrained(deployed))


def untrained(state: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Return the keys with the values of a new network: zeros, or statistics of 0 and 1."""

    def is_untrained(key: str, tensor: Tensor) -> bool:
        if not tensor.is_floating_point() or not key.endswith((".bias", ".weight", ".running_var")):
            return False
        if key.endswith(".running_var"):
            mean = state.get(key.removesuffix("var") + "mean")
            return mean is not None and not mean.any() and bool((tensor == 1).all())
        is_of_norm = key.endswith(".bias") and state[key.removesuffix("bias") + "weight"].ndim == 1
        return not is_of_norm and not tensor.any()

    return tuple(sorted(key for key, tensor in state.items() if is_untrained(key, tensor)))


def converted(state: Mapping[str, Tensor], signature: Signature) -> dict[str, Tensor]:
    """Return the weights under our keys, for our normalisation.

    In-place ABN scales by ``|gamma| + eps`` where batch normalisation scales by ``gamma``, and counts no
    batches.

    Args:
        state: of the deploy form, complete.
        signature: of its generation.

    Source:
        Rota Bulo et al. 2018, "In-Place Activated BatchNorm"; CoinCheung/BiSeNet has its code in old/modules.
    """
    renamed = {_renamed(key, signature.renamed): tensor for key, tensor in state.items()}
    if not signature.in_place_abn:
        return renamed
    gammas = {key: tensor for key, tensor in renamed.items() if _is_gamma(key, tensor)}
    scales = {key: gamma.float().abs() + _ABN_EPS for key, gamma in gammas.items()}
    counters = {key.removesuffix("weight") + _COUNTER: torch.tensor(0) for key in gammas}
    return renamed | scales | counters


def _is_gamma(key: str, tensor: Tensor) -> bool:
    """Return whether this is a scale of channels; other weights are kernels, with four axes."""
    return key.endswith(".weight") and tensor.ndim == 1


def _renamed(key: str, names: Mapping[str, str]) -> str:
    return next((new + key[len(old) :] for old, new in names.items() if key.startswith(old)), key)


def _without_prefix(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Remove the prefix that ``DataParallel`` adds to all keys."""
    if all(key.startswith(_PARALLEL_PREFIX) for key in state):
        return {key.removeprefix(_PARALLEL_PREFIX): tensor for key, tensor in state.items()}
    return dict(state)


def _manifest(
    recognition: Recognition, palette: ClassPalette, *, mean: Rgb, std: Rgb, provenance: Mapping[str, Any]
) -> ModelManifest:
    generation = GENERATIONS[recognition.generation]
    return ModelManifest(
        architecture=generation.architecture,
        generation=recognition.generation,
        parameters=recognition.parameters,
        upsample=generation.upsample,
        stride=generation.stride,
        palette=palette,
        mean=mean,
        std=std,
        precision="f32",
        provenance=provenance,
    )


def _check(state: Mapping[str, Tensor], manifest: ModelManifest, signature: Signature) -> None:
    """Compare keys and shapes with those of the generation, under the names that the file uses."""
    with torch.device("meta"):
        ours = blank_network(manifest).architecture.state_dict()
    back = {new: old for old, new in signature.renamed.items()}
    wanted = {
        _renamed(key, back): tensor
        for key, tensor in ours.items()
        if not (signature.in_place_abn and key.endswith(_COUNTER))
    }
    try:
        check_state(wanted, state)
    except WeightsError as error:
        raise WeightsError(f"recognised as {manifest.generation}, but {error}") from error
