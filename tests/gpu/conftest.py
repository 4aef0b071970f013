"""What the tests of a GPU share. Beside torch and Triton they need numba, Pillow, NumPy and safetensors.

    python -m pytest tests/gpu

takes ``pytest.ini`` beside this file and neither plugins nor ``tests/conftest.py``.
"""

from __future__ import annotations

import pytest
from tiny_model import tiny_manifest, tiny_network

from model.artifacts.artifact import Artifact
from model.artifacts.manifest import ModelManifest
from model.networks.segmentation_network import SegmentationNetwork


@pytest.fixture(scope="session")
def network() -> SegmentationNetwork:
    """Return the network of ``manifest``, on the CPU; whoever moves it takes a copy."""
    return tiny_network()


@pytest.fixture(scope="session")
def manifest() -> ModelManifest:
    return tiny_manifest()


@pytest.fixture(scope="session")
def tiny_artifact(
    network: SegmentationNetwork, manifest: ModelManifest, tmp_path_factory: pytest.TempPathFactory
) -> Artifact:
    pytest.importorskip("openvino", reason="openvino, which proves an artifact's graph, is not installed")
    from model.export.export import write_artifact  # noqa: PLC0415 - few tests pay for it

    return write_artifact(tmp_path_factory.mktemp("artifact") / "tiny", network, manifest)
