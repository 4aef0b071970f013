"""Axes: N images in a batch, K classes, H height, W width, h w = H/8 W/8."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fakes import write_pooling_artifact
from fault_engine import KINDS, MARK_RGB, Fault, cell_classes, parse_faults

from model.artifacts.artifact import Artifact
from service.core.device.engine import (
    DeviceLostError,
    DeviceMemoryError,
    EngineOptions,
    EngineUnavailableError,
    InferenceEngine,
)
from service.engines import engine_builder


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return write_pooling_artifact(tmp_path_factory.mktemp("artifact") / "one")


def engine(artifact: Artifact, name: str) -> InferenceEngine:
    return engine_builder(f"fault_engine:{name}", "cpu")(
        artifact, EngineOptions("cpu", "auto", Path("nowhere"))
    )


def images(*reds: int, marked: bool = False) -> np.ndarray:
    images_NHW3 = np.stack([np.full((32, 64, 3), red, np.uint8) for red in reds])
    if marked:
        images_NHW3[-1, 0, 0] = MARK_RGB
    return images_NHW3


@pytest.mark.parametrize("text", ["", "slow", "slow:fast", "broken", "nan:always", "nan+"])
def test_a_fault_that_does_not_exist_is_refused(text: str) -> None:
    with pytest.raises(EngineUnavailableError, match="no fault"):
        parse_faults(text)


def test_faults_are_read_as_they_are_written() -> None:
    expected = (Fault("slow", ms=2.5), Fault("segv", only_marked=True), Fault("nan"))
    assert parse_faults("slow:2.5+segv:marked+nan") == expected


def test_labels_come_from_the_pixels_and_the_version(artifact: Artifact, tmp_path: Path) -> None:
    images_NHW3 = images(0, 255)
    images_NHW3[0, 8:16, 16:24] = 255
    dark, bright = (int(cell_classes(np.array([red], np.uint8), artifact.manifest)[0]) for red in (0, 255))
    assert {dark, bright} == {0, 1}
    labels_Nhw = engine(artifact, "slow:0").infer(images_NHW3).argmax(1)
    assert labels_Nhw.shape == (2, 4, 8)
    assert labels_Nhw[0, 1, 2] == bright
    assert (labels_Nhw[0] == bright).sum() == 1
    assert (labels_Nhw[1] == bright).all()
    others = [write_pooling_artifact(tmp_path / str(seed), seed=seed) for seed in range(1, 9)]
    shifted = {int(engine(other, "slow:0").infer(images(0)).argmax(1)[0, 0, 0]) for other in others}
    assert shifted == {0, 1}


def test_a_mark_makes_a_fault_happen_and_nothing_else_does(artifact: Artifact) -> None:
    nan = engine(artifact, "nan:marked")
    assert np.isfinite(nan.infer(images(1, 2))).all()
    assert np.isnan(nan.infer(images(1, 2, marked=True))).all()


def test_memory_comes_back_after_once_and_never_after_always(artifact: Artifact) -> None:
    once, always = engine(artifact, "oom_once"), engine(artifact, "oom_always")
    for one in (once, always, always):
        with pytest.raises(DeviceMemoryError):
            one.infer(images(1))
    assert once.infer(images(1)).shape == (1, 2, 4, 8)


def test_a_wrong_shape_is_wrong_and_a_lost_device_lost(artifact: Artifact) -> None:
    assert engine(artifact, "wrong_shape").infer(images(1)).shape == (1, 2, 4, 7)
    with pytest.raises(DeviceLostError):
        engine(artifact, "sticky").infer(images(1))


@pytest.mark.parametrize(("fault", "code"), [("segv", -11), ("exit", 9), ("exit_at_load", 9)])
def test_some_faults_end_the_process(artifact: Artifact, fault: str, code: int) -> None:
    assert fault in KINDS
    program = f"""
import sys
sys.path[:0] = {sys.path!r}
from test_fault_engine import engine, images
from model.artifacts.artifact import read_artifact
from pathlib import Path
engine(read_artifact(Path({str(artifact.folder)!r})), {fault!r}).infer(images(1))
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        check=False,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent,
    )
    assert done.returncode == code, done.stderr
