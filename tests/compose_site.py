"""The running stack of ``docker-compose.stack.yml``: its containers, their faults, and its users."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

import httpx2
import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[1]
FILES = ("docker-compose.yml", "docker-compose.stack.yml", "tests/docker/small-disks.yml")
URL = "http://127.0.0.1:8000"
GRPC_ADDRESS = "127.0.0.1:8001"
ADMIN_URL = "http://127.0.0.1:8002"
PROMETHEUS_URL = "http://127.0.0.1:9090"
EVALUATIONS = "/admin/v1/evaluations"
SEGMENT = "/v1/segment"

PATIENCE_S = 400.0
"""For a container to be back, or a job to end, on a machine that has much else to do."""

_POLL_S = 0.2
_FINAL = ("succeeded", "failed", "cancelled")
_HEIGHT, _WIDTH = 192, 320

_Result = TypeVar("_Result")


def find_compose() -> str | None:
    """Return the program ``docker-compose``; None where it is not installed."""
    return shutil.which("docker-compose", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")


def eventually(look: Callable[[], _Result | None], what: str, patience_s: float = PATIENCE_S) -> _Result:
    """Return what ``look`` returns as soon as it is neither None nor False; requests of it may fail.

    Args:
        look: is called again and again.
        what: is waited for, for the message.
        patience_s: time after which the test fails, in seconds.
    """
    given_up_s = time.monotonic() + patience_s
    while True:
        try:
            found = look()
        except httpx2.HTTPError:
            found = None
        if found is not None and found is not False:
            return found
        assert time.monotonic() < given_up_s, f"never: {what}"
        time.sleep(_POLL_S)


def photo(seed: int, height: int = _HEIGHT, width: int = _WIDTH) -> bytes:
    """Return a JPEG of coloured noise that is smooth enough to have regions."""
    coarse_HW3 = np.random.default_rng(seed).integers(0, 256, (height // 16, width // 16, 3), np.uint8)
    file = BytesIO()
    Image.fromarray(coarse_HW3).resize((width, height), Image.Resampling.BICUBIC).save(file, "JPEG")
    return file.getvalue()


def write_streets(folder: Path, pictures: int) -> None:
    """Write ``streets.toml``: pictures of noise with labels of noise, of the shipped model's classes."""
    preset = (ROOT / "model/presets/camvid.toml").read_text("utf-8")
    classes = preset[preset.index("[[classes]]") :]
    (folder / "streets.toml").write_text(
        f'name = "streets"\nroot = "."\nignore_id = 255\n[splits]\nval = "val.csv"\n{classes}', "utf-8"
    )
    count = classes.count("[[classes]]")
    for index in range(pictures):
        (folder / f"{index}.jpg").write_bytes(photo(index))
        labels_HW = np.random.default_rng(index).integers(0, count, (_HEIGHT, _WIDTH), np.uint8)
        Image.fromarray(labels_HW).save(folder / f"{index}.png")
    pairs = [f"{index}.jpg,{index}.png\n" for index in range(pictures)]
    (folder / "val.csv").write_text("".join(pairs), "utf-8")


