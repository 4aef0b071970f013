from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import write_pooling_artifact
from signal_stack import signal_stack

from model.artifacts.artifact import Artifact, read_artifact
from model.artifacts.manifest import GRAPH_FILE, ModelVersion
from model.artifacts.openvino_graph import load_openvino, prove_graph
from model.errors import ArtifactError, QuantizationError
from model.export import quantize
from model.export.quantize import finish, load_nncf, measure, write_quantized
from model.labels import UInt8Array

REPOSITORY = Path(__file__).parents[3]
POOLING_1 = ModelVersion("pooling", 1)
Quantize = Callable[..., Artifact]

pytest.importorskip("nncf", reason="nncf is not installed: pip install 'bisenet-service[quantize]'")


class Pictures:
    """Pictures of one colour each, dark ones of class 0 and bright ones of class 1."""

    def __init__(self, count: int) -> None:
        self.read: list[int] = []
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> tuple[UInt8Array, UInt8Array]:
        self.read.append(index)
        image_HW3 = np.random.default_rng(index).integers(0, 256, (30, 40, 3), np.uint8)
        image_HW3 //= 2
        image_HW3 += 128 * (index % 2)
        return image_HW3, np.full((30, 40), index % 2, np.uint8)


@pytest.fixture
def source(tmp_path: Path) -> Artifact:
    return write_pooling_artifact(tmp_path / "source")


@pytest.fixture
def quantized(source: Artifact, tmp_path: Path) -> Quantize:
    def make(folder: Path = tmp_path / "int8", **changes: Any) -> Artifact:
        arguments = {"source": source, "training": Pictures(4), "validation": Pictures(4), **changes}
        return write_quantized(folder=folder, version=POOLING_1, **{"max_miou_loss": 100.0, **arguments})

    return make


def test_an_int8_version_is_an_artifact_that_says_what_it_was_made_from(
    quantized: Quantize, source: Artifact
) -> None:
    made = finish(quantized(), {"scores": [1, 2]})
    manifest = read_artifact(made.folder).manifest
    assert (manifest.precision, manifest.derived_from) == ("int8", "pooling@1")
    assert manifest.provenance == {"scores": [1, 2]}
    assert manifest.palette == source.manifest.palette
    made.verify()
    prove_graph(made)


def test_its_convolutions_run_on_8_bits(quantized: Quantize) -> None:
    compiled = load_openvino().Core().compile_model(quantized().path(GRAPH_FILE), "CPU")
    infos = [operation.get_rt_info() for operation in compiled.get_runtime_model().get_ops()]
    types = {info["layerType"].astype(str): info["runtimePrecision"].astype(str) for info in infos}
    assert types["Convolution"] in ("u8", "i8")


def test_without_a_manifest_it_is_not_there_yet(quantized: Quantize) -> None:
    with pytest.raises(ArtifactError, match=r"manifest\.json"):
        read_artifact(quantized().folder)


def test_the_same_model_and_pictures_give_the_same_bytes(quantized: Quantize, tmp_path: Path) -> None:
    assert quantized().manifest == quantized(tmp_path / "again").manifest


def test_progress_leaves_stdout_alone(quantized: Quantize, capfd: pytest.CaptureFixture[str]) -> None:
    quantized()
    assert capfd.readouterr().out == ""


def test_what_is_int8_already_is_refused(quantized: Quantize, tmp_path: Path) -> None:
    made = quantized()
    with pytest.raises(QuantizationError, match="pooling@1 is int8 already"):
        quantized(tmp_path / "twice", source=made)


def test_a_folder_with_something_in_it_is_refused(quantized: Quantize) -> None:
    quantized()
    with pytest.raises(ArtifactError, match="int8 is not empty"):
        quantized()


def test_no_more_pictures_are_read_than_are_useful(
    quantized: Quantize, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantize, "MAX_CALIBRATION_PICTURES", 3)
    training = Pictures(7)
    quantized(training=training)
    assert set(training.read) == {0, 3, 6}


