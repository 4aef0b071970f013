from __future__ import annotations

import os
import zipfile
from pathlib import Path

import pytest
from interchange_site import write

from training.errors import InterchangeError
from training.interchange import source as source_module
from training.interchange.source import Source, repeated, shared_folders
from training.interchange.tally import Tally


def folder(tmp_path: Path, *names: str) -> Path:
    return write(tmp_path / "source", {name: name for name in names})


def zipped(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def opened(*paths: Path) -> Source:
    return Source(paths, Tally())


def test_hidden_files_and_what_archivers_of_macs_add_are_passed_over(tmp_path: Path) -> None:
    names = ["a/b.json", ".DS_Store", "a/._b.json", ".git/config", "__MACOSX/a/b.json"]
    assert opened(folder(tmp_path, *names[:4])).names == ("a/b.json",)
    archive = zipped(tmp_path / "a.zip", dict.fromkeys(names, b"x") | {"empty/": b""})
    assert opened(archive).names == ("a/b.json",)
    assert opened(archive).read("a/b.json") == b"x"
    assert opened(archive).path("a/b.json") is None


def test_the_second_container_adds_what_the_first_lacks(tmp_path: Path) -> None:
    first = zipped(tmp_path / "a.zip", {"a.json": b"1", "b.jpg": b"1"})
    both = opened(first, write(tmp_path / "photos", {"b.jpg": b"2", "c.jpg": b"2"}))
    assert both.names == ("a.json", "b.jpg", "c.jpg")
    assert both.read("b.jpg") == b"1"
    assert both.path("c.jpg") == tmp_path / "photos/c.jpg"


@pytest.mark.parametrize(
    ("said", "near", "found"),
    [
        ("a.jpg", "one/x.json", "one/a.jpg"),
        ("../two/a.jpg", "one/x.json", "two/a.jpg"),
        ("two/a.jpg", "one/deep/x.json", "two/a.jpg"),
        ("deep/only.jpg", "two/x.json", "one/deep/only.jpg"),
        ("C:\\pictures\\only.jpg", "x.json", "one/deep/only.jpg"),
        ("/data/only.jpg", "x.json", "one/deep/only.jpg"),
        ("../../etc/passwd", "x.json", None),
        ("", "x.json", None),
        ("gone.jpg", "x.json", None),
    ],
)
def test_a_picture_is_found_though_exports_move_files(
    tmp_path: Path, said: str, near: str, found: str | None
) -> None:
    source = opened(folder(tmp_path, "one/a.jpg", "two/a.jpg", "one/deep/only.jpg"))
    assert source.find(said, near=near) == found


def test_of_several_pictures_of_a_name_the_split_chooses(tmp_path: Path) -> None:
    source = opened(folder(tmp_path, "train/a.jpg", "val/a.jpg"))
    assert source.find("a.jpg", near="x/y.json", split="val") == "val/a.jpg"
    with pytest.raises(InterchangeError, match=r"x/y\.json: 'a\.jpg' may be train/a\.jpg or val/a\.jpg"):
        source.find("a.jpg", near="x/y.json")


def test_unread_files_are_told_once(tmp_path: Path) -> None:
    source, left_out = opened(folder(tmp_path, "a.jpg", "b.jpg", "c.jpg")), Tally()
    source.read("a.jpg")
    left_out.add("broken pictures", "b.jpg: no JPEG", file="b.jpg")
    source.tell_unread(left_out, lambda name: f"files {Path(name).suffix}")
    assert left_out.lines() == ["broken pictures: 1 (first: b.jpg: no JPEG)", "files .jpg: 1 (first: c.jpg)"]


def test_names_that_are_no_utf8_are_told(tmp_path: Path) -> None:
    root, left_out = folder(tmp_path, "a.jpg"), Tally()
    (root / os.fsdecode(b"\xff.jpg")).write_bytes(b"")
    assert Source([root], left_out).names == ("a.jpg",)
    assert left_out.lines() == [r"file names that are no UTF-8: 1 (first: '\udcff.jpg')"]


@pytest.mark.parametrize("name", ["../a.jpg", "/etc/a.jpg", "x/../../a.jpg", "C:\\a.jpg", "..\\a.jpg"])
def test_names_that_lead_out_of_a_zip_file_are_told(tmp_path: Path, name: str) -> None:
    left_out = Tally()
    source = Source([zipped(tmp_path / "a.zip", {"ok.json": b"", name: b"x"})], left_out)
    assert source.names == ("ok.json",)
    assert left_out.counts == {"names that lead out of the ZIP file": 1}


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_module, "FREE_ZIP_BYTES", 1 << 20)
    bomb = zipped(tmp_path / "bomb.zip", {f"{k}.json": bytes(1 << 20) for k in range(8)})
    with pytest.raises(InterchangeError, match=r"bytes would unpack to 8388608: .* name the folder"):
        opened(bomb)
    monkeypatch.setattr(source_module, "MAX_FILE_BYTES", 1 << 10)
    large = zipped(tmp_path / "large.zip", {"a.json": bytes(1 << 11)})
    with pytest.raises(InterchangeError, match=r"a\.json: more than 1024 bytes"):
        opened(large).read("a.json")
    with pytest.raises(InterchangeError, match=r"a\.json: cannot be read: File too large"):
        opened(write(tmp_path / "folder", {"a.json": bytes(1 << 11)})).read("a.json")


def test_a_damaged_zip_file_is_named(tmp_path: Path) -> None:
    path = zipped(tmp_path / "a.zip", {"a.json": os.urandom(1 << 10)})
    data = bytearray(path.read_bytes())
    data[200:210] = bytes(10)
    path.write_bytes(data)
    with pytest.raises(InterchangeError, match=r"a\.zip: a\.json: cannot be unpacked: Bad CRC"):
        opened(path).read("a.json")
    data[30] ^= 1
    encrypted = bytearray(zipped(tmp_path / "b.zip", {"a.json": b"x"}).read_bytes())
    encrypted[encrypted.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "b.zip").write_bytes(encrypted)
    with pytest.raises(InterchangeError, match="is encrypted"):
        opened(tmp_path / "b.zip").read("a.json")


def test_a_link_out_of_the_folder_is_not_followed(tmp_path: Path) -> None:
    root = folder(tmp_path, "a.jpg")
    (tmp_path / "secret").write_text("x")
    (root / "b.jpg").symlink_to(tmp_path / "secret")
    (root / "c.jpg").symlink_to(root / "a.jpg")
    assert opened(root).read("c.jpg") == b"a.jpg"
    with pytest.raises(InterchangeError, match=r"b\.jpg: cannot be read: does not lie in the folder"):
        opened(root).read("b.jpg")


def test_what_is_neither_folder_nor_zip_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "annotations.xml").write_text("<a/>")
    for path in (tmp_path / "annotations.xml", tmp_path / "gone"):
        with pytest.raises(
            InterchangeError, match="neither a folder nor a ZIP file: name the one that holds"
        ):
            opened(path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InterchangeError, match="there is no file in it"):
        opened(tmp_path / "empty")


def test_folders_that_all_files_share_are_counted() -> None:
    assert shared_folders(["a/b/c.jpg", "a/b/d/e.jpg"]) == 2
    assert shared_folders(["a/b/c.jpg", "a/bc/e.jpg"]) == 1
    assert shared_folders(["c.jpg", "a/e.jpg"]) == 0
    assert shared_folders([]) == 0
    assert repeated(["b", "a", "b"]) == ["b"]
