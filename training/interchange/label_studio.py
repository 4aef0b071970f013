"""Reads exports of Label Studio: the JSON file of a project, and brush masks as one PNG file for each label.

Axes: H height, W width, P points, 4 = red green blue and opacity.

Source:
    ``label_studio_sdk.converter``: how PNG files are called, and how brush strokes are packed.
"""

from __future__ import annotations

import posixpath
import re
import urllib.parse
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from pydantic import RootModel

from model.labels import UInt8Array
from model.pictures.preprocess import ImageSize
from training.errors import InterchangeError
from training.interchange.color_masks import EncodedBitmap, open_mask
from training.interchange.foreign import (
    ForeignClass,
    ForeignDataset,
    ForeignPicture,
    ReadOptions,
    Shape,
    Shapes,
)
from training.interchange.json_files import Record, parse
from training.interchange.shapes import Bitmap, Points, Polygon, Region, ellipse, turned
from training.interchange.source import PICTURE_SUFFIXES, Source
from training.interchange.split_names import split_of
from training.interchange.tally import Tally
from training.interchange.values import image_size

_MASK_NAME = re.compile(r"task-(?P<task>\d+)-annotation-(?P<annotation>\d+)-by-[^-]*-(?P<label>.+)-\d+\.png")
_UPLOAD_PREFIX = re.compile(r"^[0-9a-f]{8}-")
_PERCENT = 100.0
_HALF = 128
"""From this value of 255 on a pixel of a brush mask, whose edges are soft, belongs to it."""


