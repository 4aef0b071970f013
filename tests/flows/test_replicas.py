"""Services share one registry in a bucket: they follow its alias and are exchanged one by one, under load."""

from __future__ import annotations

import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
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
from proxies import Proxy, free_ports, haproxy_balancer, needs_haproxy, needs_nginx, nginx_balancer

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


@dataclass(frozen=True)
class Shared:
    """A registry in a bucket with two versions, and the surroundings of services that follow it."""

    registry: ModelRegistry
    environment: dict[str, str]


@pytest.fixture
def shared(tmp_path: Path, shared_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shared]:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    with open_bucket() as bucket:
        url = f"s3://bucket/registry?endpoint={bucket.url}&region=here"
        registry = ModelRegistry(url, cache_folder=tmp_path / "fetched")
        for seed in (0, 3):
            artifact = write_pooling_artifact(tmp_path / f"artifact-{seed}", seed=seed)
            registry.publish(artifact.folder, "pooling")
        registry.promote(ModelVersion("pooling", 1))
        environment = serving_environment(tmp_path, shared_cache, tmp_path, "pooling") | CREDENTIALS
        yield Shared(registry, environment | {"BISENET_REGISTRY": url, "BISENET_REGISTRY__FOLLOW_S": "0.2"})


@pytest.fixture
def replicas(tmp_path: Path, shared: Shared) -> Iterator[Replicas]:
    with ExitStack() as stack:
        servers = tuple(
            stack.enter_context(started(shared.environment, tmp_path / f"log-{n}")) for n in range(2)
        )
        yield Replicas(servers, shared.registry)
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


# --- a rolling update behind a proxy ----------------------------------------------------------------------

both_balancers = pytest.mark.parametrize(
    "balancer",
    [
        pytest.param(nginx_balancer, marks=needs_nginx, id="nginx"),
        pytest.param(haproxy_balancer, marks=needs_haproxy, id="HAProxy"),
    ],
)


class Clients:
    """Ask a proxy from several threads, with connections that are kept, and count the answers."""

    def __init__(self, url: str) -> None:
        self.answers: Counter[Answer] = Counter()
        self._url = url
        self._changed = threading.Condition()
        self._enough = threading.Event()

    @contextmanager
    def at_work(self, count: int = 4) -> Iterator[None]:
        """Ask until the context is left."""
        with ThreadPoolExecutor(count) as pool:
            asking = [pool.submit(self._ask) for _ in range(count)]
            try:
                yield
            finally:
                self._enough.set()
            for each in asking:
                each.result()

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Return when a condition on the answers holds."""
        with self._changed:
            assert self._changed.wait_for(condition, 30 * PATIENCE_S)

    def wait_for_more(self, count: int) -> None:
        """Return after so many more answers."""
        wanted = self.answers.total() + count
        self.wait_for(lambda: self.answers.total() >= wanted)

    def _ask(self) -> None:
        with httpx2.Client(base_url=self._url, timeout=PATIENCE_S) as client:
            while not self._enough.is_set():
                found = answer(client)
                with self._changed:
                    self.answers[found] += 1
                    self._changed.notify_all()


@pytest.mark.guarantee("G6", "G7")
@pytest.mark.soak
@both_balancers
def test_of_ten_thousand_pictures_none_fails_while_both_replicas_are_exchanged_and_the_alias_moves(
    shared: Shared, tmp_path: Path, balancer: Callable[..., AbstractContextManager[Proxy]]
) -> None:
    ports = free_ports(2)
    environment = shared.environment | {"BISENET_SERVER__LAME_DUCK_S": "1"}
    with ExitStack() as stack:

        def start(number: int, port: int) -> Server:
            log = tmp_path / f"log-{number}"
            return stack.enter_context(started(environment, log, "--http-port", str(port)))

        servers = [start(number, port) for number, port in enumerate(ports)]
        proxy = stack.enter_context(balancer(tmp_path / "proxy", ports))
        clients = Clients(proxy.http_url)
        right = {answer(servers[0].client)}
        with clients.at_work():
            for number, port in enumerate(ports):
                clients.wait_for_more(500)
                assert servers[number].stop() == 0
                servers[number] = start(number + 2, port)
                servers[number].wait_until_logged('"event": "request"')  # the proxy trusts it again
            shared.registry.promote(ModelVersion("pooling", 2))
            clients.wait_for(lambda: any(version == "2" for _, version, _ in clients.answers))
            clients.wait_for(lambda: clients.answers.total() >= 10_000)
        right |= {answer(servers[0].client)}
        assert {(status, version) for status, version, _ in right} == {(200, "1"), (200, "2")}
        assert len({mask for _, _, mask in right}) == 2
        assert clients.answers.keys() == right, (tmp_path / "proxy" / "log").read_text()
        sys.stdout.write(f"{clients.answers.total()} answers\n")
        assert [server.stop() for server in servers] == [0, 0]
