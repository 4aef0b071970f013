"""Services share one registry in a bucket: all of them follow an alias that is moved once, under load."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import httpx2
import numpy as np
import pytest
from bucket_site import open_bucket
from fakes import PATIENCE_S, write_pooling_artifact
from http_site import encoded
from live_service import Server, serving_environment, started

from model.artifacts.manifest import ModelVersion
from model.artifacts.registry import ModelRegistry

COLORS = np.array([[0, 0, 0], [255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0], [0, 255, 255]], np.uint8)
PICTURE = encoded(np.repeat(np.repeat(COLORS[np.newaxis], 64, axis=0), 16, axis=1))
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}

Answer = tuple[int, str | None, str]
"""Status, version that the answer names, digest of the mask."""


@dataclass(frozen=True)
class Replicas:
    """Services that know nothing of each other, and the registry that they follow."""

    servers: tuple[Server, ...]
    registry: ModelRegistry


def answer(client: httpx2.Client, path: str = "/v1/segment") -> Answer:
    response = client.post(path, content=PICTURE)
    digest = sha256(response.content).hexdigest()
    return response.status_code, response.headers.get("x-model-version"), digest


@pytest.fixture
def replicas(tmp_path: Path, shared_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Replicas]:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    with open_bucket() as bucket, ExitStack() as stack:
        url = f"s3://bucket/registry?endpoint={bucket.url}&region=here"
        registry = ModelRegistry(url, cache_folder=tmp_path / "fetched")
        for seed in (0, 3):
            artifact = write_pooling_artifact(tmp_path / f"artifact-{seed}", seed=seed)
            registry.publish(artifact.folder, "pooling")
        registry.promote(ModelVersion("pooling", 1))
        environment = serving_environment(tmp_path, shared_cache, tmp_path, "pooling") | CREDENTIALS
        environment |= {"BISENET_REGISTRY": url, "BISENET_REGISTRY__FOLLOW_S": "0.2"}
        servers = tuple(stack.enter_context(started(environment, tmp_path / f"log-{n}")) for n in range(2))
        yield Replicas(servers, registry)
        assert [server.stop() for server in servers] == [0, 0]


def asked_while_moved(replicas: Replicas, *, moves: int, requests: int) -> list[Counter[Answer]]:
    """Ask both replicas, move the alias between two versions meanwhile, and return what each answered.

    A move is over when both replicas answer with the version that it was to.
    """
    answers: list[Counter[Answer]] = [Counter() for _ in replicas.servers]
    enough, moved = threading.Event(), threading.Condition()

    def ask(server: Server, counted: Counter[Answer]) -> None:
        with httpx2.Client(base_url=server.client.base_url, timeout=PATIENCE_S) as client:
            while not enough.is_set():
                found = answer(client)
                with moved:
                    counted[found] += 1
                    moved.notify_all()

    def seen(version: int) -> list[int]:
        return [
            sum(n for (_, named, _), n in counted.items() if named == str(version)) for counted in answers
        ]

    def all_answer_more_of(version: int, before: list[int]) -> bool:
        return all(now > then for now, then in zip(seen(version), before, strict=True))

    with ThreadPoolExecutor(4) as clients:
        asking = [clients.submit(ask, *each) for each in zip(replicas.servers, answers, strict=True)]
        try:
            for number in range(moves):
                version = 2 - number % 2
                replicas.registry.promote(ModelVersion("pooling", version))
                with moved:
                    before = seen(version)
                    assert moved.wait_for(lambda: all_answer_more_of(version, before), PATIENCE_S)  # noqa: B023
            with moved:
                assert moved.wait_for(
                    lambda: sum(counted.total() for counted in answers) >= requests, 30 * PATIENCE_S
                )
        finally:
            enough.set()
        for each in asking:
            each.result()
    return answers


def check(replicas: Replicas, *, moves: int, requests: int) -> None:
    answers = asked_while_moved(replicas, moves=moves, requests=requests)
    for server, counted in zip(replicas.servers, answers, strict=True):
        assert {status for status, _, _ in counted} == {200}
        masks = {version: mask for _, version, mask in counted}
        assert len(counted) == len(masks) == len(set(masks.values())) == 2, "an answer names another version"
        assert set(masks) == {"1", "2"}
        assert '"event": "alias followed"' in server.log.read_text()
    assert answers[0].keys() == answers[1].keys(), "the replicas differ"


def test_an_alias_that_moves_under_load_is_followed_by_all_replicas_and_no_request_fails(
    replicas: Replicas,
) -> None:
    check(replicas, moves=2, requests=60)


@pytest.mark.guarantee("G7")
@pytest.mark.soak
def test_of_ten_thousand_pictures_during_twenty_moves_none_fails(replicas: Replicas) -> None:
    check(replicas, moves=20, requests=10_000)
