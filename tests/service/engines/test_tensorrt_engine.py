"""What can be said of the TensorRT engine without TensorRT. Axes: as in ``service.engines.tensorrt``."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import pytest
import torch
from fake_torch_tensorrt import FakeTorchTensorRt
from tiny_model import tiny_network
from torch import nn

from model.artifacts.artifact import Artifact
from model.networks.segmentation_network import ARCHITECTURES, SegmentationNetwork, build
from model.pictures.preprocess import ImageSize
from service.core.device.engine import EngineOptions, EngineUnavailableError
from service.engines import tensorrt
from service.engines.cache import CompileCache
from service.engines.tensorrt import TensorRtBuilder, TensorRtProgram, exported

SIZE = ImageSize(64, 96)
FILES = {"model.safetensors": "0" * 64}
GRAY = (0.5, 0.5, 0.5)


@pytest.fixture(scope="module")
def network() -> SegmentationNetwork:
    network = build("bisenetv2", 4, {"head_channels": 8}, mean=GRAY, std=GRAY, with_auxiliary=False).eval()
    network.architecture.half()
    return network


@pytest.fixture
def architecture() -> nn.Module:
    """Return a list that the export fills."""
    return nn.Conv2d(3, 4, 1).half()


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> FakeTorchTensorRt:
    monkeypatch.setattr(importlib.metadata, "version", {}.get)
    return FakeTorchTensorRt()


def engine_of(
    library: FakeTorchTensorRt, folder: Path, architecture: nn.Module, **changes: object
) -> nn.Module:
    options = {"gpu": "a GPU (9, 0)", "max_batch": 3, "files": FILES, "size": SIZE} | changes
    builder = TensorRtBuilder(library, CompileCache(folder), options["gpu"], options["max_batch"])
    return builder.engine(architecture, options["size"], options["files"])


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_exported_network_takes_every_batch_up_to_the_largest(name: str) -> None:
    architecture = tiny_network(name).architecture
    program = exported(architecture, ImageSize(32, 64), 4).module()
    for batch in range(1, 5):
        x_N3HW = torch.randn(batch, 3, 32, 64, generator=torch.Generator().manual_seed(batch))
        with torch.inference_mode():
            assert torch.allclose(program(x_N3HW), architecture(x_N3HW), atol=1e-4)


def test_an_engine_is_built_saved_and_only_then_loaded(
    library: FakeTorchTensorRt, architecture: nn.Module, tmp_path: Path
) -> None:
    engine = engine_of(library, tmp_path, architecture)
    assert library.calls == ["compile", "save", "load"]
    x_N3HW = torch.zeros(2, 3, SIZE.height, SIZE.width, dtype=torch.float16)
    with torch.inference_mode():
        assert torch.equal(engine(x_N3HW), architecture(x_N3HW))


def test_the_engine_takes_half_numbers_and_batches_from_one(
    library: FakeTorchTensorRt, architecture: nn.Module, tmp_path: Path
) -> None:
    engine_of(library, tmp_path, architecture)
    (described,) = library.inputs
    assert described["dtype"] is torch.float16
    assert described["min_shape"] == (1, 3, 64, 96)
    assert described["opt_shape"] == described["max_shape"] == (3, 3, 64, 96)


def test_a_second_start_builds_nothing(
    library: FakeTorchTensorRt, architecture: nn.Module, tmp_path: Path
) -> None:
    engine_of(library, tmp_path, architecture)
    engine_of(library, tmp_path, architecture)
    assert library.calls == ["compile", "save", "load", "load"]


@pytest.mark.parametrize(
    "change",
    [
        {"gpu": "another GPU (8, 6)"},
        {"max_batch": 4},
        {"size": ImageSize(96, 64)},
        {"files": {"model.safetensors": "1" * 64}},
    ],
    ids=["gpu", "batch", "size", "weights"],
)
def test_an_engine_for_anything_else_is_not_taken(
    library: FakeTorchTensorRt, architecture: nn.Module, tmp_path: Path, change: dict[str, object]
) -> None:
    engine_of(library, tmp_path, architecture)
    engine_of(library, tmp_path, architecture, **change)
    assert library.calls.count("compile") == 2


def test_a_corrupt_engine_is_built_anew(
    library: FakeTorchTensorRt, architecture: nn.Module, tmp_path: Path
) -> None:
    engine_of(library, tmp_path, architecture)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-1])
    engine_of(library, tmp_path, architecture)
    assert library.calls.count("compile") == 2


def test_a_size_without_an_engine_takes_the_general_network(network: SegmentationNetwork) -> None:
    seen: list[str] = []

    class Engine(nn.Module):
        def forward(self, x_N3HW: torch.Tensor) -> torch.Tensor:
            assert x_N3HW.dtype is torch.float16
            seen.append("engine")
            return x_N3HW

    def general(images_NHW3: torch.Tensor) -> torch.Tensor:
        seen.append("general")
        return images_NHW3

    program = TensorRtProgram(network, {SIZE: Engine()}, general)
    program(torch.zeros(1, 64, 96, 3, dtype=torch.uint8))
    program(torch.zeros(1, 96, 64, 3, dtype=torch.uint8))
    assert seen == ["engine", "general"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")
def test_without_a_gpu_it_says_so(tiny_artifact: Artifact, tmp_path: Path) -> None:
    with pytest.raises(EngineUnavailableError, match="NVIDIA GPU"):
        tensorrt.build(tiny_artifact, EngineOptions("cuda:0", "auto", tmp_path))
    with pytest.raises(EngineUnavailableError, match="not on the CPU"):
        tensorrt.precisions("cpu")


def test_an_import_that_fails_in_any_way_is_a_reason_and_no_crash(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "torch_tensorrt.py").write_text("print('noise')\nraise Exception('libnvinfer is missing')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(EngineUnavailableError, match="libnvinfer is missing"):
        tensorrt.precisions("cuda:0")
    assert capsys.readouterr().out == ""
