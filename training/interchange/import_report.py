"""The report of an import."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.interchange.tally import Tally


@dataclass(frozen=True)
class ImportReport:
    """The result of an import, in counts.

    Attributes:
        dataset_file: path of the result's data-set file.
        splits: split name -> pictures.
        pixels: class name -> labelled pixels.
        ignored_pixels: pixels that are neither learned nor scored.
        drawing_order: order of overlapping shapes, one sentence.
        background: class of the pixels that no shape covers; ``ignore`` = they do not count; None = the masks
            say the class of every pixel.
        divided: whether train and val were chosen here, not by the source.
        left_out: records that were not taken.
        notes: pictures that were taken, but not as they are.
    """

    dataset_file: Path
    splits: Mapping[str, int]
    pixels: Mapping[str, int]
    ignored_pixels: int
    drawing_order: str
    background: str | None
    divided: bool
    left_out: Tally
    notes: Tally

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return {
            "dataset": str(self.dataset_file),
            "splits": dict(self.splits),
            "divided": self.divided,
            "pixels": dict(self.pixels),
            "ignored_pixels": self.ignored_pixels,
            "drawing_order": self.drawing_order,
            "background": self.background,
            "left_out": dict(self.left_out.counts),
            "notes": dict(self.notes.counts),
        }

    def lines(self) -> Iterator[str]:
        """Yield the report for people."""
        counts = ", ".join(f"{split} {count}" for split, count in self.splits.items())
        chosen = "divided here" if self.divided else "as the source divides them"
        yield f"pictures: {counts} ({chosen})"
        total = max(1, self.ignored_pixels + sum(self.pixels.values()))
        for class_id, (name, pixels) in enumerate(self.pixels.items()):
            yield f"{class_id:>4}  {name:24} {100 * pixels / total:7.3f}% of the pixels"
        yield f"      {'(ignored)':24} {100 * self.ignored_pixels / total:7.3f}%"
        yield f"overlaps: {self.drawing_order}"
        if self.background is not None:
            yield f"pixels that no shape covers: {self.background}"
        yield from (f"note: {line}" for line in self.notes.lines())
        yield from (f"not taken: {line}" for line in self.left_out.lines())
