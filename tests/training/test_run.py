from __future__ import annotations

import json
from pathlib import Path

import pytest

from model.artifact import read_artifact
from training.config import TrainingConfig
from training.errors import ConfigError, ResumeError
from training.progress import LOG_FILE
from training.run import RunOptions, choose_device, train


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, config: TrainingConfig) -> Path:
    """Return the folder of a finished run."""
    out = tmp_path_factory.mktemp("run")
    assert train(config, RunOptions(out, command="bisenet train run.toml"))
    return out


def test_a_finished_run_is_an_artifact_that_says_where_it_comes_from(finished: Path) -> None:
    artifact = read_artifact(finished / "artifact")
    artifact.verify()
    manifest = artifact.manifest
    assert (manifest.architecture, manifest.generation) == ("bisenetv2", "v2-g4")
    assert manifest.parameters == {"head_channels": 8}
    assert manifest.palette.names == ("red", "green", "blue")
    assert manifest.precision == "f16"
    provenance = manifest.provenance
    assert provenance["command"] == "bisenet train run.toml"
    assert provenance["config"]["seed"] == 3
    assert provenance["steps"] == 4
    assert len(provenance["data_fingerprint"]) == 64
    assert provenance["validation"]["split"] == "val"
    assert set(provenance["validation"]["iou"]) == {"red", "green", "blue"}


def test_the_log_tells_the_whole_run(finished: Path) -> None:
    events = [json.loads(line)["event"] for line in (finished / LOG_FILE).read_text().splitlines()]
    assert events[:4] == ["start", "validation", "validation", "artifact"]


def test_a_folder_that_holds_a_run_is_not_overwritten(finished: Path, config: TrainingConfig) -> None:
    with pytest.raises(ResumeError, match="holds a run"):
        train(config, RunOptions(finished))


def test_a_finished_run_that_is_resumed_publishes_the_same_weights_again(
    finished: Path, config: TrainingConfig
) -> None:
    before = read_artifact(finished / "artifact").manifest
    assert train(config, RunOptions(finished, resume=True))
    after = read_artifact(finished / "artifact").manifest
    assert after.digest == before.digest


def test_a_device_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="'tpu9'"):
        choose_device("tpu9")
