from __future__ import annotations

import os
from pathlib import Path

import pytest

from model.datasets.folder_contents import folders_below, untaken_files


@pytest.fixture
def inbox(tmp_path: Path) -> Path:
    for name in (
        "1.jpg",
        "2.TIF",
        "3.tif",
        "cam1/4.heic",
        "cam1/.5.jpg",
        ".git/config",
        "README",
        "b/c/6.jpg",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    return tmp_path


def test_files_that_were_not_taken_are_counted_by_kind(inbox: Path) -> None:
    found = untaken_files(inbox, [inbox / "1.jpg", inbox / "b/../b/c/6.jpg"])
    assert found.names == {
        ".tif": ("2.TIF", "3.tif"),
        "hidden": (".git", "cam1/.5.jpg"),
        ".heic": ("cam1/4.heic",),
        "without a suffix": ("README",),
    }
    assert found.total == 6
    assert str(found) == (
        "2 .tif (2.TIF, 3.tif), 2 hidden (.git, cam1/.5.jpg), 1 .heic (cam1/4.heic),"
        " 1 without a suffix (README)"
    )


def test_of_many_names_the_first_three_are_shown(tmp_path: Path) -> None:
    for number in range(9):
        (tmp_path / f"{number}.txt").write_bytes(b"")
    assert str(untaken_files(tmp_path, ())) == "9 .txt (0.txt, 1.txt, 2.txt and 6 more)"


def test_an_empty_and_a_missing_folder_have_no_files(tmp_path: Path) -> None:
    assert untaken_files(tmp_path, ()).total == untaken_files(tmp_path / "nothing", ()).total == 0


def test_names_that_are_no_utf_8_are_shown(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"\xf6.tif")).write_bytes(b"")
    assert str(untaken_files(tmp_path, ())) == r"1 .tif (\xf6.tif)"


def test_all_folders_below_are_found_once_even_where_links_make_circles(inbox: Path) -> None:
    (inbox / "b/up").symlink_to(inbox)
    (inbox / "more").symlink_to(inbox / "cam1")
    found = [folder.relative_to(inbox).as_posix() for folder in folders_below(inbox)]
    assert found == [".", "b", "b/c", "cam1", "more"]
