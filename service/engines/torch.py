"""The engine of torch: the reference on a CPU, and an engine for serving on an NVIDIA GPU.

Axes: N images in a batch, K channels of the head, H height, W width (of the padded input),
h w = H/stride W/stride.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import safetensors.torch
import torch

from model.artifacts.artifact import Artifact, Golden, check_golden
from model.artifacts.manifest import WEIGHTS_FILE, ModelManifest
from model.networks.segmentation_network import SegmentationNetwork, from_manifest
from model.pictures.preprocess import ImageSize
from model.quotas import usable_cores
from service.core.device.engine import (
    EngineInfo,
    EngineOptions,
    EngineUnavailableError,
    Float32Array,
    ImageBatch,
    InferenceEngine,
    Precision,
)
from service.engines.cuda_graphs import GraphedNetwork, NetworkProgram, prepared_batches
from service.engines.golden_run import run_golden_sample
from service.engines.int8 import refuse_int8

if TYPE_CHECKING:
    from service.engines.cuda import CudaEngine

_CPU_PRECISIONS: tuple[Precision, ...] = ("f32", "bf16")
"""The default is the precision of the golden sample: other engines are compared with this one."""

_CUDA_PRECISIONS: tuple[Precision, ...] = ("f16", "bf16", "f32")
_WEIGHTS = {"f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32}


def precisions(device: str) -> tuple[Precision, ...]:
    """Return the precisions of torch on a device, the default first.

    Raises:
        EngineUnavailableError: torch cannot use the device.
    """
    if device == "cpu":
        return _CPU_PRECISIONS
    if not torch.cuda.is_available():
        raise EngineUnavailableError(f"torch finds no NVIDIA GPU for {device}")
    return _CUDA_PRECISIONS


def build(artifact: Artifact, options: EngineOptions) -> InferenceEngine:
    """Load the weights into the network and run the golden sample.

    Sets torch's number of threads on a CPU, and forbids TF32 on a GPU, for the whole process.

    Raises:
        EngineUnavailableError: torch cannot use the device, or not in this precision, or the version is int8.
        ArtifactError: the weights are not those of the manifest or do not fit the network.
        GoldenMismatchError: the network does not reproduce the golden sample.
    """
    refuse_int8(artifact.manifest, "torch")
    native = precisions(options.device)
    precision = native[0] if options.precision == "auto" else options.precision
    if precision not in native:
        raise EngineUnavailableError(f"torch computes in {', '.join(native)} here, not in {precision}")
    info = EngineInfo("torch", options.device, precision, options.refused)
    on_cpu = options.device == "cpu"
    engine = _cpu_engine(artifact, options, info) if on_cpu else _cuda_engine(artifact, options, info)
    run_golden_sample(engine.infer, artifact, pixels="uint8", precision=precision)
    return engine


def _cpu_engine(artifact: Artifact, options: EngineOptions, info: EngineInfo) -> InferenceEngine:
    torch.set_num_threads(options.threads or usable_cores())
    state = safetensors.torch.load(artifact.read(WEIGHTS_FILE))
    return TorchEngine(from_manifest(artifact.manifest, state), info)


def _cuda_engine(artifact: Artifact, options: EngineOptions, info: EngineInfo) -> InferenceEngine:
    return recorded_engine(load_network(artifact, info), artifact.manifest, options, info)


def recorded_engine(
    network: SegmentationNetwork, manifest: ModelManifest, options: EngineOptions, info: EngineInfo
) -> CudaEngine:
    """Record the sizes of the options, compare each with the network, and return the engine.

    Args:
        network: as ``on_gpu`` returns it.
        manifest: of the network.
        options: sizes and the largest batch.
        info: of the engine.

    Raises:
        GoldenMismatchError: the graph of a size computes other scores than the network.
    """
    # This module needs Triton, which only torch for CUDA brings along.
    from service.engines.cuda import CudaEngine  # noqa: PLC0415

    program = GraphedNetwork(network, torch.device(info.device))
    num_classes = manifest.palette.num_classes
    for size in options.sizes:
        program.prepare(size, options.max_batch)
        for batch in prepared_batches(options.max_batch):
            check_size(program, network, size, batch, num_classes=num_classes, info=info)
    return CudaEngine(program, manifest, info)


def check_size(
    program: NetworkProgram,
    network: NetworkProgram,
    size: ImageSize,
    batch: int,
    *,
    num_classes: int,
    info: EngineInfo,
) -> None:
    """Compare the program of one size with the network on noise; the golden sample has another size.

    Args:
        program: made for the size.
        network: the reference.
        size: padded.
        batch: pictures.
        num_classes: of the network.
        info: of the engine; its precision determines the tolerance.

    Raises:
        GoldenMismatchError: the program computes other scores than the network.
    """
    images_NHW3 = np.random.default_rng(0).integers(0, 256, (batch, size.height, size.width, 3), np.uint8)
    on_device_NHW3 = torch.from_numpy(images_NHW3).to(info.device)
    with torch.inference_mode():
        wanted, got = (run(on_device_NHW3).float().cpu().numpy() for run in (network, program))
    for image_HW3, wanted_Khw, got_Khw in zip(images_NHW3, wanted, got, strict=True):
        check_golden(Golden(image_HW3, wanted_Khw, num_classes), got_Khw, info.precision)


def load_network(artifact: Artifact, info: EngineInfo) -> SegmentationNetwork:
    """Return the network on its GPU, in channels-last memory, with weights in the precision of the engine.

    Raises:
        ArtifactError: the weights are not those of the manifest or do not fit the network.
    """
    return on_gpu(from_manifest(artifact.manifest, safetensors.torch.load(artifact.read(WEIGHTS_FILE))), info)


def on_gpu(network: SegmentationNetwork, info: EngineInfo) -> SegmentationNetwork:
    """Move a network to the GPU of an engine and return it; its gradients are off from then on."""
    torch.backends.cudnn.allow_tf32 = False  # TF32 has 10 bits of mantissa: not what "f32" promises
    # Not the whole network: normalisation stays in f32.
    network.architecture.to(_WEIGHTS[info.precision])
    network.architecture.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's types
    return network.to(info.device).requires_grad_(requires_grad=False)


class TorchEngine:
    """Runs a network eagerly on the CPU.

    Args:
        network: in evaluation mode.
        info: of this engine: the precision of convolutions. Normalisation is always f32.
    """

    def __init__(self, network: SegmentationNetwork, info: EngineInfo) -> None:
        self._network = network
        self._info = info

    @property
    def info(self) -> EngineInfo:
        """Name, device and precision."""
        return self._info

    def infer(self, images_NHW3: ImageBatch) -> Float32Array:
        """Run the network.

        Args:
            images_NHW3: RGB, uint8 or float32 of 0..255, any size.

        Returns:
            raw_NKhw: float32; the caller owns it.
        """
        reduced = torch.autocast("cpu", torch.bfloat16, enabled=self._info.precision == "bf16")
        with torch.inference_mode(), reduced:
            raw_NKhw = self._network(torch.tensor(images_NHW3))
        scores: Float32Array = raw_NKhw.float().contiguous().numpy()
        return scores

    def close(self) -> None:
        """Do nothing: the memory is freed with the engine."""
