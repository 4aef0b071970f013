"""The class list of masks in colours, from the user or from the source."""

from __future__ import annotations

import posixpath
from collections.abc import Sequence

from model.datasets.palettes import parse_class_list
from model.datasets.text import decode_text
from model.errors import PaletteError
from training.errors import InterchangeError
from training.interchange.foreign import ForeignClass, ReadOptions
from training.interchange.source import Source

_NAMES = ("classes.txt", "labelmap.txt", "class_dict.csv", "classes.csv", "label_colors.txt")


def find_class_list(source: Source, options: ReadOptions) -> Sequence[ForeignClass]:
    """Return the classes of the user, or else those of a file of the source.

    Args:
        source: may hold ``classes.txt``, ``labelmap.txt``, ``class_dict.csv`` or ``classes.csv``.
        options: may hold the classes.

    Raises:
        InterchangeError: there is none, or it is malformed.
    """
    if options.classes is not None:
        return list(map(ForeignClass, options.classes.names, options.classes.colors))
    found = [name for name in source.names if posixpath.basename(name).lower() in _NAMES]
    if not found:
        raise InterchangeError(
            "which class has which colour? Give --classes FILE: name,red,green,blue a line"
        )
    return read_class_list(source, found[0])


def read_class_list(source: Source, name: str) -> Sequence[ForeignClass]:
    """Read a class list of the source.

    Raises:
        InterchangeError: it is malformed.
    """
    try:
        classes = parse_class_list(decode_text(source.read(name)), name)
    except (PaletteError, ValueError) as error:
        raise InterchangeError(str(error)) from error
    return list(map(ForeignClass, classes.names, classes.colors))
