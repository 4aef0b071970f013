"""One picture, the file with its labels, and the place that names both."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ListedPair:
    """A picture and its labels.

    Attributes:
        image: path of the picture.
        label: path of the labels; None where a list leaves the field empty.
        origin: ``list file:line number`` of the pair; empty where patterns lead to it.
    """

    image: Path
    label: Path | None
    origin: str
