"""The CPU engine of production: the artifact's portable graph, compiled by OpenVINO.

Axes: N images in a batch, K channels of the head, H height, W width (of the padded input),
h w = H/stride W/stride.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import structlog

from model.artifact import Artifact
from model.errors import GoldenMismatchError
from model.manifest import GRAPH_FILE, GRAPH_WEIGHTS_FILE
from model.openvino_graph import load_openvino
from service.core.engine import (
    EngineInfo,
    EngineOptions,
    EngineUnavailableError,
    Float32Array,
    ImageBatch,
    InferenceEngine,
    Precision,
    PrecisionChoice,
)
from service.engines.cache import CompileCache, cache_key
from service.engines.proof import PixelType, prove

_log = structlog.get_logger()

_CAPABILITIES: dict[str, Precision] = {"BF16": "bf16", "FP32": "f32", "FP16": "f16"}
"""What OpenVINO calls the precisions of a processor; in the order in which ``auto`` takes them."""

_AUTO: tuple[Precision, ...] = ("bf16", "f32")


def precisions(device: str) -> tuple[Precision, ...]:
    """Return what the processor computes in, the default first.

    Raises:
        EngineUnavailableError: the device is no CPU.
    """
    if device != "cpu":
        raise EngineUnavailableError(f"openvino runs on the CPU, not on {device}")
    capabilities = load_openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return tuple(precision for name, precision in _CAPABILITIES.items() if name in capabilities)


def build(artifact: Artifact, options: EngineOptions) -> InferenceEngine:
    """Compile the graph, or load it compiled, and prove it.

    With precision ``auto`` one that misses the golden sample gives way to the next slower one.

    Raises:
        EngineUnavailableError: the device is no CPU, or does not compute in the precision that was asked for.
        GoldenMismatchError: the graph runs, but computes something else.
        ArtifactError: the graph is not the one of the manifest.
    """
    candidates = _candidates(options.precision, precisions(options.device))
    for precision in candidates[:-1]:
        try:
            return OpenVinoEngine(artifact, options, precision)
        except GoldenMismatchError as error:
            _log.warning("precision is not used", precision=precision, reason=str(error))
    return OpenVinoEngine(artifact, options, candidates[-1])


def _candidates(choice: PrecisionChoice, native: tuple[Precision, ...]) -> tuple[Precision, ...]:
    if choice == "auto":
        return tuple(precision for precision in native if precision in _AUTO)
    if choice not in native:
        raise EngineUnavailableError(f"this processor computes in {', '.join(native)}, not in {choice}")
    return (choice,)


class OpenVinoEngine:
    """One graph for all sizes and batches; pixels are converted inside it.

    A graph of its own for each size was 1 to 2 % faster in bf16 and not at all in f32 (BiSeNetV1 and V2 at
    512x1024, one thread of a Zen 5 core): not worth compiling one for every size that clients think of.

    Args:
        artifact: whose graph.
        options: threads and cache folder.
        precision: what to compute in.

    Raises:
        GoldenMismatchError: the graph computes something else.
        ArtifactError: the graph is not the one of the manifest.
    """

    def __init__(self, artifact: Artifact, options: EngineOptions, precision: Precision) -> None:
        self._artifact = artifact
        self._info = EngineInfo("openvino", options.device, precision)
        self._core = load_openvino().Core()
        self._cache = CompileCache(options.cache_folder / "openvino")
        self._properties = {
            # Its own default may be bf16, even for a graph of f32.
            "INFERENCE_PRECISION_HINT": precision,
            # 0: as many as there are physical cores among those that this process may use.
            "INFERENCE_NUM_THREADS": options.threads or 0,
            # All threads work on one batch: as many streams gain 5 % of throughput and multiply the latency.
            "PERFORMANCE_HINT": "LATENCY",
        }
        self._requests: dict[str, Any] = {}
        # OpenVINO 2026.4 corrupts the heap when a graph that two threads have run is destroyed after one of
        # them has ended (build, run it here and in a thread that ends, destroy: a crash within 500 rounds).
        # So everything happens in one thread of our own.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="openvino")
        try:
            self._thread.submit(self._add_request, "uint8").result()
        except Exception:
            self.close()
            raise

    @property
    def info(self) -> EngineInfo:
        """What this engine is."""
        return self._info

    def infer(self, images_NHW3: ImageBatch) -> Float32Array:
        """Run the network; the first float32 batch waits until a graph for such is compiled.

        Args:
            images_NHW3: RGB, uint8 or float32 of 0..255, C-contiguous, both sides multiples of 32.

        Returns:
            raw_NKhw: float32; the caller owns it.
        """
        return self._thread.submit(self._infer, images_NHW3).result()

    def close(self) -> None:
        """Free the compiled graphs."""
        self._thread.submit(self._requests.clear)
        self._thread.shutdown()

    def _infer(self, images_NHW3: ImageBatch) -> Float32Array:
        if images_NHW3.dtype.name not in self._requests:
            self._add_request("float32")
        return _run(self._requests[images_NHW3.dtype.name], images_NHW3)

    def _add_request(self, pixels: PixelType) -> None:
        request = self._compiled(pixels).create_infer_request()
        prove(partial(_run, request), self._artifact, pixels=pixels, precision=self._info.precision)
        self._requests[pixels] = request

    def _compiled(self, pixels: PixelType) -> Any:
        key = cache_key(
            artifact=dict(self._artifact.manifest.files),
            pixels=pixels,
            properties=self._properties,
            openvino=load_openvino().__version__,
            processor=self._core.get_property("CPU", "FULL_DEVICE_NAME"),
            capabilities=self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"),
        )
        if (blob := self._cache.load(key)) is not None:
            try:
                return self._core.import_model(blob, "CPU", self._properties)
            except RuntimeError:
                _log.warning("compiled graph does not load here and is made anew", key=key)
        compiled = self._core.compile_model(self._graph(pixels), "CPU", self._properties)
        self._cache.store(key, compiled.export_model().getvalue())
        return compiled

    def _graph(self, pixels: PixelType) -> Any:
        openvino = load_openvino()
        read = self._artifact.read
        graph = self._core.read_model(read(GRAPH_FILE), read(GRAPH_WEIGHTS_FILE))
        conversion = openvino.preprocess.PrePostProcessor(graph)
        conversion.input().tensor().set_element_type(openvino.Type(np.dtype(pixels)))
        return conversion.build()


def _run(request: Any, images_NHW3: ImageBatch) -> Float32Array:
    # Shared: OpenVINO reads the pixels where they are. Not shared: what comes back is a copy.
    raw_NKhw: Float32Array = request.infer(images_NHW3, share_inputs=True, share_outputs=False)[0]
    return raw_NKhw
