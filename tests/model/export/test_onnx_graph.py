"""Axes: N images in a batch, H height, W width."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from fakes import seal

from model.artifacts.artifact import Artifact, pack_golden, read_artifact
from model.artifacts.manifest import GOLDEN_FILE, ModelManifest
from model.artifacts.openvino_graph import load_openvino
from model.errors import GoldenMismatchError
from model.export import onnx_graph
from model.export.export import stored_network, write_artifact
from model.export.onnx_graph import write_onnx
from model.labels import ClassPalette
from model.networks.generations import GENERATIONS
from model.networks.segmentation_network import blank_network


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Let torch compute in one thread: on a busy machine several wait for each other most of the time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def exported(tiny_artifact: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "tiny.onnx"
    write_onnx(tiny_artifact, path)
    return path


def relative_error(path: Path, artifact: Artifact, *shape: int) -> float:
    """Return the rms difference between a file and its network, as a share of the scores' range."""
    images_NHW3 = np.random.default_rng(3).uniform(0, 255, (*shape, 3)).astype(np.float32)
    compiled = load_openvino().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    with torch.inference_mode():
        expected = stored_network(artifact.folder, artifact.manifest)(torch.tensor(images_NHW3)).numpy()
    error = compiled({"images": images_NHW3})["raw"] - expected
    return float(np.sqrt(np.mean(error**2)) / np.ptp(expected))


@pytest.mark.parametrize("shape", [(1, 32, 32), (3, 64, 160), (2, 128, 64)])
def test_the_file_is_the_network_at_any_batch_and_size(
    exported: Path, tiny_artifact: Artifact, shape: tuple[int, int, int]
) -> None:
    assert relative_error(exported, tiny_artifact, *shape) < 1e-5


def test_the_file_tells_nothing_about_the_machine_that_wrote_it(exported: Path) -> None:
    content = exported.read_bytes()
    assert b"site-packages" not in content
    assert str(Path(onnx_graph.__file__).parent).encode() not in content
    assert b"network.py" not in content


@pytest.mark.soak
def test_a_file_that_computes_something_else_is_refused(tiny_artifact: Artifact, tmp_path: Path) -> None:
    copy = read_artifact(Path(shutil.copytree(tiny_artifact.folder, tmp_path / "copy")))
    golden = copy.golden()
    copy.path(GOLDEN_FILE).write_bytes(pack_golden(golden.image_HW3, -golden.raw_Khw))
    with pytest.raises(GoldenMismatchError):
        write_onnx(seal(copy.folder, copy.manifest), tmp_path / "tiny.onnx")


@pytest.mark.soak
@pytest.mark.parametrize("name", GENERATIONS)
def test_each_generation_has_an_onnx_form(name: str, tmp_path: Path) -> None:
    generation = GENERATIONS[name]
    manifest = ModelManifest(
        architecture=generation.architecture,
        generation=name,
        parameters={"head_channels": 16} if generation.architecture == "bisenetv2" else {},
        upsample=generation.upsample,
        stride=8,
        palette=ClassPalette(("sky", "road"), ((0, 0, 0), (1, 1, 1))),
        mean=(0.25, 0.5, 0.75),
        std=(0.25, 0.2, 0.3),
        precision="f32",
    )
    with torch.random.fork_rng():
        torch.manual_seed(1)
        artifact = write_artifact(tmp_path / "artifact", blank_network(manifest).eval(), manifest)
    write_onnx(artifact, tmp_path / "model.onnx")
    assert relative_error(tmp_path / "model.onnx", artifact, 2, 64, 96) < 1e-4
