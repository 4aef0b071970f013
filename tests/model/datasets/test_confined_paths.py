from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from model.datasets.confined_paths import ConfinedReader
from model.datasets.dataset import DatasetSpec, LabeledImages
from model.errors import DatasetError
from model.labels import ClassPalette

OUTSIDE = b"outside of the folder"
PALETTE = ClassPalette(names=("a", "b"), colors=((0, 0, 0), (255, 255, 255)))


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """Return a folder full of traps, beside files that are not in it."""
    folder = tmp_path / "data"
    (folder / "sub").mkdir(parents=True)
    (folder / "good").write_bytes(b"good")
    (folder / "sub" / "deep").write_bytes(b"deep")
    (folder / "big").write_bytes(bytes(2000))
    (tmp_path / "secret").write_bytes(OUTSIDE)
    (tmp_path / "data-beside").mkdir()
    (tmp_path / "data-beside" / "secret").write_bytes(OUTSIDE)
    for name, target in {
        "link_inside": "sub/deep",
        "link_out": "../secret",
        "link_absolute": str(tmp_path / "secret"),
        "link_folder_out": "..",
        "link_root": "/",
        "link_loop": "link_loop",
        "link_nowhere": "nowhere",
        "link_zero": "/dev/zero",
        "link_proc": "/proc/self/environ",
        "link_chain": "link_out",
    }.items():
        (folder / name).symlink_to(target)
    os.mkfifo(folder / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(folder / "socket"))
        yield folder


TRICKS = [
    *(
        "../secret",
        "./../secret",
        "sub/../../secret",
        "sub/../../data/../secret",
        "..//secret",
        ".././secret",
    ),
    *("../data-beside/secret", "../data/../secret", "good/../../secret", "sub/../sub/../../secret"),
    *("/etc/passwd", "//etc/passwd", "/etc/../etc/passwd", "/dev/zero", "/dev/stdin", "/dev/random"),
    *(
        "/proc/self/environ",
        "/proc/self/root/etc/passwd",
        "/proc/self/fd/0",
        "/proc/self/mem",
        "/proc/1/maps",
    ),
    *("link_out", "link_absolute", "link_chain", "link_zero", "link_proc", "link_loop", "link_nowhere"),
    *(
        "link_folder_out/secret",
        "link_root/etc/passwd",
        "link_folder_out/data-beside/secret",
        "sub/../link_out",
    ),
    *("pipe", "socket", "sub", ".", "", "..", "/", "big", "nowhere", "good/x", "sub/", "../data"),
    *("good\x00", "../secret\x00.png", "\x00", "good\x00/../../secret"),
    *("\u2024\u2024/secret", "\uff0e\uff0e/secret", "\u2025/secret", "..\u2215secret", "..\uff0fsecret"),
    *(
        "%2e%2e/secret",
        "..%2fsecret",
        "..\\secret",
        "....//secret",
        "~/secret",
        "~root/secret",
        "$HOME/secret",
    ),
    *(
        "file:///etc/passwd",
        "http://localhost/secret",
        "a" * 5000,
        "/".join(["sub"] * 3000),
        "\udc80",
        "good\n",
    ),
]

_opened: list[str] = []
_watching = False


def _note(event: str, arguments: tuple[Any, ...]) -> None:
    if _watching and event == "open" and not arguments[2] & os.O_PATH:
        _opened.append(os.fsdecode(arguments[0]) if isinstance(arguments[0], str | bytes) else "")


sys.addaudithook(_note)


@pytest.fixture
def opened() -> Iterator[list[str]]:
    """Return the paths that this process opens to read from now on; a path handle reads nothing."""
    global _watching  # noqa: PLW0603 - an audit hook cannot be taken away again
    _opened.clear()
    _watching = True
    yield _opened
    _watching = False


def test_there_are_sixty_tricks() -> None:
    assert len(set(TRICKS)) >= 60


@pytest.mark.guarantee("G19")
@pytest.mark.parametrize("trick", TRICKS)
def test_no_name_leads_out_of_the_folder(root: Path, opened: list[str], trick: str) -> None:
    read = ConfinedReader(root, max_file_bytes=1000)
    with pytest.raises((OSError, ValueError)):
        read(root / trick)
    assert opened == []


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("good", b"good"),
        ("sub/deep", b"deep"),
        ("link_inside", b"deep"),
        ("sub/../good", b"good"),
        ("./good", b"good"),
    ],
)
def test_what_lies_in_the_folder_is_read(root: Path, name: str, content: bytes) -> None:
    assert ConfinedReader(root)(root / name) == content


def test_the_folder_itself_may_be_a_link(root: Path) -> None:
    link = root.parent / "link"
    link.symlink_to(root)
    assert ConfinedReader(link)(link / "good") == b"good"
    with pytest.raises(PermissionError):
        ConfinedReader(link)(link / "../secret")


@pytest.mark.guarantee("G19")
def test_a_link_that_takes_the_place_of_a_file_after_the_check_is_not_followed(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    readlink = Path.readlink

    def readlink_and_swap(path: Path) -> Path:
        real = readlink(path)
        (root / "sub").rename(root / "was-sub")
        (root / "sub").symlink_to("../data-beside")
        (root.parent / "data-beside" / "deep").write_bytes(OUTSIDE)
        return real

    monkeypatch.setattr(Path, "readlink", readlink_and_swap)
    assert ConfinedReader(root)(root / "sub" / "deep") == b"deep"
    assert (root / "sub" / "deep").read_bytes() == OUTSIDE


def test_files_of_further_folders_are_read_as_well(root: Path) -> None:
    elsewhere = root.parent / "data-beside"
    assert ConfinedReader(root, (elsewhere,))(elsewhere / "secret") == OUTSIDE
    with pytest.raises(PermissionError):
        ConfinedReader(root, (elsewhere,))(root.parent / "secret")


@pytest.mark.guarantee("G19")
@pytest.mark.parametrize("trick", [trick for trick in TRICKS if trick.strip() and "\n" not in trick])
@pytest.mark.parametrize("place", ["image", "label", "list"])
def test_no_list_leads_out_of_its_data_set(root: Path, opened: list[str], trick: str, place: str) -> None:
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(root / "ok.png")
    image, label = (trick, "ok.png") if place == "image" else ("ok.png", trick)
    (root / "val.csv").write_text(f"{image},{label}\n", "utf-8", "surrogateescape")
    spec = DatasetSpec("traps", root, PALETTE, {"val": trick if place == "list" else "val.csv"}, {})
    opened.clear()
    with pytest.raises(DatasetError):
        _ = LabeledImages(spec, "val", read=ConfinedReader(root, max_file_bytes=1000))[0]
    names = {Path(path).name for path in opened}
    assert not {"pipe", "socket", "secret", "passwd", "zero", "random", "environ", "mem", "maps"} & names
