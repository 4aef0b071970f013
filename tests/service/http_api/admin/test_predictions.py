"""``/admin/v1/predictions`` over jobs that a test moves by hand."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fakes import FakePredictions, admin_keys, write_pooling_artifact

from model.artifacts.manifest import ModelVersion
from model.artifacts.registry import ModelRegistry
from service.core.errors import BusyError
from service.core.jobs.job import JobState
from service.core.jobs.picture_stores import PictureStores
from service.core.jobs.prediction_job import PictureFailure, PredictionResult
from service.core.jobs.submission import PredictionSubmission
from service.core.readiness import Readiness
from service.http_api.admin.access import AdminPolicy
from service.http_api.admin.app import create_admin_app
from service.http_api.admin.audit import AuditLog
from service.http_api.admin.predictions import predictions_router
from service.telemetry import Metrics

PATH = "/admin/v1/predictions"
BODY = {"model": "pool", "source": "camera", "target": "masks"}
STORES = PictureStores(
    {"camera": "/data/camera", "films": "s3://bucket/films"}, {"masks": "/data/masks", "mixed": "/data"}
)


@dataclass(frozen=True)
class Office:
    """An admin frontend of bulk predictions."""

    client: httpx2.AsyncClient
    jobs: FakePredictions
    registry: ModelRegistry
    audit_file: Path


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> ModelRegistry:
    folder = tmp_path_factory.mktemp("registry")
    registry = ModelRegistry(folder / "registry")
    for seed in (1, 2):
        registry.publish(write_pooling_artifact(folder / str(seed), seed=seed).folder, "pool")
    registry.promote(ModelVersion("pool", 1))
    return registry


@pytest.fixture
async def office(registry: ModelRegistry, tmp_path: Path) -> AsyncIterator[Office]:
    jobs, lifecycle = FakePredictions(), Readiness()
    with ThreadPoolExecutor(2) as pool:
        desk = PredictionSubmission(jobs, STORES, lambda reference: (registry.resolve(reference), "bf16"))
        app = create_admin_app(
            [predictions_router(desk, pool, lifecycle)],
            policy=AdminPolicy(admin_keys("admin", "scrape"), None),
            lifecycle=lifecycle,
            metrics=Metrics(),
            audit=AuditLog(tmp_path / "audit.jsonl"),
        )
        transport = httpx2.ASGITransport(app=app, raise_app_exceptions=False)
        headers = {"Authorization": "Bearer admin"}
        async with httpx2.AsyncClient(
            transport=transport, base_url="http://admin", headers=headers
        ) as client:
            yield Office(client, jobs, registry, tmp_path / "audit.jsonl")


def problem_of(response: httpx2.Response) -> tuple[int, str]:
    assert response.headers["content-type"] == "application/problem+json"
    return response.status_code, response.json()["code"]


async def test_a_job_is_accepted_with_its_place_its_version_and_its_precision(office: Office) -> None:
    response = await office.client.post(PATH, json=BODY)
    document = response.json()
    assert response.status_code == 202
    assert response.headers["location"] == f"{PATH}/{document['id']}"
    assert document == {
        "id": document["id"],
        "state": "queued",
        "model": "pool@1",
        "source": "camera",
        "target": "masks",
        "output": "labels",
        "done": 0,
        "total": None,
        "pictures_per_s": None,
        "eta_s": None,
        "error": None,
        "result": None,
    }
    assert office.jobs.known[document["id"]].request.precision == "bf16"
    assert (await office.client.get(response.headers["location"])).json() == document
    assert (await office.client.get(PATH)).json() == {"predictions": [document]}


async def test_the_same_key_gives_the_same_job_or_a_conflict_whatever_the_alias_means_by_now(
    office: Office,
) -> None:
    headers = {"Idempotency-Key": "mine"}
    first = (await office.client.post(PATH, json=BODY, headers=headers)).json()
    office.registry.promote(ModelVersion("pool", 2))
    try:
        assert (await office.client.post(PATH, json=BODY, headers=headers)).json() == first
    finally:
        office.registry.rollback("pool")
    for change in ({"output": "coco"}, {"source": "films"}, {"model": "pool@1"}):
        assert problem_of(await office.client.post(PATH, json=BODY | change, headers=headers)) == (
            409,
            "conflict",
        )
    assert problem_of(await office.client.post(PATH, json=BODY, headers={"Idempotency-Key": ""})) == (
        400,
        "invalid_argument",
    )


async def test_who_asked_for_a_job_and_who_cancelled_it_is_in_the_audit_log(office: Office) -> None:
    job = (await office.client.post(PATH, json=BODY)).json()
    await office.client.delete(f"{PATH}/{job['id']}")
    lines = [json.loads(line) for line in office.audit_file.read_text().splitlines()]
    done = [line for line in lines if line["phase"] == "done"]
    assert [(line["method"], line["after"]) for line in done] == [
        ("POST", {"id": job["id"], "state": "queued"}),
        ("DELETE", {"id": job["id"], "state": "cancelled"}),
    ]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"model": "nobody"}, (404, "model_not_found")),
        ({"model": "pool@7"}, (404, "version_not_found")),
        ({"model": "../pool"}, (400, "invalid_argument")),
        ({"source": "nobody"}, (404, "not_found")),
        ({"target": "camera"}, (404, "not_found")),
        ({"target": "mixed"}, (400, "invalid_argument")),
        ({"output": "color"}, (400, "invalid_argument")),
        ({"source": None}, (400, "invalid_argument")),
        ({"path": "/data"}, (400, "invalid_argument")),
    ],
)
async def test_what_is_wrong_is_said(
    office: Office, change: dict[str, object], expected: tuple[int, str]
) -> None:
    assert problem_of(await office.client.post(PATH, json=BODY | change)) == expected
    assert not office.jobs.known


@pytest.mark.parametrize("field", ["source", "target", "output", "model"])
@pytest.mark.parametrize(
    "trick",
    [
        *("../camera", "/data/camera", "camera/..", "file:///data/camera", "s3://bucket/films", "camera\x00"),
        *("%2e%2e/camera", "CAMERA", " camera", "camera\n", "", "~", "$HOME", "a" * 5000),
    ],
)
async def test_no_name_is_a_path(office: Office, field: str, trick: str) -> None:
    response = await office.client.post(PATH, json=BODY | {field: trick})
    assert response.status_code in (400, 404)
    assert not office.jobs.known


async def test_every_route_needs_the_admin_token(office: Office) -> None:
    refusals = dict.fromkeys(("", "other"), (401, "unauthenticated")) | {"scrape": (403, "forbidden")}
    for token, refusal in refusals.items():
        headers = {"Authorization": f"Bearer {token}"}
        for method, path in (
            *(("POST", PATH), ("GET", PATH), ("GET", f"{PATH}:choices"), ("GET", f"{PATH}/0")),
            *(("GET", f"{PATH}/0/events"), ("DELETE", f"{PATH}/0")),
        ):
            response = await office.client.request(method, path, headers=headers, json=BODY)
            assert problem_of(response) == refusal
    assert not office.jobs.known


async def test_pace_rest_and_result_are_told(office: Office) -> None:
    job_id = (await office.client.post(PATH, json=BODY)).json()["id"]
    office.jobs.move(job_id, state=JobState.RUNNING, done=25, total=100, pictures_per_s=2.5)
    seen = (await office.client.get(f"{PATH}/{job_id}")).json()
    assert (seen["pictures_per_s"], seen["eta_s"]) == (2.5, 30.0)
    failures = (PictureFailure("cam/a.jpg", "undecodable_image", "it is damaged"),)
    result = PredictionResult(97, 2, 1, failures, {".txt": 4}, "manifest-0.json", "d" * 64)
    office.jobs.move(job_id, state=JobState.SUCCEEDED, done=100, result=result)
    events = (await office.client.get(f"{PATH}/{job_id}/events")).text
    assert events.startswith("event: prediction\ndata: {")
    told: dict[str, Any] = json.loads(events.partition("data: ")[2])
    assert (told["eta_s"], told["result"]["written"], told["result"]["kept"]) == (None, 97, 2)
    assert told["result"]["failures"] == [
        {"picture": "cam/a.jpg", "code": "undecodable_image", "message": "it is damaged"}
    ]


async def test_sources_and_targets_can_be_chosen_from_and_do_not_tell_where_they_are(office: Office) -> None:
    choices = await office.client.get(f"{PATH}:choices")
    assert choices.json() == {"sources": ["camera", "films"], "targets": ["masks", "mixed"]}


async def test_a_database_that_fails_is_told(office: Office) -> None:
    office.jobs.failure = BusyError("away")
    assert problem_of(await office.client.post(PATH, json=BODY)) == (503, "busy")
