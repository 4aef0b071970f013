"""``bisenet dataset check``: what a data set holds, and everything in it that would stop or spoil a run.

Axes: K classes, H height, W width, 3 = red green blue, V values of a byte.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from model.datasets.dataset import LabeledImages, ListedPair
from model.errors import DatasetError, LabelError
from model.labels import ClassPalette, UInt8Array
from model.pictures.preprocess import Rgb

Int64Array = npt.NDArray[np.int64]

_BYTE = 256
_MAX_VALUE = 255.0
_DIGITS = 4
_WEIGHT_BASE = 1.1
_BATCH = 64
_MAX_MASK_COLORS = 4096
_SHOWN_PROBLEMS = 10


class PictureFacts(NamedTuple):
    """What one readable pair adds to the totals.

    Attributes:
        size: ``HEIGHTxWIDTH``.
        ids_V: pixels of each id after the label map, int64.
        colors_3V: pixels of each value of each channel, int64.
    """

    size: str
    ids_V: Int64Array
    colors_3V: Int64Array


@dataclass(frozen=True)
class SplitFacts:
    """What one split holds.

    Attributes:
        split: its name.
        fingerprint: of its content, 64 hex digits; empty where files are missing.
        pictures: listed pairs.
        sizes: ``HEIGHTxWIDTH`` -> readable pictures of that size.
        ids: class id or ignore id -> labelled pixels, ids that occur only.
        colors: for red, green and blue the pixels of each value 0..255.
        problems: one line each, with file name and list line; a split with any cannot be trained on.
    """

    split: str
    fingerprint: str
    pictures: int
    sizes: dict[str, int]
    ids: dict[int, int]
    colors: list[list[int]]
    problems: list[str]

    @property
    def pixels(self) -> int:
        """All pixels of the readable pictures."""
        return sum(self.colors[0])

    def to_json(self) -> str:
        """Return what ``from_json`` reads."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> SplitFacts:
        """Read what ``to_json`` wrote.

        Raises:
            ValueError: it did not.
        """
        try:
            raw = json.loads(text)
            return cls(**{**raw, "ids": {int(key): value for key, value in raw["ids"].items()}})
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"not the facts of a split: {error}") from error


def inspect_split(
    split: LabeledImages,
    *,
    workers: int,
    cache_folder: Path | None = None,
    progress: Callable[[int], None] = lambda done: None,  # noqa: ARG005 - nobody watches
) -> SplitFacts:
    """Read every pair of a split and say what is in it; known content is not read again.

    Args:
        split: what is looked at.
        workers: threads that read.
        cache_folder: keeps the facts of splits without problems, by fingerprint; None = nowhere.
        progress: called with the number of pairs that were looked at.
    """
    try:
        fingerprint = split.fingerprint
    except DatasetError:  # a file is missing: found again below, with all others
        fingerprint = ""
    cached = cache_folder / f"{fingerprint}.json" if cache_folder and fingerprint else None
    if cached is not None and (known := _known(cached, split)):
        return known
    facts = _inspected(split, fingerprint, workers, progress)
    if cached is not None and not facts.problems:
        _remember(cached, facts)
    return facts


def color_statistics(facts: Sequence[SplitFacts]) -> tuple[Rgb, Rgb]:
    """Measure what a network normalises with.

    Returns:
        mean and standard deviation over all pixels, RGB, of values 0..1, rounded to four digits.
    """
    counts_3V = np.sum([each.colors for each in facts], axis=0)
    values_V = np.arange(_BYTE) / _MAX_VALUE
    weights_3V = counts_3V / np.maximum(counts_3V.sum(axis=1, keepdims=True), 1)
    mean = weights_3V @ values_V
    std = np.sqrt(np.maximum(weights_3V @ values_V**2 - mean**2, 0))
    return _rounded(mean), _rounded(std)


def class_frequencies(facts: Sequence[SplitFacts], num_classes: int) -> list[float]:
    """Measure the share of each class among the labelled pixels; sums to 1, or is 0 throughout."""
    counts = [sum(each.ids.get(class_id, 0) for each in facts) for class_id in range(num_classes)]
    return [count / max(1, sum(counts)) for count in counts]


def report(facts: Sequence[SplitFacts], palette: ClassPalette) -> dict[str, Any]:
    """Return all that is worth knowing, as JSON values.

    Args:
        facts: of one or more splits.
        palette: of the data set.
    """
    mean, std = color_statistics(facts)
    frequencies = class_frequencies(facts, palette.num_classes)
    weights = [round(float(1 / np.log(_WEIGHT_BASE + share)), _DIGITS) for share in frequencies]
    return {
        "splits": [_split_report(each, palette) for each in facts],
        "classes": [
            {"id": class_id, "name": name, "share": share, "weight": weight}
            for class_id, (name, share, weight) in enumerate(
                zip(palette.names, frequencies, weights, strict=True)
            )
        ],
        "mean": mean,
        "std": std,
        "problems": sum(len(each.problems) for each in facts),
    }


def refuse_problems(facts: Sequence[SplitFacts]) -> None:
    """Do nothing when all pairs can be learned from.

    Raises:
        DatasetError: the first ten problems and the number of all.
    """
    problems = [problem for each in facts for problem in each.problems]
    if problems:
        shown = "\n  ".join(problems[:_SHOWN_PROBLEMS])
        raise DatasetError(f"{len(problems)} problems in the data set:\n  {shown}")


