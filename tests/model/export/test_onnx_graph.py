"""Axes: N images in a batch, H height, W width."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from fakes import seal
from torch.nn import functional

from model.artifacts.artifact import Artifact, pack_golden, read_artifact
from model.artifacts.manifest import GOLDEN_FILE, ModelManifest
from model.artifacts.openvino_graph import load_openvino
from model.errors import GoldenMismatchError
from model.export import onnx_graph
from model.export.export import stored_network, write_artifact
from model.export.onnx_graph import OnnxForm, write_onnx
from model.labels import ClassPalette
from model.networks.generations import GENERATIONS
from model.networks.segmentation_network import blank_network
from model.pictures.preprocess import ImageSize


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


def answered(path: Path, images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    answers: np.ndarray[Any, Any] = session.run(None, {"images": images})[0]
    return answers


@pytest.mark.parametrize(
    "form",
    [
        OnnxForm(ImageSize(50, 70), layout="nchw", output="labels"),
        OnnxForm(output="labels", precision="f16"),
        pytest.param(OnnxForm(ImageSize(64, 96), precision="f16"), marks=pytest.mark.soak),
        pytest.param(OnnxForm(layout="nchw"), marks=pytest.mark.soak),
    ],
    ids=str,
)
def test_every_form_answers_as_the_network_does(
    tiny_artifact: Artifact, tmp_path: Path, form: OnnxForm
) -> None:
    write_onnx(tiny_artifact, tmp_path / "tiny.onnx", form)
    size = form.size or ImageSize(64, 96)
    images_NHW3 = np.random.default_rng(5).integers(0, 256, (3, *size.shape, 3)).astype(np.float32)
    given = images_NHW3.transpose(0, 3, 1, 2) if form.layout == "nchw" else images_NHW3
    found = answered(tmp_path / "tiny.onnx", np.ascontiguousarray(given))
    manifest = tiny_artifact.manifest
    padded_NHW3 = np.empty((3, *size.padded().shape, 3), np.float32)
    padded_NHW3[:] = manifest.preprocess.pad_color
    padded_NHW3[:, : size.height, : size.width] = images_NHW3
    with torch.inference_mode():
        raw_NKhw = stored_network(tiny_artifact.folder, manifest)(torch.tensor(padded_NHW3))
    if form.output == "scores":
        assert found.dtype == np.float32
        error = found - raw_NKhw.numpy()
        assert np.sqrt(np.mean(error**2)) < 5e-3 * np.ptp(raw_NKhw.numpy())
        return
    scores = functional.interpolate(raw_NKhw, scale_factor=8, mode="bilinear", align_corners=False)
    wanted_NHW = scores[:, :, : size.height, : size.width].argmax(1).numpy()
    assert (found.dtype, found.shape) == (np.uint8, wanted_NHW.shape)
    assert (found == wanted_NHW).mean() > (0.999 if form.precision == "f32" else 0.98)


def test_labels_of_another_network_are_refused(
    tiny_artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The proof runs on the file as it was written: here by a network with another head.
    exporting = onnx_graph._export

    def export_another(module: torch.nn.Module, form: OnnxForm, path: Path) -> None:
        other = copy.deepcopy(module)
        with torch.no_grad():
            other.get_parameter("_network.architecture.head.conv_out.1.weight").neg_()
        exporting(other, form, path)

    monkeypatch.setattr(onnx_graph, "_export", export_another)
    with pytest.raises(GoldenMismatchError, match="of the pixels their label"):
        write_onnx(tiny_artifact, tmp_path / "tiny.onnx", OnnxForm(ImageSize(64, 96), output="labels"))


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
    write_onnx(artifact, tmp_path / "labels.onnx", OnnxForm(ImageSize(64, 96), output="labels"))
    write_onnx(artifact, tmp_path / "model.onnx")
    assert relative_error(tmp_path / "model.onnx", artifact, 2, 64, 96) < 1e-4
