"""The client programs of ``examples`` run as they stand against a service of their own."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from films import FILM_SIZE, film
from http_site import encoded
from live_service import serving_environment, started
from PIL import Image

from model.labels import UInt8Array

EXAMPLES = Path(__file__).parents[2] / "examples"
NODE = shutil.which("node") or "node"
PYTHON_CLIENT = (sys.executable, str(EXAMPLES / "segment_picture.py"))
NODE_CLIENT = (NODE, str(EXAMPLES / "segment_picture.mjs"))
CAMERA_CLIENT = (sys.executable, str(EXAMPLES / "segment_camera.py"))
TIMEOUT_S = 120
UNREACHABLE = "http://127.0.0.1:9"  # port of the discard service, which runs nowhere

needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")


def run(*command: str | Path) -> tuple[int, str, str]:
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def addresses(
    tiny_registry: Path, shared_cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, str]]:
    """Return the addresses of a service, as its ready file states them."""
    folder = tmp_path_factory.mktemp("service")
    environment = serving_environment(tiny_registry, shared_cache, folder, "tiny")
    with started(environment, folder / "log", "--ready-file", str(folder / "ready.json")):
        yield json.loads((folder / "ready.json").read_text())


@pytest.fixture
def picture(photo: UInt8Array, tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    path.write_bytes(encoded(photo))
    return path


def test_both_http_clients_write_the_mask_and_tell_the_share_of_each_class(
    addresses: dict[str, str], picture: Path, tmp_path: Path
) -> None:
    code, python_output, complaints = run(
        *PYTHON_CLIENT, picture, tmp_path / "python.png", "--url", addresses["url"]
    )
    assert code == 0, complaints
    height, width = np.asarray(Image.open(picture)).shape[:2]
    with Image.open(tmp_path / "python.png") as mask:
        assert (mask.mode, mask.size) == ("P", (width, height))
    model, *shares = python_output.splitlines()
    assert model == f"tiny@1: {width}x{height} pixels"
    assert sum(float(line.split()[-1].rstrip("%")) for line in shares) == pytest.approx(100, abs=1)
    if shutil.which("node"):
        code, node_output, complaints = run(*NODE_CLIENT, picture, tmp_path / "node.png", addresses["url"])
        assert code == 0, complaints
        assert node_output.split() == python_output.split()
        assert (tmp_path / "node.png").read_bytes() == (tmp_path / "python.png").read_bytes()


@pytest.mark.parametrize("client", [PYTHON_CLIENT, pytest.param(NODE_CLIENT, marks=needs_node)])
def test_an_http_client_tells_why_a_picture_is_refused(
    addresses: dict[str, str], tmp_path: Path, client: tuple[str, str]
) -> None:
    (tmp_path / "text.png").write_text("no picture")
    url = ["--url", addresses["url"]] if client == PYTHON_CLIENT else [addresses["url"]]
    code, output, complaints = run(*client, tmp_path / "text.png", tmp_path / "mask.png", *url)
    assert (code, output) == (1, "")
    assert complaints.startswith("error: ")
    assert "unsupported_media" in complaints
    assert not (tmp_path / "mask.png").exists()


@pytest.mark.parametrize("client", [PYTHON_CLIENT, pytest.param(NODE_CLIENT, marks=needs_node)])
def test_an_http_client_tells_that_there_is_no_service(
    picture: Path, tmp_path: Path, client: tuple[str, str]
) -> None:
    url = ["--url", UNREACHABLE] if client == PYTHON_CLIENT else [UNREACHABLE]
    code, _, complaints = run(*client, picture, tmp_path / "mask.png", *url)
    assert code == 1
    assert complaints.startswith("error: ")


def test_the_camera_client_tells_the_outcome_of_every_frame(
    addresses: dict[str, str], tmp_path: Path
) -> None:
    clip = film(tmp_path / "clip.mp4", 5)
    code, output, complaints = run(*CAMERA_CLIENT, clip, "--server", addresses["grpc_address"])
    assert code == 0, complaints
    opened, *frames, summary = output.splitlines()
    assert opened == "opened: tiny@1 answers"
    size = f"{FILM_SIZE[1]}x{FILM_SIZE[0]}"
    assert [line.partition(", ")[0] for line in frames] == [
        f"frame {seq}: {size} pixels" for seq in range(1, 6)
    ]
    assert summary == "5 frames sent, 5 answered"


def test_the_camera_client_tells_that_a_film_cannot_be_read(tmp_path: Path) -> None:
    code, _, complaints = run(*CAMERA_CLIENT, tmp_path / "nothing.mp4")
    assert code == 1
    assert complaints.startswith("error: ")
    assert "nothing.mp4" in complaints
