"""The fastest engine for GPUs: one TensorRT engine in half precision for each size, built by Torch-TensorRT.

Other sizes run as ``service.engines.torch`` runs them.

Axes: N images in a batch, K channels of the head, H height, W width (of the padded input), h w = H/stride
W/stride.

Source:
    https://github.com/pytorch/TensorRT, documentation and wheel of release 2.13.0. TensorRT 11 has strong
    typing only: a network in half precision makes an engine in half precision, and ``enabled_precisions`` is
    ignored silently.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import io
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from model.artifacts.artifact import Artifact
from model.networks.segmentation_network import SegmentationNetwork
from model.pictures.preprocess import ImageSize
from service.core.device.engine import (
    EngineInfo,
    EngineOptions,
    EngineUnavailableError,
    InferenceEngine,
    Precision,
)
from service.engines.cache import CompileCache, cache_key
from service.engines.cuda_graphs import GraphedNetwork, NetworkProgram, recording
from service.engines.golden_run import run_golden_sample
from service.engines.int8 import refuse_int8
from service.engines.torch import check_size, load_network

_PRECISIONS: tuple[Precision, ...] = ("f16",)
_EXAMPLE_BATCH = 2
"""``torch.export`` would treat a batch of one as a constant."""

_OPTIMIZATION_LEVEL = 4
_PACKAGES = ("torch", "torch-tensorrt", "tensorrt")


def precisions(device: str) -> tuple[Precision, ...]:
    """Return the precisions of TensorRT engines.

    Raises:
        EngineUnavailableError: there is no GPU of this name, or a library is missing.
    """
    if device == "cpu":
        raise EngineUnavailableError("tensorrt runs on an NVIDIA GPU, not on the CPU")
    library()
    return _PRECISIONS


def build(artifact: Artifact, options: EngineOptions) -> InferenceEngine:
    """Build an engine for each size of the options, or load it from the cache, and check each.

    Raises:
        EngineUnavailableError: there is no GPU, a library is missing, the precision is not f16, or the
            version is int8.
        ArtifactError: the weights are not those of the manifest or do not fit the network.
        GoldenMismatchError: the network in half precision does not reproduce the golden sample, or the engine
            of a size computes other scores than the network.
    """
    refuse_int8(artifact.manifest, "tensorrt")
    native = precisions(options.device)
    from service.engines.cuda import CudaEngine  # noqa: PLC0415 - needs Triton, which needs a GPU

    if options.precision not in ("auto", *native):
        raise EngineUnavailableError(f"tensorrt computes in {', '.join(native)}, not in {options.precision}")
    info = EngineInfo("tensorrt", options.device, "f16", options.refused)
    network = load_network(artifact, info)
    general = GraphedNetwork(network, torch.device(options.device))
    cache = CompileCache(options.cache_folder / "tensorrt")
    builder = TensorRtBuilder(library(), cache, _gpu(options.device), options.max_batch)
    files = artifact.manifest.files
    with recording:  # TensorRT waits for the whole device when it times its kernels
        engines = {size: builder.engine(network.architecture, size, files) for size in options.sizes}
    program = TensorRtProgram(network, engines, general)
    num_classes = artifact.manifest.palette.num_classes
    for size in engines:
        check_size(program, network, size, 1, num_classes=num_classes, info=info)
    engine = CudaEngine(program, artifact.manifest, info)
    run_golden_sample(engine.infer, artifact, pixels="uint8", precision="f16")
    return engine


class TensorRtProgram:
    """Runs the engine of a batch's size, or the general network for other sizes.

    Args:
        network: normalises the pixels, because TensorRT takes no bytes.
        engines: by padded size: x_N3HW in half precision -> raw_NKhw.
        general: images_NHW3 -> raw_NKhw, for every other size.
    """

    def __init__(
        self, network: SegmentationNetwork, engines: Mapping[ImageSize, nn.Module], general: NetworkProgram
    ) -> None:
        self._network = network
        self._engines = engines
        self._general = general

    def __call__(self, images_NHW3: Tensor) -> Tensor:
        """Return raw_NKhw; enqueued on the current stream."""
        _, height, width, _ = images_NHW3.shape
        engine = self._engines.get(ImageSize(height, width))
        if engine is None:
            return self._general(images_NHW3)
        raw_NKhw: Tensor = engine(self._network.normalised(images_NHW3))
        return raw_NKhw


class TensorRtBuilder:
    """Builds engines and keeps them in the compile cache.

    The cache of Torch-TensorRT is not used: its key leaves out weights, GPU and the arguments of operators.

    Args:
        library: torch_tensorrt.
        cache: its folder must be writable by its owner only, because engines are pickles.
        gpu: name and compute capability.
        max_batch: pictures of the largest batch.
    """

    def __init__(self, library: Any, cache: CompileCache, gpu: str, max_batch: int) -> None:
        self._library = library
        self._cache = cache
        self._gpu = gpu
        self._max_batch = max(max_batch, _EXAMPLE_BATCH)

    def engine(self, architecture: nn.Module, size: ImageSize, files: Mapping[str, str]) -> nn.Module:
        """Return the engine of a size, from the cache or newly built.

        Args:
            architecture: on the GPU, in half precision: x_N3HW -> raw_NKhw.
            size: padded.
            files: SHA-256 of the artifact's files by name; part of the cache key.
        """
        key = cache_key(
            files=dict(files),
            size=str(size),
            max_batch=self._max_batch,
            optimization_level=_OPTIMIZATION_LEVEL,
            versions={package: importlib.metadata.version(package) for package in _PACKAGES},
            gpu=self._gpu,
        )
        blob = self._cache.load(key)
        if blob is None:
            blob = self._built(architecture, size)
            self._cache.store(key, blob)
        with _engine_file() as path:
            path.write_bytes(blob)
            engine: nn.Module = self._library.load(str(path)).module()
        return engine

    def _built(self, architecture: nn.Module, size: ImageSize) -> bytes:
        inputs = [self._input(size)]
        engine = self._library.dynamo.compile(
            exported(architecture, size, self._max_batch),
            arg_inputs=inputs,
            device=next(architecture.parameters()).device,
            require_full_compilation=True,
            optimization_level=_OPTIMIZATION_LEVEL,
            cache_built_engines=False,
            reuse_cached_engines=False,
        )
        with _engine_file() as path:
            self._library.save(engine, str(path), arg_inputs=inputs, retrace=True)
            return path.read_bytes()

    def _input(self, size: ImageSize) -> Any:
        smallest, largest = ((batch, 3, size.height, size.width) for batch in (1, self._max_batch))
        return self._library.Input(
            min_shape=smallest, opt_shape=largest, max_shape=largest, dtype=torch.float16
        )


def exported(architecture: nn.Module, size: ImageSize, max_batch: int) -> torch.export.ExportedProgram:
    """Export a network for one size and batches of 1..``max_batch``.

    Args:
        architecture: x_N3HW, normalised, of the type of its weights -> raw_NKhw.
        size: padded.
        max_batch: at least 2.
    """
    weight = next(architecture.parameters())
    shape = (_EXAMPLE_BATCH, 3, size.height, size.width)
    example_N3HW = torch.zeros(shape, dtype=weight.dtype, device=weight.device)
    batch = torch.export.Dim("batch", min=1, max=max_batch)
    return torch.export.export(architecture, (example_N3HW,), dynamic_shapes=({0: batch},), strict=False)


@contextlib.contextmanager
def _engine_file() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder) / "engine.ep"


def _gpu(device: str) -> str:
    return f"{torch.cuda.get_device_name(device)} {torch.cuda.get_device_capability(device)}"


def library() -> Any:
    """Import torch_tensorrt.

    Raises:
        EngineUnavailableError: there is no GPU, or the import fails: without a driver or TensorRT's libraries
            it raises exceptions of many types.
    """
    if not torch.cuda.is_available():
        raise EngineUnavailableError("tensorrt needs an NVIDIA GPU; torch finds none")
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints to stdout, which is for reports
            return importlib.import_module("torch_tensorrt")
    except Exception as error:
        raise EngineUnavailableError(f"torch_tensorrt cannot be imported: {error}") from error
