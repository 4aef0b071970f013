from __future__ import annotations

import dataclasses
import errno
import re
from pathlib import Path

import numpy as np
import pytest

from model.artifacts.artifact import Artifact, read_artifact
from model.artifacts.manifest import ModelManifest
from model.artifacts.openvino_graph import prove_graph
from model.errors import ArtifactError, GoldenMismatchError
from model.evaluation.metrics import ConfusionMatrix
from model.export import export
from model.networks.segmentation_network import SegmentationNetwork, blank_network
from training.config import TrainingConfig
from training.data.splits import TrainingData
from training.run.publish import RunProvenance, build_manifest, code_version, publish

ORIGIN = RunProvenance(command="bisenet train x", code="1.0+sha256.0")


def test_the_manifest_of_a_run_survives_json(config: TrainingConfig, data: TrainingData) -> None:
    matrix = ConfusionMatrix(np.diag([3, 1, 0]))
    manifest = build_manifest(config, data, origin=ORIGIN, steps=7, matrix=matrix)
    assert ModelManifest.from_json(manifest.to_json()) == manifest
    assert manifest.mean == data.mean
    assert manifest.provenance["validation"]["iou"] == {"red": 1.0, "green": 1.0, "blue": None}


def test_the_manifest_names_parameters_that_the_config_leaves_to_their_defaults(
    config: TrainingConfig, data: TrainingData
) -> None:
    silent = dataclasses.replace(config, network=dataclasses.replace(config.network, parameters={}))
    manifest = build_manifest(silent, data, origin=ORIGIN, steps=7, matrix=ConfusionMatrix.zeros(3))
    assert manifest.parameters == {"head_channels": 1024}


def test_the_code_version_names_package_and_sources() -> None:
    assert re.fullmatch(r".+\+sha256\.[0-9a-f]{12}", code_version())
    assert code_version() == code_version()


@pytest.fixture
def manifest(config: TrainingConfig, data: TrainingData) -> ModelManifest:
    return build_manifest(config, data, origin=ORIGIN, steps=7, matrix=ConfusionMatrix.zeros(3))


@pytest.fixture
def network(manifest: ModelManifest) -> SegmentationNetwork:
    return blank_network(manifest).eval()


def test_a_network_that_f16_would_change_is_published_in_f32(
    network: SegmentationNetwork, manifest: ModelManifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def proves_f32_only(artifact: Artifact) -> None:
        if artifact.manifest.precision == "f16":
            raise GoldenMismatchError("rms score error 2.01")
        prove_graph(artifact)

    monkeypatch.setattr(export, "prove_graph", proves_f32_only)
    made = publish(tmp_path / "artifact", network, manifest)
    assert made.manifest.precision == "f32"
    assert read_artifact(tmp_path / "artifact").manifest == made.manifest
    made.verify()
    assert [path.name for path in tmp_path.iterdir()] == ["artifact"]


def test_an_artifact_stays_until_the_next_one_is_proven(
    network: SegmentationNetwork, manifest: ModelManifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    before = publish(tmp_path / "artifact", network, manifest).manifest
    with monkeypatch.context() as patch:
        patch.setattr(export, "_write_graph", full)
        with pytest.raises(ArtifactError, match=r"cannot write .*artifact: .*No space"):
            publish(tmp_path / "artifact", network, manifest)
    read_artifact(tmp_path / "artifact").verify()
    assert publish(tmp_path / "artifact", network, manifest).manifest == before
    assert [path.name for path in tmp_path.iterdir()] == ["artifact"]
