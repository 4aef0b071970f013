"""Axes: N images in a batch, H height, W width, h w = H/8 W/8."""

from __future__ import annotations

import dataclasses
import shutil
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from fakes import seal

from model.artifacts.artifact import Artifact, Float32Array, read_artifact
from model.artifacts.manifest import (
    ARTIFACT_FILES,
    GRAPH_FILE,
    GRAPH_WEIGHTS_FILE,
    MANIFEST_FILE,
    WEIGHTS_FILE,
    ModelManifest,
    WeightsPrecision,
)
from model.artifacts.openvino_graph import load_openvino, prove_graph
from model.errors import ArtifactError, GoldenMismatchError, ManifestError, WeightsError
from model.export.export import golden_picture, prove_weights, write_artifact
from model.labels import ClassPalette
from model.networks.segmentation_network import ARCHITECTURES, SegmentationNetwork, build, deploy_state

MEAN, STD = (0.25, 0.5, 0.75), (0.25, 0.2, 0.3)
PALETTE = ClassPalette(("sky", "road", "car"), ((0, 0, 0), (1, 1, 1), (2, 2, 2)))


def manifest(name: str, precision: WeightsPrecision = "f16") -> ModelManifest:
    architecture = ARCHITECTURES[name]
    return ModelManifest(
        architecture=name,
        generation=architecture.generation,
        parameters={"head_channels": 16} if name == "bisenetv2" else {},
        upsample=architecture.upsample,
        stride=architecture.stride,
        palette=PALETTE,
        mean=MEAN,
        std=STD,
        precision=precision,
    )


def lively(name: str, *, with_auxiliary: bool = False) -> SegmentationNetwork:
    """Return a network whose batch normalisation has seen pictures, so that every branch contributes."""
    described = manifest(name)
    with torch.random.fork_rng():
        torch.manual_seed(2)
        network = build(
            name, len(PALETTE.names), described.parameters, mean=MEAN, std=STD, with_auxiliary=with_auxiliary
        )
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                torch.nn.init.uniform_(module.weight, 0.5, 1.5)
                torch.nn.init.normal_(module.bias, std=0.2)
        with torch.no_grad():
            for _ in range(4):
                network(torch.rand(2, 64, 96, 3) * 255)
    return network.eval()


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Let torch compute in one thread: on a busy machine several wait for each other most of the time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def network() -> SegmentationNetwork:
    return lively("bisenetv2", with_auxiliary=True)


