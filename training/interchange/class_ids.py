"""Turns the classes of a foreign data set into ids, names and colours."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from model.datasets.palettes import ClassList
from model.errors import PaletteError
from model.labels import IGNORE_ID, ClassPalette, Color
from training.errors import InterchangeError
from training.interchange.foreign import ClassIds, ForeignClass, ForeignDataset, Uncovered

IGNORE = "ignore"
"""Value of ``--background`` that leaves uncovered pixels out."""

_BACKGROUND_NAMES = ("background", "_background_", "__background__")
_BLACK: Color = (0, 0, 0)


def class_ids(
    dataset: ForeignDataset,
    *,
    listed: ClassPalette | None = None,
    ignore: Iterable[str] = (),
    background: str | None = None,
) -> ClassIds:
    """Give each class an id.

    Args:
        dataset: says the classes and their order.
        listed: replaces names, order and colours.
        ignore: classes whose pixels are neither learned nor scored.
        background: class of the pixels that no shape covers; it becomes id 0 where it is none of the classes.
            ``ignore`` = these pixels do not count. None = the default of the format.

    Raises:
        InterchangeError: an ignored class does not exist; there is no class, or more than 255; a background
            is named though the masks say the class of every pixel.
    """
    ignored = dataset.ignored | set(ignore)
    classes = dataset.classes if listed is None else _classes_of(listed)
    if unknown := sorted(set(ignore) - {one.name for one in dataset.classes}):
        raise InterchangeError(f"--ignore {unknown[0]!r}: the source has no such class")
    kept = [one for one in _merged(classes) if one.name not in ignored]
    uncovered = _uncovered_class(dataset, kept, background)
    if uncovered is not None and uncovered not in {one.name for one in kept}:
        kept.insert(0, ForeignClass(uncovered, _BLACK))
    palette = _palette(kept)
    ids = {one.name: class_id for class_id, one in enumerate(kept)} | dict.fromkeys(ignored, IGNORE_ID)
    return ClassIds(palette, ids, IGNORE_ID if uncovered is None else ids[uncovered])


def _classes_of(palette: ClassPalette) -> Sequence[ForeignClass]:
    return [ForeignClass(name, color) for name, color in zip(palette.names, palette.colors, strict=True)]


def _merged(classes: Sequence[ForeignClass]) -> Sequence[ForeignClass]:
    """Take each name once, where several files list it."""
    return list({one.name: one for one in classes}.values())


def _uncovered_class(
    dataset: ForeignDataset, classes: Sequence[ForeignClass], background: str | None
) -> str | None:
    """Return the class of uncovered pixels; None = they are ignored."""
    if dataset.uncovered is Uncovered.IMPOSSIBLE:
        if background is not None:
            raise InterchangeError("--background: the masks of this format say the class of every pixel")
        return None
    if background is not None:
        return None if background == IGNORE else background
    if dataset.uncovered is Uncovered.IGNORED:
        return None
    named = (one.name for one in classes if one.name.casefold() in _BACKGROUND_NAMES)
    return next(named, _BACKGROUND_NAMES[0])


def _palette(classes: Sequence[ForeignClass]) -> ClassPalette:
    """Return the classes; each keeps its colour unless an earlier one has it."""
    colors: list[Color | None] = []
    for one in classes:
        colors.append(None if one.color in colors else one.color)
    names = tuple(_plain(one.name) for one in classes)
    try:
        return ClassList(names, tuple(colors)).palette(IGNORE_ID, "the classes of the source")
    except PaletteError as error:
        raise InterchangeError(str(error)) from error


def _plain(name: str) -> str:
    """Return the name without commas, which separate names wherever classes are listed, and line ends."""
    return " ".join(name.replace(",", " ").split())
