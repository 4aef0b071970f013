from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner, Result

from service.cli.local import local_settings, open_segmenter
from service.cli.predict import PredictTask, plan, predict
from service.core.pictures.codec import encode_palette_png
from service.core.pictures.picture import EncodedPicture
from service.core.pictures.segmenter import Segmentation
from service.engines import NO_GPU

Run = Callable[..., Result]

app = typer.Typer()
app.command()(predict)


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


class TestPlan:
    def test_a_folder_without_pictures_is_bad_usage(self, run: Run, tmp_path: Path) -> None:
        (tmp_path / "in").mkdir()
        assert run(tmp_path / "in", "--out", tmp_path / "masks").exit_code == 2

    def test_an_input_that_is_not_there_is_bad_usage(self, run: Run, tmp_path: Path) -> None:
        assert run(tmp_path / "in.png", "--out", tmp_path / "mask.png").exit_code == 2

    def test_two_masks_of_one_name_are_refused_and_both_pictures_named(self, tmp_path: Path) -> None:
        first, second = picture(tmp_path / "a" / "x.png"), picture(tmp_path / "b" / "x.jpg")
        with pytest.raises(typer.BadParameter, match=r"a/x\.png and .*b/x\.jpg would both become .*x\.png"):
            plan([first, second], tmp_path / "masks")

    def test_a_picture_is_never_overwritten_by_a_mask(self, tmp_path: Path) -> None:
        picture(tmp_path / "in" / "a.jpg")
        picture(tmp_path / "in" / "a.png")
        with pytest.raises(typer.BadParameter, match="place of a picture"):
            plan([tmp_path / "in" / "a.jpg", tmp_path / "in" / "a.png"], tmp_path / "in")
        with pytest.raises(typer.BadParameter, match="place of a picture"):
            plan([tmp_path / "in" / "a.png"], tmp_path / "in" / "a.png")

    def test_a_picture_that_is_named_twice_is_done_once(self, tmp_path: Path) -> None:
        source = picture(tmp_path / "in" / "a.png")
        assert plan([source, tmp_path / "in"], tmp_path / "out") == [
            PredictTask(source, tmp_path / "out" / "a.png")
        ]

    def test_a_mask_is_a_png(self, tmp_path: Path) -> None:
        with pytest.raises(typer.BadParameter, match="PNG"):
            plan([picture(tmp_path / "a.png")], tmp_path / "mask.jpg")

    def test_a_folder_that_exists_is_a_folder_whatever_it_is_called(self, tmp_path: Path) -> None:
        source = picture(tmp_path / "a.png")
        (tmp_path / "v1.2").mkdir()
        assert plan([source], tmp_path / "v1.2") == [PredictTask(source, tmp_path / "v1.2" / "a.png")]

    @given(st.sets(st.from_regex(r"[a-z]{1,3}\.(png|jpg|txt)", fullmatch=True), min_size=1, max_size=8))
    def test_each_picture_has_a_mask_of_its_own_or_nothing_is_done(
        self, tmp_path_factory: pytest.TempPathFactory, names: set[str]
    ) -> None:
        folder = tmp_path_factory.mktemp("plan")
        for name in names:
            (folder / name).touch()
        pictures = {name for name in names if not name.endswith(".txt")}
        stems = {name.rpartition(".")[0] for name in pictures}
        if not pictures or len(stems) < len(pictures):
            with pytest.raises(typer.BadParameter):
                plan([folder], folder / "masks")
        else:
            jobs = plan([folder], folder / "masks")
            assert {job.source.name for job in jobs} == pictures
            assert {job.target.name for job in jobs} == {f"{stem}.png" for stem in stems}