@pytest.fixture(scope="module")
def exported(network: SegmentationNetwork, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return write_artifact(tmp_path_factory.mktemp("v2") / "artifact", network, manifest("bisenetv2"))


@pytest.fixture
def copy(exported: Artifact, tmp_path: Path) -> Artifact:
    """An artifact that a test may change."""
    return read_artifact(Path(shutil.copytree(exported.folder, tmp_path / "copy")))


def pictures(*shape: int) -> Float32Array:
    return np.random.default_rng(3).uniform(0, 255, (*shape, 3)).astype(np.float32)


def relative_error(artifact: Artifact, network: SegmentationNetwork, images_NHW3: Float32Array) -> float:
    """Return the rms difference between the graph and the network, as a share of the scores' range."""
    options = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = load_openvino().compile_model(artifact.path(GRAPH_FILE), "CPU", options)
    with torch.inference_mode():
        expected = network(torch.tensor(images_NHW3)).numpy()
    error = compiled({"images": images_NHW3})["raw"] - expected
    return float(np.sqrt(np.mean(error**2)) / np.ptp(expected))


def test_an_artifact_is_complete_and_proves_itself_by_both_of_its_forms(exported: Artifact) -> None:
    files = {path.relative_to(exported.folder).as_posix() for path in exported.folder.rglob("*.*")}
    assert files == {*ARTIFACT_FILES, MANIFEST_FILE}
    exported.verify()
    prove_graph(exported)
    prove_weights(exported)


@pytest.mark.parametrize("shape", [(1, 32, 32), (3, 64, 160)])
def test_the_graph_is_the_network_at_any_batch_and_size(
    exported: Artifact, network: SegmentationNetwork, shape: tuple[int, int, int]
) -> None:
    assert relative_error(exported, network, pictures(*shape)) < 2e-3


@pytest.mark.parametrize("name", ["bisenetv1", "bisenetv1-diss"])
def test_each_architecture_is_exported_without_rounding_too(name: str, tmp_path: Path) -> None:
    network = lively(name)
    artifact = write_artifact(tmp_path / "artifact", network, manifest(name, "f32"))
    stored = safetensors.torch.load_file(artifact.path(WEIGHTS_FILE))
    for key, value in deploy_state(network).items():
        assert torch.equal(stored[key], value), key
    assert relative_error(artifact, network, pictures(2, 32, 64)) < 1e-5


def test_the_graph_has_no_normalisation_layers_and_no_arithmetic_on_shapes(exported: Artifact) -> None:
    graph = load_openvino().Core().read_model(exported.path(GRAPH_FILE))
    kinds = {operation.get_type_name() for operation in graph.get_ops()}
    assert not kinds & {"ShapeOf", "Gather", "Reshape", "Pad", "BatchNormInference", "StridedSlice"}
    assert str(graph.input("images").partial_shape) == "[?,?,?,3]"
    raw = graph.output("raw").partial_shape
    assert raw.rank.get_length() == 4
    assert raw[1].get_length() == PALETTE.num_classes


def test_half_precision_halves_kernels_and_keeps_statistics(exported: Artifact) -> None:
    stored = safetensors.torch.load_file(exported.path(WEIGHTS_FILE))
    dtypes = {tensor.dtype for tensor in stored.values() if tensor.ndim > 1}
    assert dtypes == {torch.float16}
    assert stored["detail.S1.0.bn.running_var"].dtype == torch.float32
    floats = [data for data in constants(exported) if data.get("element_type") == "f32"]
    assert all(int(data.get("size", "0")) < 4 * 3000 for data in floats)
    assert any(data.get("element_type") == "f16" for data in constants(exported))


def constants(artifact: Artifact) -> list[ET.Element]:
    return ET.parse(artifact.path(GRAPH_FILE)).findall(".//layer[@type='Const']/data")


def test_the_weights_are_those_of_the_deploy_form(exported: Artifact, network: SegmentationNetwork) -> None:
    stored = safetensors.torch.load_file(exported.path(WEIGHTS_FILE))
    assert stored.keys() == deploy_state(network).keys()
    assert not any(key.startswith("aux") for key in stored)


def test_the_same_weights_give_the_same_bytes_and_the_network_stays_as_it_was(
    exported: Artifact, tmp_path: Path
) -> None:
    training = lively("bisenetv2", with_auxiliary=True).train()
    for parameter in training.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    before = {key: value.clone() for key, value in training.state_dict().items()}
    again = write_artifact(tmp_path / "again", training, manifest("bisenetv2"))
    assert again.manifest == exported.manifest
    assert training.training
    assert all(torch.equal(value, before[key]) for key, value in training.state_dict().items())


def test_a_manifest_with_another_mean_is_refused(network: SegmentationNetwork, tmp_path: Path) -> None:
    other = dataclasses.replace(manifest("bisenetv2"), mean=(0.75, 0.5, 0.25))
    with pytest.raises(GoldenMismatchError):
        write_artifact(tmp_path / "artifact", network, other)
    with pytest.raises(ArtifactError, match=r"manifest\.json"):
        read_artifact(tmp_path / "artifact")


def test_a_manifest_of_another_network_is_refused(network: SegmentationNetwork, tmp_path: Path) -> None:
    wider = dataclasses.replace(manifest("bisenetv2"), parameters={"head_channels": 17})
    with pytest.raises(WeightsError, match=r"head\.conv"):
        write_artifact(tmp_path / "artifact", network, wider)


def test_weights_that_half_precision_cannot_hold_are_refused(tmp_path: Path) -> None:
    network = lively("bisenetv2")
    with torch.no_grad():
        network.architecture.get_parameter("detail.S1.0.conv.weight")[0, 0, 0, 0] = 1e5
    with pytest.raises(WeightsError, match=r"detail\.S1\.0\.conv\.weight"):
        write_artifact(tmp_path / "artifact", network, manifest("bisenetv2"))


def test_int8_is_made_otherwise(network: SegmentationNetwork, tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="int8"):
        write_artifact(tmp_path / "artifact", network, manifest("bisenetv2", "int8"))


def test_a_folder_that_holds_something_is_left_alone(network: SegmentationNetwork, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ArtifactError, match="is not empty"):
        write_artifact(tmp_path, network, manifest("bisenetv2"))
    assert [path.name for path in tmp_path.rglob("*.*")] == ["mine.txt"]


def test_weights_of_another_network_do_not_prove_themselves(copy: Artifact) -> None:
    stored = safetensors.torch.load_file(copy.path(WEIGHTS_FILE))
    stored["head.conv.conv.weight"] = -stored["head.conv.conv.weight"]
    safetensors.torch.save_file(stored, copy.path(WEIGHTS_FILE))
    changed = seal(copy.folder, copy.manifest)
    changed.verify()
    with pytest.raises(GoldenMismatchError):
        prove_weights(changed)


def test_a_graph_of_another_network_does_not_prove_itself(copy: Artifact) -> None:
    largest = max(constants(copy), key=lambda data: int(data.get("size", "0")))
    begin, size = int(largest.get("offset", "")), int(largest.get("size", ""))
    weights = np.fromfile(copy.path(GRAPH_WEIGHTS_FILE), np.uint8)
    weights[begin : begin + size].view(np.float16)[:] *= -1
    weights.tofile(copy.path(GRAPH_WEIGHTS_FILE))
    with pytest.raises(GoldenMismatchError):
        prove_graph(seal(copy.folder, copy.manifest))


@pytest.mark.parametrize("content", [b"", b"<net/>", b"\xff" * 100])
def test_a_graph_that_is_none_is_an_artifact_error(copy: Artifact, content: bytes) -> None:
    copy.path(GRAPH_FILE).write_bytes(content)
    with pytest.raises(ArtifactError, match=r"graph\.xml does not run"):
        prove_graph(seal(copy.folder, copy.manifest))


def test_the_golden_picture_is_smooth_and_always_the_same() -> None:
    picture_HW3 = golden_picture()
    assert picture_HW3.shape == (128, 160, 3)
    assert picture_HW3.dtype == np.uint8
    assert (golden_picture() == picture_HW3).all()
    assert np.abs(np.diff(picture_HW3.astype(int), axis=1)).max() < 20
    assert picture_HW3.std() > 30
