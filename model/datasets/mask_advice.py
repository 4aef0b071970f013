"""Explanations of masks that cannot be read, and the lines of the data-set file that read them.

Axes: H height, W width.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import cache
from importlib.resources import files

import numpy as np
import numpy.typing as npt

from model.datasets.dataset_lines import (
    END,
    TOP,
    Addition,
    label_map_addition,
    label_map_entries,
    with_additions,
)
from model.datasets.text import parse_toml
from model.labels import ClassPalette, Color

MaskArray = npt.NDArray[np.unsignedinteger]
"""One number a pixel: an id, or a colour as ``red << 16 | green << 8 | blue``."""

_COLORS_LINE = 'masks = "colors"'
_NEAREST_LINE = "color_tolerance = 255"

_MIN_EDGE_VALUES = 3
_MAX_EDGE_SHARE = 0.3
_MAX_FLAT_SHARE = 0.05
_MIN_PICTURE_COLORS = 256
_MAX_UNEVENNESS = 2
_MAX_PROPOSED = 64
_SHOWN = 8
_BYTE = 256


def advise_ids(values: Collection[int], palette: ClassPalette, label_map: Mapping[int, int]) -> str:
    """Explain values of masks that are no classes.

    Args:
        values: the values that occur, at least one of them without a class.
        palette: the classes.
        label_map: value -> class id or ignore id.
    """
    known = {*range(palette.num_classes), palette.ignore_id}
    unknown = sorted(value for value in values if label_map.get(value, value) not in known)
    more = f" and {len(unknown) - _SHOWN} more" if len(unknown) > _SHOWN else ""
    sentence = f"ids {unknown[:_SHOWN]}{more} are outside [0, {palette.num_classes})"
    if palette.num_classes == 1:
        return f"{sentence}; {advise_one_class(values, palette)}"
    if len(unknown) > _MAX_PROPOSED:
        return f"{sentence}: too many values for a mask: is the path of the labels right?"
    guess, proposal = _guess(sorted(values), unknown, palette)
    whole = {value: target for value, target in {**label_map, **proposal}.items() if value != target}
    return with_additions(f"{sentence}: {guess}", label_map_addition(whole, has_table=bool(label_map)))


def advise_one_class(values: Collection[int], palette: ClassPalette) -> str:
    """Explain that one class cannot be learned, and how pixels outside it get a class.

    Args:
        values: the values that occur in the masks.
        palette: the only class.
    """
    others = [value for value in sorted(values) if value not in {0, 1}]
    entries = label_map_entries({others[0]: 1}) if len(others) == 1 and 1 not in values else ()
    table = ("[label_map]", *entries, "") if entries else ()
    color = [0, 0, 0] if palette.colors[0] != (0, 0, 0) else [128, 128, 128]
    return with_additions(
        f"the only class is {palette.names[0]}, and one class alone cannot be learned: pixels outside it need"
        " a class of their own",
        Addition(
            "before the first [[classes]]",
            (*table, "[[classes]]", 'name = "background"', f"color = {color}"),
        ),
    )


def advise_only_class_seen(
    class_id: int | None, palette: ClassPalette, *, has_ignored: bool, has_label_map: bool
) -> str:
    """Say that the masks of a split hold one class or none, so that nothing can be learned.

    Args:
        class_id: the only class that occurs; None = none does.
        palette: the classes, at least two.
        has_ignored: pixels of the ignore id occur.
        has_label_map: the data-set file has a ``[label_map]``.
    """
    only = "no class at all" if class_id is None else f"only class {class_id} ({palette.names[class_id]})"
    sentence = f"the labels hold {only}, so that nothing can be learned"
    if class_id is None or not has_ignored:
        return sentence
    ignored = palette.ignore_id
    table = () if has_label_map else ("[label_map]",)
    other = next(other for other in range(palette.num_classes) if other != class_id)
    return with_additions(
        f"{sentence}; all other pixels are {ignored}, the ignore id. If it means {palette.names[other]}",
        Addition("in [label_map]" if has_label_map else END, (*table, f"{ignored} = {other}")),
    )


def advise_edges(
    values_HW: MaskArray,
    is_unknown_HW: npt.NDArray[np.bool_],
    palette: ClassPalette,
    label_map: Mapping[int, int],
) -> str | None:
    """Say that a mask of gray values has anti-aliased edges.

    Args:
        values_HW: the mask.
        is_unknown_HW: the pixels whose value is no class.
        palette: the classes.
        label_map: value -> class id or ignore id.

    Returns:
        the advice; None where the unknown values fill areas.
    """
    if not _lies_on_edges(values_HW, is_unknown_HW):
        return None
    areas = [int(value) for value in np.unique(values_HW[_is_flat(values_HW)]) if value < _BYTE]
    targets = _targets_of_areas(areas, palette, label_map)
    entries = {f"{value},{value},{value}": target for value, target in sorted(targets.items())}
    return with_additions(
        "a mask with anti-aliased edges: values between those of the classes lie along the edges of areas."
        " Save masks without anti-aliasing, or give these pixels the class of the nearest value",
        Addition(TOP, (_COLORS_LINE, _NEAREST_LINE)),
        label_map_addition(entries, has_table=bool(label_map)),
    )


def advise_colors(
    keys_HW: MaskArray,
    colors: Mapping[Color, int],
    palette: ClassPalette,
    *,
    masks_are_colors: bool,
    has_label_map: bool,
) -> str:
    """Explain a mask in colours that cannot be read.

    Args:
        keys_HW: the mask's colours.
        colors: colour in masks -> class id or ignore id, as far as the data-set file names colours.
        palette: the classes.
        masks_are_colors: the data-set file says so.
        has_label_map: the data-set file has a ``[label_map]``.
    """
    keys, counts = np.unique(keys_HW, return_counts=True)
    is_known = np.isin(keys, [key_of(color) for color in colors])
    unknown = dict(zip(keys[~is_known].tolist(), counts[~is_known].tolist(), strict=True))
    needed = [] if masks_are_colors else [_COLORS_LINE]
    if not unknown:
        return with_additions("a mask in the colours of the classes", Addition(TOP, tuple(needed)))
    if is_known.any() and _lies_on_edges(keys_HW, ~np.isin(keys_HW, keys[is_known])):
        return with_additions(
            "a mask in the colours of the classes with anti-aliased edges. Save masks without anti-aliasing,"
            " or give these pixels the class of the nearest colour",
            Addition(TOP, (*needed, _NEAREST_LINE)),
        )
    if len(unknown) >= _MIN_PICTURE_COLORS:
        return f"a picture in {len(keys)} colours, not a mask: is the path of the labels right?"
    largest = sorted(unknown, key=lambda key: -unknown[key])[:_SHOWN]
    shown = ", ".join(f"{_shown(key)} on {unknown[key]} pixels" for key in largest)
    entries = label_map_entries({_shown(key): palette.ignore_id for key in largest})
    return with_additions(
        f"a mask in {len(keys)} colours, {len(unknown)} of them of no class: {shown}. Give classes these"
        " colours, or leave the pixels out",
        *([Addition(TOP, tuple(needed))] if needed else []),
        Addition("in [label_map]", entries) if has_label_map else Addition(END, ("[label_map]", *entries)),
    )


def advise_lossy(file_format: str, *, masks_are_colors: bool) -> str:
    """Say that the file format changes the pixels of masks."""
    needed = () if masks_are_colors else (_COLORS_LINE,)
    return with_additions(
        f"a {file_format}, whose compression changes the values of pixels. Save masks as PNG where they were"
        " drawn, or give each pixel the class of the nearest colour",
        Addition(TOP, (*needed, _NEAREST_LINE)),
    )


def advise_index_colors(
    index_colors: Mapping[int, Color],
    colors: Mapping[Color, int],
    palette: ClassPalette,
    label_map: Mapping[int, int],
) -> str | None:
    """Say that a palette PNG paints the index of one class in the colour of another.

    Args:
        index_colors: index that occurs in the mask -> its colour in the file.
        colors: colour -> class id or ignore id, as far as the data-set file names colours.
        palette: the classes.
        label_map: index -> class id or ignore id.
    """
    for index, color in index_colors.items():
        target, painted = label_map.get(index, index), colors.get(color, palette.ignore_id)
        if target != painted and max(target, painted) < palette.num_classes:
            return advise_palettes(
                f"index {index} stands for {palette.names[target]}, but the palette of this PNG has the"
                f" colour of {palette.names[painted]} there"
            )
    return None


def advise_palettes(sentence: str) -> str:
    """Return a sentence on the palettes of PNG files, and the two ways to read them."""
    return with_additions(
        sentence, Addition(f'{TOP} (or masks = "ids" if the indices are right)', (_COLORS_LINE,))
    )


def key_of(color: Color) -> int:
    """Return a colour as one number: ``red << 16 | green << 8 | blue``."""
    red, green, blue = color
    return red << 16 | green << 8 | blue


def _shown(key: int) -> str:
    return f"{key >> 16},{key >> 8 & 255},{key & 255}"


def _lies_on_edges(values_HW: MaskArray, is_marked_HW: npt.NDArray[np.bool_]) -> bool:
    """Return whether the marked pixels are few, of several values, and fill no area."""
    marked = int(np.count_nonzero(is_marked_HW))
    if not marked or marked > _MAX_EDGE_SHARE * is_marked_HW.size:
        return False
    if len(np.unique(values_HW[is_marked_HW])) < _MIN_EDGE_VALUES:
        return False
    return int(np.count_nonzero(_is_flat(values_HW) & is_marked_HW)) <= _MAX_FLAT_SHARE * marked


def _is_flat(values_HW: MaskArray) -> npt.NDArray[np.bool_]:
    """Return the pixels whose four neighbours have the same value."""
    flat_HW = np.zeros(values_HW.shape, np.bool_)
    middle = values_HW[1:-1, 1:-1]
    flat_HW[1:-1, 1:-1] = (
        (middle == values_HW[:-2, 1:-1])
        & (middle == values_HW[2:, 1:-1])
        & (middle == values_HW[1:-1, :-2])
        & (middle == values_HW[1:-1, 2:])
    )
    return flat_HW


def _guess(
    values: Sequence[int], unknown: Sequence[int], palette: ClassPalette
) -> tuple[str, dict[int, int]]:
    """Guess the meaning of the values of masks; return it in words and as a label map."""
    count, ignore_id = palette.num_classes, palette.ignore_id
    names, cityscapes = _cityscapes()
    if [name.lower() for name in palette.names] == names and unknown[-1] in cityscapes:
        return "they are labelIds of Cityscapes, not trainIds", cityscapes
    ids = [value for value in values if value != ignore_id]
    for in_order in (values, ids):
        if len(in_order) == count and (in_order is ids or _is_even(values)):
            return f"there are {count} values for {count} classes", _ranks(in_order)
    if ids == list(range(1, count + 1)):
        return "ids seem to start at 1", _ranks(ids)
    if ids == list(range(count + 1)):
        guess = f"a class for id {count} is missing, or 0 means no class. If 0 means no class"
        return guess, {0: ignore_id} | {value: value - 1 for value in ids[1:]}
    return "lead each value to a class, or leave its pixels out", dict.fromkeys(unknown, ignore_id)


def _targets_of_areas(
    areas: Sequence[int], palette: ClassPalette, label_map: Mapping[int, int]
) -> dict[int, int]:
    """Return the class id of each gray value that fills areas, and of the values of all other classes."""
    is_known = all(value in label_map or value < palette.num_classes for value in areas)
    if not is_known and len(areas) == palette.num_classes:
        return {value: class_id for class_id, value in enumerate(areas)}
    targets = {value: label_map.get(value, value if is_known else palette.ignore_id) for value in areas}
    targets |= label_map
    return targets | {id_: id_ for id_ in range(palette.num_classes) if id_ not in targets.values()}


def _is_even(values: Sequence[int]) -> bool:
    gaps = np.diff(values)
    return int(gaps.max() - gaps.min()) <= _MAX_UNEVENNESS


def _ranks(values: Sequence[int]) -> dict[int, int]:
    return {value: rank for rank, value in enumerate(values) if value != rank}


@cache
def _cityscapes() -> tuple[list[str], dict[int, int]]:
    """Return the classes of Cityscapes and the trainId of each labelId."""
    preset = parse_toml((files("model") / "presets" / "cityscapes.toml").read_text("utf-8"), "cityscapes")
    names = [one["name"] for one in preset["classes"]]
    return names, {int(value): target for value, target in preset["label_map"].items()}
