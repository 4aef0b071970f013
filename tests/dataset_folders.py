"""Small labelled folders as people have them, and data-set files with the lines that messages propose."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from model.labels import UInt8Array

HEIGHT, WIDTH = 24, 32
ORIENTATION = 0x0112
ROAD = (128, 64, 128)
CLASSES = (
    '[[classes]]\nname = "background"\ncolor = [0, 0, 0]\n'
    '[[classes]]\nname = "road"\ncolor = [128, 64, 128]\n'
)
IMAGES_AND_LABELS = '{ images = "images/*.jpg", labels = "labels/*.png" }'


def truth() -> UInt8Array:
    """Return labels without any symmetry: background 0 and a block of road 1."""
    label_HW = np.zeros((HEIGHT, WIDTH), np.uint8)
    label_HW[4:15, 3:18] = 1
    return label_HW


def write_picture(
    path: Path, *, orientation: int | None = None, size: tuple[int, int] = (HEIGHT, WIDTH)
) -> None:
    """Write a picture of noise, with an EXIF orientation on request.

    Args:
        path: the file; its suffix says the format.
        orientation: 1..8; None = no EXIF.
        size: height and width as stored.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(len(path.name)).integers(0, 256, (*size, 3), np.uint8)
    exif = Image.Exif()
    if orientation is not None:
        exif[ORIENTATION] = orientation
    Image.fromarray(pixels).save(path, exif=exif)


def write_labels(path: Path, label: np.ndarray | Image.Image, **options: object) -> None:
    """Write a label file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = label if isinstance(label, Image.Image) else Image.fromarray(label)
    image.save(path, **options)


def write_dataset(
    root: Path,
    labels: Sequence[np.ndarray | Image.Image],
    *,
    split: str = IMAGES_AND_LABELS,
    top: str = "",
    rest: str = CLASSES,
    orientation: int | None = None,
) -> Path:
    """Write a data set with one picture for each label file; return the data-set file.

    Args:
        root: its folder.
        labels: one a picture.
        split: value of the split ``train``.
        top: keys at the top of the file.
        rest: tables at the end of the file.
        orientation: EXIF orientation of the pictures.
    """
    for number, label in enumerate(labels):
        shape = label.shape[:2] if isinstance(label, np.ndarray) else label.size[::-1]
        write_picture(root / f"images/{number}.jpg", orientation=orientation, size=shape)
        write_labels(root / f"labels/{number}.png", label)
    path = root / "d.toml"
    path.write_text(f'name = "d"\n{top}\n[splits]\ntrain = {split}\n{rest}')
    return path


def mended(text: str, message: str) -> str:
    """Return a data-set file with the lines that a message proposes, each in its place."""
    blocks = re.findall(r"add ([^\n]+):\n((?: {4,}(?!and add )[^\n]*\n?|\s*\n)+)", message)
    assert blocks, message
    for place, lines in blocks:
        body = "".join(f"{line.strip()}\n" for line in lines.splitlines())
        if place.startswith("at the top"):
            text = body + text
        elif place.startswith("at the end"):
            text = f"{text}\n{body}"
        elif place == "before the first [[classes]]":
            text = text.replace("[[classes]]", f"{body}\n[[classes]]", 1)
        elif place == "in [label_map], in place of its lines":
            text = re.sub(r"(\[label_map\]\n)[^\[]*", lambda match, body=body: match[1] + body, text)
        elif place in {"in [label_map]", "in [path_map]"}:
            table = place.removeprefix("in ")
            text = text.replace(f"{table}\n", f"{table}\n{body}")
        elif place == "in [splits] to take the pictures":
            name = body.partition(" = ")[0]
            text = re.sub(rf"^{name} = .*$", lambda _, body=body: body.strip(), text, flags=re.MULTILINE)
        else:
            raise AssertionError(place)
    return text
