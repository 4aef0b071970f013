"""Makes the int8 version of an artifact: NNCF quantises the OpenVINO graph, without torch.

Axes: N images in a batch, K classes, H height, W width, h w = H/stride W/stride, 3 = red green blue.

Every convolution gets int8 weights, with one scale a channel, and int8 activations, with one symmetric scale
a tensor whose range NNCF takes from training pictures. Where that loses too much, the layers that lose most
go back to floating point, one by one.

A BiSeNetV2 with 66.82 mIoU in bf16 on the 101 validation pictures of CamVid, trained without them, keeps
66.70 to 66.80 with 50 to 300 training pictures, and 99.6 % of its labels. Asymmetric activations keep 99.0 %
of the labels and take 6 % longer; correcting biases layer by layer, not all at once, leaves 66.3 mIoU.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib
import logging
import shutil
import sys
import threading
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from model.artifacts.artifact import Artifact, Float32Array
from model.artifacts.int8_weights import packed
from model.artifacts.manifest import (
    ARTIFACT_FILES,
    GOLDEN_FILE,
    GRAPH_FILE,
    GRAPH_WEIGHTS_FILE,
    MANIFEST_FILE,
    WEIGHTS_FILE,
    ModelManifest,
    ModelVersion,
)
from model.artifacts.openvino_graph import GRAPH_OUTPUT, load_openvino, name_by_order, prove_graph
from model.errors import ArtifactError, QuantizationError
from model.evaluation.metrics import ConfusionMatrix
from model.evaluation.network_passes import Infer
from model.evaluation.picture_scorer import LabeledPictures, PictureScorer
from model.evaluation.protocols import find_protocol
from model.evaluation.resampling import PixelArray
from model.labels import UInt8Array

MAX_CALIBRATION_PICTURES = 300

_SERVED = find_protocol("ss-old")
"""Pictures are prepared and scores decoded as the service does it."""


def measure(
    infer: Infer, manifest: ModelManifest, pictures: LabeledPictures, indices: Iterable[int]
) -> ConfusionMatrix:
    """Score the labels that a service would answer: it prepares pictures and decodes scores in the same way.

    Args:
        infer: runs the network.
        manifest: of the model.
        pictures: with labels.
        indices: of the pictures to score.

    Raises:
        DatasetError: a file of the pictures is unusable.
        ModelOutputError: a score is not finite.
    """
    scorer = PictureScorer(manifest, _SERVED, manifest.palette, [infer])
    return scorer.total(pictures, indices)


def write_quantized(
    source: Artifact,
    folder: Path,
    *,
    version: ModelVersion,
    training: LabeledPictures,
    validation: LabeledPictures,
    max_miou_loss: float,
) -> Artifact:
    """Write the int8 version of an artifact without ``manifest.json``, and prove it by the golden sample.

    Progress goes to stderr.

    Args:
        source: artifact in floating point.
        folder: created; must be empty if it exists.
        version: version of the source.
        training: pictures for the ranges of activations; of more than ``MAX_CALIBRATION_PICTURES`` an even
            sample.
        validation: pictures for the loss, which OpenVINO's defaults for this processor measure here;
            ``Int8Gate`` measures it again on the engine that serves the version.
        max_miou_loss: layers stay in floating point until no more is lost, in points of 0..100.

    Returns:
        The argument of ``finish``.

    Raises:
        QuantizationError: the source is int8 already, or NNCF is not installed.
        ArtifactError: the source is damaged, or the folder is not empty.
        DatasetError: a file of the pictures is unusable.
        GoldenMismatchError: the int8 graph computes something else.
    """
    if source.manifest.precision == "int8":
        raise QuantizationError(f"{version} is int8 already")
    graph = _quantized_graph(source, training, validation, max_miou_loss)
    _write_files(source, folder, graph)
    files = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in ARTIFACT_FILES}
    quantized = Artifact(
        folder,
        dataclasses.replace(
            source.manifest, precision="int8", derived_from=str(version), files=files, provenance={}
        ),
    )
    quantized.verify()
    prove_graph(quantized)
    return quantized


def finish(quantized: Artifact, provenance: Mapping[str, Any]) -> Artifact:
    """Write the manifest, which makes the folder an artifact.

    Args:
        quantized: result of ``write_quantized``.
        provenance: how the version was made, and its scores: JSON values.

    Raises:
        ManifestError: JSON cannot hold the provenance.
    """
    manifest = dataclasses.replace(quantized.manifest, provenance=provenance)
    (quantized.folder / MANIFEST_FILE).write_text(manifest.to_json(), encoding="utf-8")
    return Artifact(quantized.folder, manifest)


def load_nncf() -> Any:
    """Import NNCF without its telemetry and with errors only in its log.

    Raises:
        QuantizationError: it is not installed.
    """
    load_openvino()  # after which NNCF, too, finds no ``openvino_telemetry`` and falls back on a stub
    try:
        nncf = importlib.import_module("nncf")
    except ImportError as error:
        raise QuantizationError("int8 needs nncf: pip install 'bisenet-service[quantize]'") from error
    nncf.set_log_level(logging.ERROR)
    return nncf


def _quantized_graph(
    source: Artifact, training: LabeledPictures, validation: LabeledPictures, max_miou_loss: float
) -> Any:
    stop = threading.Event()
    with contextlib.redirect_stdout(sys.stderr), ThreadPoolExecutor(1, thread_name_prefix="nncf") as thread:
        # OpenVINO 2026.4 gives the thread in which a core meets the CPU a stack for signal handlers, and puts
        # back the one from before when the core goes. NNCF's cores do not go in the order in which they came:
        # they leave the thread a stack that is unmapped, and it dies at its next SIGTERM without a word.
        graph = thread.submit(
            _quantize, source, _UntilStopped(training, stop), _UntilStopped(validation, stop), max_miou_loss
        )
        try:
            return graph.result()
        finally:
            stop.set()


@dataclasses.dataclass(frozen=True)
class _UntilStopped:
    """Pictures that cannot be read after the caller was interrupted."""

    pictures: LabeledPictures
    stop: threading.Event

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> tuple[UInt8Array, UInt8Array]:
        if self.stop.is_set():
            raise InterruptedError("the caller was interrupted")
        return self.pictures[index]


def _quantize(
    source: Artifact, training: LabeledPictures, validation: LabeledPictures, max_miou_loss: float
) -> Any:
    nncf = load_nncf()
    manifest = source.manifest
    indices = range(0, len(training), -(-len(training) // MAX_CALIBRATION_PICTURES))

    def graph_input(index: int) -> Float32Array:
        return manifest.preprocess.prepare(training[index][0]).pixels_HW3[None].astype(np.float32)

    def miou(compiled: Any, wanted: Iterable[int]) -> tuple[float, None]:
        infer = _runner(compiled)
        return 100 * (measure(infer, manifest, validation, wanted).miou or 0.0), None

    return nncf.quantize_with_accuracy_control(
        load_openvino().Core().read_model(source.read(GRAPH_FILE), source.read(GRAPH_WEIGHTS_FILE)),
        nncf.Dataset(indices, graph_input),
        nncf.Dataset(range(len(validation))),
        miou,
        max_drop=max_miou_loss,
        subset_size=len(indices),
    )


def _runner(compiled: Any) -> Infer:
    def infer(images_NHW3: PixelArray) -> Float32Array:
        raw_NKhw: Float32Array = compiled(images_NHW3.astype(np.float32))[GRAPH_OUTPUT]
        return raw_NKhw

    return infer


def _write_files(source: Artifact, folder: Path, graph: Any) -> None:
    (folder / GRAPH_FILE).parent.mkdir(parents=True, exist_ok=True)
    if any(path.is_file() for path in folder.rglob("*")):
        raise ArtifactError(f"{folder.name} is not empty")
    name_by_order(graph)
    load_openvino().save_model(graph, folder / GRAPH_FILE, compress_to_fp16=True)
    shutil.copy(source.path(GOLDEN_FILE), folder / GOLDEN_FILE)
    weights = safetensors.numpy.load(source.read(WEIGHTS_FILE))
    (folder / WEIGHTS_FILE).write_bytes(safetensors.numpy.save(packed(weights)))
