"""``bisenet predict`` of a film: every picture, in order, as a film or as a folder of masks."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner, Result

pytest.importorskip("av", reason="the extra `client` is not installed")

from films import damage, film, turn

from service.cli.predict import predict
from service.client.cameras import FilmWriter, VideoSource, source_frames

Run = Callable[..., Result]

app = typer.Typer()
app.command()(predict)


@pytest.fixture
def environment(environment: dict[str, str]) -> dict[str, str]:
    """Fix the precision: otherwise the first command of a session times the engines, and says so."""
    return environment | {"BISENET_MODELS__PRECISION": "f32"}


@pytest.fixture
def run(environment: dict[str, str]) -> Run:
    def run(*arguments: object) -> Result:
        return CliRunner().invoke(app, [str(argument) for argument in arguments], env=environment)

    return run


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    writer = FilmWriter(tmp_path / "clip.mp4")
    random = np.random.default_rng(0)
    for number in range(7):
        writer.write(random.integers(0, 256, (64, 96, 3), np.uint8), number / 25)
    writer.close()
    return tmp_path / "clip.mp4"


def test_a_film_becomes_a_film_of_as_many_pictures(run: Run, clip: Path, tmp_path: Path) -> None:
    out = tmp_path / "overlay.mp4"
    result = run(clip, "--out", out, "--output", "overlay", "--json")
    assert result.exit_code == 0, result.output
    (entry,) = json.loads(result.stdout)["images"]
    assert entry == {"input": str(clip), "output": str(out), "frames": 7}
    written = list(source_frames(str(out)))
    assert [round(25 * frame.position_s) for frame in written] == list(range(7))
    assert written[0].image_HW3.shape == (64, 96, 3)


def test_a_film_becomes_a_folder_of_the_masks_that_its_pictures_get(
    run: Run, clip: Path, tmp_path: Path
) -> None:
    result = run(clip, "--out", tmp_path / "masks", "--output", "labels")
    assert result.stdout.startswith("7 pictures of a film by pooling@1")
    names = sorted(path.name for path in (tmp_path / "masks").iterdir())
    assert names == [f"clip-{number:06}.png" for number in range(1, 8)]
    third = list(source_frames(str(clip)))[2].image_HW3
    Image.fromarray(third).save(tmp_path / "third.png")
    assert run(tmp_path / "third.png", "--out", tmp_path / "mask.png").exit_code == 0
    assert (tmp_path / "mask.png").read_bytes() == (tmp_path / "masks" / "clip-000003.png").read_bytes()


def test_a_film_of_a_phone_becomes_upright_masks_and_an_upright_film(
    run: Run, clip: Path, tmp_path: Path
) -> None:
    turn(clip, 0, 1, -1, 0)
    run(clip, "--out", tmp_path / "overlay.mp4", "--output", "overlay")
    with VideoSource(str(tmp_path / "overlay.mp4")) as written:
        assert {frame.image_HW3.shape for frame in written.frames()} == {(96, 64, 3)}
    run(clip, "--out", tmp_path / "masks")
    with Image.open(tmp_path / "masks" / "clip-000001.png") as mask:
        assert mask.size == (64, 96)


def test_a_film_with_a_changing_rate_keeps_its_time_stamps(run: Run, tmp_path: Path) -> None:
    shown_s = [0.0, 0.04, 0.3, 1.7, 1.75]
    film(tmp_path / "clip.mp4", 5, shown_s=shown_s)
    run(tmp_path / "clip.mp4", "--out", tmp_path / "overlay.mp4", "--output", "overlay")
    written = [frame.position_s for frame in source_frames(str(tmp_path / "overlay.mp4"))]
    assert written == pytest.approx(shown_s, abs=1e-4)


def test_a_damaged_packet_costs_its_pictures_and_one_line(run: Run, tmp_path: Path) -> None:
    damage(film(tmp_path / "clip.mp4", 10), 4)
    result = run(tmp_path / "clip.mp4", "--out", tmp_path / "masks")
    assert result.exit_code == 0
    (line,) = result.stderr.splitlines()
    assert line.endswith("clip.mp4: 1 damaged packet was skipped; its pictures are missing")
    assert len(list((tmp_path / "masks").iterdir())) == 9
    (entry,) = json.loads(run(tmp_path / "clip.mp4", "--out", tmp_path / "masks", "--json").stdout)["images"]
    assert (entry["frames"], entry["damaged_packets"]) == (9, 1)


def test_a_film_can_be_labelled_in_tiles(run: Run, clip: Path, tmp_path: Path) -> None:
    result = run(clip, "--out", tmp_path / "masks", "--tile", "32")
    assert result.exit_code == 0
    assert len(list((tmp_path / "masks").iterdir())) == 7


def test_masks_that_cannot_be_written_are_told_in_one_line(run: Run, clip: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    result = run(clip, "--out", tmp_path / "file" / "masks")
    assert result.exit_code == 1
    assert "cannot be written" in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("clip.mp4", "--out", "labels.mp4", "--output", "labels"),
        ("clip.mp4", "--out", "clip.mp4"),
        ("clip.mp4", "--out", "mask.png"),
        ("clip.mp4", "clip.mp4", "--out", "masks"),
    ],
)
def test_an_impossible_output_is_refused_before_anything_is_done(
    run: Run, clip: Path, arguments: tuple[str, ...]
) -> None:
    before = clip.read_bytes()
    named = [clip.parent / word if "." in word or word == "masks" else word for word in arguments]
    assert run(*named).exit_code == 2
    assert clip.read_bytes() == before


def test_a_file_that_is_no_film_is_told_in_one_line(run: Run, tmp_path: Path) -> None:
    (tmp_path / "none.mp4").write_bytes(b"no film")
    result = run(tmp_path / "none.mp4", "--out", tmp_path / "masks")
    assert result.exit_code == 1
    assert "none.mp4" in result.stderr
