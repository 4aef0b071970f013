"""Films are written as they are to be shown, or an error names the file."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("av", reason="the extra `client` is not installed")

from films import FILM_SIZE, film

from service.client.errors import SourceError
from service.client.film_writer import FilmWriter
from service.client.video_source import source_frames

BLACK_HW3 = np.zeros((*FILM_SIZE, 3), np.uint8)


@pytest.mark.parametrize("where", ["none/clip.mp4", "folder", "clip.txt", "locked/clip.mp4"])
def test_an_unwritable_path_is_an_error_before_the_first_picture(tmp_path: Path, where: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "locked").mkdir(mode=0o500)
    if where == "locked/clip.mp4" and os.access(tmp_path / "locked", os.W_OK):
        pytest.skip("root may write everywhere")
    with pytest.raises(SourceError, match=where):
        FilmWriter(tmp_path / where)


def test_a_path_that_becomes_unwritable_is_an_error_at_the_end(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    writer = FilmWriter(tmp_path / "out" / "clip.mp4")
    (tmp_path / "out").rmdir()
    writer.write(BLACK_HW3, 0.0)
    with pytest.raises(SourceError, match=r"clip\.mp4"):
        writer.close()
    with pytest.raises(SourceError, match="film"):
        FilmWriter(tmp_path / "film.webm").write(BLACK_HW3, 0.0)


def test_a_film_of_odd_size_loses_a_row_and_a_column(tmp_path: Path) -> None:
    writer = FilmWriter(tmp_path / "odd.mp4")
    writer.write(np.zeros((49, 65, 3), np.uint8), 0.0)
    writer.close()
    (frame,) = source_frames(str(tmp_path / "odd.mp4"))
    assert frame.image_HW3.shape == (*FILM_SIZE, 3)


def test_pictures_of_the_same_moment_keep_their_order(tmp_path: Path) -> None:
    written = film(tmp_path / "clip.mp4", 3, shown_s=[0.0, 0.0, 0.0])
    assert len(list(source_frames(str(written)))) == 3


@pytest.mark.parametrize(("suffix", "tolerance_s"), [(".mp4", 1e-6), (".mov", 1e-6), (".mkv", 0.5e-3)])
def test_a_film_with_a_changing_rate_keeps_its_time_stamps(
    tmp_path: Path, suffix: str, tolerance_s: float
) -> None:
    shown_s = [0.0, 1 / 30, 2 / 30, 0.4, 1001 / 2000, 2.5, 2.5 + 1 / 60]
    written = film(tmp_path / f"clip{suffix}", len(shown_s), shown_s=shown_s)
    assert [frame.position_s for frame in source_frames(str(written))] == pytest.approx(
        shown_s, abs=tolerance_s + 1 / 90_000
    )


@pytest.mark.parametrize("name", ["2026-05-01T12:30:00.mp4", os.fsdecode(b"caf\xe9.mp4"), "100%d.mp4"])
def test_any_name_of_a_film_can_be_written_and_read(tmp_path: Path, name: str) -> None:
    assert len(list(source_frames(str(film(tmp_path / name, 2))))) == 2
