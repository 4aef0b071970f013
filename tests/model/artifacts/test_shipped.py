"""The models inside the package. `make quantize-camvid` makes an int8 version that fails here anew."""

from __future__ import annotations

from pathlib import Path

import pytest

from model.artifacts.artifact import Artifact, read_artifact
from model.artifacts.manifest import GOLDEN_FILE, ModelVersion
from model.artifacts.openvino_graph import prove_graph
from model.artifacts.registry import SHIPPED_MODELS

MEGABYTE = 10**6
FOLDERS = sorted(path.parent for path in SHIPPED_MODELS.glob("*/*/manifest.json"))
INT8 = [folder for folder in FOLDERS if read_artifact(folder).manifest.precision == "int8"]


def shipped(version: str) -> Artifact:
    named = ModelVersion.parse(version)
    return read_artifact(SHIPPED_MODELS / named.name / str(named.number))


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: "@".join(folder.parts[-2:]))
def test_a_shipped_version_is_whole_and_computes_what_it_should(folder: Path) -> None:
    artifact = read_artifact(folder)
    artifact.verify()
    prove_graph(artifact)


@pytest.mark.parametrize("folder", INT8, ids=lambda folder: "@".join(folder.parts[-2:]))
def test_a_shipped_int8_version_was_made_from_the_original_beside_it(folder: Path) -> None:
    manifest = read_artifact(folder).manifest
    assert manifest.derived_from is not None
    original = shipped(manifest.derived_from).manifest
    assert manifest.files[GOLDEN_FILE] == original.files[GOLDEN_FILE]
    assert manifest.palette == original.palette
    scores = manifest.provenance["validation"]
    assert scores["original"]["miou"] - scores["int8"]["miou"] <= 0.5


def test_what_is_shipped_stays_small() -> None:
    sizes = [path.stat().st_size for path in SHIPPED_MODELS.rglob("*") if path.is_file()]
    assert max(sizes) <= 8.5 * MEGABYTE
    assert sum(sizes) <= 24 * MEGABYTE
