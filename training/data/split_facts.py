"""Facts about the splits of a data set, and the statistics that training takes from them.

Axes: V values of a byte, 3 = red green blue.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from model.pictures.preprocess import Rgb

_BYTE = 256
_MAX_VALUE = 255.0
_DIGITS = 4


class BrokenPair(NamedTuple):
    """A pair that cannot be learned from.

    Attributes:
        place: where the pair is named, and the path of the broken file.
        reason: the fault of the file.
        values: the values in its labels, where some are no classes; else empty.
    """

    place: str
    reason: str
    values: tuple[int, ...] = ()

    @property
    def message(self) -> str:
        """Name of the file and its fault."""
        return f"{self.place}: {self.reason}"


class TurnedPicture(NamedTuple):
    """How EXIF turns a picture.

    Attributes:
        orientation: 2..8 as EXIF counts.
        with_labels: the labels were drawn on the stored pixels, and are turned with the picture.
    """

    orientation: int
    with_labels: bool


@dataclass(frozen=True)
class SplitFacts:
    """Content of one split.

    Attributes:
        split: its name.
        fingerprint: of its content, 64 hex digits; empty where files are missing.
        pictures: number of pairs.
        sizes: ``HEIGHTxWIDTH`` -> readable pictures of that size.
        ids: class id or ignore id -> labelled pixels; ids that occur only.
        colors: for red, green and blue the pixels of each value 0..255.
        broken: index of a pair -> why it cannot be learned from.
        flaws: faults of the split as a whole, one sentence each.
        turned: index of a pair -> how EXIF turns its picture.
        unlabelled: indices of pairs without labels, which one class fills.
        nearest_pixels: labelled pixels that have the class of the nearest colour.
    """

    split: str
    fingerprint: str
    pictures: int
    sizes: dict[str, int]
    ids: dict[int, int]
    colors: list[list[int]]
    broken: dict[int, BrokenPair] = field(default_factory=dict)
    flaws: list[str] = field(default_factory=list)
    turned: dict[int, TurnedPicture] = field(default_factory=dict)
    unlabelled: list[int] = field(default_factory=list)
    nearest_pixels: int = 0

    @property
    def pixels(self) -> int:
        """All pixels of the readable pictures."""
        return sum(self.colors[0])

    @property
    def is_sound(self) -> bool:
        """Whether every pair can be learned from."""
        return not self.broken and not self.flaws

    def to_json(self) -> str:
        """Return the facts as ``from_json`` reads them."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> SplitFacts:
        """Read the text that ``to_json`` wrote.

        Raises:
            ValueError: the text is something else, or was written by another version.
        """
        try:
            raw: dict[str, Any] = json.loads(text)
            return cls(
                **{
                    **raw,
                    "ids": {int(key): pixels for key, pixels in raw["ids"].items()},
                    "broken": {
                        int(key): BrokenPair(place, reason, tuple(values))
                        for key, (place, reason, values) in raw["broken"].items()
                    },
                    "turned": {int(key): TurnedPicture(*turn) for key, turn in raw["turned"].items()},
                }
            )
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"not the facts of a split: {error}") from error


def color_statistics(facts: Sequence[SplitFacts]) -> tuple[Rgb, Rgb]:
    """Measure the mean and the standard deviation over all pixels.

    Args:
        facts: of splits with at least one readable picture.

    Returns:
        mean and standard deviation, RGB, of values 0..1, rounded to four digits.
    """
    counts_3V = np.sum([each.colors for each in facts], axis=0)
    values_V = np.arange(_BYTE) / _MAX_VALUE
    weights_3V = counts_3V / np.maximum(counts_3V.sum(axis=1, keepdims=True), 1)
    mean = weights_3V @ values_V
    std = np.sqrt(np.maximum(weights_3V @ values_V**2 - mean**2, 0))
    return _rounded(mean), _rounded(std)


def class_shares(facts: Sequence[SplitFacts], num_classes: int) -> list[float]:
    """Measure the share of each class among the labelled pixels; sums to 1, or is 0 throughout."""
    counts = [sum(each.ids.get(class_id, 0) for each in facts) for class_id in range(num_classes)]
    return [count / max(1, sum(counts)) for count in counts]


def _rounded(values: npt.NDArray[np.float64]) -> Rgb:
    red, green, blue = (round(float(value), _DIGITS) for value in values)
    return red, green, blue
