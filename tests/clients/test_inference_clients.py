"""Clients of the Open Inference Protocol by others, each in its environment, against a started service."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from client_site import MODEL, ClientSite, open_client_site
from live_service import ROOT

from model.pictures.image import decode_image

pytestmark = pytest.mark.clients

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, shared_cache: Path) -> Iterator[ClientSite]:
    with open_client_site(tmp_path_factory.mktemp("clients"), shared_cache) as site:
        picture = (site.folder / "picture.jpg").read_bytes()
        np.save(site.folder / "pixels.npy", decode_image(picture))
        response = site.server.client.post(
            "/v1/segment",
            content=picture,
            params={"output": "labels"},
            headers={"Accept": "application/x-npy"},
        )
        np.save(site.folder / "labels.npy", np.load(io.BytesIO(response.content)))
        yield site
        assert site.server.stop() == 0
    assert '"level": "error"' not in site.server.log.read_text()


@pytest.mark.parametrize(
    ("environment", "script", "checks"),
    [
        ("triton", "triton_http.py", 38),
        ("triton", "triton_grpc.py", 27),
        ("kserve", "kserve_clients.py", 22),
    ],
)
def test_a_client_gets_our_labels_and_our_errors(
    site: ClientSite, environment: str, script: str, checks: int
) -> None:
    passed = re.search(r"^ok ([0-9]+)$", site.run(environment, HERE / script), re.MULTILINE)
    assert passed
    assert int(passed[1]) >= checks


@pytest.mark.parametrize(
    ("environment", "number", "transport"),
    [("triton", 0, "http"), ("triton", 0, "grpc"), ("kserve", 1, "http")],
)
def test_the_ten_lines_of_the_guide_run_as_they_stand(
    site: ClientSite, environment: str, number: int, transport: str
) -> None:
    page = (ROOT / "docs" / "open-inference.md").read_text("utf-8")
    program = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)[number]
    for written, here in (
        ("tritonclient.http", f"tritonclient.{transport}"),
        ("127.0.0.1:8000", site.http if transport == "http" else site.grpc),
        ("camvid", MODEL),
        ("photo.jpg", "picture.jpg"),
    ):
        assert written in program or environment == "kserve"
        program = program.replace(written, here)
    printed = site.run(environment, "-c", program)
    assert "96, 144)" in printed
