"""Writes a foreign data set as one that can be trained on: ``bisenet dataset import``."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from model.errors import ImageError
from model.labels import UInt8Array
from model.pictures.image import ImageHeader, peek_header, stored_size, turn_upright
from training.errors import InterchangeError
from training.interchange.class_ids import IGNORE, class_ids
from training.interchange.dataset_folder import (
    DATASET_FILE,
    FileNames,
    PairNames,
    new_folder,
    write_dataset,
    write_mask,
)
from training.interchange.foreign import ClassIds, ForeignDataset, ForeignPicture, ReadOptions, Uncovered
from training.interchange.formats import READERS
from training.interchange.left_out import LeftOut
from training.interchange.source import PICTURE_SUFFIXES, Source, repeated
from training.interchange.split_names import TEST, TRAIN, VAL, divide

Progress = Callable[[int, int], None]

REPORT_FILE = "import.txt"

_BATCH = 64
_MAGIC = {b"\xff\xd8\xff": ".jpg", b"\x89PN": ".png", b"RIF": ".webp"}


@dataclass(frozen=True)
class ImportOptions:
    """What a user may say about an import.

    Args:
        read: how the source is read.
        images: folder or ZIP file with the pictures, where they are not in the source.
        ignore: classes whose pixels are neither learned nor scored.
        background: class of the pixels that no shape covers; ``ignore`` = they do not count; None = as the
            format has it.
        val_fraction: share of the pictures to validate on, where the source does not say.
        pictures: ``copy``, or ``link``: one file on disk under two names.
        workers: threads that draw and write.
    """

    read: ReadOptions = field(default_factory=ReadOptions)
    images: Path | None = None
    ignore: Sequence[str] = ()
    background: str | None = None
    val_fraction: float = 0.1
    pictures: Literal["copy", "link"] = "copy"
    workers: int = 4


@dataclass(frozen=True)
class ImportReport:
    """What became of the source.

    Attributes:
        dataset_file: path of the result's data-set file.
        splits: split name -> pictures.
        pixels: class name -> labelled pixels.
        ignored_pixels: pixels that are neither learned nor scored.
        drawing_order: what lies above what.
        background: class of the pixels that no shape covers; ``ignore`` = they do not count; None = the masks
            say the class of every pixel.
        divided: whether train and val were chosen here, not by the source.
        left_out: kind -> count of the records that were not taken.
        left_out_lines: the same with the first example of each.
    """

    dataset_file: Path
    splits: Mapping[str, int]
    pixels: Mapping[str, int]
    ignored_pixels: int
    drawing_order: str
    background: str | None
    divided: bool
    left_out: Mapping[str, int]
    left_out_lines: Sequence[str]

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
            "left_out": dict(self.left_out),
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
        yield from (f"not taken: {line}" for line in self.left_out_lines)


class _Written(NamedTuple):
    """One picture of the result."""

    picture: ForeignPicture
    pair: PairNames


class _Refused(NamedTuple):
    """One picture that is not taken."""

    kind: str
    where: str
    file: str


def import_dataset(
    format_name: str,
    source_path: Path,
    target: Path,
    options: ImportOptions,
    progress: Progress = lambda done, total: None,  # noqa: ARG005 - a program need not watch
) -> ImportReport:
    """Write a foreign data set as one that can be trained on; nothing is written where it cannot.

    Args:
        format_name: a key of ``READERS``.
        source_path: folder or ZIP file.
        target: folder of the result; must not exist, or be empty.
        options: what else the user says.
        progress: called with the pictures that are done and all.

    Raises:
        InterchangeError: the source or the options do not allow it; the message names file and shape.
    """
    left_out = LeftOut()
    source = Source([source_path, *([options.images] if options.images else [])], left_out)
    dataset = READERS[format_name](source, left_out, options.read)
    classes = class_ids(
        dataset, listed=options.read.classes, ignore=options.ignore, background=options.background
    )
    with new_folder(target) as folder:
        writer = _Writer(folder, source, classes, options)
        written = list(writer.all(_pictures(dataset, source_path), left_out, progress))
        if not written:
            raise InterchangeError(f"{source_path}: no picture is left: {'; '.join(left_out.lines())}")
        splits, divided = _splits(written, options.val_fraction)
        write_dataset(folder, target.resolve().name, classes.palette, splits)
        source.tell_unread(left_out, _unread_kind)
        report = _report(target, dataset, classes, writer.counts, splits, divided=divided, left_out=left_out)
        (folder / REPORT_FILE).write_text("\n".join([*report.lines(), ""]), "utf-8")
    return report


class _Writer:
    def __init__(self, folder: Path, source: Source, classes: ClassIds, options: ImportOptions) -> None:
        self._folder = folder
        self._source = source
        self._classes = classes
        self._links = options.pictures == "link"
        self._workers = options.workers
        self._lock = Lock()
        self.counts = np.zeros(256, np.int64)

    def all(
        self, pictures: Sequence[ForeignPicture], left_out: LeftOut, progress: Progress
    ) -> Iterator[_Written]:
        """Write the pictures; yield those that could be read."""
        names = FileNames([one.name for one in pictures])
        stems = [names.stem(one.name) for one in pictures]
        with ThreadPoolExecutor(self._workers, "import") as pool:
            for first in range(0, len(pictures), _BATCH):
                part = slice(first, first + _BATCH)
                for done, result in enumerate(pool.map(self._write, pictures[part], stems[part]), first + 1):
                    progress(done, len(pictures))
                    if isinstance(result, _Written):
                        yield result
                    else:
                        left_out.add(result.kind, result.where, file=result.file)

    def _write(self, picture: ForeignPicture, stem: str) -> _Written | _Refused:
        """Write one picture and its mask."""
        data = picture.embedded() if picture.embedded else self._source.read(picture.name)
        try:
            header = peek_header(data)
        except ImageError as error:
            kind = "pictures that cannot be read (JPEG, PNG and WebP can)"
            return _Refused(kind, f"{picture.name}: {error}", picture.name)
        ids_HW = _upright_ids(picture, header, self._classes)
        suffix = next((end for magic, end in _MAGIC.items() if data.startswith(magic)), "")
        pair = f"images/{stem}{suffix}", f"masks/{stem}.png"
        self._write_picture(self._folder / pair[0], picture, data)
        write_mask(self._folder / pair[1], ids_HW, self._classes.palette)
        counts = np.bincount(ids_HW.reshape(-1), minlength=256)
        with self._lock:
            self.counts += counts
        return _Written(picture, pair)

    def _write_picture(self, path: Path, picture: ForeignPicture, data: bytes) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        on_disk = None if picture.embedded else self._source.path(picture.name)
        if not self._links or on_disk is None:
            path.write_bytes(data)
            return
        try:
            os.link(on_disk.resolve(), path)
        except OSError as error:
            raise InterchangeError(
                f"{on_disk}: cannot be linked into {path.parent}: {error.strerror}; use --pictures copy"
            ) from error


def _pictures(dataset: ForeignDataset, source_path: Path) -> Sequence[ForeignPicture]:
    """Return the pictures in the order of their names; none may be labelled twice."""
    pictures = sorted(dataset.pictures, key=lambda one: one.name)
    if twice := repeated([one.name for one in pictures]):
        origins = [one.origin for one in pictures if one.name == twice[0]]
        raise InterchangeError(f"{source_path}: {twice[0]} is labelled twice: {origins[0]}; {origins[1]}")
    return pictures


def _upright_ids(picture: ForeignPicture, header: ImageHeader, classes: ClassIds) -> UInt8Array:
    """Draw the labels; those of a picture that EXIF turns may be of its upright or of its stored pixels."""
    drawn_on = picture.size or picture.labels.own_size() or header.size
    stored = stored_size(header.size, header.orientation)
    if drawn_on == header.size:
        return picture.labels.ids(header.size, classes)
    if drawn_on == stored:
        return turn_upright(picture.labels.ids(stored, classes), header.orientation)
    raise InterchangeError(
        f"{picture.origin}: was drawn on {drawn_on} pixels, but {picture.name} has {header.size}: restore "
        "that picture, or export the labels again"
    )


def _splits(written: Sequence[_Written], val_fraction: float) -> tuple[dict[str, list[PairNames]], bool]:
    """Return the pairs of each split, and whether train and val were chosen here.

    The source's own splits hold if they name pictures to train on and to validate on. Else all pictures but
    those of its test split are divided.
    """
    splits: dict[str, list[PairNames]] = defaultdict(list)
    named = {one.picture.split for one in written}
    divided = not {TRAIN, VAL} <= named
    chosen = divide([one.picture.name for one in written if one.picture.split != TEST], val_fraction)
    for one in written:
        split = one.picture.split or TRAIN
        if divided and split != TEST:
            split = VAL if one.picture.name in chosen else TRAIN
        splits[split].append(one.pair)
    return {split: splits[split] for split in (TRAIN, VAL, TEST) if splits[split]}, divided


def _report(
    target: Path,
    dataset: ForeignDataset,
    classes: ClassIds,
    counts: npt.NDArray[np.int64],
    splits: Mapping[str, Sequence[PairNames]],
    *,
    divided: bool,
    left_out: LeftOut,
) -> ImportReport:
    palette = classes.palette
    background = IGNORE if classes.background == palette.ignore_id else palette.names[classes.background]
    return ImportReport(
        dataset_file=target / DATASET_FILE,
        splits={split: len(pairs) for split, pairs in splits.items()},
        pixels={name: int(counts[class_id]) for class_id, name in enumerate(palette.names)},
        ignored_pixels=int(counts[palette.ignore_id]),
        drawing_order=dataset.drawing_order,
        background=None if dataset.uncovered is Uncovered.IMPOSSIBLE else background,
        divided=divided,
        left_out=dict(left_out.counts),
        left_out_lines=left_out.lines(),
    )


def _unread_kind(name: str) -> str:
    if name.lower().endswith(PICTURE_SUFFIXES):
        return "pictures or masks that no annotation names"
    return "other files"
