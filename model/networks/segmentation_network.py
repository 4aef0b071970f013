"""The network from pixels to raw scores, and the table of all architectures.

Axes: N images in a batch, K classes, H height, W width in pixels, h w = the raw scores' own height and width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import torch
from torch import Tensor, nn

from model.artifacts.int8_weights import unpacked
from model.artifacts.manifest import ModelManifest, Parameter, Upsample
from model.errors import NetworkError, WeightsError
from model.labels import MAX_CLASSES
from model.networks.bisenetv1 import BiSeNetV1
from model.networks.bisenetv1_lite import BiSeNetV1Lite
from model.networks.bisenetv2 import BiSeNetV2
from model.networks.generations import GENERATIONS, Generation
from model.networks.layers import SegmentationArchitecture
from model.pictures.preprocess import ImageSize, PreprocessSpec, Rgb

_MAX_CHANNELS = 4096
_MAX_BYTE = 255


class SegmentationNetwork(nn.Module):
    """An architecture that takes pictures of any size and normalises them itself.

    Args:
        architecture: scores normalised pictures.
        mean: RGB, of values 0..1; also the colour of the padding.
        std: RGB, of values 0..1.
    """

    # Buffers follow the network to its device, but are the manifest's, not the weights'.
    _mean_C11: Tensor
    _std_C11: Tensor
    _pad_color_3: Tensor

    def __init__(self, architecture: SegmentationArchitecture, *, mean: Rgb, std: Rgb) -> None:
        super().__init__()
        self.architecture = architecture
        pad_color = PreprocessSpec(mean).pad_color
        # OpenVINO 2026.4 normalises by one value in 0.3 ms, by three in 5 ms (512x1024, two cores).
        # Both have to be one value: with one of them alone, float and byte pictures differ in bf16.
        is_alike = len(set(mean)) == len(set(std)) == 1
        for name, rgb in (("_mean_C11", mean), ("_std_C11", std)):
            values = torch.tensor(rgb[:1] if is_alike else rgb, dtype=torch.float32)
            self.register_buffer(name, values[:, None, None], persistent=False)
        self.register_buffer("_pad_color_3", torch.tensor(pad_color, dtype=torch.float32), persistent=False)

    def forward(self, images_NHW3: Tensor) -> Tensor:
        """Score each cell of the pictures.

        Args:
            images_NHW3: RGB, uint8 or float of 0..255; any size from 1x1. Sides that are no multiples of 32
                are padded right and bottom by the rule of ``PreprocessSpec.prepare``. A graph recorded by
                ``torch.jit.trace`` does not pad: it takes multiples of 32 only.

        Returns:
            raw_NKhw: the head's scores of the padded pictures, at the stride of the architecture.
        """
        raw_NKhw: Tensor = self.architecture(self.normalised(images_NHW3))
        return raw_NKhw

    def forward_train(self, images_NHW3: Tensor) -> tuple[Tensor, ...]:
        """Score each cell by every head.

        Args:
            images_NHW3: as in ``forward``.

        Returns:
            What ``forward`` returns, then the raw scores of each auxiliary head at a stride of its own.

        Raises:
            NetworkError: one picture in training mode; its global features have no variance.
        """
        if self.training and len(images_NHW3) < 2:  # noqa: PLR2004
            raise NetworkError(f"training needs a batch of at least 2 pictures, not {len(images_NHW3)}")
        return self.architecture.forward_train(self.normalised(images_NHW3))

    def normalised(self, images_NHW3: Tensor) -> Tensor:
        """Return the input of the architecture; the arithmetic is float32 for weights of any type.

        The permutation comes first because OpenVINO then runs a graph of any size as fast as one of a fixed
        size (measured: 1 % between them; with the permutation last, 5 %).

        Args:
            images_NHW3: as in ``forward``.

        Returns:
            x_N3HW: padded, in channels-last memory, of the type of the weights.
        """
        pixels_N3HW = self._padded(images_NHW3).permute(0, 3, 1, 2).to(torch.float32)
        x_N3HW = (pixels_N3HW / _MAX_BYTE - self._mean_C11) / self._std_C11
        return x_N3HW.to(next(self.architecture.parameters()).dtype)

    def _padded(self, images_NHW3: Tensor) -> Tensor:
        # In a trace sizes are symbols, and a comparison would fix the graph to one of them.
        if torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]  # torch forgot to type it
            return images_NHW3
        batch, height, width, _ = images_NHW3.shape
        padded = ImageSize(height, width).padded()
        if padded == ImageSize(height, width):
            return images_NHW3
        color = self._pad_color_3.to(images_NHW3.dtype)
        canvas = color.repeat(batch, padded.height, padded.width, 1)
        canvas[:, :height, :width] = images_NHW3
        return canvas


@dataclass(frozen=True)
class Architecture:
    """An architecture, known without building it.

    Attributes:
        builder: called as ``builder(num_scores, with_auxiliary=..., **form, **parameters)``.
        generation: key of ``GENERATIONS``: the form that new networks have; those of manifests may differ.
        parameters: the parameters it takes, all numbers of channels, and their defaults.
    """

    builder: Callable[..., SegmentationArchitecture]
    generation: str
    parameters: Mapping[str, int] = field(default_factory=dict)

    @property
    def upsample(self) -> Upsample:
        """How the raw output of new networks becomes full-size scores."""
        return GENERATIONS[self.generation].upsample

    @property
    def stride(self) -> int:
        """Input pixels per cell of the raw output of new networks."""
        return GENERATIONS[self.generation].stride


ARCHITECTURES: Mapping[str, Architecture] = MappingProxyType(
    {
        "bisenetv1": Architecture(BiSeNetV1, generation="v1-g4"),
        "bisenetv1-diss": Architecture(BiSeNetV1, generation="v1-diss"),
        "bisenetv1-lite": Architecture(
            BiSeNetV1Lite,
            generation="v1-lite4",
            parameters={
                "context_channels": 64,
                "detail_channels": 32,
                "fused_channels": 96,
                "head_channels": 64,
            },
        ),
        "bisenetv2": Architecture(BiSeNetV2, generation="v2-g4", parameters={"head_channels": 1024}),
    }
)


def build(
    name: str,
    num_classes: int,
    parameters: Mapping[str, Parameter],
    *,
    mean: Rgb,
    std: Rgb,
    with_auxiliary: bool = True,
) -> SegmentationNetwork:
    """Build a network of today's form with random weights.

    Args:
        name: key of ``ARCHITECTURES``.
        num_classes: K, 1..255.
        parameters: constructor arguments of the architecture; others have their defaults.
        mean: RGB, of values 0..1.
        std: RGB, of values 0..1.
        with_auxiliary: the training form; the deploy form has no auxiliary heads.

    Raises:
        NetworkError: an unknown name or parameter, or a value out of range.
    """
    generation = GENERATIONS[_architecture(name).generation]
    built = _build(generation, num_classes, parameters, with_auxiliary=with_auxiliary)
    return SegmentationNetwork(built, mean=mean, std=std)


def _architecture(name: str) -> Architecture:
    if name not in ARCHITECTURES:
        raise NetworkError(f"unknown architecture {name!r}; known: {', '.join(sorted(ARCHITECTURES))}")
    return ARCHITECTURES[name]


def _build(
    generation: Generation, num_classes: int, parameters: Mapping[str, Parameter], *, with_auxiliary: bool
) -> SegmentationArchitecture:
    if not 1 <= num_classes <= MAX_CLASSES:
        raise NetworkError(f"num_classes must be 1..{MAX_CLASSES}, not {num_classes}")
    architecture = ARCHITECTURES[generation.architecture]
    _check_parameters(generation.architecture, architecture.parameters, parameters)
    arguments = {**generation.form, **architecture.parameters, **parameters}
    num_scores = num_classes * generation.scores_per_class
    return architecture.builder(num_scores, with_auxiliary=with_auxiliary, **arguments)


def _check_parameters(name: str, known: Mapping[str, int], given: Mapping[str, Parameter]) -> None:
    if unknown := given.keys() - known.keys():
        raise NetworkError(f"{name} has no parameter {', '.join(sorted(unknown))}")
    for key, value in given.items():
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= _MAX_CHANNELS:
            raise NetworkError(f"{name}: {key} must be an integer of 1..{_MAX_CHANNELS}, not {value!r}")


def from_manifest(manifest: ModelManifest, state: Mapping[str, Tensor]) -> SegmentationNetwork:
    """Build the deploy form that a manifest describes, in evaluation mode, with the given weights.

    Args:
        manifest: of the artifact.
        state: the weights under the keys of the architecture, as ``deploy_state`` or ``int8_weights.packed``
            returns them.

    Raises:
        NetworkError: the manifest names an architecture, generation or parameter that there is not, or an
            up-sampling or stride that the generation does not have.
        WeightsError: a key is missing or unknown, or its tensor is of another shape or kind.
    """
    network = blank_network(manifest)
    state = unpacked(state)
    check_state(network.architecture.state_dict(), state)
    network.architecture.load_state_dict(state)
    return network.eval()


def blank_network(manifest: ModelManifest) -> SegmentationNetwork:
    """Build the deploy form that a manifest describes, with random weights.

    Raises:
        NetworkError: as ``from_manifest``.
    """
    generation = _generation(manifest)
    built = _build(generation, manifest.palette.num_classes, manifest.parameters, with_auxiliary=False)
    return SegmentationNetwork(built, mean=manifest.mean, std=manifest.std)


def _generation(manifest: ModelManifest) -> Generation:
    _architecture(manifest.architecture)
    known = {name: g for name, g in GENERATIONS.items() if g.architecture == manifest.architecture}
    if manifest.generation not in known:
        raise NetworkError(
            f"{manifest.architecture} has no generation {manifest.generation!r}, only {', '.join(known)}"
        )
    generation = known[manifest.generation]
    if manifest.upsample != generation.upsample:
        raise NetworkError(
            f"{manifest.generation} is up-sampled {generation.upsample}, not {manifest.upsample}"
        )
    if manifest.stride != generation.stride:
        raise NetworkError(f"{manifest.generation} has stride {generation.stride}, not {manifest.stride}")
    return generation


def check_state(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> None:
    """Refuse weights that are not exactly those of a network, naming each difference.

    Args:
        wanted: tensors of the right shapes; their values are not read.
        given: the weights.

    Raises:
        WeightsError: a key is missing or unknown, or its tensor is of another shape or kind.
    """
    problems = [f"missing {key}" for key in sorted(wanted.keys() - given.keys())]
    problems += [f"unknown {key}" for key in sorted(given.keys() - wanted.keys())]
    problems += [
        f"{key} is {_form(given[key])}, not {_form(wanted[key])}"
        for key in sorted(wanted.keys() & given.keys())
        if _form(given[key]) != _form(wanted[key])
    ]
    if problems:
        raise WeightsError("weights do not fit the network: " + "; ".join(problems))


def _form(tensor: Tensor) -> str:
    """Return kind and shape, without the number of bits: stored weights may have half of them."""
    kind = "float" if tensor.is_floating_point() else "integer"
    return f"{kind} {tuple(tensor.shape)}"


def deploy_state(network: SegmentationNetwork) -> dict[str, Tensor]:
    """Return the weights of the deploy form: those of the architecture without its auxiliary heads.

    The tensors share memory with the network.
    """
    auxiliary = tuple(f"{name}." for name in network.architecture.auxiliary_heads())
    state = network.architecture.state_dict()
    return {key: value for key, value in state.items() if not key.startswith(auxiliary)}
