"""A running service for other people's clients, whose programs run in environments of their own."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2
import numpy as np
from fakes import write_pooling_artifact
from http_site import encoded
from live_service import ROOT, Server, serving_environment, started

from model.artifacts.registry import ModelRegistry

ENVIRONMENTS = ROOT / "build" / "clients"
PROGRAM_S = 300
MODEL = "pooling"


@dataclass(frozen=True)
class ClientSite:
    """A running service, and the folder that tells the clients' programs of it.

    Attributes:
        server: the service.
        folder: holds ``site.json`` with the addresses, and ``picture.jpg``; programs run in it.
        http: ``HOST:PORT``.
        grpc: ``HOST:PORT``.
        admin: ``HOST:PORT``.
        token: of the admin port.
    """

    server: Server
    folder: Path
    http: str
    grpc: str
    admin: str
    token: str

    def start(self, environment: str, *arguments: str | Path, **variables: str) -> subprocess.Popen[str]:
        """Start the Python of an environment, or Node.js where the environment has packages for it."""
        python = ENVIRONMENTS / environment / "bin" / "python"
        is_node = (ENVIRONMENTS / environment / "node_modules").exists()
        assert is_node or python.exists(), f"{python} is missing: run `make clients`"
        return subprocess.Popen(
            ["node" if is_node else python, *arguments],
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={
                "PATH": os.environ["PATH"],
                "HOME": str(self.folder),
                "CLIENT_SITE": str(self.folder),
                **variables,
            },
        )

    def run(self, environment: str, *arguments: str | Path, **variables: str) -> str:
        """Run a program to its end, and return what it printed."""
        return output_of(self.start(environment, *arguments, **variables))

    def administrate(self, method: str, path: str) -> httpx2.Response:
        """Ask the admin port."""
        headers = {"Authorization": f"Bearer {self.token}"}
        response = httpx2.request(method, f"http://{self.admin}{path}", headers=headers)
        response.raise_for_status()
        return response


def output_of(program: subprocess.Popen[str]) -> str:
    """Wait for a program, which must succeed, and return what it printed."""
    with program:
        try:
            output, complaints = program.communicate(timeout=PROGRAM_S)
        finally:
            program.kill()
    assert program.returncode == 0, f"{output[-2000:]}\n{complaints[-4000:]}"
    return output


@contextmanager
def open_client_site(folder: Path, cache_folder: Path, **settings: str) -> Iterator[ClientSite]:
    """Serve a small model.

    Args:
        folder: empty.
        cache_folder: of compiled kernels and graphs.
        settings: further environment variables of the service.
    """
    ModelRegistry(folder / "registry").publish(write_pooling_artifact(folder / "artifact").folder, MODEL)
    smooth = np.linspace(0, 255, 96 * 144 * 3).reshape(96, 144, 3).astype(np.uint8)
    (folder / "picture.jpg").write_bytes(encoded(smooth, "JPEG", quality=90))
    environment = serving_environment(folder / "registry", cache_folder, folder, MODEL)
    with started({**environment, **settings}, folder / "log") as server:
        log, url = server.log.read_text(), server.client.base_url
        addresses = {
            "http": f"{url.host}:{url.port}",
            "grpc": _logged(log, "grpc_address"),
            "admin": _logged(log, "admin_url").removeprefix("http://"),
            "token": Path(_logged(log, "token")).read_text().strip(),
        }
        (folder / "site.json").write_text(json.dumps(addresses))
        yield ClientSite(server, folder, **addresses)


def _logged(log: str, name: str) -> str:
    found = re.search(rf'"{name}": "([^"]+)"', log)
    assert found, log
    return found[1]
