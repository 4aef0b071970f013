"""From a torch network to an artifact: weights, golden sample, OpenVINO graph, and the manifest over them.

Axes: N images in a batch, K channels of the head's raw output, H height, W width, h w = H/stride W/stride.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from PIL import Image
from torch import Tensor

from model.artifacts.artifact import (
    GOLDEN_SIZE,
    Artifact,
    ComputePrecision,
    Float32Array,
    Golden,
    check_golden,
    check_weights,
    pack_golden,
    read_artifact,
)
from model.artifacts.manifest import (
    ARTIFACT_FILES,
    GOLDEN_FILE,
    GRAPH_FILE,
    MANIFEST_FILE,
    WEIGHTS_FILE,
    ModelManifest,
    WeightsPrecision,
)
from model.artifacts.openvino_graph import load_openvino, name_by_order, prove_graph
from model.errors import ArtifactError, ManifestError
from model.labels import UInt8Array
from model.networks.segmentation_network import SegmentationNetwork, deploy_state, from_manifest

_GOLDEN_SEED = 20200405
_GOLDEN_GRID = (4, 5)
_STORED_DTYPES: Mapping[WeightsPrecision, torch.dtype] = {"f32": torch.float32, "f16": torch.float16}
_LARGE_CONSTANT = 3000
"""Numbers from which on a constant of the graph is stored as f16."""

EXAMPLE_SHAPE = (2, 64, 96, 3)
"""What networks are recorded with: no axis can be mistaken for another, or for one of the golden sample."""


def write_artifact(folder: Path, network: SegmentationNetwork, manifest: ModelManifest) -> Artifact:
    """Write a network as an artifact folder, and prove that each file in it computes the same function.

    With precision ``f16`` the weights are rounded first, so that the weights file, the golden scores and the
    graph describe one network. The same network and manifest give the same bytes on the same machine.

    Args:
        folder: is created; must be empty if it exists.
        network: in either form and on any device; it is not changed.
        manifest: of that network, without ``files``.

    Returns:
        The artifact, verified.

    Raises:
        ArtifactError: the folder is not empty, or a proof fails; then it has no manifest.
        ManifestError: the precision is none that weights can be rounded to.
        NetworkError: the manifest names an architecture or a parameter that there is not.
        WeightsError: the network does not fit the manifest, or a weight is not finite after rounding.
    """
    _make_empty(folder)
    (folder / WEIGHTS_FILE).write_bytes(safetensors.torch.save(_stored_state(network, manifest.precision)))
    check_weights(folder / WEIGHTS_FILE)
    stored = stored_network(folder, manifest)
    golden = _golden(stored, manifest)
    _check_same_function(network, golden, manifest.precision)
    (folder / GOLDEN_FILE).write_bytes(pack_golden(golden.image_HW3, golden.raw_Khw))
    _write_graph(folder / GRAPH_FILE, stored, manifest.precision)
    sealed = dataclasses.replace(manifest, files=_digests(folder))
    unproven = Artifact(folder, sealed)
    unproven.verify()
    prove_graph(unproven)
    (folder / MANIFEST_FILE).write_text(sealed.to_json(), encoding="utf-8")
    return read_artifact(folder)


def prove_weights(artifact: Artifact) -> None:
    """Build the torch network from an artifact's weights and let it reproduce the golden sample in f32.

    Weights of 8 bits must do it as nearly as 8 bits allow.

    Raises:
        NetworkError: the manifest names an architecture or a parameter that there is not.
        WeightsError: a key is missing, unknown or of another shape.
        GoldenMismatchError: the weights are those of another network.
    """
    golden = artifact.golden()
    network = stored_network(artifact.folder, artifact.manifest)
    check_golden(golden, _scores(network, golden.image_HW3), artifact.precision)


def stored_network(folder: Path, manifest: ModelManifest) -> SegmentationNetwork:
    """Build the deploy form of an artifact's network from its weights file.

    Raises:
        NetworkError: the manifest names an architecture or a parameter that there is not.
        WeightsError: a key is missing, unknown or of another shape.
    """
    return from_manifest(manifest, safetensors.torch.load_file(folder / WEIGHTS_FILE))


def _make_empty(folder: Path) -> None:
    (folder / GRAPH_FILE).parent.mkdir(parents=True, exist_ok=True)
    if any(path.is_file() for path in folder.rglob("*")):
        raise ArtifactError(f"{folder.name} is not empty")


def _stored_state(network: SegmentationNetwork, precision: WeightsPrecision) -> dict[str, Tensor]:
    """Return the weights as the file holds them.

    Only convolution kernels are rounded: variances can leave the range of f16 (6e-8 to 65,504), and all
    vectors together are 1 % of the bytes.
    """
    if precision not in _STORED_DTYPES:
        raise ManifestError(f"weights are written as {' or '.join(_STORED_DTYPES)}, not {precision}")
    kernel = _STORED_DTYPES[precision]
    state = {key: value.detach().cpu() for key, value in deploy_state(network).items()}
    return {key: (value.to(kernel) if value.ndim > 1 else value).contiguous() for key, value in state.items()}


def _golden(network: SegmentationNetwork, manifest: ModelManifest) -> Golden:
    image_HW3 = golden_picture()
    return Golden(image_HW3, _scores(network, image_HW3), manifest.palette.num_classes)


def golden_picture() -> UInt8Array:
    """Return the picture of the golden sample: seeded, low-frequency, 128x160 uint8 RGB."""
    grid = np.random.default_rng(_GOLDEN_SEED).integers(0, 256, (*_GOLDEN_GRID, 3), np.uint8)
    size = (GOLDEN_SIZE.width, GOLDEN_SIZE.height)
    return np.asarray(Image.fromarray(grid).resize(size, Image.Resampling.BICUBIC))


def _scores(network: SegmentationNetwork, image_HW3: UInt8Array) -> Float32Array:
    with torch.inference_mode():
        raw_Khw: Float32Array = network(torch.tensor(image_HW3[None]))[0].numpy()
    return raw_Khw


def _check_same_function(network: SegmentationNetwork, golden: Golden, precision: ComputePrecision) -> None:
    # Weights alone do not show a manifest with the mean of another data set.
    original = copy.deepcopy(network).cpu().float().eval()
    check_golden(golden, _scores(original, golden.image_HW3), precision)


def _write_graph(path: Path, network: SegmentationNetwork, precision: WeightsPrecision) -> None:
    openvino = load_openvino()
    graph = openvino.convert_model(_traced(network), input=[([-1, -1, -1, 3], openvino.Type.f32)])
    if precision == "f16":
        _halve_large_constants(openvino, graph)
    name_by_order(graph)
    openvino.save_model(graph, path, compress_to_fp16=False)


def _halve_large_constants(openvino: Any, graph: Any) -> None:
    """Store the large constants of a graph as f16; it still computes in f32.

    Batch normalisation is folded into the kernels by now, so this rounds them a second time. Depthwise
    kernels and biases suffer most from that and weigh least: with them in f32 the light BiSeNetV1 is off by
    4e-4 of the range of the scores instead of 1.0e-3, for 1 % of the bytes.
    """
    for node in graph.get_ops():
        if _is_large_f32(node):
            half = openvino.opset13.constant(node.data.astype(np.float16))
            whole = openvino.opset13.convert(half, "f32").output(0)
            for target in node.output(0).get_target_inputs():
                target.replace_source_output(whole)


def _is_large_f32(node: Any) -> bool:
    is_f32 = node.get_type_name() == "Constant" and node.get_element_type().get_type_name() == "f32"
    return bool(is_f32 and node.data.size >= _LARGE_CONSTANT)


def _traced(network: SegmentationNetwork) -> torch.jit.ScriptModule:
    # Deprecated in favour of torch.export, from which OpenVINO 2026.4 makes the same operations, but in 9 s
    # instead of 2 (BiSeNetV2, two cores) and with warnings of its own.
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit.trace", category=DeprecationWarning)
        example = torch.zeros(EXAMPLE_SHAPE)
        traced: torch.jit.ScriptModule = torch.jit.trace(network, example, check_trace=False)  # type: ignore[no-untyped-call]
    return traced


def _digests(folder: Path) -> dict[str, str]:
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in ARTIFACT_FILES}
