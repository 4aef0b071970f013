"""Reads folders of pictures and of masks in the colours of a table.

A mask is a picture in a folder whose name says so: ``masks``, ``labels``, ``train_labels``, ``trainannot``,
``gt``. It belongs to the picture of its name, perhaps with an ending such as ``_L`` or ``_mask``, in the
folder whose name is the same without such words.
"""

from __future__ import annotations

import posixpath
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from training.errors import InterchangeError
from training.interchange.class_lists import find_class_list
from training.interchange.color_masks import MASK_SUFFIXES, MaskFile, MaskMeaning
from training.interchange.foreign import ForeignDataset, ForeignPicture, ReadOptions, Uncovered
from training.interchange.source import PICTURE_SUFFIXES, Source, shared_folders
from training.interchange.split_names import named_split, split_of
from training.interchange.tally import Tally

_MASK_FOLDER = re.compile(r"mask|label|annot|segm|(^|[^a-z])gt([^a-z]|$)", re.IGNORECASE)
_PICTURE_FOLDER = re.compile(r"im(age|g)|photo|picture|jpe?g|frame|input", re.IGNORECASE)
_MASK_ENDING = re.compile(r"([_-](l|gt|mask|label|seg|annotation|colou?r|rgb)s?)+$", re.IGNORECASE)


def read_mask_folders(source: Source, left_out: Tally, options: ReadOptions) -> ForeignDataset:
    """Read pictures and their masks.

    Args:
        source: holds both, and the table of the colours unless ``options`` do.
        left_out: counts the records that are not taken.
        options: further choices of the user.

    Raises:
        InterchangeError: there is no table, no mask, or no picture of a mask.
    """
    classes = find_class_list(source, options)
    names = {one.color: one.name for one in classes if one.color is not None}
    if len(names) < len(classes):
        raise InterchangeError("the class list: each class needs a colour of its own: name,red,green,blue")
    meaning = MaskMeaning(names, options.color_tolerance)
    return ForeignDataset(
        classes=classes,
        pictures=[
            ForeignPicture(
                picture, mask, MaskFile(source, mask, meaning), split_of(picture) or split_of(mask)
            )
            for picture, mask in _pairs(source, left_out)
        ],
        drawing_order="nothing overlaps: a mask says the class of every pixel",
        uncovered=Uncovered.IMPOSSIBLE,
    )


def _pairs(source: Source, left_out: Tally) -> Iterator[tuple[str, str]]:
    """Yield pictures with their masks."""
    names = source.with_suffix(*MASK_SUFFIXES, *PICTURE_SUFFIXES)
    shared = shared_folders(names)
    masks = [name for name in names if _is_in_mask_folder(name, shared)]
    pictures = sorted(set(names) - set(masks))
    if not masks or not pictures:
        raise InterchangeError(
            "pictures and masks must lie in different folders, the masks in one called masks or labels"
        )
    by_key = _by_key([name for name in pictures if name.lower().endswith(PICTURE_SUFFIXES)])
    for mask in masks:
        picture = _picture_of(mask, by_key)
        if picture is None:
            left_out.add("masks without a picture of their name, or with several", mask)
        else:
            yield picture, mask


def _is_in_mask_folder(name: str, shared: int) -> bool:
    return any(_MASK_FOLDER.search(folder) for folder in name.split("/")[shared:-1])


def _by_key(pictures: Sequence[str]) -> Mapping[tuple[str, ...], list[str]]:
    by_key: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for name in pictures:
        for key in dict.fromkeys(_keys(name, _stem(name))):
            by_key[key].append(name)
    return by_key


def _picture_of(mask: str, by_key: Mapping[tuple[str, ...], list[str]]) -> str | None:
    """Return the picture that shares the most with a mask, if it is the only one."""
    stem = _stem(mask)
    keys = [key for called in (stem, _MASK_ENDING.sub("", stem)) for key in _keys(mask, called)]
    found = next((by_key[key] for key in keys if key in by_key), [])
    return found[0] if len(found) == 1 else None


def _keys(name: str, stem: str) -> Iterator[tuple[str, ...]]:
    """Yield the features that a picture shares with its mask, the surest first."""
    folders = [named_split(folder) or folder for folder in posixpath.dirname(name).split("/")]
    told = [
        folder for folder in folders if not _MASK_FOLDER.search(folder) and not _PICTURE_FOLDER.search(folder)
    ]
    yield "folders", *told, stem
    yield "split", split_of(name), stem
    yield "name", stem


def _stem(name: str) -> str:
    return posixpath.splitext(posixpath.basename(name))[0]
