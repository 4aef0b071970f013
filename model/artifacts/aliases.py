"""An alias of a model: the version it points at, and where it pointed before."""

from __future__ import annotations

import json
from collections.abc import Container
from dataclasses import dataclass
from typing import Any

from model.errors import StorageError

_MAX_NUMBER = 999_999_999
_MAX_PREVIOUS = 1000
"""How many moves are remembered: years of weekly ones, in a file of a few kilobytes."""


@dataclass(frozen=True)
class Alias:
    """Where an alias points.

    Attributes:
        version: number of the version.
        previous: numbers of those it pointed at before, the latest first.
    """

    version: int
    previous: tuple[int, ...] = ()

    def promoted(self, number: int) -> Alias:
        """Return the alias after it was pointed at another version; the same one if it points there."""
        if number == self.version:
            return self
        return Alias(number, (self.version, *self.previous)[:_MAX_PREVIOUS])

    def rolled_back(self, existing: Container[int]) -> Alias | None:
        """Return the alias after a move back to the latest other version that still exists.

        Returns:
            None when there is none.
        """
        for index, number in enumerate(self.previous):
            if number in existing and number != self.version:
                return Alias(number, self.previous[index + 1 :])
        return None

    def to_json(self) -> bytes:
        """Write what ``parse_alias`` reads."""
        plain = {"version": self.version, "previous": self.previous}
        return (json.dumps(plain, sort_keys=True) + "\n").encode()


def parse_alias(path: str, data: bytes) -> Alias:
    """Read an alias.

    Args:
        path: where it was found, for the error.
        data: a JSON object of ``version`` and ``previous``.

    Raises:
        StorageError: it is none.
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