class _Value(Record):
    points: list[tuple[float, float]] | None = None
    x: float = 0
    y: float = 0
    width: float | None = None
    height: float | None = None
    radiusX: float | None = None
    radiusY: float | None = None
    rotation: float = 0
    rle: list[int] | None = None
    brushlabels: tuple[str, ...] = ()
    polygonlabels: tuple[str, ...] = ()
    rectanglelabels: tuple[str, ...] = ()
    ellipselabels: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The labels of the shape."""
        shaped = self.brushlabels or self.polygonlabels or self.rectanglelabels or self.ellipselabels
        return shaped or self.labels


class _Result(Record):
    type: str
    value: _Value = _Value()
    original_width: int = 0
    original_height: int = 0
    image_rotation: float = 0


class _Annotation(Record):
    id: int
    result: list[_Result]
    was_cancelled: bool = False


class _Task(Record):
    id: int
    data: dict[str, Any] = {}  # noqa: RUF012 - pydantic copies it
    file_upload: str | None = None
    annotations: list[_Annotation] = []  # noqa: RUF012


class _Export(RootModel[list[_Task]]):
    pass


@dataclass(frozen=True)
class _BrushMask:
    """One PNG file of the export."""

    name: str
    annotation: int
    label: str  # of the project's tag and of the class, with a - between them


def read_label_studio(source: Source, left_out: Tally, options: ReadOptions) -> ForeignDataset:
    """Read an export of Label Studio.

    Of several annotations of a picture the newest one counts. PNG files are read where the JSON file does not
    hold their strokes. Without a JSON file the picture of task 7 must be called ``7.jpg`` or ``task-7.jpg``.

    Args:
        source: holds the JSON file, PNG files ``task-7-annotation-3-by-1-tag-CLASS-0.png``, and the pictures.
        left_out: counts the records that are not taken.
        options: further choices of the user.

    Raises:
        InterchangeError: there is no such file, or one is malformed.
    """
    tasks = [(name, task) for name in source.with_suffix(".json") for task in _tasks(source, name, left_out)]
    masks = _brush_masks(source)
    if not tasks and not masks:
        raise InterchangeError(
            "there is no JSON export of Label Studio and no task-*.png: export the project as JSON, or as "
            "brush labels to PNG and as JSON"
        )
    reader = _Reader(source, left_out, options, _known_labels(tasks, options))
    found = [reader.picture_of_task(name, task, masks.pop(task.id, [])) for name, task in tasks]
    found += [reader.picture_of_masks(task, ones) for task, ones in sorted(masks.items())]
    return ForeignDataset(
        classes=[ForeignClass(name) for name in sorted(reader.labels)],
        pictures=[picture for picture in found if picture is not None],
        drawing_order="later shapes of the JSON file lie above earlier ones; later PNG files, too",
    )


def _tasks(source: Source, name: str, left_out: Tally) -> Sequence[_Task]:
    data = source.read(name)
    if data.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] != b"[":
        left_out.add("JSON files that are no list of tasks", name)
        return []
    return parse(_Export, data, name).root


def _brush_masks(source: Source) -> dict[int, list[_BrushMask]]:
    masks: dict[int, list[_BrushMask]] = defaultdict(list)
    for name in source.with_suffix(".png"):
        if found := _MASK_NAME.fullmatch(posixpath.basename(name)):
            masks[int(found["task"])].append(_BrushMask(name, int(found["annotation"]), found["label"]))
    return masks


def _known_labels(tasks: Iterable[tuple[str, _Task]], options: ReadOptions) -> frozenset[str]:
    results = (one for _, task in tasks for annotation in task.annotations for one in annotation.result)
    listed = options.classes.names if options.classes else ()
    return frozenset({name for one in results for name in one.value.names} | set(listed))


class _Reader:
    def __init__(
        self, source: Source, left_out: Tally, options: ReadOptions, known_labels: frozenset[str]
    ) -> None:
        self._source = source
        self._left_out = left_out
        self._options = options
        self._known_labels = known_labels
        self.labels: set[str] = set()

    def picture_of_task(self, origin: str, task: _Task, masks: Sequence[_BrushMask]) -> ForeignPicture | None:
        """Return the picture of a task of the JSON file, if it is taken."""
        where = f"{origin}, task {task.id}"
        annotation = self._newest(task, where)
        results = annotation.result if annotation else []
        shapes = list(self._shapes(results, where))
        if not any(one.value.rle for one in results):
            number = annotation.id if annotation else max((one.annotation for one in masks), default=0)
            shapes += self._mask_shapes([one for one in masks if one.annotation == number])
        return self._picture(_file_names(task), origin, where, shapes, _size(results, where))

    def picture_of_masks(self, task: int, masks: Sequence[_BrushMask]) -> ForeignPicture | None:
        """Return the picture of PNG files that no JSON file explains, if it is taken."""
        newest = max(one.annotation for one in masks)
        names = [f"{prefix}{task}{suffix}" for prefix in ("", "task-") for suffix in PICTURE_SUFFIXES]
        where = f"{masks[0].name}, task {task}"
        shapes = list(self._mask_shapes([one for one in masks if one.annotation == newest]))
        return self._picture(names, masks[0].name, where, shapes, None)

    def _picture(
        self, names: Sequence[str], origin: str, where: str, shapes: Sequence[Shape], size: ImageSize | None
    ) -> ForeignPicture | None:
        found = (self._source.find(name, near=origin) for name in names)
        file = next((name for name in found if name is not None), None)
        if file is None:
            self._left_out.add("tasks whose picture is missing", where)
        elif not shapes and not self._options.keep_empty:
            self._left_out.add("pictures without a shape", where, file=file)
        else:
            return ForeignPicture(file, where, Shapes(shapes), split_of(file), size)
        return None

    def _newest(self, task: _Task, where: str) -> _Annotation | None:
        counting = sorted((one for one in task.annotations if not one.was_cancelled), key=lambda one: one.id)
        for _ in range(len(task.annotations) - min(1, len(counting))):
            self._left_out.add("annotations that are older or were cancelled", where)
        return counting[-1] if counting else None

    def _shapes(self, results: Sequence[_Result], where: str) -> Iterator[Shape]:
        for number, one in enumerate(results, 1):
            place = f"{where}, result {number}"
            try:
                region = _region(one)
            except ValueError as error:
                raise InterchangeError(f"{place}: {error}") from error
            if region is None or not one.value.names:
                self._left_out.add(f"results of kind {one.type}, which have no area or no label", place)
                continue
            for _ in one.value.names[1:]:
                self._left_out.add("further labels of a shape, of which the first counts", place)
            self.labels.add(one.value.names[0])
            yield Shape(one.value.names[0], region, place)

    def _mask_shapes(self, masks: Sequence[_BrushMask]) -> Iterator[Shape]:
        for one in masks:
            label = self._label(one)
            self.labels.add(label)
            yield Shape(
                label, EncodedBitmap(partial(open_mask, self._source, one.name, None), least=_HALF), one.name
            )

    def _label(self, mask: _BrushMask) -> str:
        """Return the longest known label in which the name ends, else all after the tag's name."""
        fitting = [label for label in self._known_labels if mask.label.endswith(f"-{_in_file_name(label)}")]
        label = max(fitting, key=len, default=mask.label.partition("-")[2])
        if not label:
            raise InterchangeError(
                f"{mask.name}: the class cannot be told from the name: give --classes FILE"
            )
        return label


def _in_file_name(label: str) -> str:
    return label.replace("/", "-").replace("\\", "-")


