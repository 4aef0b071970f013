"""Assigns foreign pictures to splits by their names, and divides pictures without a split."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import PurePosixPath

TRAIN, VAL, TEST = "train", "val", "test"

_WORDS = {
    "train": TRAIN,
    "training": TRAIN,
    "val": VAL,
    "valid": VAL,
    "validation": VAL,
    "test": TEST,
    "testing": TEST,
}
_SPLIT_WORD = re.compile(rf"({'|'.join(sorted(_WORDS, key=len, reverse=True))})(annot)?(?![a-z])")
_SEPARATORS = re.compile(r"[^a-zA-Z0-9]+")


def named_split(word: str) -> str:
    """Return ``train``, ``val`` or ``test`` for a word that means it; "" for any other.

    A number, a separator or ``annot`` may follow: ``train2017``, ``val_labels``, ``testannot``.
    """
    found = _SPLIT_WORD.match(word.lower())
    return _WORDS[found[1]] if found else ""


def split_of(name: str) -> str:
    """Return the split that a folder of a path names; the deepest counts; "" where none does."""
    folders = PurePosixPath(name).parts[:-1]
    return next((split for folder in reversed(folders) if (split := named_split(folder))), "")


def split_of_list(name: str) -> str:
    """Return the split that a folder, or else a word in the name, of a list of pictures means; "" = none.

    ``annotations/instances_train2017.json`` is of ``train``.
    """
    words = _SEPARATORS.split(PurePosixPath(name).stem)
    return split_of(name) or next((split for word in words if (split := named_split(word))), "")


def divide(names: Sequence[str], val_fraction: float) -> frozenset[str]:
    """Choose the pictures to validate on: the same for the same names, on any machine, in any order.

    Args:
        names: of the pictures, each once.
        val_fraction: share of them, 0..1; of two or more at least one picture stays on either side.

    Returns:
        The chosen names.
    """
    by_digest = sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())
    most = max(0, len(names) - 1)
    return frozenset(by_digest[: min(max(1, round(len(names) * val_fraction)), most)])
