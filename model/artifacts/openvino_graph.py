"""The portable graph of an artifact, and the import of OpenVINO without its usage reports.

Axes: N images in a batch, K channels of the head's raw output, h w = H/stride W/stride.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

from model.artifacts.artifact import Artifact, ComputePrecision, Float32Array, Golden, check_golden
from model.artifacts.manifest import GRAPH_FILE, GRAPH_WEIGHTS_FILE
from model.errors import ArtifactError, GoldenMismatchError
from model.labels import UInt8Array

GRAPH_INPUT = "images"
GRAPH_OUTPUT = "raw"


def load_openvino() -> Any:
    """Import OpenVINO so that it sends no usage reports.

    A plain ``import openvino`` reports to its maker's analytics. Without the module ``openvino_telemetry`` it
    uses a stub, so this function makes that import fail in this process. Nothing is written to the user's
    home, and the settings of other programs stay as they are.

    Source:
        https://github.com/openvinotoolkit/openvino/blob/master/tools/ovc/openvino/tools/ovc/telemetry_utils.py
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # None = not importable
    return importlib.import_module("openvino")


def prove_graph(artifact: Artifact) -> None:
    """Run the golden sample through the artifact's graph with OpenVINO, on the CPU in f32.

    Raises:
        GoldenMismatchError: the graph does not reproduce the golden sample.
        ArtifactError: OpenVINO cannot load or run the graph.
    """
    prove_file(artifact.path(GRAPH_FILE), artifact.golden(), artifact.precision)


def prove_file(path: Path, golden: Golden, precision: ComputePrecision) -> None:
    """Run a sample through a file of a format that OpenVINO reads, on the CPU in f32.

    Args:
        path: of an ``.xml`` with its ``.bin`` beside it, or of an ``.onnx``.
        golden: the sample; its picture may have any size that the graph takes.
        precision: of the file; it determines the tolerance.

    Raises:
        GoldenMismatchError: the file does not reproduce the sample.
        ArtifactError: OpenVINO cannot load or run it.
    """
    check_golden(golden, _run(path, golden.image_HW3), precision)


def write_graph(artifact: Artifact, path: Path) -> None:
    """Copy the artifact's graph and its weights, and run the golden sample through the copy.

    Args:
        artifact: has the graph.
        path: of the new ``.xml`` file; the weights become a ``.bin`` file beside it.

    Raises:
        ArtifactError: the graph is damaged, or the copy does not run.
        GoldenMismatchError: the copy does not reproduce the golden sample.
        OSError: the files cannot be written.
    """
    path.write_bytes(artifact.read(GRAPH_FILE))
    path.with_suffix(".bin").write_bytes(artifact.read(GRAPH_WEIGHTS_FILE))
    prove_file(path, artifact.golden(), artifact.precision)


def name_by_order(graph: Any) -> None:
    """Name all operations of a graph by their order, so that equal graphs give equal bytes.

    The names of OpenVINO and NNCF contain numbers that count up through the process.
    """
    graph.set_friendly_name("bisenet")
    for index, operation in enumerate(graph.get_ordered_ops()):
        operation.set_friendly_name(f"{operation.get_type_name()}_{index}")
        for output in operation.outputs():
            output.set_names(set())
    graph.input().set_names({GRAPH_INPUT})
    graph.output().set_names({GRAPH_OUTPUT})


def _run(path: Path, image_HW3: UInt8Array) -> Float32Array:
    openvino = load_openvino()
    try:
        compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        raw_NKhw = compiled({GRAPH_INPUT: image_HW3[None].astype("float32")})[GRAPH_OUTPUT]
    except RuntimeError as error:
        raise ArtifactError(f"{path.name} does not run") from error
    if raw_NKhw.ndim != 4 or raw_NKhw.dtype != "float32":  # noqa: PLR2004
        raise GoldenMismatchError(f"{path.name} returns {raw_NKhw.dtype} {raw_NKhw.shape}, not raw_NKhw")
    scores: Float32Array = raw_NKhw[0]
    return scores
