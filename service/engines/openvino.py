"""The engine for CPUs: the artifact's portable graph, compiled by OpenVINO.

Axes: N images in a batch, K channels of the head, H height, W width (of the padded input),
h w = H/stride W/stride.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import structlog

from model.artifacts.artifact import Artifact
from model.artifacts.manifest import GOLDEN_FILE, GRAPH_FILE, GRAPH_WEIGHTS_FILE, ModelManifest
from model.artifacts.openvino_graph import load_openvino
from model.errors import ArtifactError, GoldenMismatchError
from model.quotas import usable_cores
from service.core.device.engine import (
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
from service.engines.golden_run import PixelType, run_golden_sample

_log = structlog.get_logger()

_CAPABILITIES: dict[str, Precision] = {"BF16": "bf16", "FP32": "f32", "FP16": "f16", "INT8": "int8"}
"""OpenVINO's names of the precisions of a processor, the default first."""

_AUTO: tuple[Precision, ...] = ("bf16", "f32")
"""The precisions of ``auto`` where nothing was measured, in the order in which they are tried."""

_MAX_STREAMS = 2
"""Pictures of a batch that run side by side."""


def precisions(device: str) -> tuple[Precision, ...]:
    """Return the precisions of the processor, the default first.

    Raises:
        EngineUnavailableError: the device is not the CPU.
    """
    if device != "cpu":
        raise EngineUnavailableError(f"openvino runs on the CPU, not on {device}")
    capabilities = load_openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return tuple(precision for name, precision in _CAPABILITIES.items() if name in capabilities)


def build(artifact: Artifact, options: EngineOptions) -> InferenceEngine:
    """Compile the graph, or load it from the cache, and run the golden sample.

    With precision ``auto``, a precision that does not reproduce the golden sample gives way to the next one.
    An int8 version runs in int8; its other operations run in the first precision of ``auto``.

    Raises:
        EngineUnavailableError: the device is not the CPU; the processor does not have the precision; or the
            precision is int8 and the version is not, or the other way round.
        GoldenMismatchError: the graph does not reproduce the golden sample.
        ArtifactError: the graph is not the one that the manifest names.
    """
    *faster, last = _wanted_precisions(options.precision, precisions(options.device), artifact.manifest)
    for precision in faster:
        try:
            return OpenVinoEngine(artifact, options, precision)
        except GoldenMismatchError as error:
            _log.warning("precision is not used", precision=precision, reason=str(error))
    return OpenVinoEngine(artifact, options, last)


def _wanted_precisions(
    choice: PrecisionChoice, native: tuple[Precision, ...], manifest: ModelManifest
) -> tuple[Precision, ...]:
    """Return the precisions to try, in their order."""
    if manifest.precision == "int8":
        if choice not in ("auto", "int8"):
            raise EngineUnavailableError(
                f"this version is int8 and cannot compute in {choice}; {manifest.derived_from} can"
            )
        return ("int8",)
    if choice == "int8":
        raise EngineUnavailableError(
            "this version is not int8: `bisenet models quantize` makes an int8 version of it"
        )
    if choice == "auto":
        return tuple(precision for precision in native if precision in _AUTO)
    if choice not in native:
        raise EngineUnavailableError(f"this processor computes in {', '.join(native)}, not in {choice}")
    return (choice,)


def _floating_point(precision: Precision, native: tuple[Precision, ...]) -> Precision:
    """Return the precision of the floating-point operations; the graph says which operations are int8."""
    return next(one for one in native if one in _AUTO) if precision == "int8" else precision


def _default_threads() -> int:
    """Return the number of threads that a container's quota can keep busy; 0 = one for each physical core."""
    cores = usable_cores()
    return 0 if cores == len(os.sched_getaffinity(0)) else cores


@dataclass(frozen=True)
class _ArtifactInMemory(Artifact):
    """An artifact whose folder may be deleted: the graph for float32 pixels is compiled at its first use."""

    contents: Mapping[str, bytes]

    @classmethod
    def of(cls, artifact: Artifact) -> _ArtifactInMemory:
        """Read the files; a missing file raises its error when it is needed."""
        contents = {}
        for name in (GRAPH_FILE, GRAPH_WEIGHTS_FILE, GOLDEN_FILE):
            with suppress(ArtifactError):  # a compiled graph in the cache replaces the files of the graph
                contents[name] = artifact.read(name)
        return cls(artifact.folder, artifact.manifest, contents)

    def read(self, name: str) -> bytes:
        """Return the bytes that the file had when the engine was built."""
        return self.contents[name] if name in self.contents else super().read(name)


