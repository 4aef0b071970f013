"""Pictures that a worker died of: tried once more, alone in a batch, and refused after the second death.

Axes: H height, W width, 3 = red green blue.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass

from model.artifacts.manifest import ModelVersion
from model.pictures.preprocess import ImageSize, PreparedImage

MAX_DEATHS = 2
"""Workers that may die with a picture; then it is refused."""

_MAX_SUSPECTS = 256


@dataclass(frozen=True)
class _Kind:
    """Properties of a picture that are known without reading its pixels."""

    version: ModelVersion
    padded: ImageSize
    content: ImageSize
    original: ImageSize


class Quarantine:
    """Counts the workers that died while they worked on a picture; an answered picture is cleared.

    A worker may die for other reasons with any picture, so one death proves nothing. Pictures are identified
    by their content, and hashed only while one of the same kind is suspected.

    Not thread-safe: its owner holds a lock around every call.
    """

    def __init__(self) -> None:
        self._deaths: OrderedDict[tuple[_Kind, bytes], int] = OrderedDict()

    def record_death(self, version: ModelVersion, image: PreparedImage) -> None:
        """Record that a worker died while it worked on a picture."""
        key = _kind(version, image), _digest(image)
        self._deaths[key] = self._deaths.get(key, 0) + 1
        self._deaths.move_to_end(key)
        while len(self._deaths) > _MAX_SUSPECTS:
            self._deaths.popitem(last=False)

    def clear(self, version: ModelVersion, image: PreparedImage) -> None:
        """Record that a picture was answered."""
        if self.deaths_of(version, image):
            del self._deaths[_kind(version, image), _digest(image)]

    def deaths_of(self, version: ModelVersion, image: PreparedImage) -> int:
        """Return how many workers died with a picture.

        After the first death the picture must run alone, after ``MAX_DEATHS`` it is refused.
        """
        if not self._deaths:
            return 0
        kind = _kind(version, image)
        is_known = any(known == kind for known, _ in self._deaths)
        return self._deaths.get((kind, _digest(image)), 0) if is_known else 0


def _kind(version: ModelVersion, image: PreparedImage) -> _Kind:
    return _Kind(version, image.padded, image.content, image.original)


def _digest(image: PreparedImage) -> bytes:
    return hashlib.sha256(image.pixels_HW3.data).digest()
