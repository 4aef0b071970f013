from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from fakes import PATIENCE_S, write_pooling_artifact
from PIL import Image
from typer.testing import CliRunner, Result

from service.cli.local import local_settings, open_segmenter
from service.cli.predict import predict
from service.core.pictures.codec import encode_palette_png
from service.core.pictures.picture import EncodedPicture
from service.core.pictures.segmenter import Segmentation
from service.engines import NO_GPU

Run = Callable[..., Result]

ROOT = Path(__file__).parents[3]
DATA = os.environ.get("BISENET_DATA_ROOT")

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


def picture(path: Path, *, height: int = 40, width: int = 70, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels_HW3 = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(pixels_HW3).save(path)
    return path


def opened(path: Path) -> Image.Image:
    with Image.open(path) as image:
        image.load()
        return image


def report(result: Result) -> Any:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_one_picture_becomes_the_file_that_was_named(run: Run, tmp_path: Path) -> None:
    source, target = picture(tmp_path / "in.jpg"), tmp_path / "deep" / "mask.png"
    assert run(source, "--out", target).exit_code == 0
    mask = opened(target)
    assert (mask.size, mask.mode) == ((70, 40), "P")


def _png(segmentation: Segmentation) -> bytes:
    return encode_palette_png(segmentation.label_map)


def test_the_mask_is_what_the_segmenter_and_the_codec_make_of_the_same_bytes(
    run: Run, tmp_path: Path, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = picture(tmp_path / "in.png"), tmp_path / "mask.png"
    run(source, "--out", target, "--output", "labels")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    async def encoded() -> bytes:
        with open_segmenter(local_settings({})) as (segmenter, model):
            picture, deadline_s = EncodedPicture(source.read_bytes()), time.monotonic() + 30
            async with segmenter.segment(model, picture, _png, deadline_s=deadline_s) as encoded:
                return encoded

    assert target.read_bytes() == asyncio.run(encoded())


def test_labels_and_color_are_one_file_and_an_overlay_shows_the_picture(run: Run, tmp_path: Path) -> None:
    source = picture(tmp_path / "in.png")
    for output in ("labels", "color", "overlay"):
        run(source, "--out", tmp_path / f"{output}.png", "--output", output)
    assert (tmp_path / "labels.png").read_bytes() == (tmp_path / "color.png").read_bytes()
    overlay = opened(tmp_path / "overlay.png")
    assert (overlay.size, overlay.mode) == ((70, 40), "RGB")


def test_a_folder_of_pictures_becomes_a_folder_of_masks(run: Run, tmp_path: Path) -> None:
    for name in ("b.jpg", "a.png", "c.WEBP"):
        picture(tmp_path / "in" / name)
    (tmp_path / "in" / "notes.txt").write_text("no picture")
    answer = report(run(tmp_path / "in", "--out", tmp_path / "masks", "--json"))
    assert sorted(path.name for path in (tmp_path / "masks").iterdir()) == ["a.png", "b.png", "c.png"]
    assert [Path(entry["input"]).name for entry in answer["images"]] == ["a.png", "b.jpg", "c.WEBP"]


def test_the_report_says_who_answered_what_and_how_fast(run: Run, tmp_path: Path) -> None:
    source, target = picture(tmp_path / "in.png"), tmp_path / "mask.png"
    answer = report(run(source, "--out", target, "--precision", "f32", "--json"))
    (entry,) = answer.pop("images")
    assert answer.pop("refused") == f"tensorrt: {NO_GPU}; torch: {NO_GPU}"
    assert answer == {"model": "pooling@1", "engine": "openvino", "device": "cpu", "precision": "f32"}
    assert (entry["input"], entry["output"]) == (str(source), str(target))
    assert (entry["width"], entry["height"]) == (70, 40)
    assert sum(share["pixels"] for share in entry["classes"]) == 40 * 70
    assert set(entry["timings_ms"]) == {"decode", "preprocess", "queue", "infer", "post"}


def test_a_file_that_is_no_picture_fails_alone(run: Run, tmp_path: Path) -> None:
    picture(tmp_path / "in" / "good.png")
    (tmp_path / "film.dat").write_bytes(b"\0\0\0\x18ftypmp42")
    result = run(tmp_path / "film.dat", tmp_path / "in", "--out", tmp_path / "masks", "--json")
    assert result.exit_code == 1
    bad, good = json.loads(result.stdout)["images"]
    assert bad["error"]["code"] == "unsupported_media"
    assert Path(good["output"]).exists()
    assert not (tmp_path / "masks" / "film.png").exists()


def test_a_failure_is_told_with_the_name_of_its_file(run: Run, tmp_path: Path) -> None:
    (tmp_path / "film.dat").write_bytes(b"\0\0\0\x18ftypmp42")
    result = run(tmp_path / "film.dat", "--out", tmp_path / "mask.png")
    assert result.exit_code == 1
    assert "film.dat: " in result.stderr
    assert "0 of 1 pictures by pooling@1" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        (["--model", "village"], 1, "village"),
        (["--model", "no such/name"], 2, "no such/name"),
        (["--engine", "tensorflow"], 2, "engine"),
        (["--precision", "int8"], 1, "int8"),
        (["--device", "cuda:7", "--engine", "openvino"], 1, "cuda:7"),
        (["--registry", "ftp://nowhere"], 2, "ftp"),
    ],
)
def test_what_cannot_run_is_named_before_anything_is_written(
    run: Run, tmp_path: Path, arguments: list[str], exit_code: int, message: str
) -> None:
    result = run(picture(tmp_path / "in.png"), "--out", tmp_path / "mask.png", *arguments)
    assert result.exit_code == exit_code
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "mask.png").exists()


