from __future__ import annotations

import dataclasses
import re

import numpy as np

from model.manifest import ModelManifest
from model.metrics import ConfusionMatrix
from training.config import TrainingConfig
from training.data import TrainingData
from training.publish import Origin, build_manifest, code_version

ORIGIN = Origin(command="bisenet train x", code="1.0+sha256.0")


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
