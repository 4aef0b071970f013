"""What tests of several packages share."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import settings
from PIL import Image

from model.artifacts.artifact import Artifact
from model.artifacts.manifest import ModelVersion
from model.artifacts.registry import ModelRegistry
from model.evaluation import network_passes
from model.labels import UInt8Array

if TYPE_CHECKING:
    from xdist.workermanage import WorkerController

# A deadline would measure the machine. Under CI hypothesis loads a profile of its own, without one as well.
settings.register_profile("default", settings.get_profile("default"), deadline=None)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: WorkerController, error: object | None) -> None:
    """Say how a process that ran tests ended, where it was not asked to: a signal leaves no other trace."""
    process: subprocess.Popen[bytes] | None = getattr(node.gateway._io, "popen", None)
    if process is None or error in (None, "keyboard-interrupt"):
        return
    try:
        ending = f"ended with {process.wait(timeout=10)}"
    except subprocess.TimeoutExpired:
        ending = "says nothing more, and runs"
    print(f"\n{node.gateway.id}, process {process.pid}, {ending}")  # noqa: T201 - where pytest tells it as well


@pytest.fixture(scope="session")
def tiny_artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """Return a real artifact of a small network with random weights and four classes."""
    from tiny_model import tiny_manifest, tiny_network  # noqa: PLC0415 - torch, which few tests need

    from model.export.export import write_artifact  # noqa: PLC0415

    return write_artifact(_folder(tmp_path_factory), tiny_network(), tiny_manifest())


def _folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("artifact") / "tiny"


@pytest.fixture(scope="session")
def tiny_int8_artifact(tiny_artifact: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """Return the int8 version of ``tiny_artifact``; what needs it is skipped where NNCF is not installed."""
    pytest.importorskip("nncf", reason="nncf is not installed: pip install 'bisenet-service[quantize]'")
    from model.export.quantize import finish, write_quantized  # noqa: PLC0415 - only tests that need it pay for it

    random = np.random.default_rng(3)
    labels_HW = np.zeros((96, 128), np.uint8)
    pictures = [(random.integers(0, 256, (96, 128, 3), np.uint8), labels_HW) for _ in range(4)]
    quantized = write_quantized(
        tiny_artifact,
        _folder(tmp_path_factory),
        version=ModelVersion("tiny", 1),
        training=pictures,
        validation=pictures,
        max_miou_loss=100.0,
    )
    return finish(quantized, {})


@pytest.fixture(scope="session")
def tiny_registry(tiny_artifact: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a registry that holds ``tiny@1``."""
    folder = tmp_path_factory.mktemp("registry")
    ModelRegistry(folder).publish(tiny_artifact.folder, "tiny")
    return folder


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return one cache folder for all tests: compiling kernels and graphs takes seconds."""
    network_passes.warm_up()  # beside its source, for the next session: numba looks in one place only
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def photo() -> UInt8Array:
    """Return a picture of soft shapes and some noise, 150x230 RGB."""
    random = np.random.default_rng(7)
    grid = random.integers(0, 256, (5, 7, 3), np.uint8)
    smooth = np.asarray(Image.fromarray(grid).resize((230, 150), Image.Resampling.BICUBIC), np.int16)
    return (smooth + random.integers(-8, 9, smooth.shape)).clip(0, 255).astype(np.uint8)
