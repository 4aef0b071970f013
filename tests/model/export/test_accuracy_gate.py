from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fakes import write_pooling_artifact
from job_site import write_dataset

from model.artifacts.artifact import Artifact, read_artifact
from model.artifacts.manifest import ModelVersion
from model.datasets.dataset import DatasetSpec, LabeledImages
from model.errors import EvaluationError, QuantizationError
from model.evaluation.metrics import ConfusionMatrix
from model.export.accuracy_gate import Accuracy, Int8Gate

pytest.importorskip("nncf", reason="nncf is not installed: pip install 'bisenet-service[quantize]'")

POOL_1 = ModelVersion("pool", 1)
PERFECT = ConfusionMatrix(np.array([[8, 0], [0, 8]]))
WORSE = ConfusionMatrix(np.array([[8, 0], [1, 7]]))  # mIoU (8/9 + 7/8) / 2 = 88.19


@pytest.fixture
def pictures(tmp_path: Path) -> LabeledImages:
    return LabeledImages(DatasetSpec.from_toml(write_dataset(tmp_path / "noise", 4)), "val")


@pytest.fixture
def source(tmp_path: Path) -> Artifact:
    return write_pooling_artifact(tmp_path / "source")


def scripted(*matrices: ConfusionMatrix) -> Callable[[Artifact], Accuracy]:
    """Return what measures the original first and the int8 version then."""
    found = iter(matrices)
    return lambda artifact: Accuracy.of(f"openvino {artifact.manifest.precision}", next(found))


def test_what_keeps_its_accuracy_passes_and_says_what_was_measured(
    pictures: LabeledImages, source: Artifact, tmp_path: Path
) -> None:
    said: list[str] = []
    gate = Int8Gate(pictures, pictures, 12.0, scripted(PERFECT, WORSE))
    made, pair = gate.quantize(POOL_1, source, tmp_path / "int8", tell=said.append)
    assert said == ["pool@1: 100.00 mIoU (openvino f32)"]
    assert pair.loss == 11.81
    provenance = read_artifact(made.folder).manifest.provenance
    assert provenance["validation"]["int8"] == {
        "engine": "openvino int8",
        "miou": 88.19,
        "pixel_accuracy": 93.75,
    }
    assert provenance["quantization"]["max_miou_loss"] == 12.0


def test_what_loses_too_much_is_refused_with_both_figures(
    pictures: LabeledImages, source: Artifact, tmp_path: Path
) -> None:
    gate = Int8Gate(pictures, pictures, 11.8, scripted(PERFECT, WORSE))
    with pytest.raises(
        QuantizationError, match=r"88\.19 mIoU \(openvino int8\): 11\.81 lost, more than 11\.8"
    ):
        gate.quantize(POOL_1, source, tmp_path / "int8", tell=str)
    assert not (tmp_path / "int8" / "manifest.json").exists()


def test_other_classes_are_refused_before_anything_is_measured(
    pictures: LabeledImages, source: Artifact, tmp_path: Path
) -> None:
    other = pictures.spec.root / "other.toml"
    other.write_text((pictures.spec.root / "noise.toml").read_text().replace("dark", "black"))
    gate = Int8Gate(pictures, LabeledImages(DatasetSpec.from_toml(other), "val"), 1.0, scripted())
    with pytest.raises(EvaluationError, match="class 0 of pool@1 is 'dark', of noise 'black'"):
        gate.quantize(POOL_1, source, tmp_path / "int8", tell=str)


def test_a_better_version_loses_less_than_nothing() -> None:
    better, worse = (Accuracy.of("", matrix) for matrix in (PERFECT, WORSE))
    assert str(worse) == "88.19 mIoU ()"
    assert better.miou - worse.miou == pytest.approx(11.81)
