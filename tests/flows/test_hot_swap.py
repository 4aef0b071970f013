"""Versions change under load, over the admin frontend of a service that runs; no request notices."""

from __future__ import annotations

import re
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import httpx2
import numpy as np
import pytest
from fakes import PATIENCE_S, write_pooling_artifact
from http_site import encoded
from live_service import Server, serving_environment, started

from model.artifacts.manifest import ModelVersion
from model.artifacts.registry import ModelRegistry

COLORS = np.array([[0, 0, 0], [255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0], [0, 255, 255]], np.uint8)
PICTURE = encoded(np.repeat(np.repeat(COLORS[np.newaxis], 64, axis=0), 16, axis=1))


@dataclass(frozen=True)
class Site:
    """A service with two versions of a model that differ in their answers, and its admin frontend."""

    server: Server
    admin: httpx2.Client

    def promote(self, version: int) -> None:
        path = "/admin/v1/models/pooling/aliases/production"
        response = self.admin.put(path, json={"version": version})
        assert response.json()["version"] == version

    def mask_of(self, version: int) -> str:
        path = f"/v1/models/pooling/versions/{version}:segment"
        response = self.server.client.post(path, content=PICTURE)
        assert response.status_code == 200
        return digest(response)


def digest(response: httpx2.Response) -> str:
    return sha256(response.content).hexdigest()


@pytest.fixture
def site(tmp_path: Path, shared_cache: Path) -> Iterator[Site]:
    registry = ModelRegistry(tmp_path / "registry")
    for seed in (0, 3):
        registry.publish(write_pooling_artifact(tmp_path / f"artifact-{seed}", seed=seed).folder, "pooling")
    registry.promote(ModelVersion("pooling", 1))
    environment = serving_environment(tmp_path / "registry", shared_cache, tmp_path, "pooling")
    with started(environment, tmp_path / "log") as server:
        server.wait_until_logged('"event": "listening"')
        address = re.search(r'"admin_url": "([^"]+)", "token": "([^"]+)"', server.log.read_text())
        assert address
        token = {"Authorization": f"Bearer {Path(address[2]).read_text().strip()}"}
        with httpx2.Client(base_url=address[1], headers=token, timeout=PATIENCE_S) as admin:
            yield Site(server, admin)
        assert server.stop() == 0


def swapped_under_load(site: Site, *, swaps: int, requests: int) -> Counter[tuple[int, str | None, str]]:
    """Ask from four clients, and promote one version after the other until enough was asked and swapped."""
    answers: Counter[tuple[int, str | None, str]] = Counter()
    enough = threading.Event()

    def ask() -> None:
        with httpx2.Client(base_url=site.server.client.base_url, timeout=PATIENCE_S) as client:
            while not enough.is_set():
                response = client.post("/v1/segment", content=PICTURE)
                version = response.headers.get("x-model-version")
                answers[response.status_code, version, digest(response)] += 1

    with ThreadPoolExecutor(4) as clients:
        asking = [clients.submit(ask) for _ in range(4)]
        try:
            for number in range(swaps):
                while answers.total() < number * requests // swaps:
                    enough.wait(0.01)
                site.promote(2 - number % 2)
            while answers.total() < requests:
                enough.wait(0.01)
        finally:
            enough.set()
        for each in asking:
            each.result()
    return answers


@pytest.mark.guarantee("G7")
def test_no_request_fails_or_gets_the_labels_of_another_version(site: Site) -> None:
    site.promote(2)
    masks = {"2": site.mask_of(2)}
    site.promote(1)
    masks["1"] = site.mask_of(1)
    assert masks["1"] != masks["2"]
    answers = swapped_under_load(site, swaps=4, requests=200)
    assert {status for status, _, _ in answers} == {200}
    assert {version: mask for _, version, mask in answers} == masks
    assert len(answers) == 2


@pytest.mark.guarantee("G7")
@pytest.mark.soak
def test_a_hundred_swaps_leave_no_memory_behind(site: Site) -> None:
    swapped_under_load(site, swaps=20, requests=400)  # caches and pools are full now
    before = site.server.memory_bytes()
    swapped_under_load(site, swaps=100, requests=2_000)
    after = site.server.memory_bytes()
    print(f"{before / 1e6:.1f} MB before 100 swaps, {after / 1e6:.1f} MB after")  # noqa: T201
    assert after <= 1.02 * before
