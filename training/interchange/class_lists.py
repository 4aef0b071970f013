"""The class list of masks in colours, from the user or from the source."""

from __future__ import annotations

import posixpath
from collections.abc import Sequence

from model.datasets.palettes import parse_class_list
from model.datasets.text import decode_text
from model.labels import IGNORE_ID
from training.errors import InterchangeError
from training.interchange.foreign import ForeignClass, ReadOptions
from training.interchange.source import Source

_NAMES = ("classes.txt", "labelmap.txt", "class_dict.csv", "classes.csv", "label_colors.txt")


def find_class_list(source: Source, options: ReadOptions) -> Sequence[ForeignClass]:
    """Return the classes with their colours.

    Args:
        source: may hold one of ``classes.txt``, ``labelmap.txt``, ``class_dict.csv``, ``classes.csv``.
        options: may hold the classes.

    Raises:
        InterchangeError: neither does.
        PaletteError: the file is no class list.
    """
    if options.classes is not None:
        return list(map(ForeignClass, options.classes.names, options.classes.colors))
    found = [name for name in source.names if posixpath.basename(name).lower() in _NAMES]
    if not found:
        raise InterchangeError(
            "which class has which colour? Give --classes FILE, one name,red,green,blue a line"
        )
    classes = parse_class_list(decode_text(source.read(found[0])), found[0])
    palette = classes.palette(IGNORE_ID, found[0])
    return list(map(ForeignClass, palette.names, palette.colors))
