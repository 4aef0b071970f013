"""What tests of the commands share."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from fakes import write_pooling_artifact

from model.evaluation import network_passes


@pytest.fixture(autouse=True)
def _logging_ends_with_the_test(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    # As in a process of its own, only warnings are logged, to stderr; but to that of this test. Already
    # before the command runs: a server of an earlier test may still log its last request.
    def configure(_: object) -> None:
        structlog.configure(
            wrapper_class=structlog.make_filtering_bound_logger("warning"),
            logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        )

    configure(None)
    monkeypatch.setattr("service.cli.local.configure_logging", configure)
    yield
    structlog.reset_defaults()


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a registry that holds ``pooling@1``, which knows dark from bright."""
    folder = tmp_path_factory.mktemp("registry")
    (folder / "models" / "pooling").mkdir(parents=True)
    write_pooling_artifact(folder / "models" / "pooling" / "1")
    return folder


@pytest.fixture(scope="session")
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    network_passes.warm_up()  # with the kernels that other tests use, too
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def environment(registry: Path, cache_folder: Path) -> dict[str, str]:
    return {
        "BISENET_REGISTRY": str(registry),
        "BISENET_MODELS__CACHE_FOLDER": str(cache_folder),
        "BISENET_MODELS__SERVE": "pooling",
    }
