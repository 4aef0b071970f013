"""``bisenet jobs`` against an admin frontend on a real socket."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
import uvicorn
from fakes import PATIENCE_S, FakeEvaluations, FakePredictions, admin_keys, write_pooling_artifact
from typer.testing import CliRunner

from model.artifacts.registry import ModelRegistry
from service.cli.jobs import app
from service.core.jobs.evaluation_job import EvaluationResult
from service.core.jobs.job import JobState
from service.core.jobs.picture_stores import PictureStores
from service.core.jobs.prediction_job import PictureFailure, PredictionResult
from service.core.jobs.submission import EvaluationSubmission, PredictionSubmission
from service.core.readiness import Readiness
from service.http_api.admin.access import AdminPolicy
from service.http_api.admin.app import create_admin_app
from service.http_api.admin.evaluations import evaluations_router
from service.http_api.admin.predictions import predictions_router
from service.http_api.connection.server import listen, url_of
from service.telemetry import Metrics

RESULT = EvaluationResult(0.5, {"dark": 0.5, "bright": None}, 7, ("3.png",), "d" * 64)


@dataclass(frozen=True)
class Office:
    """A running admin frontend."""

    jobs: FakeEvaluations
    predictions: FakePredictions
    url: str
    token_file: Path

    def run(self, *arguments: str) -> tuple[int, str]:
        """Return exit code and output of ``bisenet jobs``."""
        address = ["--server", self.url, "--token-file", str(self.token_file)]
        done = CliRunner().invoke(app, [*arguments, *address])
        return done.exit_code, done.output


@pytest.fixture(scope="module")
def office(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Office]:
    folder = tmp_path_factory.mktemp("office")
    registry = ModelRegistry(folder / "registry")
    registry.publish(write_pooling_artifact(folder / "artifact").folder, "pool")
    token_file = folder / "token"
    token_file.write_text("secret\n")
    jobs, predictions, lifecycle = FakeEvaluations(), FakePredictions(), Readiness()
    stores = PictureStores({"camera": "/data/camera"}, {"masks": "/data/masks"})
    desk = PredictionSubmission(predictions, stores, lambda reference: (registry.resolve(reference), "f32"))
    with ThreadPoolExecutor(2) as pool, listen("127.0.0.1", 0) as listener:
        admin = create_admin_app(
            [
                evaluations_router(EvaluationSubmission(jobs, registry, {"noise"}), pool, lifecycle),
                predictions_router(desk, pool, lifecycle),
            ],
            policy=AdminPolicy(admin_keys("secret", "scrape"), None),
            lifecycle=lifecycle,
            metrics=Metrics(),
        )
        server = uvicorn.Server(uvicorn.Config(admin, lifespan="off", log_config=None))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        yield Office(jobs, predictions, url_of(listener), token_file)
        server.should_exit = True
        thread.join(PATIENCE_S)


def test_a_job_is_submitted_shown_listed_and_cancelled(office: Office) -> None:
    exit_code, output = office.run("submit", "--model", "pool", "--dataset", "noise", "--json")
    job = json.loads(output)
    assert (exit_code, job["state"], job["model"]) == (0, "queued", "pool@1")
    assert office.run("show", job["id"]) == (0, f"{job['id']}  queued     pool@1 on noise val by ss\n")
    office.jobs.move(job["id"], state=JobState.RUNNING, done=3, total=8)
    assert f"{job['id']}  running    pool@1 on noise val by ss: 3 of 8 pictures\n" in office.run("list")[1]
    assert json.loads(office.run("cancel", job["id"], "--json")[1])["state"] == "cancelled"
    assert json.loads(office.run("list", "--json")[1])[0]["state"] == "cancelled"


def test_a_key_makes_a_command_repeatable(office: Office) -> None:
    command = ("submit", "--model", "pool", "--dataset", "noise", "--key", "nightly", "--json")
    assert json.loads(office.run(*command)[1]) == json.loads(office.run(*command)[1])


def test_a_result_is_printed_by_class(office: Office) -> None:
    job_id = json.loads(office.run("submit", "--model", "pool", "--dataset", "noise", "--json")[1])["id"]
    office.jobs.move(job_id, state=JobState.SUCCEEDED, result=RESULT)
    assert office.run("show", job_id)[1].splitlines() == [
        f"{job_id}  succeeded  pool@1 on noise val by ss: mIoU 50.00 % over 7 pictures",
        "  dark    50.00 %",
        "  bright  none",
    ]


PREDICTION = ("submit", "--model", "pool", "--predict", "camera", "--out", "masks")


def test_a_bulk_prediction_is_submitted_shown_listed_and_cancelled(office: Office) -> None:
    exit_code, output = office.run(*PREDICTION, "--json")
    job = json.loads(output)
    described = "pool@1 on camera to masks as labels"
    assert (exit_code, job["state"], job["output"]) == (0, "queued", "labels")
    assert office.run("show", job["id"]) == (0, f"{job['id']}  queued     {described}\n")
    pace = {"done": 1200, "total": 10_000, "pictures_per_s": 41.25}
    office.predictions.move(job["id"], state=JobState.RUNNING, **pace)
    line = f"{job['id']}  running    {described}: 1200 of 10000 pictures, 41.2 a second, 0:03:33 left\n"
    assert office.run("show", job["id"]) == (0, line)
    assert line in office.run("list")[1]
    assert json.loads(office.run("cancel", job["id"], "--json")[1])["state"] == "cancelled"
    assert json.loads(office.run("list", "--json")[1])[-1]["state"] == "cancelled"


def test_what_a_bulk_prediction_wrote_and_could_not_write_is_printed(office: Office) -> None:
    job_id = json.loads(office.run(*PREDICTION, "--output", "coco", "--json")[1])["id"]
    described = "pool@1 on camera to masks as coco"
    failures = (PictureFailure("cam/a.jpg", "undecodable_image", "the picture is damaged"),)
    result = PredictionResult(7, 2, 3, failures, {".txt": 4}, "manifest-0.json", "d" * 64)
    office.predictions.move(job_id, state=JobState.SUCCEEDED, result=result)
    assert office.run("show", job_id)[1].splitlines() == [
        f"{job_id}  succeeded  {described}: 7 written, 2 kept, 3 failed; manifest-0.json in masks",
        "  cam/a.jpg: undecodable_image: the picture is damaged",
        "  and 2 more in the manifest",
        "  not taken: 4 .txt",
    ]


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--predict", "camera"),
        ("--out", "masks"),
        ("--dataset", "noise", "--predict", "camera", "--out", "masks"),
        ("--dataset", "noise", "--output", "labels"),
        ("--predict", "camera", "--out", "masks", "--protocol", "ss"),
        ("--predict", "camera", "--out", "masks", "--skip-broken"),
    ],
)
def test_a_job_is_either_an_evaluation_or_a_prediction(office: Office, arguments: tuple[str, ...]) -> None:
    exit_code, output = office.run("submit", *arguments)
    assert exit_code == 2
    assert "--dataset NAME" in output


@pytest.mark.parametrize(
    ("state", "exit_code"), [(JobState.SUCCEEDED, 0), (JobState.FAILED, 1), (JobState.CANCELLED, 1)]
)
def test_who_waits_learns_how_it_ended(office: Office, state: JobState, exit_code: int) -> None:
    command = ("submit", "--model", "pool", "--dataset", "noise", "--key", f"wait for {state}")
    job_id = json.loads(office.run(*command, "--json")[1])["id"]
    error = "a file is broken" if state is JobState.FAILED else None
    office.jobs.move(job_id, state=state, error=error, result=RESULT if exit_code == 0 else None)
    ended, output = office.run(*command, "--wait")
    assert ended == exit_code
    assert error is None or output.endswith(": a file is broken\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("submit", "--model", "nobody", "--dataset", "noise"), "model_not_found: no model 'nobody'"),
        (("submit", "--model", "pool", "--dataset", "letters"), "not_found: no data set 'letters'"),
        ((*PREDICTION[:-1], "elsewhere"), "not_found: no target 'elsewhere'"),
        (("show", "nobody"), "not_found: there is no such job"),
        (("cancel", "../jobs"), "not_found: "),
    ],
)
def test_what_the_service_refuses_is_one_line(
    office: Office, arguments: tuple[str, ...], message: str
) -> None:
    exit_code, output = office.run(*arguments)
    assert exit_code == 1
    assert output.startswith(f"error: {message}")
    assert output.count("\n") == 1


def test_a_service_that_is_not_there_is_named(office: Office, tmp_path: Path) -> None:
    for server, token_file, message in (
        ("http://127.0.0.1:1", office.token_file, "http://127.0.0.1:1 does not answer"),
        ("127.0.0.1:8002", office.token_file, "not http://HOST:PORT"),
        (office.url, tmp_path / "none", f"token file {tmp_path / 'none'} cannot be read"),
    ):
        done = CliRunner().invoke(app, ["list", "--server", server, "--token-file", str(token_file)])
        assert (done.exit_code, done.output.count("\n")) == (1, 1)
        assert done.output.startswith(f"error: {message}")


def test_a_wrong_token_is_told(office: Office, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("other")
    done = CliRunner().invoke(app, ["list", "--server", office.url, "--token-file", str(tmp_path / "token")])
    assert done.exit_code == 1
    assert done.output.startswith("error: unauthenticated: the admin token is needed")


def test_the_configuration_of_the_service_says_where_it_is_administrated(
    office: Office, tmp_path: Path
) -> None:
    port = office.url.rpartition(":")[2]
    config = tmp_path / "bisenet.toml"
    config.write_text(
        f'[server]\nadmin_port = {port}\n[auth]\nadmin_token_file = "{office.token_file}"\n', encoding="utf-8"
    )
    done = CliRunner().invoke(app, ["list", "--config", str(config)])
    assert done.exit_code == 0, done.output