def _file_names(task: _Task) -> Sequence[str]:
    """Return possible file names of a task's picture, the likeliest first."""
    values = [value for value in task.data.values() if isinstance(value, str)]
    pictures = [name for value in values if (name := _path_of(value)).lower().endswith(PICTURE_SUFFIXES)]
    names = [*([task.file_upload] if task.file_upload else []), *pictures]
    bare = [_UPLOAD_PREFIX.sub("", posixpath.basename(name)) for name in names]
    return [*names, *(posixpath.basename(name) for name in names), *bare]


def _path_of(url: str) -> str:
    """Return the path in a URL; for local files (``/data/local-files/?d=PATH``) the one in its query."""
    parts = urllib.parse.urlsplit(url)
    local = urllib.parse.parse_qs(parts.query).get("d")
    return local[0] if local else urllib.parse.unquote(parts.path)


def _size(results: Sequence[_Result], where: str) -> ImageSize | None:
    sizes = {(one.original_height, one.original_width) for one in results if one.original_height}
    if any(one.image_rotation for one in results):
        raise InterchangeError(
            f"{where}: the picture was turned in Label Studio: turn the file and label it again"
        )
    if len(sizes) > 1:
        raise InterchangeError(
            f"{where}: its shapes were drawn on pictures of different sizes: {sorted(sizes)}"
        )
    return image_size(*sizes.pop(), where) if sizes else None


def _region(result: _Result) -> Region | None:
    value, scale_2 = result.value, np.array([result.original_width, result.original_height]) / _PERCENT
    start_2 = np.array([value.x, value.y]) * scale_2
    if result.type in {"polygonlabels", "polygon"} and value.points is not None:
        return Polygon(np.array(value.points, np.float64).reshape(-1, 2) * scale_2)
    if (
        result.type in {"rectanglelabels", "rectangle"}
        and value.width is not None
        and value.height is not None
    ):
        return _rectangle(start_2, np.array([value.width, value.height]) * scale_2, value.rotation)
    if (
        result.type in {"ellipselabels", "ellipse"}
        and value.radiusX is not None
        and value.radiusY is not None
    ):
        return Polygon(ellipse(start_2, np.array([value.radiusX, value.radiusY]) * scale_2, value.rotation))
    if result.type in {"brushlabels", "brush"} and value.rle:
        return _BrushStrokes(bytes(value.rle), ImageSize(result.original_height, result.original_width))
    return None


def _rectangle(corner_2: Points, size_2: Points, rotation: float) -> Region:
    """Return a rectangle that is turned around its upper left corner."""
    unit_P2 = np.array([(0, 0), (1, 0), (1, 1), (0, 1)], np.float64)
    return Polygon(turned(corner_2 + unit_P2 * size_2, corner_2, rotation))


@dataclass(frozen=True)
class _BrushStrokes:
    """A mask as Label Studio packs it: runs of equal and of different bytes of an RGBA picture."""

    data: bytes
    size: ImageSize

    def paint(self, ids_HW: UInt8Array, class_id: int) -> None:
        """Give the opaque pixels a class.

        Args:
            ids_HW: of the whole picture, uint8; changed.
            class_id: 0..255.

        Raises:
            ValueError: the strokes are damaged, or belong to a picture of another size.
        """
        rgba = unpack_strokes(self.data, 4 * self.size.pixels)
        Bitmap(rgba.reshape(*self.size.shape, 4)[..., 3] >= _HALF).paint(ids_HW, class_id)


def unpack_strokes(data: bytes, count: int) -> UInt8Array:
    """Unpack the bytes of a brush mask.

    The head says how many values follow, how many bits each has, and four widths. Then come runs: one bit
    says whether a value is repeated, two bits choose the width of the number that is the run's length less
    one.

    Args:
        data: packed.
        count: values that must come out.

    Raises:
        ValueError: there are more or fewer values, or the data end within one.

    Source:
        ``rle-pack`` of thi.ng/umbrella, which Label Studio uses.
    """
    bits = "".join(map("{:08b}".format, data))
    place = 0

    def take(width: int) -> int:
        nonlocal place
        place += width
        if place > len(bits):
            raise ValueError("the brush strokes end within a run")
        return int(bits[place - width : place], 2)

    total, value_bits = take(32), take(5) + 1
    widths = [take(4) + 1 for _ in range(4)]
    if total != count or value_bits != 8:  # noqa: PLR2004 - a byte
        raise ValueError(
            f"brush strokes of {total} values of {value_bits} bits, not {count} of 8: of another picture?"
        )
    values = np.zeros(count, np.uint8)
    at = 0
    while at < count:
        repeated, length = take(1), take(widths[take(2)]) + 1
        if at + length > count:
            raise ValueError("the brush strokes are longer than the picture")
        values[at : at + length] = take(8) if repeated else [take(8) for _ in range(length)]
        at += length
    return values
