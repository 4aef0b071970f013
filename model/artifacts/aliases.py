"""An alias of a model: the version it points at, and where it pointed before."""

from __future__ import annotations

import json
from collections.abc import Container
from dataclasses import dataclass
from typing import Any

from model.errors import StorageError

_MAX_NUMBER = 999_999_999
_MAX_PREVIOUS = 1000
"""Number of remembered versions: years of weekly moves, in a file of a few kilobytes."""


@dataclass(frozen=True)
class Alias:
    """An alias.

    Attributes:
        version: number of its version.
        previous: numbers of earlier versions, the latest first.
    """

    version: int
    previous: tuple[int, ...] = ()

    def promoted(self, number: int) -> Alias:
        """Return the alias with another version; unchanged if it is the same one."""
        if number == self.version:
            return self
        return Alias(number, (self.version, *self.previous)[:_MAX_PREVIOUS])

    def rolled_back(self, existing: Container[int]) -> Alias | None:
        """Return the alias with its latest earlier version that exists; None when there is none."""
        for index, number in enumerate(self.previous):
            if number in existing and number != self.version:
                return Alias(number, self.previous[index + 1 :])
        return None

    def to_json(self) -> bytes:
        """Return the JSON for ``parse_alias``."""
        plain = {"version": self.version, "previous": self.previous}
        return (json.dumps(plain, sort_keys=True) + "\n").encode()


def parse_alias(path: str, data: bytes) -> Alias:
    """Read an alias.

    Args:
        path: path of the file, for the error.
        data: a JSON object of ``version`` and ``previous``.

    Raises:
        StorageError: the data is malformed.
    """
    try:
        plain = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise StorageError(f"{path} is no alias: not JSON") from error
    if not isinstance(plain, dict) or plain.keys() != {"version", "previous"}:
        raise StorageError(f"{path} is no alias: it must have version and previous, nothing else")
    version, previous = plain["version"], plain["previous"]
    if not isinstance(previous, list) or not all(map(_is_number, [version, *previous])):
        raise StorageError(f"{path} is no alias: version and previous must be version numbers")
    return Alias(version, tuple(previous))


def _is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= _MAX_NUMBER
