"""Reads folders like those of Pascal VOC: ``SegmentationClass`` holds masks in the colours of the classes.

CVAT writes them, too, as ``Segmentation mask 1.1``, with a ``labelmap.txt`` that names the classes.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Mapping, Sequence

from model.datasets.palettes import distinct_colors
from model.labels import MAX_CLASSES, Color
from training.errors import InterchangeError
from training.interchange.class_lists import read_class_list
from training.interchange.color_masks import MaskFile, MaskMeaning
from training.interchange.foreign import ForeignClass, ForeignDataset, ForeignPicture, ReadOptions, Uncovered
from training.interchange.source import PICTURE_SUFFIXES, Source
from training.interchange.split_names import named_split
from training.interchange.tally import Tally

LABEL_MAP = "labelmap.txt"

_MASK_FOLDER = "SegmentationClass"
_OBJECT_FOLDER = "SegmentationObject"
_PICTURE_FOLDER = "JPEGImages"
_LIST_FOLDER = "ImageSets"
_VOID = ForeignClass("void", (224, 224, 192))
_VOID_ID = 255
_NAMES = [
    "background",
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
]


def read_voc(source: Source, left_out: Tally, options: ReadOptions) -> ForeignDataset:
    """Read masks in colours with their lists of pictures.

    The colours are those of ``labelmap.txt``, or else those of the 20 classes of VOC and the outlines (void),
    which are ignored. Grey masks hold the numbers of the classes.

    Args:
        source: holds ``SegmentationClass``, perhaps ``JPEGImages``, ``ImageSets`` and ``labelmap.txt``.
        left_out: counts the records that are not taken.
        options: further choices of the user.

    Raises:
        InterchangeError: there are no masks, or a file is malformed.
    """
    masks = {
        _key(name, _MASK_FOLDER): name for name in source.with_suffix(".png") if _lies_in(name, _MASK_FOLDER)
    }
    if not masks:
        raise InterchangeError(f"there is no folder {_MASK_FOLDER} with PNG masks in it")
    classes = _label_map(source) or _voc_classes()
    return ForeignDataset(
        classes=classes,
        pictures=list(_pictures(source, left_out, masks, _meaning(classes, options.color_tolerance))),
        drawing_order="nothing overlaps: a mask says the class of every pixel",
        uncovered=Uncovered.IMPOSSIBLE,
        ignored=frozenset({_VOID.name} if _VOID in classes else ()),
    )


def _pictures(
    source: Source, left_out: Tally, masks: Mapping[str, str], meaning: MaskMeaning
) -> Iterator[ForeignPicture]:
    splits = _splits(source)
    files = _picture_files(source)
    for key, mask in masks.items():
        picture = files.get(key) or files.get(posixpath.basename(key))
        if picture is None:
            left_out.add("masks whose picture is missing", mask)
        elif splits and key not in splits:
            left_out.add(f"masks that no list in {_LIST_FOLDER} names", mask)
        else:
            yield ForeignPicture(picture, mask, MaskFile(source, mask, meaning), splits.get(key, ""))


def _meaning(classes: Sequence[ForeignClass], tolerance: int) -> MaskMeaning:
    colors = {one.color: one.name for one in classes if one.color is not None}
    if len(colors) < len(classes):
        raise InterchangeError(f"{LABEL_MAP}: two classes share one colour, or one has none")
    values = {class_id: one.name for class_id, one in enumerate(classes) if one != _VOID}
    return MaskMeaning(
        colors, tolerance, grey_names=values | ({_VOID_ID: _VOID.name} if _VOID in classes else {})
    )


def _voc_classes() -> Sequence[ForeignClass]:
    return [*map(ForeignClass, _NAMES, _voc_colors()), _VOID]


def _voc_colors() -> Sequence[Color]:
    """Return the colour of each id, from 0 on, where a list does not say it."""
    return [(0, 0, 0), *distinct_colors(MAX_CLASSES)]


def _label_map(source: Source) -> Sequence[ForeignClass]:
    """Read the classes that CVAT names; one without a colour (``road:::``) has that of VOC for its id."""
    names = [name for name in source.names if posixpath.basename(name) == LABEL_MAP]
    classes = [one for name in names for one in read_class_list(source, name)]
    return [
        ForeignClass(one.name.removesuffix(":::"), color if one.color is None else one.color)
        for one, color in zip(classes, _voc_colors(), strict=False)
    ]


def _splits(source: Source) -> dict[str, str]:
    """Return the pictures that the lists name, with their split, or "" where a list is of no split."""
    splits: dict[str, str] = {}
    for name in source.with_suffix(".txt"):
        if not _lies_in(name, _LIST_FOLDER):
            continue
        split = named_split(posixpath.splitext(posixpath.basename(name))[0])
        for line in source.read(name).decode("utf-8-sig", "replace").splitlines():
            if line.strip():
                splits[line.strip()] = split or splits.get(line.strip(), "")
    return splits


def _picture_files(source: Source) -> dict[str, str]:
    """Return the pictures by their paths below ``JPEGImages`` and by their names, each without suffix."""
    files: dict[str, str] = {}
    for name in source.with_suffix(*PICTURE_SUFFIXES):
        if not _lies_in(name, _MASK_FOLDER) and not _lies_in(name, _OBJECT_FOLDER):
            files.setdefault(posixpath.splitext(posixpath.basename(name))[0], name)
            if _lies_in(name, _PICTURE_FOLDER):
                files[_key(name, _PICTURE_FOLDER)] = name
    return files


def _lies_in(name: str, folder: str) -> bool:
    return folder in name.split("/")[:-1]


def _key(name: str, folder: str) -> str:
    """Return the path below a folder, without suffix."""
    return posixpath.splitext(f"/{name}".rpartition(f"/{folder}/")[2])[0]
