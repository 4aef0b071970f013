"""What an import did not take, by kind and count."""

from __future__ import annotations

from collections import Counter


class LeftOut:
    """Counts records that are not taken, and keeps the first of each kind as an example."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._first: dict[str, str] = {}

    def add(self, kind: str, where: str) -> None:
        """Count one record.

        Args:
            kind: in the plural, for example ``pictures without annotation``.
            where: file, and shape where there is one.
        """
        self.counts[kind] += 1
        self._first.setdefault(kind, where)

    def lines(self) -> list[str]:
        """Return ``kind: count (first: where)``, most frequent first."""
        return [f"{kind}: {count} (first: {self._first[kind]})" for kind, count in self.counts.most_common()]
