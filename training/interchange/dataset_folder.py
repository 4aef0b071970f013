"""The folder that imports, exports and the example write: pictures, masks, lists, classes, data-set file."""

from __future__ import annotations

import json
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from PIL import Image

from model.labels import ClassPalette, UInt8Array
from training.errors import InterchangeError
from training.interchange.source import shared_folders

DATASET_FILE = "dataset.toml"
CLASS_FILE = "classes.txt"

PairNames = tuple[str, str]
"""Paths of a picture and of its mask below the folder."""

_UNUSUAL = re.compile(r"[^\w.-]+")


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes ``path`` at the end, and vanishes when anything fails before.

    Args:
        path: must not exist, or be an empty folder.

    Raises:
        InterchangeError: it holds something already, or cannot be written.
    """
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise InterchangeError(f"{path} exists and is not empty: name a new folder")
    temporary = path.parent / f".{path.name}.{secrets.token_hex(4)}.part"
    try:
        temporary.mkdir(parents=True)
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise InterchangeError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_mask(path: Path, ids_HW: UInt8Array, palette: ClassPalette) -> None:
    """Write class ids as an 8-bit palette PNG: pixel values are ids, the palette has the colours.

    Args:
        path: of the file; its folder is made.
        ids_HW: uint8.
        palette: names the colours.
    """
    mask = Image.fromarray(ids_HW)
    mask.putpalette(palette.rgb_table.tobytes())
    path.parent.mkdir(parents=True, exist_ok=True)
    mask.save(path, "PNG")


def write_dataset(
    folder: Path, name: str, palette: ClassPalette, splits: Mapping[str, Sequence[PairNames]]
) -> None:
    """Write data-set file, class list and one list of pairs for each split.

    Args:
        folder: holds the pictures and masks.
        name: how reports call the data set.
        palette: the classes.
        splits: split name -> pairs, paths below the folder without commas.
    """
    for split, pairs in splits.items():
        (folder / f"{split}.csv").write_text("".join(f"{image},{mask}\n" for image, mask in pairs), "utf-8")
    classes = list(zip(palette.names, palette.colors, strict=True))
    lines = [f"{called},{red},{green},{blue}\n" for called, (red, green, blue) in classes]
    (folder / CLASS_FILE).write_text("".join(lines), "utf-8")
    write_dataset_file(folder / DATASET_FILE, name, palette, {split: f'"{split}.csv"' for split in splits})


def write_dataset_file(path: Path, name: str, palette: ClassPalette, splits: Mapping[str, str]) -> None:
    """Write a data-set file whose paths start at its folder, and whose labels fit pictures as they are shown.

    Args:
        path: of the file.
        name: how reports call the data set.
        palette: the classes.
        splits: split name -> its value in the file, as TOML.
    """
    head = f'name = {_string(name)}\nignore_id = {palette.ignore_id}\nexif = "upright"\n\n[splits]\n'
    lines = [f"{split} = {said}\n" for split, said in splits.items()]
    classes = [
        f"\n[[classes]]\nname = {_string(called)}\ncolor = {list(color)}\n"
        for called, color in zip(palette.names, palette.colors, strict=True)
    ]
    path.write_text(head + "".join(lines + classes), "utf-8")


def _string(text: str) -> str:
    """Return a string as TOML has it, which escapes as JSON does, and the delete character, too."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


class FileNames:
    """Chooses names for pictures: short, plain, and each one's own even without its suffix.

    Args:
        names: paths of all pictures, with slashes; folders that all of them share are left away.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._shared = shared_folders(names)
        self._taken: set[str] = set()

    def stem(self, name: str) -> str:
        """Return the path of one picture without suffix: letters, digits, ``_``, ``-``, dots and slashes."""
        parts = PurePosixPath(name).with_suffix("").parts[self._shared :]
        plain = "/".join(_UNUSUAL.sub("_", part).lstrip(".") or "_" for part in parts)
        stem, number = plain, 1
        while stem.casefold() in self._taken:
            number += 1
            stem = f"{plain}-{number}"
        self._taken.add(stem.casefold())
        return stem