def _split_report(facts: SplitFacts, palette: ClassPalette) -> dict[str, Any]:
    return {
        "name": facts.split,
        "pictures": facts.pictures,
        "fingerprint": facts.fingerprint,
        "sizes": facts.sizes,
        "ignored_pixels": facts.ids.get(palette.ignore_id, 0),
        "pixels": {name: facts.ids.get(class_id, 0) for class_id, name in enumerate(palette.names)},
        "unseen": [name for class_id, name in enumerate(palette.names) if class_id not in facts.ids],
        "problems": facts.problems,
    }


def _known(path: Path, split: LabeledImages) -> SplitFacts | None:
    try:
        facts = SplitFacts.from_json(path.read_text("utf-8"))
    except (OSError, ValueError):  # absent, or what a killed process left: it is made again
        return None
    return facts if facts.pictures == len(split) else None


def _remember(path: Path, facts: SplitFacts) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".part")
        temporary.write_text(facts.to_json(), "utf-8")
        temporary.replace(path)
    except OSError:  # a cache that cannot be written is only slow
        return


def _inspected(
    split: LabeledImages, fingerprint: str, workers: int, progress: Callable[[int], None]
) -> SplitFacts:
    sizes: dict[str, int] = {}
    ids_V, colors_3V = np.zeros(_BYTE, np.int64), np.zeros((3, _BYTE), np.int64)
    problems: list[str] = []
    for done, found in enumerate(_looked_at(split, workers), 1):
        if isinstance(found, str):
            problems.append(found)
        else:
            sizes[found.size] = sizes.get(found.size, 0) + 1
            ids_V += found.ids_V
            colors_3V += found.colors_3V
        progress(done)
    return SplitFacts(
        split=split.split,
        fingerprint=fingerprint,
        pictures=len(split),
        sizes=dict(sorted(sizes.items())),
        ids={int(value): int(ids_V[value]) for value in np.flatnonzero(ids_V)},
        colors=colors_3V.tolist(),
        problems=problems + _useless(ids_V, split),
    )


def _looked_at(split: LabeledImages, workers: int) -> Iterator[PictureFacts | str]:
    with ThreadPoolExecutor(workers, "inspect") as pool:
        for first in range(0, len(split), _BATCH):
            yield from pool.map(
                lambda index: _look(split, index), range(first, min(first + _BATCH, len(split)))
            )


def _look(split: LabeledImages, index: int) -> PictureFacts | str:
    try:
        image_HW3, label_HW = split[index]
    except LabelError as error:
        return f"{error}{_diagnosis(split.pairs[index], split.spec.palette)}"
    except DatasetError as error:
        return str(error)
    flat = [np.bincount(image_HW3[..., c].reshape(-1), minlength=_BYTE) for c in range(3)]
    ids_V = np.bincount(label_HW.reshape(-1), minlength=_BYTE)
    return PictureFacts(f"{label_HW.shape[0]}x{label_HW.shape[1]}", ids_V, np.stack(flat))


def _useless(ids_V: Int64Array, split: LabeledImages) -> list[str]:
    """Say that nothing can be learned, as from masks of 0 and 255 where 255 is not a class."""
    palette = split.spec.palette
    seen = np.flatnonzero(ids_V[: palette.num_classes])
    if len(seen) > 1 or palette.num_classes == 1 or not ids_V.any():
        return []
    only = f"only class {seen[0]} ({palette.names[seen[0]]})" if len(seen) else "no class at all"
    hint = "; masks of 0 and 255 need a label_map" if ids_V[palette.ignore_id] else ""
    return [f"{split.spec.name}, split {split.split}: the labels hold {only}{hint}"]


def _diagnosis(pair: ListedPair, palette: ClassPalette) -> str:
    """Say what a colour picture in the place of labels shows, if that is what is wrong."""
    colors = _mask_colors(pair.label)
    if colors is None:
        return ""
    known = {tuple(color) for color in palette.colors} | {(0, 0, 0)}
    strangers = len(colors - known)
    if not strangers:
        return " - a mask in the colours of the classes: write class ids instead"
    if len(colors) >= _MAX_MASK_COLORS:
        return " - a picture, not a mask"
    return f" - a mask in {len(colors)} colours, {strangers} of them of no class: write class ids instead"


def _mask_colors(path: Path) -> set[tuple[int, int, int]] | None:
    try:
        with Image.open(BytesIO(path.read_bytes()), formats=["PNG", "JPEG"]) as image:
            if image.mode not in {"RGB", "RGBA"}:
                return None
            pixels_P3: UInt8Array = np.asarray(image.convert("RGB"), np.uint8).reshape(-1, 3)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None  # whatever is wrong was said already
    colors = np.unique(pixels_P3, axis=0)[:_MAX_MASK_COLORS]
    return {(int(red), int(green), int(blue)) for red, green, blue in colors}


def _rounded(values: npt.NDArray[np.float64]) -> Rgb:
    red, green, blue = (round(float(value), _DIGITS) for value in values)
    return red, green, blue
