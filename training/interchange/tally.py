"""Counts records that an import did not take, or changed, by kind."""

from __future__ import annotations

from collections import Counter


class Tally:
    """Counts records by kind, and keeps the first of each kind as an example.

    Attributes:
        counts: kind -> records.
        files: that were counted.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.files: set[str] = set()
        self._first: dict[str, str] = {}

    def add(self, kind: str, where: str, *, file: str | None = None) -> None:
        """Count one record.

        Args:
            kind: in the plural, for example ``pictures without annotation``.
            where: file, and shape where there is one.
            file: that is counted with it; None = ``where``.
        """
        self.counts[kind] += 1
        self.files.add(file or where)
        self._first.setdefault(kind, where)

    def lines(self) -> list[str]:
        """Return ``kind: count (first: where)``, most frequent first."""
        return [f"{kind}: {count} (first: {self._first[kind]})" for kind, count in self.counts.most_common()]
