"""The reference engine: the network of the artifact's weights, run by torch operation by operation.

Axes: N images in a batch, K channels of the head, H height, W width (of the padded input),
h w = H/stride W/stride.
"""

from __future__ import annotations

import safetensors.torch
import torch

from model.artifact import Artifact
from model.manifest import WEIGHTS_FILE
from model.network import SegmentationNetwork, from_manifest
from service.core.engine import (
    EngineInfo,
    EngineOptions,
    EngineUnavailableError,
    Float32Array,
    ImageBatch,
    InferenceEngine,
    Precision,
    usable_cores,
)
from service.engines.proof import prove

_PRECISIONS: tuple[Precision, ...] = ("f32", "bf16")
"""The default is what the golden sample was made with: other engines are measured against this one."""


def precisions(device: str) -> tuple[Precision, ...]:
    """Return what torch computes in, the default first.

    Raises:
        EngineUnavailableError: torch cannot use the device.
    """
    if device != "cpu" and not torch.cuda.is_available():
        raise EngineUnavailableError(f"torch finds no NVIDIA GPU to be {device}")
    return _PRECISIONS


def build(artifact: Artifact, options: EngineOptions) -> InferenceEngine:
    """Load the weights into the network and prove it.

    Sets the number of threads of torch for the whole process.

    Raises:
        EngineUnavailableError: torch cannot use the device, or the precision is neither f32 nor bf16.
        ArtifactError: the weights are not those of the manifest or do not fit the network.
        GoldenMismatchError: the network computes something else.
    """
    native = precisions(options.device)
    precision = native[0] if options.precision == "auto" else options.precision
    if precision not in native:
        raise EngineUnavailableError(f"torch computes in {', '.join(native)} here, not in {precision}")
    torch.set_num_threads(options.threads or usable_cores())
    state = safetensors.torch.load(artifact.read(WEIGHTS_FILE))
    network = from_manifest(artifact.manifest, state).to(options.device)
    engine = TorchEngine(network, EngineInfo("torch", options.device, precision))
    prove(engine.infer, artifact, pixels="uint8", precision=precision)
    return engine


class TorchEngine:
    """Runs a network eagerly.

    Args:
        network: in evaluation mode, on its device.
        info: the device, and the precision of convolutions; normalisation is always f32.
    """

    def __init__(self, network: SegmentationNetwork, info: EngineInfo) -> None:
        self._network = network
        self._info = info

    @property
    def info(self) -> EngineInfo:
        """What this engine is."""
        return self._info

    def infer(self, images_NHW3: ImageBatch) -> Float32Array:
        """Run the network.

        Args:
            images_NHW3: RGB, uint8 or float32 of 0..255, any size.

        Returns:
            raw_NKhw: float32; the caller owns it.
        """
        device = torch.device(self._info.device)
        reduced = torch.autocast(device.type, torch.bfloat16, enabled=self._info.precision == "bf16")
        with torch.inference_mode(), reduced:
            raw_NKhw = self._network(torch.tensor(images_NHW3, device=device))
        scores: Float32Array = raw_NKhw.float().cpu().contiguous().numpy()
        return scores

    def close(self) -> None:
        """Nothing to free but memory, which goes with the engine."""
