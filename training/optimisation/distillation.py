"""Distillation: the main head also learns the probabilities that a trained network, the teacher, gives.

Axes: N images in a batch, K classes, h w = height and width of raw scores, 3 = red green blue.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import safetensors.torch
import torch
from torch import Tensor
from torch.nn import functional

from model.artifacts.artifact import Artifact
from model.artifacts.manifest import WEIGHTS_FILE
from model.networks.segmentation_network import SegmentationNetwork, from_manifest
from training.errors import ConfigError


@dataclass(frozen=True)
class DistillConfig:
    """What a run learns from a teacher.

    Args:
        teacher: a model of the same classes: the folder of an artifact, or ``NAME``, ``NAME:ALIAS`` or
            ``NAME@VERSION`` of the registry; empty = none.
        weight: of the teacher's term; the labels' term has 1.
        temperature: both networks' scores are divided by it. Above 1, unlikely classes count more.

    Raises:
        ConfigError: a value is out of range.
    """

    teacher: str = ""
    weight: float = 1.0
    temperature: float = 1.0

    def __post_init__(self) -> None:
        """Refuse weights and temperatures without a meaning."""
        if self.weight <= 0 or self.temperature <= 0:
            raise ConfigError(
                "distill: weight and temperature are above 0; without a teacher, leave teacher empty"
            )


@dataclass(frozen=True, eq=False)
class Teacher:
    """A trained network that another one learns from; its weights stay as they are.

    Attributes:
        network: in evaluation mode, without gradients.
        digest: SHA-256 of the weights.
        config: weight and temperature of the loss.
    """

    network: SegmentationNetwork
    digest: str
    config: DistillConfig

    @classmethod
    def of(
        cls, artifact: Artifact, config: DistillConfig, class_names: Sequence[str], device: torch.device
    ) -> Teacher:
        """Load a teacher.

        Args:
            artifact: of the teacher.
            config: of the run.
            class_names: classes of the run, by id.
            device: of the run.

        Raises:
            ConfigError: the teacher has other classes, or scores that are not up-sampled bilinearly.
            model.errors.ArtifactError: the artifact is refused.
        """
        manifest = artifact.manifest
        if list(manifest.palette.names) != list(class_names):
            raise ConfigError(
                f"distill.teacher = {config.teacher!r} has other classes than the data set:"
                f" {', '.join(manifest.palette.names)}; there are {', '.join(class_names)}"
            )
        if manifest.upsample != "bilinear":
            raise ConfigError(
                f"distill.teacher = {config.teacher!r}: its scores are up-sampled by {manifest.upsample},"
                " a teacher's must be bilinear"
            )
        weights = artifact.read(WEIGHTS_FILE)
        network = from_manifest(manifest, safetensors.torch.load(weights)).requires_grad_(requires_grad=False)
        network.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in torch's stubs
        return cls(network, hashlib.sha256(weights).hexdigest(), config)

    def loss(self, raw_NKhw: Tensor, images_NHW3: Tensor) -> Tensor:
        """Compare a head with the teacher; the caller chooses the precision of the teacher by autocast.

        Args:
            raw_NKhw: raw scores of the head that learns, at any stride.
            images_NHW3: the pictures, float of 0..255.

        Returns:
            A scalar, float32: the weighted divergence, mean over the head's cells.
        """
        with torch.no_grad():
            taught_NKhw = self.network(images_NHW3)
        with torch.autocast(raw_NKhw.device.type, enabled=False):
            return self.config.weight * divergence(raw_NKhw, taught_NKhw, self.config.temperature)


def divergence(raw_NKhw: Tensor, taught_NKhw: Tensor, temperature: float) -> Tensor:
    """Return the Kullback-Leibler divergence of a head's probabilities from those of a teacher.

    Args:
        raw_NKhw: raw scores of the head that learns.
        taught_NKhw: raw scores of the teacher; resized bilinearly to the head's size.
        temperature: T, above 0.

    Returns:
        A scalar, float32, from 0: mean over the cells.

    Source:
        T^2 KL(softmax(teacher / T) || softmax(student / T)): Hinton et al., Distilling the knowledge in a
        neural network, 2015; for each pixel: Liu et al., Structured knowledge distillation for semantic
        segmentation, CVPR 2019.
    """
    taught_NKhw = taught_NKhw.float()
    if taught_NKhw.shape != raw_NKhw.shape:
        taught_NKhw = functional.interpolate(
            taught_NKhw, size=raw_NKhw.shape[2:], mode="bilinear", align_corners=False
        )
    own_NKhw = (raw_NKhw.float() / temperature).log_softmax(1)
    wanted_NKhw = (taught_NKhw / temperature).log_softmax(1)
    cells = len(raw_NKhw) * raw_NKhw.shape[2] * raw_NKhw.shape[3]
    summed = functional.kl_div(own_NKhw, wanted_NKhw, reduction="sum", log_target=True)
    return temperature**2 * summed / cells
