"""Fixtures for the tests on a GPU. Beside torch and Triton they need numba, Pillow, NumPy and safetensors.

    python -m pytest tests/gpu

This command uses ``pytest.ini`` beside this file; it loads neither plugins nor ``tests/conftest.py``.
"""

from __future__ import annotations

import pytest
from tiny_model import TINY_ARCHITECTURE, tiny_manifest, tiny_network

from model.artifacts.artifact import Artifact
from model.artifacts.manifest import ModelManifest
from model.networks.segmentation_network import SegmentationNetwork


@pytest.fixture(scope="session")
def architecture(request: pytest.FixtureRequest) -> str:
    """Return the name of the network's architecture; tests name others by indirect parametrisation."""
    return str(getattr(request, "param", TINY_ARCHITECTURE))


@pytest.fixture(scope="session")
def network(architecture: str) -> SegmentationNetwork:
    """Return the network of ``manifest`` on the CPU; a test that moves it to a GPU copies it first."""
    return tiny_network(architecture)


@pytest.fixture(scope="session")
def manifest(architecture: str) -> ModelManifest:
    return tiny_manifest(architecture)


@pytest.fixture(scope="session")
def tiny_artifact(
    network: SegmentationNetwork, manifest: ModelManifest, tmp_path_factory: pytest.TempPathFactory
) -> Artifact:
    pytest.importorskip("openvino", reason="openvino, which proves an artifact's graph, is not installed")
    from model.export.export import write_artifact  # noqa: PLC0415 - few tests pay for it

    return write_artifact(tmp_path_factory.mktemp("artifact") / "tiny", network, manifest)