class TestFolders:
    def test_structure_is_kept_and_other_files_are_told(self, run: Run, tmp_path: Path) -> None:
        for name in ("1.jpg", "2.tif", "3.bmp", "cam1/0001.jpg", "cam2/0001.jpg"):
            picture(tmp_path / "in" / name)
        (tmp_path / "in" / "notes.txt").write_text("no picture")
        result = run(tmp_path / "in", "--out", tmp_path / "masks")
        assert result.exit_code == 0
        assert result.stderr == "not taken: 1 .txt\n"
        assert result.stdout.startswith("5 of 5 pictures by pooling@1")
        written = {str(path.relative_to(tmp_path / "masks")) for path in (tmp_path / "masks").rglob("*.png")}
        assert written == {"1.png", "2.png", "3.png", "cam1/0001.png", "cam2/0001.png"}

    def test_the_json_report_counts_other_files(self, run: Run, tmp_path: Path) -> None:
        picture(tmp_path / "in" / "a.jpg")
        (tmp_path / "in" / "notes.txt").write_text("no picture")
        assert report(run(tmp_path / "in", "--out", tmp_path / "masks", "--json"))["not_taken"] == {".txt": 1}

    def test_no_pictures_is_bad_usage_and_says_where_it_looked(self, run: Run, tmp_path: Path) -> None:
        (tmp_path / "in").mkdir()
        (tmp_path / "in" / "notes.txt").write_text("no picture")
        result = run(tmp_path / "in", "--out", tmp_path / "masks")
        assert result.exit_code == 2
        assert "no pictures in" in result.stderr

    def test_an_input_that_does_not_exist_is_bad_usage(self, run: Run, tmp_path: Path) -> None:
        assert run(tmp_path / "in.png", "--out", tmp_path / "mask.png").exit_code == 2

    def test_names_that_are_not_utf8_are_read_written_and_printed(
        self, environment: dict[str, str], tmp_path: Path
    ) -> None:
        folder = tmp_path / os.fsdecode(b"in\xe9")
        picture(folder / os.fsdecode(b"a\xe9.png"))
        (folder / os.fsdecode(b"b\xe9.png")).write_bytes(b"no picture")
        (folder / os.fsdecode(b"c.\xe9")).touch()
        for flags in ([], ["--json"]):
            done = subprocess.run(
                [sys.executable, ROOT / "bisenet.py", "predict", folder, "--out", tmp_path / "masks", *flags],
                env={
                    **os.environ,
                    **environment,
                    "PYTHONPATH": str(ROOT),
                    "PYTHONIOENCODING": "utf-8:strict",
                },
                capture_output=True,
                timeout=4 * PATIENCE_S,
                check=False,
            )
            assert done.returncode == 1
            assert b"Traceback" not in done.stderr
            if flags:
                images = json.loads(done.stdout)["images"]
                assert [Path(entry["input"]).name for entry in images] == ["a\udce9.png", "b\udce9.png"]
            else:
                assert b"1 of 2 pictures" in done.stdout
                assert "b\ufffd.png: ".encode() in done.stderr
        assert (tmp_path / "masks" / os.fsdecode(b"a\xe9.png")).exists()


