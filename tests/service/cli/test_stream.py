"""``bisenet stream`` from inside: what it shows, and what it refuses; see also tests/flows."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

pytest.importorskip("av", reason="the extra `client` is not installed")

from films import film

from service.cli import stream as module
from service.cli.stream import StreamSummary, _Screens, _Viewer, stream
from service.client.answers import ClassInfo, Mask, Model, ModelChanged, Opened, Result
from service.client.cameras import CameraFrame, CameraOptions
from service.client.errors import SourceError, UnreachableError
from service.client.ledger import FrameLedger

OLD = ClassInfo(0, "road", (255, 0, 0))
NEW = ClassInfo(0, "road", (0, 255, 0))
BLACK_HW3 = np.zeros((8, 8, 3), np.uint8)

app = typer.Typer()
app.command()(stream)


class Service:
    """Lists models. Without any, it is gone."""

    def __init__(self, *models: Model) -> None:
        self.asked = 0
        self._models = list(models)

    async def models(self) -> list[Model]:
        self.asked += 1
        if not self._models:
            raise UnreachableError("gone")
        return self._models


class Feed:
    """A feed whose pictures are all black."""

    def picture(self, _: int) -> CameraFrame:
        return CameraFrame(BLACK_HW3, 0.0, 0.0)

    def forget(self, _: int) -> None:
        pass


class Film:
    """Keeps the pictures that it is given."""

    def __init__(self) -> None:
        self.shown: list[Any] = []

    def write(self, image_HW3: Any, _: float) -> None:
        self.shown.append(image_HW3)


def model(name: str, version: int, *classes: ClassInfo) -> Model:
    return Model(name, version, classes, 255, "fake", "cpu", "f32")


async def colour_after_a_change(service: Service, film: Film | None) -> list[bool]:
    """Show a frame of version 2 to a viewer of version 1; return which channels its overlay has."""
    screens = _Screens(film, None)  # type: ignore[arg-type]
    viewer = _Viewer(service, Feed(), screens)  # type: ignore[arg-type]
    await viewer.take(Opened("city", 1, 4, 30.0, (OLD,)))
    await viewer.take(ModelChanged(2))
    await viewer.take(Result(1, Mask(bytes(64), "raw", 8, 8), 2, None, {}))
    return [] if film is None else [bool(level) for level in film.shown[0][4, 4]]


async def test_a_new_version_brings_its_own_colours() -> None:
    service = Service(model("forest", 2, OLD), model("city", 1, OLD), model("city", 2, NEW))
    assert await colour_after_a_change(service, Film()) == [False, True, False]


@pytest.mark.parametrize("models", [(), (model("forest", 2, NEW),)])
async def test_without_an_answer_the_colours_stay(models: tuple[Model, ...]) -> None:
    assert await colour_after_a_change(Service(*models), Film()) == [True, False, False]


async def test_without_screens_no_colours_are_asked_for() -> None:
    service = Service()
    assert not await colour_after_a_change(service, None)
    assert service.asked == 0


def test_the_rate_falls_while_nothing_comes() -> None:
    summary = StreamSummary(FrameLedger())
    summary._recent_s.extend([time.monotonic() - 2 * module._FPS_WINDOW_S] * 20)
    assert summary.line().strip().startswith("0.0 fps")


def hard_linked(clip: Path, out: Path) -> None:
    out.hardlink_to(clip)


def linked(clip: Path, out: Path) -> None:
    out.symlink_to(clip)


@pytest.mark.parametrize("link", [hard_linked, linked, None])
def test_the_film_itself_is_never_written_over(
    tmp_path: Path, link: Callable[[Path, Path], None] | None
) -> None:
    clip = tmp_path / "clip.mp4"
    clip.write_bytes(b"a film")
    out = clip if link is None else tmp_path / "out.mp4"
    if link is not None:
        link(clip, out)
    result = CliRunner().invoke(app, [str(clip), "--out", str(out), "--server", "127.0.0.1:9"])
    assert result.exit_code == 2
    assert clip.read_bytes() == b"a film"


def test_an_output_that_cannot_be_written_is_told_in_one_line(tmp_path: Path) -> None:
    out = tmp_path / "none" / "out.mp4"
    result = CliRunner().invoke(
        app, [str(tmp_path / "clip.mp4"), "--out", str(out), "--server", "127.0.0.1:9"]
    )
    assert result.exit_code == 1
    assert result.stderr == f"error: {out}: cannot be written: there is no folder {out.parent}\n"


def test_options_of_usb_cameras_are_refused_for_other_sources(tmp_path: Path) -> None:
    arguments = [str(film(tmp_path / "clip.mp4", 1)), "--server", "127.0.0.1:9", "--camera-fps", "30"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1
    assert "options of USB cameras only" in result.stderr


def test_options_of_usb_cameras_reach_the_camera(monkeypatch: pytest.MonkeyPatch) -> None:
    options: list[CameraOptions] = []

    def refuse(_: str, wanted: CameraOptions) -> None:
        options.append(wanted)
        raise SourceError("no such camera")

    monkeypatch.setattr("service.client.cameras.VideoSource", refuse)
    arguments = ["0", "--server", "127.0.0.1:9", "--camera-size", "1280x720", "--camera-fps", "30"]
    result = CliRunner().invoke(
        app, [*arguments, "--camera-pixel-format", "mjpeg", "--camera-timeout-s", "3"]
    )
    assert result.exit_code == 1
    assert options == [CameraOptions("1280x720", 30.0, "mjpeg", 3.0)]
