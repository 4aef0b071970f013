"""Jobs as the settings put them together."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from fakes import PATIENCE_S, FakeEvaluations, FakePredictions, write_pooling_artifact
from job_site import write_dataset

from model.artifacts.manifest import ModelVersion
from model.artifacts.registry import ModelRegistry
from service.core.errors import BusyError, InvalidArgumentError
from service.core.jobs.evaluation_job import EvaluationJob, EvaluationRequest, EvaluationResult
from service.core.jobs.job import JobState, JsonObject
from service.core.models.scoreboard import Scoreboard
from service.durable_jobs.errors import JobsUnavailableError
from service.engine_choice import EngineChooser
from service.jobs import (
    JobsReporter,
    JobsService,
    jobs_database,
    open_jobs,
    worker_environment,
    worker_id,
)
from service.registry import open_registry
from service.settings import Settings, SettingsError, load_settings
from service.telemetry import Metrics

RESULT = EvaluationResult(0.25, {"a": 0.25}, 7, (), "d" * 64)


def configured(folder: Path, **jobs: Any) -> Settings:
    flags: Mapping[str, Mapping[str, Any]] = {
        "jobs": {"state_folder": folder / "state"} | jobs,
        "registry": {"url": str(folder / "registry")},
        "auth": {"admin_token_file": folder / "admin", "scrape_token_file": folder / "scrape"},
        "models": {"cache_folder": folder / "cache", "device": "cpu"},
    }
    return load_settings(flags=flags, environment={})


def opened(settings: Settings) -> AbstractContextManager[JobsService | None]:
    registry = open_registry(settings)
    return open_jobs(settings, registry, EngineChooser(settings, registry))


def test_without_a_url_jobs_are_kept_in_the_state_folder(tmp_path: Path) -> None:
    assert jobs_database(configured(tmp_path)).url == f"sqlite:///{tmp_path}/state/jobs.sqlite"
    postgres = jobs_database(configured(tmp_path, database="postgresql://user:secret@db/jobs"))
    assert (postgres.url, postgres.folder) == ("postgresql://user:secret@db/jobs", None)
    assert "secret" not in str(postgres)


def test_a_worker_is_called_as_configured_or_by_its_machine_and_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "rack7")
    assert worker_id(configured(tmp_path)) == "rack7-cpu"
    assert worker_id(configured(tmp_path, worker_id="pod-0")) == "pod-0"


def test_only_workers_with_the_same_engine_share_a_job(tmp_path: Path) -> None:
    def environment(engine: str, device: str, precision: str = "auto") -> JsonObject:
        settings = configured(tmp_path)
        chosen = {"engine": engine, "device": device, "precision": precision}
        models = settings.models.model_copy(update=chosen)
        return worker_environment(settings.model_copy(update={"models": models}))

    first = environment("torch", "cuda:0")
    assert environment("torch", "cuda:1") == first
    assert environment("torch", "cuda:1", "bf16") == first  # the job says in which precision it runs
    assert all(environment(*other) != first for other in (("torch", "cpu"), ("auto", "cuda:0")))
    assert environment("fault_engine:hang", "cpu") == environment("fault_engine:slow:1", "cpu")
    assert json.loads(json.dumps(first)) == first


def test_without_jobs_nothing_is_opened(tmp_path: Path) -> None:
    with opened(configured(tmp_path, mode="off")) as jobs:
        assert jobs is None
    assert not (tmp_path / "state").exists()


CLASSES = '[[classes]]\nname = "a"\ncolor = [0, 0, 0]\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name = ", r"datasets\.mine: mine\.toml: not TOML"),
        (
            f'name = "mine"\n{CLASSES}[splits]\nval = "val.csv"\nignore_id = 0\n',
            "split 'ignore_id'; ignore_id belo",
        ),
        (
            f'name = "mine"\n[splits]\nval = "val.csv"\n{CLASSES}colour = 3\n',
            r"unknown keys in .*class.*: colour",
        ),
    ],
)
@pytest.mark.parametrize("mode", ["embedded", "external"])
def test_a_broken_data_set_file_is_refused_when_the_service_starts(
    tmp_path: Path, mode: str, text: str, message: str
) -> None:
    (tmp_path / "mine.toml").write_text(text)
    settings = configured(tmp_path, mode=mode).model_copy(
        update={"datasets": {"mine": tmp_path / "mine.toml"}}
    )
    with pytest.raises(SettingsError, match=message), opened(settings):
        pass


@pytest.mark.parametrize("section", ["sources", "targets"])
@pytest.mark.parametrize("mode", ["embedded", "external"])
def test_a_source_or_target_that_is_no_store_is_refused_when_the_service_starts(
    tmp_path: Path, mode: str, section: str
) -> None:
    settings = configured(tmp_path, mode=mode).model_copy(update={section: {"mine": "ftp://host/folder"}})
    with (
        pytest.raises(SettingsError, match=rf"{section}\.mine: not a folder or bucket: 'ftp:"),
        opened(settings),
    ):
        pass


def test_a_data_set_file_that_is_missing_may_be_on_the_machine_of_a_worker(tmp_path: Path) -> None:
    missing = {"datasets": {"mine": tmp_path / "mine.toml"}}
    with opened(configured(tmp_path, mode="external").model_copy(update=missing)) as jobs:
        assert jobs is not None
    with (
        pytest.raises(SettingsError, match=r"datasets\.mine: mine\.toml: .*No such file"),
        opened(configured(tmp_path).model_copy(update=missing)),
    ):
        pass


def test_a_job_on_a_data_set_that_broke_since_is_refused_when_it_is_submitted(tmp_path: Path) -> None:
    registry = ModelRegistry(tmp_path / "registry")
    registry.publish(write_pooling_artifact(tmp_path / "artifact").folder, "pool")
    file = write_dataset(tmp_path / "noise", 1)
    settings = configured(tmp_path, mode="external").model_copy(update={"datasets": {"noise": file}})
    with opened(settings) as jobs:
        assert jobs is not None
        asked = {"model": "pool", "dataset": "noise", "protocol": "ss"}
        with pytest.raises(InvalidArgumentError, match="noise has no split 'train', only val"):
            jobs.submission.submit_evaluation(**asked, split="train")
        file.write_text("colour = 3\n" + file.read_text())
        with pytest.raises(InvalidArgumentError, match=r"noise\.toml: unknown keys: colour"):
            jobs.submission.submit_evaluation(**asked, split="val")
        assert jobs.submission.jobs.list_jobs() == ()


def test_a_service_that_leaves_jobs_to_workers_does_not_keep_them_from_the_file(tmp_path: Path) -> None:
    with opened(configured(tmp_path, mode="external")), opened(configured(tmp_path)) as embedded:
        assert embedded is not None
        with (
            pytest.raises(JobsUnavailableError, match="another process runs the jobs of"),
            opened(configured(tmp_path)),
        ):
            pass


def test_what_jobs_found_reaches_metrics_and_scoreboard_once(tmp_path: Path) -> None:
    registry = ModelRegistry(tmp_path / "registry")
    registry.publish(write_pooling_artifact(tmp_path / "artifact").folder, "pool")
    jobs, metrics, scoreboard = FakeEvaluations(), Metrics(), Scoreboard(registry)
    reporter = JobsReporter(jobs, FakePredictions(), scoreboard, metrics)
    request = EvaluationRequest(ModelVersion("pool", 1), "noise", "val", "ss")
    first, second, waiting = (jobs.enqueue_job(request).id for _ in range(3))
    jobs.move(first, state=JobState.SUCCEEDED, result=RESULT)
    jobs.move(second, state=JobState.SUCCEEDED, result=EvaluationResult(0.5, {"a": 0.5}, 7, (), "e" * 64))
    reporter.report_once()
    shown = metrics.exposition()[0].decode()
    assert 'bisenet_eval_jobs{state="succeeded"} 2.0' in shown
    assert 'bisenet_eval_jobs{state="queued"} 1.0' in shown
    assert 'bisenet_eval_miou{dataset="noise",model="pool",protocol="ss",version="1"} 0.5' in shown
    jobs.cancel_job(waiting)
    reporter.report_once()
    assert 'bisenet_eval_jobs{state="queued"} 0.0' in metrics.exposition()[0].decode()


def test_a_database_that_is_away_does_not_end_the_reports(tmp_path: Path) -> None:
    jobs = FakeEvaluations()
    jobs.failure = BusyError("away")
    reporter = JobsReporter(jobs, FakePredictions(), Scoreboard(ModelRegistry(tmp_path)), Metrics())
    with pytest.raises(BusyError):
        reporter.report_once()
    reporter.start()
    reporter.close()


def test_a_defect_does_not_end_the_reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.jobs._REPORT_INTERVAL_S", 0.0)
    jobs, looks = FakeEvaluations(), threading.Semaphore(0)

    def fail() -> tuple[EvaluationJob, ...]:
        looks.release()
        raise KeyError("a row of another kind")

    monkeypatch.setattr(jobs, "list_jobs", fail)
    reporter = JobsReporter(jobs, FakePredictions(), Scoreboard(ModelRegistry(tmp_path)), Metrics())
    reporter.start()
    for _ in range(2):
        assert looks.acquire(timeout=PATIENCE_S)
    reporter.close()


@pytest.mark.parametrize(("precision", "number"), [("f32", 1), ("int8", 2)])
def test_a_model_without_a_number_is_scored_as_the_version_that_is_served(
    tmp_path: Path, precision: str, number: int
) -> None:
    settings = configured(tmp_path, mode="external")
    models = settings.models.model_copy(update={"precision": precision})
    registry = ModelRegistry(tmp_path / "registry")
    registry.publish(write_pooling_artifact(tmp_path / "f32").folder, "pool")
    int8 = write_pooling_artifact(tmp_path / "int8", precision="int8", derived_from="pool@1")
    registry.publish(int8.folder, "pool")
    chosen = {"models": models, "datasets": {"noise": tmp_path / "noise.toml"}}
    with opened(settings.model_copy(update=chosen)) as jobs:
        assert jobs is not None
        job = jobs.submission.submit_evaluation(model="pool", dataset="noise", split="val", protocol="ss")
    assert (job.request.version, job.request.precision) == (ModelVersion("pool", number), precision)
