"""The stack of ``docker-compose.stack.yml``, up and running: what is killed, filled or cut off loses nothing.

``docker/check.sh compose`` builds the images and calls these tests, in the order in which they stand here.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
import yaml
from compose_site import (
    EVALUATIONS,
    FILES,
    GRPC_ADDRESS,
    PROMETHEUS_URL,
    ROOT,
    SEGMENT,
    URL,
    Evaluation,
    Stack,
    Traffic,
    eventually,
    find_compose,
    photo,
    write_streets,
)

from service.client.answers import Frame, Opened, Result
from service.client.grpc_client import AsyncGrpcClient

pytestmark = [
    pytest.mark.compose,
    pytest.mark.skipif("BISENET_STACK" not in os.environ, reason="docker/check.sh compose runs these tests"),
]

PICTURES = 256  # eight shards, which take some seconds each
WORKERS = ("worker-1", "worker-2")
OUTAGE_S = 60.0


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    program = find_compose()
    assert program is not None
    data = tmp_path_factory.mktemp("data")
    write_streets(data, PICTURES)
    for path in (data, *data.parents[:2]):
        path.chmod(0o755)  # the containers are another user
    running = Stack(
        program, os.environ | {"BISENET_DATA": str(data)}, os.environ.get("BISENET_WITHOUT", "").split()
    )
    began_s = time.monotonic()
    try:
        running.up()
        print(f"\nstack up after {time.monotonic() - began_s:.1f} s")  # noqa: T201 - a figure that is reported
        yield running
    except BaseException:
        print(running.compose("logs", "--tail", "30"))  # noqa: T201
        raise
    finally:
        running.compose("down", "-v", "-t", "5")


@pytest.fixture(scope="module")
def expected(stack: Stack) -> dict[str, Any]:
    """Return the scores of a job that nothing disturbs."""
    return Evaluation(stack, "undisturbed").scores()


@pytest.mark.usefixtures("stack")
def test_pictures_get_masks_of_their_size() -> None:
    with Traffic().running() as traffic:
        traffic.goes_on(20)
    assert not traffic.refused
    assert not traffic.wrong
    answer = httpx2.post(
        f"{URL}{SEGMENT}", content=photo(0), headers={"Accept": "application/json"}, timeout=30
    )
    assert (answer.json()["height"], answer.json()["width"]) == (192, 320)


@pytest.mark.usefixtures("stack")
async def test_every_frame_of_a_clip_is_answered_in_its_order() -> None:
    client = AsyncGrpcClient(GRPC_ADDRESS)
    seqs: list[int] = []
    async with client, client.stream(policy="block") as call:
        for seq in range(1, 31):
            await call.send(Frame(seq, photo(seq)))
        await call.end()
        while (event := await call.next_event()) is not None:
            assert isinstance(event, Opened | Result), event
            if isinstance(event, Result):
                seqs.append(event.seq)
    assert seqs == list(range(1, 31))


def test_both_workers_take_part_in_an_evaluation(stack: Stack, expected: dict[str, Any]) -> None:
    assert expected["images"] == PICTURES
    rows = stack.compose(
        "exec", "-T", "postgres", "psql", "-U", "bisenet", "-d", "jobs", "-At", "-c",
        "SELECT DISTINCT executor_id FROM bisenet_jobs.workflow_status WHERE name LIKE '%shard%'",
    )  # fmt: skip
    assert set(rows.split()) == set(WORKERS)


def test_prometheus_scrapes_the_service_and_understands_every_rule(stack: Stack) -> None:
    eventually(lambda: stack.query('up{job="bisenet"} == 1'), "the service is scraped")
    groups = httpx2.get(f"{PROMETHEUS_URL}/api/v1/rules", timeout=30).json()["data"]["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    written = [
        rule
        for file in (ROOT / "docker/prometheus/rules").glob("*.yml")
        for group in yaml.safe_load(file.read_text())["groups"]
        for rule in group["rules"]
    ]
    assert len(rules) == len(written)
    eventually(
        lambda: all(
            rule["health"] == "ok"
            for group in httpx2.get(f"{PROMETHEUS_URL}/api/v1/rules", timeout=30).json()["data"]["groups"]
            for rule in group["rules"]
        ),
        "every rule is evaluated",
    )


def test_every_query_of_a_dashboard_is_understood_and_its_metrics_are_there(stack: Stack) -> None:
    with stack.admin() as admin:
        exposed = set(re.findall(r"^# TYPE (\w+) ", admin.get("/metrics").text, re.MULTILINE))
    for file in (ROOT / "docker/grafana/dashboards").glob("*.json"):
        for panel in json.loads(file.read_text())["panels"]:
            for target in panel["targets"]:
                expression = target["expr"].replace("$__rate_interval", "1m").replace("$job", "bisenet")
                stack.query(expression.replace("$instance", ".*"))
                for metric in re.findall(r"\b(?:bisenet|process)_\w+", re.sub(r"\w+:[\w:]+", "", expression)):
                    assert metric in exposed or re.sub("_(bucket|sum|count)$", "", metric) in exposed


def test_the_collector_gets_the_traces_of_requests(stack: Stack) -> None:
    def names() -> set[str]:
        lines = stack.compose("exec", "-T", "collector", "cat", "/var/lib/otel/traces.jsonl")
        return {json.loads(line)["name"] for line in lines.splitlines()}

    eventually(lambda: names() >= {"receive", "decode", "queue", "infer", "post", "encode"}, "spans arrive")


@pytest.mark.parametrize("victim", ["worker-1", "worker-2", "postgres", "prometheus", "collector"])
def test_a_container_that_is_killed_disturbs_no_picture_and_loses_no_job(
    stack: Stack, expected: dict[str, Any], victim: str
) -> None:
    with Traffic().running() as traffic:
        evaluation = Evaluation(stack, f"kill-{victim}")
        evaluation.begun()
        stack.crash(victim)
        traffic.goes_on()
        assert evaluation.scores() == expected
    assert not traffic.refused
    assert not traffic.wrong


def test_pictures_and_jobs_survive_a_killed_service(stack: Stack, expected: dict[str, Any]) -> None:
    with Traffic().running() as traffic:
        evaluation = Evaluation(stack, "kill-segmentation")
        evaluation.begun()
        stack.crash("segmentation")
        traffic.goes_on()
        assert evaluation.scores() == expected
    assert "given up" not in traffic.refused
    assert not traffic.wrong


@pytest.mark.parametrize("disk", ["state", "registry", "worker-1", "postgres", "prometheus", "logs"])
def test_a_full_disk_disturbs_no_picture_and_the_work_goes_on_when_there_is_room_again(
    stack: Stack, expected: dict[str, Any], disk: str
) -> None:
    with Traffic().running() as traffic:
        with stack.full(disk):
            traffic.goes_on(10)
        assert Evaluation(stack, f"full-{disk}").scores() == expected
    assert not traffic.refused
    assert not traffic.wrong


@pytest.mark.parametrize("disk", ["registry", "postgres"])
def test_a_job_waits_for_room_on_a_full_disk(stack: Stack, expected: dict[str, Any], disk: str) -> None:
    evaluation = Evaluation(stack, f"full-meanwhile-{disk}")
    evaluation.begun()
    with stack.full(disk):
        time.sleep(10)  # some steps and their pauses
    assert evaluation.scores() == expected


def test_an_action_that_cannot_be_logged_is_refused(stack: Stack) -> None:
    def status(admin: httpx2.Client) -> int:
        return admin.put("/admin/v1/models/camvid/aliases/spare", json={"version": 1}).status_code

    with stack.admin() as admin:
        with stack.full("logs"):
            # The last page of the file has room for some lines.
            eventually(lambda: status(admin) == httpx2.codes.INSUFFICIENT_STORAGE, "an action is refused")
            assert admin.get(EVALUATIONS).status_code == httpx2.codes.OK
        assert status(admin) == httpx2.codes.OK


def test_a_service_starts_again_on_a_full_disk(stack: Stack) -> None:
    with stack.full("state"):
        stack.crash("segmentation")
        eventually(stack.is_ready, "the service is ready")
        with Traffic().running() as traffic:
            traffic.goes_on()
    assert not traffic.wrong


def test_a_minute_without_the_database_disturbs_no_picture_and_loses_no_job(
    stack: Stack, expected: dict[str, Any]
) -> None:
    with Traffic().running() as traffic:
        evaluation = Evaluation(stack, "cut-off")
        evaluation.begun()
        with stack.cut_off("postgres"):
            time.sleep(OUTAGE_S)
            assert stack.is_ready()
        traffic.goes_on()
        assert evaluation.scores() == expected
        assert Evaluation(stack, "after-the-cut").scores() == expected
    assert not traffic.refused
    assert not traffic.wrong


def test_no_job_was_lost_and_none_failed(stack: Stack) -> None:
    with stack.admin() as admin:
        jobs = admin.get(EVALUATIONS).json()["evaluations"]
    assert len(jobs) >= 1
    assert {job["state"] for job in jobs} == {"succeeded"}


def test_the_stack_is_what_the_files_say(stack: Stack) -> None:
    written = {
        name for file in FILES[:2] for name in yaml.safe_load((ROOT / file).read_text())["services"]
    } - {*stack.without, "prepare"}
    running = set(stack.compose("ps", "--services", "--status", "running").split())
    assert written <= running
