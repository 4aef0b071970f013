"""``bisenet stream`` as users start it: a film through a service, and out as a film with overlays."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from certificates import make_certificate, needs_openssl
from fakes import PATIENCE_S
from films import damage, film_server, mjpeg_camera, turn
from grpc_site import GrpcSite, open_grpc_site
from http_site import picture_of

pytest.importorskip("av", reason="the extra `client` is not installed")

from service.client.cameras import FilmWriter, source_frames

ROOT = Path(__file__).parents[2]


@pytest.fixture
async def site() -> AsyncIterator[GrpcSite]:
    async with open_grpc_site() as site:
        yield site


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """Return a film of 20 pictures, dark on the left and white on the right."""
    writer = FilmWriter(tmp_path / "clip.mp4")
    image_HW3 = picture_of(np.repeat(np.array([[1, 3]], np.uint8), 32, 1).repeat(64, 0))
    for number in range(20):
        writer.write(image_HW3, number / 25)
    writer.close()
    return tmp_path / "clip.mp4"


async def bisenet_stream(*arguments: str | Path) -> tuple[int, str, str]:
    program = await asyncio.create_subprocess_exec(
        *(sys.executable, "bisenet.py", "stream", *map(str, arguments)),
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name != "DISPLAY"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, complaints = await asyncio.wait_for(program.communicate(), 2 * PATIENCE_S)
    assert program.returncode is not None
    return program.returncode, output.decode(), complaints.decode()


async def report_of(*arguments: str | Path) -> dict[str, Any]:
    code, output, complaints = await bisenet_stream(*arguments, "--json")
    assert code == 0, complaints
    report: dict[str, Any] = json.loads(output)
    return report


async def test_a_film_comes_back_with_overlays_picture_by_picture(
    site: GrpcSite, clip: Path, tmp_path: Path
) -> None:
    out = tmp_path / "overlay.mp4"
    report = await report_of(clip, "--server", site.address, "--out", out)
    assert (report["sent"], report["answered"], report["lost"]) == (20, 20, 0)
    assert report["age_ms"]["p99"] > 0
    overlays = list(source_frames(str(out)))
    assert [round(25 * frame.position_s) for frame in overlays] == list(range(20))
    left, right = (overlays[5].image_HW3[16:48, columns].mean() for columns in (slice(4, 24), slice(40, 60)))
    assert abs(left - 85) < 12
    assert right > 200


@pytest.mark.parametrize("form", ["file://{folder}/clip.mp4", "{url}/clip.mp4"])
async def test_a_url_of_a_film_is_read_once_and_loses_no_frame(site: GrpcSite, clip: Path, form: str) -> None:
    with film_server(clip.parent) as url:
        report = await report_of(form.format(folder=clip.parent, url=url), "--server", site.address)
    assert (report["sent"], report["answered"], report["reconnects"]) == (20, 20, 0)


async def test_a_film_of_a_phone_becomes_an_upright_overlay(
    site: GrpcSite, clip: Path, tmp_path: Path
) -> None:
    turn(clip, 0, 1, -1, 0)  # the dark left half is now the upper one
    await report_of(clip, "--server", site.address, "--out", tmp_path / "overlay.mp4")
    overlays = list(source_frames(str(tmp_path / "overlay.mp4")))
    upper, lower = (overlays[5].image_HW3[rows].mean() for rows in (slice(4, 24), slice(40, 60)))
    assert abs(upper - 85) < 12
    assert lower > 200


async def test_a_damaged_film_costs_its_pictures_and_one_line(site: GrpcSite, clip: Path) -> None:
    code, output, complaints = await bisenet_stream(damage(clip, 7), "--server", site.address)
    assert code == 0
    assert complaints == "warning: 1 damaged packet was skipped; its pictures are missing\n"
    assert output.startswith("19 frames sent: 19 answered")


async def test_a_lost_camera_is_told_and_opened_again(site: GrpcSite) -> None:
    with mjpeg_camera(5) as url:
        code, output, complaints = await bisenet_stream(url, "--server", site.address, "--seconds", "2")
    assert code == 0, complaints
    assert f"warning: camera lost: {url}: " in complaints
    assert "answered" in output


async def test_live_frames_are_all_accounted_for(site: GrpcSite, clip: Path) -> None:
    report = await report_of(clip, "--server", site.address, "--policy", "latest", "--seconds", "0.4")
    assert report["sent"] + report["skipped"] == 10
    assert report["answered"] + report["superseded"] + report["too_old"] == report["sent"]


async def test_without_a_display_a_preview_is_bad_usage(site: GrpcSite, clip: Path) -> None:
    code, _, complaints = await bisenet_stream(clip, "--server", site.address, "--show")
    assert code == 2
    assert "DISPLAY" in complaints


@pytest.mark.parametrize("what", ["film", "server", "model"])
async def test_a_missing_film_service_or_model_is_told_in_one_line(
    site: GrpcSite, clip: Path, what: str
) -> None:
    source = "none.mp4" if what == "film" else clip
    server = "127.0.0.1:9" if what == "server" else site.address
    code, _, complaints = await bisenet_stream(
        source, "--server", server, "--model", "no" * (what == "model")
    )
    assert code == 1
    lines = [line for line in complaints.splitlines() if line]
    assert len(lines) == 1
    assert lines[0].startswith("error: ")


SYSTEM_PYTHON = Path("/usr/bin/python3")
_GSTREAMER = """
import gi
gi.require_version("GstRtspServer", "1.0")
from gi.repository import Gst, GstRtspServer
Gst.init(None)
assert Gst.ElementFactory.find("x264enc") and Gst.ElementFactory.find("videotestsrc")
"""


def has_gstreamer() -> bool:
    if not SYSTEM_PYTHON.exists():
        return False
    return subprocess.run([SYSTEM_PYTHON, "-c", _GSTREAMER], check=False, capture_output=True).returncode == 0


@asynccontextmanager
async def rtsp_cameras(count: int) -> AsyncIterator[list[str]]:
    """Run a real RTSP server; yields the URLs of its cameras."""
    if not has_gstreamer():
        pytest.skip("GStreamer's RTSP server is not installed (gir1.2-gst-rtsp-server-1.0, plugins-ugly)")
    server = await asyncio.create_subprocess_exec(
        *(str(SYSTEM_PYTHON), str(ROOT / "tests" / "rtsp_server.py"), str(count)),
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert server.stdout is not None
        port = int(await asyncio.wait_for(server.stdout.readline(), PATIENCE_S))
        yield [f"rtsp://127.0.0.1:{port}/{number}" for number in range(count)]
    finally:
        server.kill()
        await server.wait()


@pytest.mark.soak
async def test_three_rtsp_cameras_get_masks_at_their_own_rate(site: GrpcSite, tmp_path: Path) -> None:
    async with rtsp_cameras(3) as urls:
        films = [tmp_path / f"{number}.mp4" for number in range(3)]
        reports = await asyncio.gather(
            *(
                report_of(url, "--server", site.address, "--seconds", "6", "--out", film)
                for url, film in zip(urls, films, strict=True)
            )
        )
    for report, film in zip(reports, films, strict=True):
        outcomes = sum(report[name] for name in ("answered", "superseded", "too_old", "failed", "lost"))
        assert outcomes == report["sent"]
        assert report["answered"] >= 0.5 * 6 * 15  # on a busy machine some are superseded
        assert report["failed"] == report["lost"] == 0
        assert len(list(source_frames(str(film)))) == report["answered"]


@needs_openssl
async def test_a_film_goes_through_tls(clip: Path, tmp_path: Path) -> None:
    certificate = await make_certificate(tmp_path)
    async with open_grpc_site(credentials=certificate.server_credentials()) as site:
        report = await report_of(clip, "--server", site.address, "--ca", certificate.file)
        assert report["answered"] == report["sent"] == 20
        code, _, complaints = await bisenet_stream(clip, "--server", site.address, "--tls")
    assert code == 1
    assert complaints.splitlines()[-1].startswith("error: ")
