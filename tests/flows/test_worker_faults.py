"""Faults under load through HTTP, as the figures of the project want them: long, run by ``make soak``."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import numpy as np
import pytest
from fakes import PATIENCE_S
from http_site import encoded
from live_service import Server, serving_environment, started, workers_of
from worker_site import pooling_artifacts, red_of, spelled

from model.artifacts.artifact import Artifact
from model.labels import UInt8Array

pytestmark = pytest.mark.soak

CLIENTS = 8
MANY_CLIENTS = 128
"""That have a picture in flight all the time: half of what the service lets wait."""

READY_S = 5.0
"""The figure of the project: a dead worker's successor is ready by then."""

LABELS = {"params": {"output": "labels"}, "headers": {"Accept": "application/x-npy"}}
STABLE_S = 5.5
"""A little longer than a worker must have lived to be forgiven its predecessor's death."""


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> list[Artifact]:
    return pooling_artifacts(tmp_path_factory.mktemp("registry") / "models" / "pooling", 2)


@pytest.fixture
def environment(artifacts: list[Artifact], shared_cache: Path, tmp_path: Path) -> dict[str, str]:
    """Return the environment of a service over a registry of two versions that answer differently."""
    registry = tmp_path / "registry"
    for number, artifact in enumerate(artifacts, start=1):
        shutil.copytree(artifact.folder, registry / "models" / "pooling" / str(number))
    plain = serving_environment(registry, shared_cache, tmp_path / "home", "pooling:production")
    aliases = registry / "models" / "pooling" / "aliases"
    aliases.mkdir()
    (aliases / "production.json").write_text('{"version": 1, "previous": []}')
    return plain | {"BISENET_MODELS__ENGINE": "fault_engine:slow:20"}


def picture(code: int) -> UInt8Array:
    """Return a picture whose cells spell a number."""
    return np.kron(red_of(code), np.ones((8, 8), np.uint8))[..., np.newaxis].repeat(3, axis=2)


@dataclass
class Tally:
    """What clients saw."""

    codes: Counter[int] = field(default_factory=Counter)
    versions: Counter[str] = field(default_factory=Counter)
    wrong: list[int] = field(default_factory=list)

    @property
    def total(self) -> int:
        return self.codes.total()


class Crowd:
    """Clients that post pictures, each another one, and look at the answers."""

    def __init__(self, server: Server, artifacts: list[Artifact]) -> None:
        self.tally = Tally()
        self._url = server.client.base_url
        self._artifacts = artifacts
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._code = 0

    @contextmanager
    def at_work(self, clients: int = CLIENTS) -> Iterator[Tally]:
        """Post until the context is left; a request without an answer in time fails the test."""
        with ThreadPoolExecutor(clients) as pool:
            posting = [pool.submit(self._post_all) for _ in range(clients)]
            try:
                yield self.tally
            finally:
                self._done.set()
            for client in posting:
                client.result()

    def _post_all(self) -> None:
        with httpx2.Client(base_url=self._url, timeout=PATIENCE_S) as client:
            while not self._done.is_set():
                with self._lock:
                    self._code += 1
                    code = self._code
                self._post(client, code)

    def _post(self, client: httpx2.Client, code: int) -> None:
        response = client.post("/v1/segment", content=encoded(picture(code)), **LABELS)
        version = response.headers.get("x-model-version", "")
        right = True
        if response.status_code == 200:
            labels_HW = np.load(io.BytesIO(response.content))
            right = spelled(labels_HW, self._artifacts[int(version) - 1]) == code
        with self._lock:
            self.tally.codes[response.status_code] += 1
            self.tally.versions[version] += 1
            if not right:
                self.tally.wrong.append(code)


def worker_of(server: Server) -> int:
    """Return the process of the worker; 0 while there is none."""
    return next(iter(workers_of(server)), 0)


def wait_until(condition: Callable[[], bool]) -> float:
    """Return after how many seconds a condition held."""
    begun_s = time.monotonic()
    while not condition():
        assert time.monotonic() - begun_s < PATIENCE_S
        time.sleep(0.01)
    return time.monotonic() - begun_s


@pytest.mark.guarantee("G8", "G22")
def test_twenty_workers_are_killed_and_each_costs_one_picture_at_most(
    environment: dict[str, str], artifacts: list[Artifact], tmp_path: Path
) -> None:
    recovered_s, lost = [], []
    with started(environment, tmp_path / "log") as server, Crowd(server, artifacts).at_work() as tally:
        for _ in range(20):
            time.sleep(STABLE_S)
            before, victim = tally.codes[503], worker_of(server)
            os.kill(victim, signal.SIGKILL)
            away_s = wait_until(lambda victim=victim: worker_of(server) not in (0, victim))  # type: ignore[misc]
            ready_s = wait_until(lambda: server.client.get("/readyz").status_code == 200)
            recovered_s.append(away_s + ready_s)
            lost.append(tally.codes[503] - before)
    sys.stdout.write(f"{tally.codes}; lost {lost}; ready after {sorted(recovered_s)} s\n")
    assert max(recovered_s) <= READY_S
    assert max(lost) <= 1
    assert set(tally.codes) <= {200, 503}
    assert tally.wrong == []
    assert tally.total > 1000


@pytest.mark.guarantee("G7")
def test_twenty_versions_are_exchanged_in_ten_thousand_requests_without_an_error(
    environment: dict[str, str], artifacts: list[Artifact], tmp_path: Path
) -> None:
    token_file = tmp_path / "token"
    environment["BISENET_AUTH__ADMIN_TOKEN_FILE"] = str(token_file)
    with started(environment, tmp_path / "log") as server, Crowd(server, artifacts).at_work() as tally:
        lines = map(json.loads, server.log.read_text().splitlines())
        admin_url = next(line["admin_url"] for line in lines if line["event"] == "listening")
        headers = {"Authorization": f"Bearer {token_file.read_text().strip()}"}
        with httpx2.Client(base_url=admin_url, headers=headers, timeout=PATIENCE_S) as admin:
            for swap in range(20):
                wait_until(lambda swap=swap: tally.total >= 500 * swap)  # type: ignore[misc]
                version = 2 - swap % 2
                path = "/admin/v1/models/pooling/aliases/production"
                assert admin.put(path, json={"version": version}).status_code == 200
                wait_until(lambda version=version: tally.versions[str(version)] > 0)  # type: ignore[misc]
            wait_until(lambda: tally.total >= 10_000)
    sys.stdout.write(f"{tally.codes}; {tally.versions}\n")
    assert set(tally.codes) == {200}
    assert tally.wrong == []
    assert min(tally.versions.values()) > 1000


@pytest.mark.guarantee("G25")
def test_ten_thousand_pictures_at_once_and_each_has_its_own_mask(
    environment: dict[str, str], artifacts: list[Artifact], tmp_path: Path
) -> None:
    with (
        started(environment, tmp_path / "log") as server,
        Crowd(server, artifacts).at_work(MANY_CLIENTS) as tally,
    ):
        wait_until_many(tally, 10_000)
    assert set(tally.codes) == {200}
    assert tally.wrong == []


def wait_until_many(tally: Tally, total: int) -> None:
    while tally.total < total:
        before = tally.total
        wait_until(lambda before=before: tally.total > before)  # type: ignore[misc]
