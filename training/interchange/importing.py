"""Writes a foreign data set as one that can be trained on: ``bisenet dataset import``."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Literal, NamedTuple

import numpy as np

from model.errors import ImageError
from training.errors import InterchangeError
from training.interchange.class_ids import IGNORE, class_ids
from training.interchange.color_masks import MASK_SUFFIXES
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
from training.interchange.import_report import ImportReport
from training.interchange.source import PICTURE_SUFFIXES, Source, repeated
from training.interchange.split_names import TEST, TRAIN, VAL, divide
from training.interchange.tally import Tally
from training.interchange.trainable_pictures import TrainablePicture, trainable_picture, upright_ids

Progress = Callable[[int, int], None]

REPORT_FILE = "import.txt"

_BATCH = 64


@dataclass(frozen=True)
class ImportOptions:
    """Choices of the user about an import.

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


class _Written(NamedTuple):
    """One picture of the result.

    Attributes:
        picture: of the source.
        pair: of the result.
        notes: kinds of changes to it.
    """

    picture: ForeignPicture
    pair: PairNames
    notes: Sequence[str]


class _Refused(NamedTuple):
    """One picture that is not taken.

    Attributes:
        picture: of the source.
        reason: why it cannot be read.
    """

    picture: ForeignPicture
    reason: ImageError


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
        options: further choices of the user.
        progress: called with the pictures that are done and all.

    Raises:
        InterchangeError: the source or the options do not allow it; the message names file and shape.
    """
    left_out, notes = Tally(), Tally()
    source = Source([source_path, *([options.images] if options.images else [])], left_out)
    dataset = READERS[format_name](source, left_out, options.read)
    classes = class_ids(
        dataset, listed=options.read.classes, ignore=options.ignore, background=options.background
    )
    with new_folder(target) as folder:
        writer = _Writer(folder, source, classes, options)
        written = list(writer.all(_pictures(dataset, source_path), left_out, notes, progress))
        if not written:
            raise InterchangeError(f"{source_path}: no picture is left: {'; '.join(left_out.lines())}")
        splits, divided = _splits(written, options.val_fraction)
        write_dataset(folder, target.resolve().name, classes.palette, splits)
        source.tell_unread(left_out, _unread_kind)
        palette, counts = classes.palette, writer.counts
        report = ImportReport(
            dataset_file=target / DATASET_FILE,
            splits={split: len(pairs) for split, pairs in splits.items()},
            pixels={name: int(counts[class_id]) for class_id, name in enumerate(palette.names)},
            ignored_pixels=int(counts[palette.ignore_id]),
            drawing_order=dataset.drawing_order,
            background=_background(dataset, classes),
            divided=divided,
            left_out=left_out,
            notes=notes,
        )
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
        self, pictures: Sequence[ForeignPicture], left_out: Tally, notes: Tally, progress: Progress
    ) -> Iterator[_Written]:
        """Write the pictures; yield the readable ones."""
        names = FileNames([one.name for one in pictures])
        stems = [names.stem(one.name) for one in pictures]
        with ThreadPoolExecutor(self._workers, "import") as pool:
            for first in range(0, len(pictures), _BATCH):
                part = slice(first, first + _BATCH)
                for done, result in enumerate(pool.map(self._write, pictures[part], stems[part]), first + 1):
                    progress(done, len(pictures))
                    name = result.picture.name
                    if isinstance(result, _Refused):
                        left_out.add("pictures that cannot be read", f"{name}: {result.reason}", file=name)
                        continue
                    for note in result.notes:
                        notes.add(note, name)
                    yield result

    def _write(self, picture: ForeignPicture, stem: str) -> _Written | _Refused:
        """Write one picture and its mask."""
        data = picture.embedded() if picture.embedded else self._source.read(picture.name)
        try:
            ready = trainable_picture(data)
        except ImageError as error:
            return _Refused(picture, error)
        ids_HW, turning = upright_ids(picture, ready.header, self._classes)
        pair = f"images/{stem}{ready.suffix}", f"masks/{stem}.png"
        self._write_picture(self._folder / pair[0], picture, ready)
        write_mask(self._folder / pair[1], ids_HW, self._classes.palette)
        counts = np.bincount(ids_HW.reshape(-1), minlength=256)
        with self._lock:
            self.counts += counts
        return _Written(picture, pair, [note for note in (ready.note, turning) if note])

    def _write_picture(self, path: Path, picture: ForeignPicture, ready: TrainablePicture) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        on_disk = None if picture.embedded else self._source.path(picture.name)
        if not self._links or on_disk is None or ready.note:
            path.write_bytes(ready.data)
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


def _background(dataset: ForeignDataset, classes: ClassIds) -> str | None:
    """Return the class of the pixels that no shape covers; None where there are none."""
    if dataset.uncovered is Uncovered.IMPOSSIBLE:
        return None
    palette = classes.palette
    return IGNORE if classes.background == palette.ignore_id else palette.names[classes.background]


def _unread_kind(name: str) -> str:
    if name.lower().endswith((*PICTURE_SUFFIXES, *MASK_SUFFIXES)):
        return "pictures or masks that no annotation names"
    return "other files"
