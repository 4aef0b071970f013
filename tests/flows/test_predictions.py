"""Bulk predictions as users run them: two workers on Postgres that are killed, and what they leave."""

from __future__ import annotations

import json
import random
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from fakes import PATIENCE_S
from job_site import MODEL, external, job_environment, started_site, write_dataset
from PIL import Image
from postgres_server import find_postgres, postgres_server

PREDICTIONS = "/admin/v1/predictions"
FINAL = ("succeeded", "failed", "cancelled")
BAD = {"broken.jpg": "undecodable_image", "text.png": "unsupported_media"}


@pytest.fixture(scope="module")
def database_url() -> Iterator[str]:
    programs = find_postgres()
    if programs is None:
        pytest.skip("Postgres is not installed (Debian: postgresql)")
    with postgres_server(programs) as server:
        yield server.new_database()


def write_pictures(folder: Path, count: int) -> None:
    """Write small pictures of noise in folders of a hundred, and two that are broken."""
    rng = np.random.default_rng(count)
    for index in range(count):
        path = folder / f"{index // 100:03}" / f"{index % 100:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (16, 32, 3), np.uint8)).save(path)
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff and no more")
    (folder / "text.png").write_bytes(b"this is text")


class Job:
    """A bulk prediction of a running service.

    Args:
        admin: client of its admin port.
        target: name of the target.
        patience_s: time that it may take.
    """

    def __init__(self, admin: httpx2.Client, target: str, patience_s: float) -> None:
        self._admin = admin
        body = {"model": MODEL, "source": "camera", "target": target}
        submitted = admin.post(PREDICTIONS, json=body)
        assert submitted.status_code == 202, submitted.text
        self._path = submitted.headers["location"]
        self._given_up_s = time.monotonic() + patience_s

    def seen(self) -> dict[str, Any]:
        """Return its document; on a busy machine the database may need more than the time of a request."""
        while (answer := self._admin.get(self._path)).status_code == httpx2.codes.SERVICE_UNAVAILABLE:
            assert time.monotonic() < self._given_up_s, answer.text
        document: dict[str, Any] = answer.raise_for_status().json()
        return document

    def when(self, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Return its document as soon as it is as it should be, or the job has ended."""
        while not condition(seen := self.seen()) and seen["state"] not in FINAL:
            assert time.monotonic() < self._given_up_s, f"not in time: {seen}"
            time.sleep(0.1)
        return seen


def check_kills(folder: Path, database_url: str, *, pictures: int, kills: int, patience_s: float) -> None:
    """Kill workers while they work on a job, and compare its files with those of an undisturbed one."""
    chance = random.Random(pictures)
    write_pictures(folder / "in", pictures)
    environment = job_environment(
        folder, write_dataset(folder / "noise", 1), engine="fault_engine:slow:1", mode="external"
    ) | {
        "BISENET_JOBS__DATABASE": database_url,
        "BISENET_SOURCES__CAMERA": str(folder / "in"),
        "BISENET_TARGETS__MASKS": str(folder / "masks"),
        "BISENET_TARGETS__UNDISTURBED": str(folder / "undisturbed"),
    }
    with started_site(environment, folder / "log") as site, ExitStack() as stack:

        def start(name: str) -> subprocess.Popen[str]:
            named = environment | {"BISENET_JOBS__WORKER_ID": name}
            return stack.enter_context(external(named, folder / f"log-{name}"))

        workers = {name: start(name) for name in ("a", "b")}
        job = Job(site.admin, "masks", patience_s)
        done = 0
        for _ in range(kills):
            done = job.when(lambda seen, before=done: seen["done"] > before)["done"]
            time.sleep(chance.uniform(0.0, 0.3))
            name = chance.choice(sorted(workers))
            workers[name].kill()
            workers[name].wait(PATIENCE_S)
            workers[name] = start(name)
        disturbed = job.when(lambda _: False)
        undisturbed = Job(site.admin, "undisturbed", patience_s).when(lambda _: False)
    for ended in (disturbed, undisturbed):
        assert ended["state"] == "succeeded", ended["error"]
        assert (ended["result"]["written"], ended["result"]["failed"]) == (pictures, len(BAD))
        assert {one["picture"]: one["code"] for one in ended["result"]["failures"]} == BAD
        assert ended["pictures_per_s"] > 0
    compare(folder / "masks", disturbed, folder / "undisturbed", undisturbed)


def compare(one: Path, job: dict[str, Any], other: Path, other_job: dict[str, Any]) -> None:
    """See that two targets hold the same masks, the same manifests but for their names, and nothing else."""
    manifest, other_manifest = job["result"]["manifest"], other_job["result"]["manifest"]
    files, other_files = files_of(one), files_of(other)
    told, other_told = json.loads(files.pop(manifest)), json.loads(other_files.pop(other_manifest))
    assert files == other_files
    assert told | {"target": ""} == other_told | {"target": ""}
    assert {entry["mask"] for entry in told["written"]} == files.keys()


def files_of(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def test_two_workers_of_which_one_is_killed_write_what_undisturbed_ones_write(
    tmp_path: Path, database_url: str
) -> None:
    check_kills(tmp_path, database_url, pictures=520, kills=1, patience_s=4 * PATIENCE_S)


@pytest.mark.soak
def test_ten_thousand_pictures_survive_twenty_deaths_of_two_workers(
    tmp_path: Path, database_url: str
) -> None:
    check_kills(tmp_path, database_url, pictures=10_000, kills=20, patience_s=7200.0)