class TestSixteenBits:
    @pytest.fixture
    def dark(self, tmp_path: Path) -> Path:
        values_HW = np.random.default_rng(0).integers(0, 4096, (40, 70)).astype(np.uint16)
        Image.fromarray(values_HW).save(tmp_path / "dark.png")
        Image.fromarray((values_HW >> 4).astype(np.uint8)).save(tmp_path / "bright.png")
        return tmp_path / "dark.png"

    def test_a_picture_that_uses_12_bits_is_told(self, run: Run, dark: Path, tmp_path: Path) -> None:
        result = run(dark, "--out", tmp_path / "mask.png")
        assert result.exit_code == 0
        assert f"note: {dark}: 12 of 16 bits are in use" in result.stderr
        (entry,) = report(run(dark, "--out", tmp_path / "mask.png", "--json"))["images"]
        assert "--bits 12" in entry["notes"][0]

    def test_stretched_it_is_as_bright_as_with_8_bits(self, run: Run, dark: Path, tmp_path: Path) -> None:
        overlay = ("--output", "overlay", "--out")
        result = run(dark, "--bits", "12", *overlay, tmp_path / "stretched.png")
        assert result.stderr == ""
        run(dark.with_name("bright.png"), *overlay, tmp_path / "overlay.png")
        assert (tmp_path / "stretched.png").read_bytes() == (tmp_path / "overlay.png").read_bytes()

    def test_one_note_stands_for_all_pictures_of_its_kind(self, run: Run, dark: Path, tmp_path: Path) -> None:
        for number in range(3):
            (tmp_path / "in").mkdir(exist_ok=True)
            (tmp_path / "in" / f"{number}.png").write_bytes(dark.read_bytes())
        result = run(tmp_path / "in", "--out", tmp_path / "masks")
        (line,) = result.stderr.splitlines()
        assert line.startswith(f"note: {tmp_path}/in/0.png and 2 more: 12 of 16 bits")


class TestTiles:
    def test_a_large_picture_is_reduced_and_told_or_done_in_tiles(
        self, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("BISENET_LIMITS__MAX_INFER_PIXELS", "4096")
        source = tmp_path / "in.png"
        cells_HW3 = np.random.default_rng(0).integers(0, 2, (17, 25, 3), np.uint8).repeat(8, 0).repeat(8, 1)
        Image.fromarray(255 * cells_HW3[:130]).save(source)
        red = tmp_path / "registry" / "models" / "red"  # tells red from the other colours
        red.mkdir(parents=True)
        write_pooling_artifact(red / "1", seed=1)
        chosen = ("--registry", tmp_path / "registry", "--model", "red")
        result = run(source, "--out", tmp_path / "reduced.png", *chosen)
        assert "--tile" in result.stderr
        result = run(source, "--out", tmp_path / "tiled.png", "--tile", "64", *chosen)
        assert (result.exit_code, result.stderr) == (0, "")
        assert opened(tmp_path / "tiled.png").size == (200, 130)
        assert (tmp_path / "reduced.png").read_bytes() != (tmp_path / "tiled.png").read_bytes()

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--tile", "100"], "multiple of 32"),
            (["--overlap", "0.3"], "--tile"),
            (["--tile", "64", "--overlap", "0.95"], "0.9"),
            (["--bits", "7"], "8"),
        ],
    )
    def test_wrong_options_are_bad_usage(
        self, run: Run, tmp_path: Path, arguments: list[str], message: str
    ) -> None:
        result = run(picture(tmp_path / "in.png"), "--out", tmp_path / "mask.png", *arguments)
        assert result.exit_code == 2
        assert message in result.stderr


class TestFailures:
    def test_an_unreadable_and_an_unwritable_file_fail_alone(self, run: Run, tmp_path: Path) -> None:
        picture(tmp_path / "in" / "a.png")
        picture(tmp_path / "in" / "sub" / "b.png")
        (tmp_path / "masks").mkdir()
        (tmp_path / "masks" / "sub").write_text("a file where a folder must be")
        result = run(tmp_path / "in", "--out", tmp_path / "masks")
        assert result.exit_code == 1
        assert "sub/b.png: the mask cannot be written to" in result.stderr
        assert result.stdout.startswith("1 of 2 pictures")

    def test_a_picture_above_the_limits_is_told_with_the_setting(
        self, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("BISENET_LIMITS__MAX_PIXELS", "1000")
        result = run(picture(tmp_path / "in.tif"), "--out", tmp_path / "mask.png")
        assert result.exit_code == 1
        assert "raise limits.max_pixels" in result.stderr


@pytest.mark.data
@pytest.mark.skipif(DATA is None, reason="BISENET_DATA_ROOT is not set")
def test_the_inbox_of_the_field_is_read_as_expected(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.core.pictures.local_files.has_heic_reader", lambda: False)
    result = run(Path(DATA or "") / "field" / "inbox", "--out", tmp_path)
    assert result.exit_code == 0
    assert result.stderr == "not taken: 1 .heic (pip install 'bisenet-service[heic]')\n"
    written = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.png")}
    assert written == {"1.png", "2.png", "3.png", "cam1/0001.png", "cam2/0001.png"}
