"""Pictures that ended the worker: tried once more, alone, and never again after a second time.

Axes: H height, W width, 3 = red green blue.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass

from model.artifacts.manifest import ModelVersion
from model.pictures.preprocess import ImageSize, PreparedImage

_DEADLY = 2
_MAX_SUSPECTS = 256


@dataclass(frozen=True)
class _Kind:
    """What can be told of a picture without reading it."""

    version: ModelVersion
    padded: ImageSize
    content: ImageSize
    original: ImageSize


class Quarantine:
    """Remembers which pictures a worker died of; one that is answered after all is cleared of suspicion.

    A worker may die for reasons of its own, with any picture in its hands: only one that does it each time is
    guilty. Pictures are known by their content, and hashed only while one of the same kind is suspected.
    Not thread-safe: its owner holds a lock around every call.
    """

    def __init__(self) -> None:
        self._deaths: OrderedDict[tuple[_Kind, bytes], int] = OrderedDict()

    def blame(self, version: ModelVersion, image: PreparedImage) -> None:
        """Take note that a worker died while it worked on a picture."""
        key = _kind(version, image), _digest(image)
        self._deaths[key] = self._deaths.get(key, 0) + 1
        self._deaths.move_to_end(key)
        while len(self._deaths) > _MAX_SUSPECTS:
            self._deaths.popitem(last=False)

    def clear(self, version: ModelVersion, image: PreparedImage) -> None:
        """Take note that a picture was answered."""
        if self._is_suspected_kind(version, image):
            self._deaths.pop((_kind(version, image), _digest(image)), None)

    def is_suspect(self, version: ModelVersion, image: PreparedImage) -> bool:
        """Return whether a worker died of this picture, so that it must not take others with it."""
        return self._count(version, image) > 0

    def is_banned(self, version: ModelVersion, image: PreparedImage) -> bool:
        """Return whether two workers died of this picture, and it was never answered."""
        return self._count(version, image) >= _DEADLY

    def _count(self, version: ModelVersion, image: PreparedImage) -> int:
        if not self._is_suspected_kind(version, image):
            return 0
        return self._deaths.get((_kind(version, image), _digest(image)), 0)

    def _is_suspected_kind(self, version: ModelVersion, image: PreparedImage) -> bool:
        return bool(self._deaths) and any(kind == _kind(version, image) for kind, _ in self._deaths)


def _kind(version: ModelVersion, image: PreparedImage) -> _Kind:
    return _Kind(version, image.padded, image.content, image.original)


def _digest(image: PreparedImage) -> bytes:
    return hashlib.sha256(image.pixels_HW3.data).digest()