@pytest.fixture
def useless_in_int8(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure as if every label were right in f32 and wrong in int8."""

    def measured(infer: Any, *_: Any) -> Any:
        raw_NKhw = infer(np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), np.uint8))
        exact = np.array_equal(raw_NKhw, reference_NKhw[0]) if reference_NKhw else True
        reference_NKhw.append(raw_NKhw)
        return dataclasses.make_dataclass("Matrix", [("miou", float)])(1.0 if exact else 0.0)

    reference_NKhw: list[np.ndarray] = []
    monkeypatch.setattr(quantize, "measure", measured)


@pytest.mark.usefixtures("useless_in_int8")
def test_layers_stay_in_floating_point_where_int8_loses_too_much(quantized: Quantize) -> None:
    graph = quantized(max_miou_loss=0.5).path(GRAPH_FILE).read_text()
    assert "FakeQuantize" not in graph


@pytest.mark.usefixtures("useless_in_int8")
def test_the_callers_stack_for_signals_is_left_alone(quantized: Quantize) -> None:
    with ThreadPoolExecutor(1) as caller:
        caller.submit(quantized, max_miou_loss=0.5).result()
        assert caller.submit(signal_stack).result() == (0, 0)


@pytest.fixture
def _interruptible() -> Iterator[None]:
    """Hear SIGINT as Python does by itself, but not where its parent ignores it: behind ``&`` in a script."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_interruptible")
def test_an_interrupt_ends_it_before_all_pictures_were_read(quantized: Quantize) -> None:
    class Interrupting(Pictures):
        def __getitem__(self, index: int) -> tuple[UInt8Array, UInt8Array]:
            if not self.read:
                os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.02)
            return super().__getitem__(index)

    training = Interrupting(300)
    threads = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        quantized(training=training)
    assert 0 < len(training.read) < 300
    assert threading.active_count() == threads


def test_a_measurement_counts_what_a_service_would_answer(source: Artifact) -> None:
    def bright(images_NHW3: UInt8Array) -> np.ndarray:
        assert images_NHW3.shape == (1, 32, 64, 3)
        scores_NKhw = np.zeros((1, 2, 4, 8), np.float32)
        scores_NKhw[:, 1] = images_NHW3[0, 0, 0, 0] >= 128
        return scores_NKhw

    matrix = measure(bright, source.manifest, Pictures(4), [0, 1, 3])
    assert matrix.counts_KK.tolist() == [[1200, 0], [0, 2400]]


def test_nncf_reports_nothing_to_anybody_and_torch_is_not_needed(source: Artifact, tmp_path: Path) -> None:
    program = f"""
import sys
from pathlib import Path

def refuse(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo"):
        print(event, arguments)
        raise SystemExit(event)

sys.addaudithook(refuse)
sys.modules["torch"] = None
sys.path[:0] = [{str(REPOSITORY)!r}, {str(REPOSITORY / "tests")!r}]
from model.artifacts.artifact import read_artifact
from model.artifacts.manifest import ModelVersion
from model.export.quantize import write_quantized
import numpy as np

class Pictures:
    def __len__(self):
        return 2
    def __getitem__(self, index):
        noise_HW3 = np.random.default_rng(index).integers(0, 256, (32, 32, 3), np.uint8)
        return noise_HW3, np.zeros((32, 32), np.uint8)

write_quantized(
    read_artifact(Path({str(source.folder)!r})), Path({str(tmp_path / "int8")!r}),
    version=ModelVersion("pooling", 1), training=Pictures(), validation=Pictures(), max_miou_loss=100,
)
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout) == (0, ""), run.stderr


def test_without_nncf_the_error_says_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nncf", None)
    with pytest.raises(QuantizationError, match=r"bisenet-service\[quantize\]"):
        load_nncf()
