"""Other people's clients while the service is overloaded, and while it stops: their exceptions, our text."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
from client_site import ENVIRONMENTS, ClientSite, open_client_site, output_of
from worker_site import wait_until

pytestmark = pytest.mark.clients

SLOW = "fault_engine:slow:2000"
"""Two seconds for each picture, two pictures in a batch; a worker that takes ten seconds is restarted."""

PYTHON = Path(__file__).with_name("one_request.py")
NODE = ENVIRONMENTS / "hugging-face-node" / "one_request.mjs"


@dataclass(frozen=True)
class Client:
    """A client, and the exception that it raises.

    Attributes:
        name: of the client.
        environment: that it is installed in.
        error: name of its exception.
        knows_readiness: whether it can ask for the state of a service.
    """

    name: str
    environment: str
    error: str
    knows_readiness: bool = True

    def start(self, site: ClientSite) -> subprocess.Popen[str]:
        """Begin to ask; see ``one_request.py`` for what the program prints."""
        program = NODE if self.environment.endswith("node") else PYTHON
        return site.start(self.environment, program, CLIENT=self.name)

    def expected_readiness(self, *, is_ready: bool) -> bool | None:
        """Return what the program prints of a service in this state."""
        return is_ready if self.knows_readiness else None


CLIENTS = (
    Client("triton http", "triton", "InferenceServerException"),
    Client("triton grpc", "triton", "InferenceServerException"),
    Client("kserve http", "kserve", "HTTPStatusError"),
    Client("kserve grpc", "kserve", "AioRpcError"),
    Client("huggingface_hub", "hugging-face-python", "HfHubHTTPError", knows_readiness=False),
    Client("huggingface.js", "hugging-face-node", "InferenceClientProviderApiError", knows_readiness=False),
)


@pytest.fixture(scope="module")
def overloaded(tmp_path_factory: pytest.TempPathFactory, shared_cache: Path) -> Iterator[ClientSite]:
    settings = {"BISENET_MODELS__ENGINE": SLOW, "BISENET_LIMITS__MAX_WAITING": "1"}
    folder = tmp_path_factory.mktemp("overloaded")
    with open_client_site(folder, shared_cache, **settings) as site, queue_kept_full(site):
        yield site


@contextmanager
def queue_kept_full(site: ClientSite) -> Iterator[None]:
    """Occupy the device and the one place in the queue, until the service is killed."""
    picture = (site.folder / "picture.jpg").read_bytes()
    ending = threading.Event()

    def send() -> None:
        with httpx2.Client(timeout=None) as client, suppress(httpx2.TransportError):
            while not ending.wait(0.01):
                client.post(f"http://{site.http}/v1/segment", content=picture)

    threads = [threading.Thread(target=send) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ending.set()
        site.server.process.kill()
        for thread in threads:
            thread.join()


@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.name)
def test_a_client_of_an_overloaded_service_raises_its_own_exception_with_our_text(
    overloaded: ClientSite, client: Client
) -> None:
    begun, ended = map(json.loads, output_of(client.start(overloaded)).splitlines())
    assert begun["ready"] is client.expected_readiness(is_ready=True)
    assert ended["error"] == client.error
    assert "the queue is full, 1 request is waiting: try again later" in ended["text"]


def test_the_clients_of_a_draining_service_are_answered_until_it_ends_and_then_told_so(
    tmp_path: Path, shared_cache: Path
) -> None:
    settings = {"BISENET_MODELS__ENGINE": SLOW, "BISENET_LIMITS__DEFAULT_TIMEOUT_S": "300"}
    with open_client_site(tmp_path, shared_cache, **settings) as site:
        site.administrate("POST", "/admin/v1/drain")
        programs = [client.start(site) for client in CLIENTS]
        begun = [_line(program) for program in programs]
        assert begun == [{"ready": client.expected_readiness(is_ready=False)} for client in CLIENTS]
        wait_until(lambda: _in_flight(site) == len(CLIENTS) + 1)  # and the question itself
        site.server.process.send_signal(signal.SIGTERM)
        site.server.wait_until_logged("stopping")
        site.server.process.send_signal(signal.SIGINT)  # the second signal: answer at once
        for client, program in zip(CLIENTS, programs, strict=True):
            ended = json.loads(output_of(program))
            assert ended["error"] == client.error, ended
            assert "the service stopped before it could answer" in ended["text"], ended


def _line(program: subprocess.Popen[str]) -> Any:
    assert program.stdout is not None
    return json.loads(program.stdout.readline())


def _in_flight(site: ClientSite) -> float:
    found = re.search(r"^bisenet_inflight (\S+)$", site.administrate("GET", "/metrics").text, re.MULTILINE)
    assert found
    return float(found[1])