class OpenVinoEngine:
    """One compiled graph for all sizes and batches; it also converts the pixels.

    A single picture has all threads. Two pictures of a batch run side by side on half of the threads each:
    that is 1 to 9 % more pictures a second, and 8 % while other threads read and write pictures, because an
    interrupted thread delays all threads that share its picture (two cores with AVX-512, 512x1024, bf16 and
    int8).

    A graph for each size was 1 to 2 % faster in bf16 and not faster in f32 (BiSeNetV1 and V2 at 512x1024, one
    thread of a Zen 5 core): too little to compile one for every size that clients send.

    Args:
        artifact: has the graph.
        options: threads, streams and cache folder.
        precision: that it computes in.

    Raises:
        GoldenMismatchError: the graph does not reproduce the golden sample.
        ArtifactError: the graph is not the one that the manifest names.
    """

    def __init__(self, artifact: Artifact, options: EngineOptions, precision: Precision) -> None:
        self._artifact = _ArtifactInMemory.of(artifact)
        self._info = EngineInfo("openvino", options.device, precision, options.refused)
        self._core = load_openvino().Core()
        self._cache = CompileCache(options.cache_folder / "openvino")
        threads = options.threads or _default_threads()
        self._properties = {
            # OpenVINO's default may be bf16, even for a graph of f32.
            "INFERENCE_PRECISION_HINT": _floating_point(precision, precisions(options.device)),
            "INFERENCE_NUM_THREADS": threads,
            # OpenVINO pins to the first cores. Engines of fewer threads than cores, in one process or in the
            # containers of one machine, would all be pinned to the same cores.
            "ENABLE_CPU_PINNING": threads == 0,
        }
        self._requests: dict[str, Any] = {}
        self._side_by_side: list[Any] = []
        # OpenVINO 2026.4 corrupts the heap when a graph that two threads have run is destroyed after one of
        # them has ended (build, run it here and in a thread that ends, destroy: a crash within 500 rounds).
        # Therefore one thread of this engine does everything.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="openvino")
        try:
            self._thread.submit(self._add_request, "uint8").result()
            streams = options.streams or _MAX_STREAMS
            if options.max_batch > 1 and streams > 1 and (options.threads or usable_cores()) >= streams:
                self._thread.submit(self._add_streams, streams).result()
        except Exception:
            self.close()
            raise

    @property
    def info(self) -> EngineInfo:
        """Name, device and precision."""
        return self._info

    @property
    def threads(self) -> int:
        """Number of threads that run one picture."""
        return int(self._requests["uint8"].get_compiled_model().get_property("INFERENCE_NUM_THREADS"))

    def infer(self, images_NHW3: ImageBatch) -> Float32Array:
        """Run the network; the first float32 batch waits until the graph for float32 pixels is compiled.

        Args:
            images_NHW3: RGB, uint8 or float32 of 0..255, C-contiguous, both sides multiples of 32.

        Returns:
            raw_NKhw: float32; the caller owns it.
        """
        return self._thread.submit(self._infer, images_NHW3).result()

    def close(self) -> None:
        """Free the compiled graphs."""
        self._thread.submit(self._requests.clear)
        self._thread.submit(self._side_by_side.clear)
        self._thread.shutdown()

    def _infer(self, images_NHW3: ImageBatch) -> Float32Array:
        if len(images_NHW3) > 1 and self._side_by_side and images_NHW3.dtype == np.uint8:
            return _run_side_by_side(self._side_by_side, images_NHW3)
        if images_NHW3.dtype.name not in self._requests:
            self._add_request("float32")
        return _run(self._requests[images_NHW3.dtype.name], images_NHW3)

    def _add_request(self, pixels: PixelType) -> None:
        request = self._compiled(pixels, {"PERFORMANCE_HINT": "LATENCY"}).create_infer_request()
        self._run_golden_sample(request, pixels)
        self._requests[pixels] = request

    def _add_streams(self, streams: int) -> None:
        compiled = self._compiled("uint8", {"NUM_STREAMS": streams})
        requests = [compiled.create_infer_request() for _ in range(streams)]
        self._run_golden_sample(requests[0], "uint8")
        self._side_by_side += requests

    def _run_golden_sample(self, request: Any, pixels: PixelType) -> None:
        run_golden_sample(
            partial(_run, request), self._artifact, pixels=pixels, precision=self._info.precision
        )

    def _compiled(self, pixels: PixelType, order: Mapping[str, object]) -> Any:
        properties = {**self._properties, **order}
        key = cache_key(
            artifact=dict(self._artifact.manifest.files),
            pixels=pixels,
            properties=properties,
            openvino=load_openvino().__version__,
            processor=self._core.get_property("CPU", "FULL_DEVICE_NAME"),
            capabilities=self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"),
        )
        if (blob := self._cache.load(key)) is not None:
            try:
                return self._core.import_model(blob, "CPU", properties)
            except RuntimeError:
                _log.warning("a compiled graph cannot be loaded and is compiled again", key=key)
        compiled = self._core.compile_model(self._graph(pixels), "CPU", properties)
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
    # Inputs are shared: OpenVINO reads the pixels in place. Outputs are not: the result is a copy.
    raw_NKhw: Float32Array = request.infer(images_NHW3, share_inputs=True, share_outputs=False)[0]
    return raw_NKhw


def _run_side_by_side(requests: Sequence[Any], images_NHW3: ImageBatch) -> Float32Array:
    raw_NKhw = np.empty(0, np.float32)
    for first in range(0, len(images_NHW3), len(requests)):
        started = dict(enumerate(requests[: len(images_NHW3) - first], start=first))
        for index, request in started.items():
            request.start_async({0: images_NHW3[index : index + 1]}, share_inputs=True)
        for index, request in started.items():
            request.wait()
            raw_1Khw = request.get_output_tensor(0).data
            if not index:
                raw_NKhw = np.empty((len(images_NHW3), *raw_1Khw.shape[1:]), np.float32)
            raw_NKhw[index] = raw_1Khw[0]
    return raw_NKhw
