"""Writes a data set for other programs: ``bisenet dataset export``.

Axes: H height, W width, 3 = red green blue.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from PIL import Image

from model.datasets import panoptic
from model.datasets.dataset import DatasetSpec, LabeledImages
from model.labels import ClassPalette, UInt8Array
from training.interchange.dataset_folder import FileNames, PairNames, new_folder, write_dataset, write_mask

ExportFormat = Literal["coco-panoptic", "palette"]


class _Pair(NamedTuple):
    """One picture of a split.

    Attributes:
        image: its path in the folder of the split's pictures.
        stem: the same without suffix.
        label_HW: class ids and the ignore id, uint8.
    """

    image: str
    stem: str
    label_HW: UInt8Array


def export_dataset(
    spec: DatasetSpec,
    target: Path,
    format_name: ExportFormat,
    progress: Callable[[int, int], None] = lambda done, total: None,  # noqa: ARG005 - a program need not watch
) -> dict[str, int]:
    """Write all splits of a data set; nothing is written where one of its files is unusable.

    Args:
        spec: the data set.
        target: folder of the result; must not exist, or be empty.
        format_name: ``coco-panoptic``: PNG files of segments, one segment for each class of a picture, and a
            JSON file for each split. ``palette``: 8-bit PNG files of class ids, and a data-set file.
        progress: called with the pictures that are done and all.

    Returns:
        Split name -> pictures.

    Raises:
        InterchangeError: the folder cannot be written.
        DatasetError: a picture or its labels are unusable.
    """
    splits = [LabeledImages(spec, split) for split in spec.splits]
    counts = {split.split: len(split) for split in splits}
    with new_folder(target) as folder:
        counter = iter(range(1, sum(counts.values()) + 1))
        written: dict[str, list[PairNames]] = {}
        for split in splits:
            pairs = _pairs(split, folder, lambda: progress(next(counter), sum(counts.values())))
            if format_name == "palette":
                written[split.split] = _write_masks(folder, split.split, spec.palette, pairs)
            else:
                _write_segments(folder / "annotations", split.split, spec.palette, pairs)
        if format_name == "palette":
            write_dataset(folder, spec.name, spec.palette, written)
    return counts


def _pairs(split: LabeledImages, folder: Path, advance: Callable[[], None]) -> Iterator[_Pair]:
    """Copy the pictures to ``images/SPLIT``; yield each with its labels."""
    names = FileNames([split.name(index) for index in range(len(split))])
    for index, listed in enumerate(split.pairs):
        _, label_HW = split[index]
        stem = names.stem(split.name(index))
        image = f"{stem}{listed.image.suffix.lower()}"
        target = folder / "images" / split.split / image
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(listed.image, target)
        advance()
        yield _Pair(image, stem, label_HW)


def _write_masks(folder: Path, split: str, palette: ClassPalette, pairs: Iterable[_Pair]) -> list[PairNames]:
    written = []
    for pair in pairs:
        mask = f"masks/{split}/{pair.stem}.png"
        write_mask(folder / mask, pair.label_HW, palette)
        written.append((f"images/{split}/{pair.image}", mask))
    return written


def _write_segments(folder: Path, split: str, palette: ClassPalette, pairs: Iterable[_Pair]) -> None:
    """Write ``panoptic_SPLIT.json``, and the segments of each picture in ``panoptic_SPLIT``."""
    images, annotations = [], []
    for image_id, pair in enumerate(pairs, 1):
        height, width = pair.label_HW.shape
        images.append({"id": image_id, "file_name": pair.image, "height": height, "width": width})
        name = f"{pair.stem}.png"
        segments = panoptic.segments(pair.label_HW, palette)
        annotations.append({"image_id": image_id, "file_name": name, "segments_info": segments})
        path = folder / f"panoptic_{split}" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(panoptic.segment_numbers(pair.label_HW, palette)).save(path, "PNG")
    record = {"images": images, "annotations": annotations, "categories": panoptic.categories(palette)}
    (folder / f"panoptic_{split}.json").write_text(json.dumps(record), "utf-8")
