"""What earlier code wrote opens in this one; ``tests/fixtures/upgrades/make.py`` made the files, once."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest
from fakes import write_pooling_artifact
from job_site import job_environment, started_site
from job_worker import finished

from model.artifacts.artifact_cache import cached_folder
from model.artifacts.manifest import ModelVersion
from model.artifacts.openvino_graph import prove_graph
from model.artifacts.registry import ModelRegistry
from model.datasets.dataset import DatasetSpec
from service.core.jobs.evaluation_job import EVALUATIONS
from service.core.jobs.job import JobState
from service.durable_jobs.client import DurableJobs, open_client
from service.durable_jobs.database import JobsDatabase
from service.engines.cache import CompileCache
from service.settings import load_settings
from training.config import load_config
from training.run.checkpoint import CheckpointFolder
from training.run.run import RunOptions, train

FIXTURES = Path(__file__).parent / "fixtures" / "upgrades"


def unpacked(name: str, folder: Path) -> Path:
    with tarfile.open(FIXTURES / f"{name}.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder


def test_a_registry_keeps_its_versions_aliases_and_scores(tmp_path: Path) -> None:
    registry = ModelRegistry(unpacked("registry", tmp_path) / "registry")
    first, second = registry.versions("pool")
    assert registry.resolve("pool") == registry.resolve("pool:production") == second
    for version in (first, second):
        prove_graph(registry.open(version))
    (evaluation,) = registry.evaluations.of_model("pool")
    assert (evaluation.version, evaluation.images, evaluation.protocol) == (first, 4, "ss")
    assert b"<html" in (registry.evaluations.page("pool", evaluation.job) or b"")
    assert registry.rollback("pool").version == 1
    assert registry.publish(write_pooling_artifact(tmp_path / "new").folder, "pool") == ModelVersion(
        "pool", 3
    )
    registry.delete(second)
    assert registry.versions("pool") == [first, ModelVersion("pool", 3)]


def test_a_jobs_database_keeps_what_ended_and_runs_what_was_queued(tmp_path: Path) -> None:
    for name in ("registry", "jobs", "training"):
        unpacked(name, tmp_path)
    database = JobsDatabase.at(None, tmp_path / "home/.local/share/bisenet/state")
    database.prepare()
    with open_client(database) as client:
        jobs = {job.state: job for job in DurableJobs(client, EVALUATIONS).list_jobs()}
    assert jobs.keys() == {JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED, JobState.QUEUED}
    succeeded = jobs[JobState.SUCCEEDED]
    assert succeeded.result is not None
    assert (succeeded.result.images, succeeded.done, succeeded.total) == (4, 4, 4)
    assert "no split 'train'" in (jobs[JobState.FAILED].error or "")
    environment = job_environment(tmp_path, tmp_path / "noise/noise.toml", engine="openvino")
    with started_site(environment, tmp_path / "log") as site:  # with the token of then
        looks = type("Jobs", (), {"get_job": staticmethod(site.get)})()
        job = finished(looks, site.get(jobs[JobState.QUEUED].id))
    assert (job.state, job.request.version) == (JobState.SUCCEEDED, ModelVersion("pool", 2))


def test_a_training_run_goes_on_from_its_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unpacked("caches", unpacked("training", tmp_path))
    monkeypatch.chdir(tmp_path)  # the data set is named by a relative path
    options = RunOptions(Path("run"), resume=True, cache_folder=Path("caches"))
    assert train(load_config("run.toml"), options)
    last = CheckpointFolder(Path("run/checkpoints")).load("last")
    assert last is not None
    assert last["position"]["step"] == 2
    assert json.loads(Path("run/artifact/manifest.json").read_text())["provenance"]["steps"] == 2
    assert len(list(Path("caches/datasets").iterdir())) == 1  # what was known of the pictures is still known


def test_caches_are_read_and_not_made_again(tmp_path: Path) -> None:
    caches = unpacked("caches", unpacked("registry", tmp_path)) / "caches"
    manifest = (tmp_path / "registry/models/pool/1/manifest.json").read_bytes()
    folder = cached_folder(caches / "models", manifest, lambda name: pytest.fail(f"{name} is fetched"))
    assert folder.is_relative_to(caches)
    assert CompileCache(caches / "openvino").load("a" * 64) == b"a compiled graph"


def test_configuration_files_are_understood(tmp_path: Path) -> None:
    settings = load_settings(FIXTURES / "bisenet.toml", environment={"HOME": str(tmp_path)})
    assert settings.models.serve == ("bisenetv2-camvid",)
    spec = DatasetSpec.from_toml(FIXTURES / "dataset.toml")
    assert spec.palette.names == ("background", "road")
    assert load_config(str(FIXTURES / "training.toml")).schedule.patience == 10
