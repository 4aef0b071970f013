"""The pictures that are read, the files of their masks, and the report on all other files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from service.cli.picture_files import PredictTask, is_film, plan
from service.core.pictures import local_files
from service.core.pictures.local_files import not_taken_line


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def targets(inputs: list[Path], out: Path) -> dict[str, str]:
    """Return the masks of a plan: paths below ``out`` by the names of their pictures."""
    return {task.source.name: str(task.target.relative_to(out)) for task in plan(inputs, out).tasks}


class TestFolders:
    def test_pictures_at_any_depth_are_taken_and_the_structure_is_kept(self, tmp_path: Path) -> None:
        top, out = tmp_path / "in", tmp_path / "out"
        touch(
            top / "1.jpg",
            top / "cam1" / "0001.jpg",
            top / "cam2" / "0001.jpg",
            top / "a" / "b" / "c" / "x.v2.PNG",
        )
        planned = plan([top], out)
        assert planned.tasks == (
            PredictTask(top / "1.jpg", out / "1.png"),
            PredictTask(top / "a" / "b" / "c" / "x.v2.PNG", out / "a" / "b" / "c" / "x.v2.png"),
            PredictTask(top / "cam1" / "0001.jpg", out / "cam1" / "0001.png"),
            PredictTask(top / "cam2" / "0001.jpg", out / "cam2" / "0001.png"),
        )
        assert not planned.not_taken

    @pytest.mark.parametrize(
        "name", ["a.TIF", "a.tiff", "a.bmp", "a.gif", "a.avif", "a.jp2", "a.pgm", "a.JFIF"]
    )
    def test_every_format_of_local_pictures_is_taken_in_any_case(self, tmp_path: Path, name: str) -> None:
        touch(tmp_path / "in" / name)
        assert targets([tmp_path / "in"], tmp_path / "out") == {name: "a.png"}

    @pytest.mark.parametrize("is_installed", [True, False])
    def test_heic_is_taken_where_its_reader_is_installed(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, is_installed: bool
    ) -> None:
        monkeypatch.setattr(local_files, "has_heic_reader", lambda: is_installed)
        touch(tmp_path / "in" / "a.jpg", tmp_path / "in" / "b.HEIC")
        planned = plan([tmp_path / "in"], tmp_path / "out")
        assert len(planned.tasks) == 1 + is_installed
        line = "" if is_installed else "not taken: 1 .heic (pip install 'bisenet-service[heic]')"
        assert not_taken_line(planned.not_taken) == line

    def test_everything_else_is_counted_by_kind(self, tmp_path: Path) -> None:
        top = tmp_path / "in"
        touch(top / "a.jpg", top / "b.txt", top / "sub" / "c.TXT", top / "README", top / "clip.mp4")
        touch(top / "._a.jpg", top / ".cache" / "d.jpg")
        (top / "gone.jpg").symlink_to(top / "nowhere.jpg")
        assert plan([top], tmp_path / "out").not_taken == {
            ".txt": 2,
            "without suffix": 1,
            ".mp4 (name each film as an input of its own)": 1,
            "hidden": 2,
            "broken links or special files": 1,
        }

    def test_a_folder_that_is_linked_into_itself_is_searched_once(self, tmp_path: Path) -> None:
        touch(tmp_path / "in" / "sub" / "a.jpg")
        (tmp_path / "in" / "sub" / "up").symlink_to(tmp_path / "in")
        touch(tmp_path / "elsewhere" / "b.jpg")
        (tmp_path / "in" / "linked").symlink_to(tmp_path / "elsewhere")
        assert targets([tmp_path / "in"], tmp_path / "out") == {"b.jpg": "linked/b.png", "a.jpg": "sub/a.png"}

    def test_masks_of_an_earlier_run_are_not_taken_for_pictures(self, tmp_path: Path) -> None:
        touch(tmp_path / "a.jpg", tmp_path / "masks" / "a.png", tmp_path / "masks" / "sub" / "b.png")
        planned = plan([tmp_path], tmp_path / "masks")
        assert planned.tasks == (PredictTask(tmp_path / "a.jpg", tmp_path / "masks" / "a.png"),)
        assert planned.not_taken == {"output folder": 1}

    def test_a_folder_without_permission_is_told(self, tmp_path: Path) -> None:
        touch(tmp_path / "in" / "a.jpg", tmp_path / "in" / "locked" / "b.jpg")
        (tmp_path / "in" / "locked").chmod(0)
        if os.access(tmp_path / "in" / "locked", os.R_OK):
            pytest.skip("root may read everywhere")
        planned = plan([tmp_path / "in"], tmp_path / "out")
        assert planned.not_taken == {"folders without permission to read": 1}

    def test_a_name_that_is_not_utf8_keeps_its_bytes(self, tmp_path: Path) -> None:
        name = os.fsdecode(b"caf\xe9")
        touch(tmp_path / "in" / name / f"{name}.jpg", tmp_path / "in" / f"x.{name}")
        planned = plan([tmp_path / "in"], tmp_path / "out")
        assert planned.tasks[0].target == tmp_path / "out" / name / f"{name}.png"
        assert not_taken_line(planned.not_taken) == "not taken: 1 .caf\ufffd"


class TestNothingFound:
    def test_an_empty_folder_is_told(self, tmp_path: Path) -> None:
        (tmp_path / "in").mkdir()
        with pytest.raises(typer.BadParameter, match=r"no pictures in .*in; there are no files at all"):
            plan([tmp_path / "in"], tmp_path / "out")

    def test_the_places_and_the_files_in_them_are_told(self, tmp_path: Path) -> None:
        touch(tmp_path / "in" / "a" / "b" / "notes.txt")
        with pytest.raises(
            typer.BadParameter, match=r"no pictures in .*in and 2 folders below; not taken: 1 \.txt"
        ):
            plan([tmp_path / "in"], tmp_path / "out")


class TestTargets:
    def test_a_mask_is_a_png(self, tmp_path: Path) -> None:
        touch(tmp_path / "a.png")
        with pytest.raises(typer.BadParameter, match="PNG"):
            plan([tmp_path / "a.png"], tmp_path / "mask.jpg")

    def test_two_masks_of_one_name_are_refused_with_both_pictures_and_the_way_out(
        self, tmp_path: Path
    ) -> None:
        first, second = tmp_path / "a" / "x.png", tmp_path / "b" / "x.jpg"
        touch(first, second)
        with pytest.raises(
            typer.BadParameter, match=r"a/x\.png and .*b/x\.jpg would both become .*x\.png: rename one"
        ):
            plan([first, second], tmp_path / "masks")

    def test_a_picture_is_never_overwritten_by_a_mask(self, tmp_path: Path) -> None:
        touch(tmp_path / "in" / "a.jpg", tmp_path / "in" / "a.png")
        with pytest.raises(typer.BadParameter, match="replace a picture"):
            plan([tmp_path / "in" / "a.jpg", tmp_path / "in" / "a.png"], tmp_path / "in")
        with pytest.raises(typer.BadParameter, match="replace a picture"):
            plan([tmp_path / "in" / "a.png"], tmp_path / "in" / "a.png")

    def test_a_picture_that_is_named_twice_is_read_once(self, tmp_path: Path) -> None:
        source = tmp_path / "in" / "a.png"
        touch(source)
        tasks = plan([source, tmp_path / "in"], tmp_path / "out").tasks
        assert tasks == (PredictTask(source, tmp_path / "out" / "a.png"),)

    def test_a_file_is_read_whatever_its_name_is(self, tmp_path: Path) -> None:
        touch(tmp_path / "scan.dat")
        assert targets([tmp_path / "scan.dat"], tmp_path / "out") == {"scan.dat": "scan.png"}

    def test_a_folder_that_exists_is_a_folder_whatever_its_name_is(self, tmp_path: Path) -> None:
        touch(tmp_path / "a.png")
        (tmp_path / "v1.2").mkdir()
        assert targets([tmp_path / "a.png"], tmp_path / "v1.2") == {"a.png": "a.png"}

    @given(st.sets(st.from_regex(r"(s/)?[a-z]{1,3}\.(png|tif|txt)", fullmatch=True), min_size=1, max_size=8))
    def test_each_picture_has_a_mask_of_its_own_or_nothing_is_done(
        self, tmp_path_factory: pytest.TempPathFactory, names: set[str]
    ) -> None:
        folder = tmp_path_factory.mktemp("plan")
        touch(*(folder / name for name in names))
        pictures = {name for name in names if not name.endswith(".txt")}
        stems = {name.rpartition(".")[0] for name in pictures}
        if not pictures or len(stems) < len(pictures):
            with pytest.raises(typer.BadParameter):
                plan([folder], folder / "masks")
        else:
            tasks = plan([folder], folder / "masks").tasks
            assert {str(task.source.relative_to(folder)) for task in tasks} == pictures
            assert {str(task.target.relative_to(folder / "masks")) for task in tasks} == {
                f"{stem}.png" for stem in stems
            }


@pytest.mark.parametrize("name", ["a.mp4", "a.MOV", "a.ts", "a.wmv"])
def test_a_film_is_told_by_its_name(tmp_path: Path, name: str) -> None:
    assert is_film(tmp_path / name)
    (tmp_path / name).mkdir()
    assert not is_film(tmp_path / name)
