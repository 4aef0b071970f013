"""Clients of the Open Inference Protocol by others, each in its environment, against a started service."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from fakes import write_pooling_artifact
from http_site import encoded
from live_service import ROOT, Server, serving_environment, started

from model.artifacts.registry import ModelRegistry
from model.pictures.image import decode_image

pytestmark = pytest.mark.clients

HERE = Path(__file__).parent
ENVIRONMENTS = ROOT / "build" / "clients"
PROGRAM_S = 300


@dataclass(frozen=True)
class Site:
    """A running service, and the folder that tells the clients' programs of it."""

    server: Server
    folder: Path

    def run(self, environment: str, *arguments: str | Path) -> str:
        """Run the Python of an environment in the folder, and return what it printed."""
        python = ENVIRONMENTS / environment / "bin" / "python"
        assert python.exists(), f"{python} is missing: run `make clients`"
        done = subprocess.run(
            [python, *arguments],
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=PROGRAM_S,
            env={"PATH": os.environ["PATH"], "HOME": str(self.folder), "CLIENT_SITE": str(self.folder)},
            check=False,
        )
        assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        return done.stdout


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, shared_cache: Path) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("clients")
    ModelRegistry(folder / "registry").publish(write_pooling_artifact(folder / "artifact").folder, "pooling")
    environment = serving_environment(folder / "registry", shared_cache, folder, "pooling")
    smooth = np.linspace(0, 255, 96 * 144 * 3).reshape(96, 144, 3).astype(np.uint8)
    picture = encoded(smooth, "JPEG", quality=90)
    (folder / "picture.jpg").write_bytes(picture)
    np.save(folder / "pixels.npy", decode_image(picture))
    with started(environment, folder / "log") as server:
        response = server.client.post(
            "/v1/segment",
            content=picture,
            params={"output": "labels"},
            headers={"Accept": "application/x-npy"},
        )
        np.save(folder / "labels.npy", np.load(io.BytesIO(response.content)))
        log, url = server.log.read_text(), server.client.base_url
        described = {
            "http": f"{url.host}:{url.port}",
            "grpc": _logged(log, "grpc_address"),
            "admin": _logged(log, "admin_url").removeprefix("http://"),
            "token": Path(_logged(log, "token")).read_text().strip(),
        }
        (folder / "site.json").write_text(json.dumps(described))
        yield Site(server, folder)
        assert server.stop() == 0
    assert '"level": "error"' not in server.log.read_text()


def _logged(log: str, name: str) -> str:
    found = re.search(rf'"{name}": "([^"]+)"', log)
    assert found, log
    return found[1]


@pytest.mark.parametrize(
    ("environment", "script", "checks"),
    [
        ("triton", "triton_http.py", 30),
        ("triton", "triton_grpc.py", 15),
        ("kserve", "kserve_clients.py", 15),
    ],
)
def test_a_client_gets_our_labels_and_our_errors(
    site: Site, environment: str, script: str, checks: int
) -> None:
    passed = re.search(r"^ok ([0-9]+)$", site.run(environment, HERE / script), re.MULTILINE)
    assert passed
    assert int(passed[1]) >= checks


@pytest.mark.parametrize(
    ("environment", "number", "transport"),
    [("triton", 0, "http"), ("triton", 0, "grpc"), ("kserve", 1, "http")],
)
def test_the_ten_lines_of_the_guide_run_as_they_stand(
    site: Site, environment: str, number: int, transport: str
) -> None:
    page = (ROOT / "docs" / "open-inference.md").read_text("utf-8")
    program = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)[number]
    addresses = json.loads((site.folder / "site.json").read_text())
    for written, here in (
        ("tritonclient.http", f"tritonclient.{transport}"),
        ("127.0.0.1:8000", addresses[transport]),
        ("camvid", "pooling"),
        ("photo.jpg", "picture.jpg"),
    ):
        assert written in program or environment == "kserve"
        program = program.replace(written, here)
    printed = site.run(environment, "-c", program)
    assert "96, 144)" in printed
