"""``/admin/v1/evaluations`` over jobs that a test moves by hand."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, MutableMapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fakes import PATIENCE_S, FakeEvaluations, admin_keys, write_pooling_artifact
from structlog.testing import capture_logs

from model.artifacts.manifest import ModelVersion
from model.artifacts.registry import ModelRegistry
from service.core.errors import BusyError, ConflictError, StorageFullError
from service.core.jobs.evaluation_job import EvaluationResult
from service.core.jobs.job import JobState
from service.core.jobs.submission import EvaluationSubmission
from service.core.readiness import Readiness
from service.http_api.admin.access import AdminPolicy
from service.http_api.admin.app import create_admin_app
from service.http_api.admin.evaluations import evaluations_router
from service.telemetry import Metrics

PATH = "/admin/v1/evaluations"
BODY = {"model": "pool", "dataset": "noise", "split": "val", "protocol": "ss"}
RESULT = EvaluationResult(0.5, {"dark": 0.5, "bright": None}, 7, ("3.png",), "d" * 64)


@dataclass(frozen=True)
class Office:
    """An admin frontend of evaluation jobs."""

    client: httpx2.AsyncClient
    jobs: FakeEvaluations
    registry: ModelRegistry
    lifecycle: Readiness


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> ModelRegistry:
    folder = tmp_path_factory.mktemp("registry")
    registry = ModelRegistry(folder / "registry")
    registry.publish(write_pooling_artifact(folder / "artifact").folder, "pool")
    return registry


@pytest.fixture
async def office(registry: ModelRegistry) -> AsyncIterator[Office]:
    jobs, lifecycle = FakeEvaluations(), Readiness()
    with ThreadPoolExecutor(2) as pool:
        desk = EvaluationSubmission(jobs, registry, {"noise"})
        app = create_admin_app(
            [evaluations_router(desk, pool, lifecycle)],
            policy=AdminPolicy(admin_keys("admin", "scrape"), None),
            lifecycle=lifecycle,
            metrics=Metrics(),
        )
        transport = httpx2.ASGITransport(app=app, raise_app_exceptions=False)
        headers = {"Authorization": "Bearer admin"}
        async with httpx2.AsyncClient(
            transport=transport, base_url="http://admin", headers=headers
        ) as client:
            yield Office(client, jobs, registry, lifecycle)


async def submitted(office: Office) -> str:
    response = await office.client.post(PATH, json=BODY)
    assert response.status_code == 202
    return str(response.json()["id"])


def problem_of(response: httpx2.Response) -> tuple[int, str]:
    assert response.headers["content-type"] == "application/problem+json"
    return response.status_code, response.json()["code"]


async def test_a_job_is_accepted_with_its_place(office: Office) -> None:
    response = await office.client.post(PATH, json=BODY)
    document = response.json()
    assert response.status_code == 202
    assert response.headers["location"] == f"{PATH}/{document['id']}"
    assert document == {
        "id": document["id"],
        "state": "queued",
        "model": "pool@1",
        "dataset": "noise",
        "split": "val",
        "protocol": "ss",
        "done": 0,
        "total": None,
        "pictures_per_s": None,
        "eta_s": None,
        "error": None,
        "result": None,
    }
    assert (await office.client.get(response.headers["location"])).json() == document


async def test_split_and_protocol_have_defaults(office: Office) -> None:
    response = await office.client.post(PATH, json={"model": "pool@1", "dataset": "noise"})
    assert (response.json()["split"], response.json()["protocol"]) == ("val", "ss")


def changes_in(log: Sequence[MutableMapping[str, Any]]) -> list[tuple[object, object]]:
    done = [line for line in log if line["event"] == "audit" and line["phase"] == "done"]
    return [(line.get("before"), line.get("after")) for line in done]


async def test_the_audit_log_tells_a_new_job_from_a_repeated_request(office: Office) -> None:
    with capture_logs() as log:
        for _ in range(2):
            await office.client.post(PATH, json=BODY, headers={"Idempotency-Key": "mine"})
        (job_id,) = office.jobs.known
        await office.client.delete(f"{PATH}/{job_id}")
    queued, cancelled = ({"id": job_id, "state": state} for state in ("queued", "cancelled"))
    assert changes_in(log) == [(None, queued), (queued, queued), (queued, cancelled)]


async def test_the_audit_log_says_that_a_change_is_unknown_when_the_database_does_not_answer(
    office: Office,
) -> None:
    job_id = await submitted(office)
    with capture_logs() as log:
        office.jobs.failure = BusyError("the jobs database does not answer")
        assert problem_of(await office.client.post(PATH, json=BODY)) == (503, "busy")
        office.jobs.failure = None
        office.jobs.cancelling_fails = True
        assert problem_of(await office.client.delete(f"{PATH}/{job_id}")) == (503, "busy")
    unknown = {"state": "unknown"}
    assert changes_in(log) == [(None, unknown), ({"id": job_id, "state": "queued"}, unknown)]


async def test_the_same_key_gives_the_same_job_or_a_conflict(office: Office) -> None:
    headers = {"Idempotency-Key": "mine"}
    answers = [await office.client.post(PATH, json=BODY, headers=headers) for _ in range(3)]
    assert len({answer.json()["id"] for answer in answers}) == 1
    other = await office.client.post(PATH, json=BODY | {"split": "train"}, headers=headers)
    assert problem_of(other) == (409, "conflict")


async def test_a_key_gives_its_job_whatever_has_become_of_what_it_names(tmp_path: Path) -> None:
    registry = ModelRegistry(tmp_path / "registry")
    for seed in (1, 2):
        registry.publish(write_pooling_artifact(tmp_path / str(seed), seed=seed).folder, "pool")
    registry.promote(ModelVersion("pool", 1))
    jobs, body = FakeEvaluations(), {"model": "pool", "dataset": "noise", "split": "val", "protocol": "ss"}
    first = EvaluationSubmission(jobs, registry, {"noise"}).submit_evaluation(**body, key="mine")
    assert first.request.version == ModelVersion("pool", 1)
    registry.promote(ModelVersion("pool", 2))
    registry.delete(ModelVersion("pool", 1))
    without_data = EvaluationSubmission(jobs, registry, ())
    assert without_data.submit_evaluation(**body, key="mine") == first
    for other in ({"model": "pool@1"}, {"split": "train"}):
        with pytest.raises(ConflictError):
            without_data.submit_evaluation(**body | other, key="mine")


@pytest.mark.parametrize("key", ["", "a" * 256, "tab\there"])
async def test_what_is_no_key_is_refused(office: Office, key: str) -> None:
    response = await office.client.post(PATH, json=BODY, headers={"Idempotency-Key": key})
    assert problem_of(response) == (400, "invalid_argument")


async def test_two_keys_are_refused(office: Office) -> None:
    headers = [("Idempotency-Key", "a"), ("Idempotency-Key", "b")]
    response = await office.client.post(PATH, json=BODY, headers=headers)
    assert problem_of(response) == (400, "invalid_argument")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"model": "nobody"}, (404, "model_not_found")),
        ({"model": "pool@7"}, (404, "version_not_found")),
        ({"model": "pool:canary"}, (404, "version_not_found")),
        ({"model": "../pool"}, (400, "invalid_argument")),
        ({"protocol": "guess"}, (400, "invalid_argument")),
        ({"dataset": "letters"}, (404, "not_found")),
        ({"dataset": "NOISE"}, (404, "not_found")),
        ({"dataset": "noise.toml"}, (404, "not_found")),
        ({"colour": "red"}, (400, "invalid_argument")),
        ({"model": 3}, (400, "invalid_argument")),
        ({"skip_broken": "yes"}, (400, "invalid_argument")),
    ],
)
async def test_what_is_wrong_is_said(
    office: Office, change: dict[str, object], expected: tuple[int, str]
) -> None:
    assert problem_of(await office.client.post(PATH, json=BODY | change)) == expected
    assert not office.jobs.known


TRICKS = [
    *("../noise", "noise/../../etc", "/etc/passwd", "/dev/zero", "/proc/self/environ", "./noise", "noise/"),
    *("noise\x00", "\x00", "%2e%2e/noise", "..\\noise", "\u2024\u2024/noise", "\uff0e\uff0e/noise"),
    *(
        "noise\n",
        " noise",
        "file:///etc/passwd",
        "http://localhost/",
        "a" * 5000,
        "",
        "~",
        "$HOME",
    ),
]


@pytest.mark.parametrize("trick", TRICKS)
@pytest.mark.parametrize("field", ["dataset", "split", "model", "protocol"])
async def test_no_name_is_a_path(office: Office, field: str, trick: str) -> None:
    response = await office.client.post(PATH, json=BODY | {field: trick})
    assert response.status_code in (400, 404)
    assert not office.jobs.known


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"null", b"\xff", b"1", b'{"model": "pool"}', b"[" * 50_000]
)
async def test_what_is_no_document_is_refused(office: Office, body: bytes) -> None:
    assert problem_of(await office.client.post(PATH, content=body)) == (400, "invalid_argument")


async def test_a_document_that_is_too_large_is_refused(office: Office) -> None:
    response = await office.client.post(PATH, content=b" " * 100_000)
    assert problem_of(response) == (413, "payload_too_large")


async def test_every_route_needs_the_token(office: Office) -> None:
    refusals = dict.fromkeys(("", "other"), (401, "unauthenticated")) | {"scrape": (403, "forbidden")}
    for token, refusal in refusals.items():
        headers = {"Authorization": f"Bearer {token}"}
        for method, path in (("POST", PATH), ("GET", PATH), ("GET", f"{PATH}/0"), ("DELETE", f"{PATH}/0")):
            response = await office.client.request(method, path, headers=headers, json=BODY)
            assert problem_of(response) == refusal
    assert not office.jobs.known


async def test_a_job_that_is_not_there_is_not_found(office: Office) -> None:
    for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/events"), ("GET", "/report")):
        response = await office.client.request(method, f"{PATH}/nobody{path}")
        assert problem_of(response) == (404, "not_found")


async def test_jobs_are_listed_the_newest_first(office: Office) -> None:
    first, second = await submitted(office), await submitted(office)
    listed = (await office.client.get(PATH)).json()["evaluations"]
    assert [job["id"] for job in listed] == [second, first]


async def test_a_cancelled_job_is_told_as_such(office: Office) -> None:
    response = await office.client.delete(f"{PATH}/{await submitted(office)}")
    assert (response.status_code, response.json()["state"]) == (202, "cancelled")


async def test_a_result_comes_with_the_place_of_its_report(office: Office) -> None:
    job_id = await submitted(office)
    office.jobs.move(job_id, state=JobState.SUCCEEDED, done=8, total=8, result=RESULT)
    for kind in ("report", "scores"):
        assert problem_of(await office.client.get(f"{PATH}/{job_id}/{kind}")) == (404, "not_found")
    office.registry.evaluations.add("pool", job_id, {"matrix": [[1]]}, "<html>the report</html>")
    assert (await office.client.get(f"{PATH}/{job_id}/scores")).json() == {"matrix": [[1]]}
    result = (await office.client.get(f"{PATH}/{job_id}")).json()["result"]
    assert result["miou"] == 0.5
    assert result["per_class"] == {"dark": 0.5, "bright": None}
    assert (result["images"], result["skipped"]) == (7, ["3.png"])
    page = await office.client.get(result["report"])
    assert (page.text, page.headers["x-content-type-options"]) == ("<html>the report</html>", "nosniff")


async def test_data_sets_and_protocols_can_be_chosen_from(office: Office) -> None:
    choices = (await office.client.get(f"{PATH}:choices")).json()
    assert choices["datasets"] == ["noise"]
    assert {"ss", "mscf"} <= set(choices["protocols"])


async def test_events_tell_each_change_until_the_job_has_ended(office: Office) -> None:
    job_id = await submitted(office)

    async def read() -> list[dict[str, object]]:
        response = await office.client.get(f"{PATH}/{job_id}/events")
        assert response.headers["content-type"].startswith("text/event-stream")
        events = response.text.split("\n\n")[:-1]
        assert all(event.startswith("event: evaluation\ndata: ") for event in events)
        return [json.loads(event.partition("data: ")[2]) for event in events]

    reading = asyncio.create_task(read())
    await asyncio.sleep(0)
    office.jobs.move(job_id, state=JobState.SUCCEEDED, done=8, total=8, result=RESULT)
    seen = await reading
    assert seen[-1]["state"] == "succeeded"
    assert [event["state"] for event in seen] in (["queued", "succeeded"], ["succeeded"])


async def test_events_end_when_the_service_does(office: Office) -> None:
    job_id = await submitted(office)
    office.lifecycle.draining = True
    response = await office.client.get(f"{PATH}/{job_id}/events")
    assert response.text.count("event: evaluation") == 1


@pytest.mark.parametrize(
    ("failure", "expected"),
    [(BusyError("away"), (503, "busy")), (StorageFullError("full"), (507, "storage_full"))],
)
async def test_a_database_that_fails_is_told(
    office: Office, failure: BusyError | StorageFullError, expected: tuple[int, str]
) -> None:
    office.jobs.failure = failure
    assert problem_of(await office.client.post(PATH, json=BODY)) == expected


async def test_a_database_that_hangs_does_not_hang_the_service(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.http_api.admin.job_routes._DATABASE_TIMEOUT_S", 0.01)
    release = threading.Event()
    monkeypatch.setattr(office.jobs, "list_jobs", lambda: release.wait(PATIENCE_S) and ())
    response = await office.client.get(PATH)
    release.set()
    assert problem_of(response) == (503, "busy")