@dataclass(frozen=True)
class Stack:
    """The running stack.

    Args:
        compose_program: ``docker-compose``.
        environment: of it and of ``docker``.
        without: services that cannot be started here.
    """

    compose_program: str
    environment: Mapping[str, str]
    without: Sequence[str] = ()

    def compose(self, *arguments: str) -> str:
        """Run a command of compose on the files of the stack; return what it prints."""
        files = [word for file in FILES for word in ("-f", file)]
        return self._run(self.compose_program, "--env-file", "/dev/null", *files, *arguments)

    def docker(self, *arguments: str) -> str:
        """Run a command of docker; return what it prints."""
        return self._run(self.environment.get("BISENET_DOCKER", "docker"), *arguments)

    def up(self) -> None:
        """Start all containers, and return when those with a health check are healthy."""
        services = set(self.compose("config", "--services").split()) - set(self.without)
        self.compose("up", "-d", "--no-build", "disks")
        self.compose("up", "-d", "--no-build", "--wait", "--wait-timeout", str(int(PATIENCE_S)), *services)

    def container(self, service: str) -> str:
        """Return the id of the container of a service."""
        return self.compose("ps", "-aq", service).strip()

    def inspect(self, service: str) -> dict[str, Any]:
        """Return what the engine says about a container."""
        (found,) = json.loads(self.docker("inspect", self.container(service)))
        return dict(found)

    def log(self, service: str) -> str:
        """Return all that a service has printed."""
        return self.compose("logs", "--no-log-prefix", "--no-color", service)

    def crash(self, service: str) -> None:
        """Kill the first process of a container from outside; return when the engine has started it again."""
        before = self.inspect(service)
        # Not `docker kill`: after that the engine takes the container for one that its user has stopped.
        os.kill(int(before["State"]["Pid"]), signal.SIGKILL)
        eventually(
            lambda: self.inspect(service)["RestartCount"] > before["RestartCount"], f"restart of {service}"
        )

    def fill(self, disk: str) -> None:
        """Write to a disk until nothing more fits."""
        script = "cat /dev/zero >$0; test -s $0 && ! echo x >>$0"
        self.compose("exec", "-T", "disks", "sh", "-c", script, f"/disks/{disk}/fill")

    def free(self, disk: str) -> None:
        """Make room on a disk again."""
        self.compose("exec", "-T", "disks", "rm", f"/disks/{disk}/fill")

    @contextmanager
    def full(self, disk: str) -> Iterator[None]:
        """Keep a disk full for a while."""
        self.fill(disk)
        try:
            yield
        finally:
            self.free(disk)

    @contextmanager
    def cut_off(self, service: str) -> Iterator[None]:
        """Take a container out of the network for a while."""
        container = self.inspect(service)
        (network,) = container["NetworkSettings"]["Networks"]
        self.docker("network", "disconnect", network, container["Id"])
        try:
            yield
        finally:
            self.docker("network", "connect", "--alias", service, network, container["Id"])

    def admin(self) -> httpx2.Client:
        """Return a client of the admin port, with its token."""
        token = self.compose("exec", "-T", "segmentation", "cat", "/var/lib/bisenet/admin-token").strip()
        headers = {"Authorization": f"Bearer {token}"}
        return httpx2.Client(base_url=ADMIN_URL, headers=headers, timeout=30)

    def is_ready(self) -> bool:
        """Return whether the service takes pictures."""
        return httpx2.get(f"{URL}/readyz", timeout=5).status_code == httpx2.codes.OK

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Return what Prometheus finds now.

        Raises:
            AssertionError: it does not understand the expression.
        """
        answer = httpx2.get(f"{PROMETHEUS_URL}/api/v1/query", params={"query": expression}, timeout=30)
        assert answer.status_code == httpx2.codes.OK, answer.text
        return list(answer.json()["data"]["result"])

    def _run(self, *command: str) -> str:
        ran = subprocess.run(
            command, cwd=ROOT, env=dict(self.environment), capture_output=True, text=True, check=False
        )
        assert ran.returncode == 0, f"{' '.join(command)}: {ran.stdout}{ran.stderr}"
        return ran.stdout


@dataclass
class Traffic:
    """Posts pictures one after another, and each until it is answered.

    Attributes:
        answered: pictures with a mask.
        refused: why a picture was posted again, one entry a time.
        wrong: answers that differ from the first answer to the same picture.
    """

    answered: int = 0
    refused: list[str] = field(default_factory=list)
    wrong: list[int] = field(default_factory=list)

    @contextmanager
    def running(self) -> Iterator[Traffic]:
        """Post pictures in a thread as long as the context lasts."""
        done = threading.Event()
        thread = threading.Thread(target=self._post, args=(done,))
        thread.start()
        try:
            yield self
        finally:
            done.set()
            thread.join()

    def goes_on(self, pictures: int = 5) -> None:
        """Return when this many more pictures have been answered."""
        enough = self.answered + pictures
        eventually(lambda: self.answered >= enough, "pictures are answered")

    def _post(self, done: threading.Event) -> None:
        photos = [photo(seed) for seed in range(4)]
        masks: dict[int, bytes] = {}
        with httpx2.Client(base_url=URL, timeout=30) as client:
            while not done.is_set():
                seed = self.answered % len(photos)
                mask = self._answer(client, photos[seed])
                if mask != masks.setdefault(seed, mask):
                    self.wrong.append(self.answered)
                self.answered += 1

    def _answer(self, client: httpx2.Client, body: bytes) -> bytes:
        given_up_s = time.monotonic() + PATIENCE_S
        while time.monotonic() < given_up_s:
            try:
                response = client.post(SEGMENT, params={"output": "labels"}, content=body)
            except httpx2.HTTPError as error:
                self.refused.append(type(error).__name__)
            else:
                if response.status_code == httpx2.codes.OK:
                    return response.content
                self.refused.append(response.json()["code"])
            time.sleep(_POLL_S)
        self.refused.append("given up")
        return b""


class Evaluation:
    """An evaluation job on the stack.

    Args:
        stack: runs it.
        key: idempotency key: the same one again names the same job.
    """

    def __init__(self, stack: Stack, key: str) -> None:
        self._stack = stack
        self._key = key
        self.id = eventually(self._submitted, "the job is taken")

    def _submitted(self) -> str | None:
        with self._stack.admin() as admin:
            body = {"model": "camvid", "dataset": "streets", "protocol": "ss"}
            answer = admin.post(EVALUATIONS, json=body, headers={"Idempotency-Key": self._key})
        return str(answer.json()["id"]) if answer.status_code == httpx2.codes.ACCEPTED else None

    def now(self) -> dict[str, Any]:
        """Return the job as the service tells it."""
        with self._stack.admin() as admin:
            return dict(admin.get(f"{EVALUATIONS}/{self.id}").raise_for_status().json())

    def begun(self) -> None:
        """Return when some pictures are counted, and fail if it is over by then."""
        job = eventually(lambda: (job := self.now())["done"] > 0 and job, "the job begins")
        assert job["state"] == "running", job

    def scores(self) -> dict[str, Any]:
        """Return the scores at its end.

        Raises:
            AssertionError: it does not succeed.
        """
        job = eventually(lambda: (job := self.now())["state"] in _FINAL and job, "the job ends")
        assert job["state"] == "succeeded", job
        return {key: job["result"][key] for key in ("miou", "per_class", "images")}
