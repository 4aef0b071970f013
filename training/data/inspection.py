"""Reading of every pair of a split, for the facts and the faults that matter to a training run.

Axes: H height, W width, 3 = red green blue, V values of a byte.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from model.datasets.dataset import LabeledImages
from model.datasets.mask_advice import advise_one_class, advise_only_class_seen, advise_palettes
from model.datasets.orientation import UPRIGHT
from model.errors import DatasetError, LabelError, PairError
from model.labels import Color
from model.pictures.preprocess import size_of
from training.data.split_facts import BrokenPair, SplitFacts, TurnedPicture

Int64Array = npt.NDArray[np.int64]

_BYTE = 256
_BATCH = 64


class _Reading(NamedTuple):
    """Contribution of one readable pair to the facts of its split.

    Attributes:
        size: ``HEIGHTxWIDTH``.
        ids_V: pixels of each class id and of the ignore id, int64.
        colors_3V: pixels of each value of each channel, int64.
        turned: how EXIF turns the picture; None = not at all.
        has_labels: there is a label file.
        nearest_pixels: pixels that have the class of the nearest colour.
        index_colors: colour of each index that occurs in a palette PNG whose indices are ids; else empty.
    """

    size: str
    ids_V: Int64Array
    colors_3V: Int64Array
    turned: TurnedPicture | None
    has_labels: bool
    nearest_pixels: int
    index_colors: Mapping[int, Color]


def inspect_split(
    split: LabeledImages,
    *,
    workers: int,
    cache_folder: Path | None = None,
    progress: Callable[[int], None] = lambda done: None,  # noqa: ARG005 - nothing is shown
) -> SplitFacts:
    """Read every pair of a split and return its facts; content that was read before is not read again.

    Args:
        split: the pairs.
        workers: threads that read.
        cache_folder: keeps the facts of sound splits by fingerprint; None = nowhere.
        progress: called with the number of pairs read so far.
    """
    try:
        fingerprint = split.fingerprint
    except DatasetError:  # a file is missing: reading the pairs names it and all others
        fingerprint = ""
    cached = cache_folder / f"{fingerprint}.json" if cache_folder and fingerprint else None
    if cached is not None and (known := _load(cached, split)):
        return known
    facts = _inspect(split, fingerprint, workers, progress)
    if cached is not None and facts.is_sound:
        _save(cached, facts)
    return facts


def _load(path: Path, split: LabeledImages) -> SplitFacts | None:
    try:
        facts = SplitFacts.from_json(path.read_text("utf-8"))
    except (OSError, ValueError):  # absent, or left by a killed process or another version: written again
        return None
    return facts if facts.pictures == len(split) else None


def _save(path: Path, facts: SplitFacts) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".part")
        temporary.write_text(facts.to_json(), "utf-8")
        temporary.replace(path)
    except OSError:  # without the cache the next start is only slower
        return


def _inspect(
    split: LabeledImages, fingerprint: str, workers: int, progress: Callable[[int], None]
) -> SplitFacts:
    totals = _Totals()
    for index, found in enumerate(_read_all(split, workers)):
        if isinstance(found, BrokenPair):
            totals.broken[index] = found
        else:
            totals.include(index, found)
        progress(index + 1)
    ids_V = totals.ids_V
    return SplitFacts(
        split=split.split,
        fingerprint=fingerprint,
        pictures=len(split),
        sizes=dict(sorted(totals.sizes.items())),
        ids={int(value): int(ids_V[value]) for value in np.flatnonzero(ids_V)},
        colors=totals.colors_3V.tolist(),
        broken=totals.broken,
        flaws=[*_nothing_to_learn(ids_V, split), *_different_palettes(totals.repainted, split)],
        turned=totals.turned,
        unlabelled=totals.unlabelled,
        nearest_pixels=totals.nearest_pixels,
    )


class _Totals:
    """The sums over the readable pairs of a split, and the pairs worth mentioning.

    Attributes:
        repainted: index of a palette PNG -> pairs that paint it in different colours, and these colours; the
            first pair, then one of each that differs from the first.
    """

    def __init__(self) -> None:
        self.sizes: dict[str, int] = {}
        self.ids_V = np.zeros(_BYTE, np.int64)
        self.colors_3V = np.zeros((3, _BYTE), np.int64)
        self.broken: dict[int, BrokenPair] = {}
        self.turned: dict[int, TurnedPicture] = {}
        self.unlabelled: list[int] = []
        self.nearest_pixels = 0
        self.repainted: dict[int, list[tuple[int, Color]]] = {}

    def include(self, index: int, reading: _Reading) -> None:
        self.sizes[reading.size] = self.sizes.get(reading.size, 0) + 1
        self.ids_V += reading.ids_V
        self.colors_3V += reading.colors_3V
        self.nearest_pixels += reading.nearest_pixels
        if reading.turned is not None:
            self.turned[index] = reading.turned
        if not reading.has_labels:
            self.unlabelled.append(index)
        for palette_index, color in reading.index_colors.items():
            painted = self.repainted.setdefault(palette_index, [(index, color)])
            if painted[0][1] != color:
                painted.append((index, color))


def _read_all(split: LabeledImages, workers: int) -> Iterator[_Reading | BrokenPair]:
    with ThreadPoolExecutor(workers, "inspect") as pool:
        for first in range(0, len(split), _BATCH):
            yield from pool.map(
                lambda index: _read_pair(split, index), range(first, min(first + _BATCH, len(split)))
            )


def _read_pair(split: LabeledImages, index: int) -> _Reading | BrokenPair:
    try:
        picture = split.read_pair(index)
    except LabelError as error:
        return BrokenPair(error.place, error.reason, tuple(sorted(error.values)))
    except PairError as error:
        return BrokenPair(error.place, error.reason)
    turned = TurnedPicture(picture.orientation, picture.is_turned)
    flat = [np.bincount(picture.image_HW3[..., c].reshape(-1), minlength=_BYTE) for c in range(3)]
    return _Reading(
        size=str(size_of(picture.image_HW3)),
        ids_V=np.bincount(picture.label_HW.reshape(-1), minlength=_BYTE),
        colors_3V=np.stack(flat),
        turned=None if picture.orientation == UPRIGHT else turned,
        has_labels=picture.mask is not None,
        nearest_pixels=picture.mask.nearest_pixels if picture.mask else 0,
        index_colors=picture.mask.index_colors if picture.mask else {},
    )


def _nothing_to_learn(ids_V: Int64Array, split: LabeledImages) -> Iterator[str]:
    """Say that a split holds one class or none, as masks of 0 and 255 do where 255 is not a class."""
    palette = split.spec.palette
    seen = [int(class_id) for class_id in np.flatnonzero(ids_V[: palette.num_classes])]
    if palette.num_classes == 1 and ids_V.any():
        yield f"split {split.split}: {advise_one_class(np.flatnonzero(ids_V).tolist(), palette)}"
    elif len(seen) <= 1 and ids_V.any():
        only = seen[0] if seen else None
        advice = advise_only_class_seen(
            only,
            palette,
            has_ignored=bool(ids_V[palette.ignore_id]),
            has_label_map=split.spec.rules.masks.has_label_map,
        )
        yield f"split {split.split}: {advice}"


def _different_palettes(
    repainted: Mapping[int, list[tuple[int, Color]]], split: LabeledImages
) -> Iterator[str]:
    """Say that palette PNGs give one index different colours: their orders of colours may differ."""
    for palette_index, [(first, color), *others] in repainted.items():
        if others:
            other, other_color = others[0]
            yield advise_palettes(
                f"split {split.split}: palettes of label files give index {palette_index} different colours:"
                f" {color} for {split.name(first)}, {other_color} for {split.name(other)};"
                f" {len(others)} differ from the first"
            )
            return
