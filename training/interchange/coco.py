"""Reads COCO: instances (polygons, run lengths) and panoptic (PNG files whose colours are segment numbers).

Axes: H height, W width, P points, U different segments.

Source:
    The format descriptions of the COCO data set.
"""

from __future__ import annotations

import posixpath
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from model.labels import UInt8Array
from model.pictures.preprocess import ImageSize
from training.errors import InterchangeError
from training.interchange.color_masks import distinct, open_mask, pack_colors
from training.interchange.foreign import (
    ClassIds,
    ForeignClass,
    ForeignDataset,
    ForeignPicture,
    Labels,
    ReadOptions,
    Shape,
    Shapes,
    Uncovered,
)
from training.interchange.json_files import Record, RecordType, parse
from training.interchange.shapes import Points, Polygon, Region, RunLengths, coco_counts
from training.interchange.source import Source
from training.interchange.split_names import split_of_list
from training.interchange.tally import Tally
from training.interchange.values import image_size

_UNLABELLED = 0


class _Category(Record):
    id: int
    name: str
    color: tuple[int, int, int] | None = None


class _Image(Record):
    id: int
    file_name: str
    height: int
    width: int


class _RunLengths(Record):
    size: tuple[int, int]
    counts: list[int] | str


class _Instance(Record):
    id: int | str | None = None
    image_id: int
    category_id: int
    segmentation: list[list[float]] | _RunLengths | None = None


class _Segment(Record):
    id: int
    category_id: int


class _Panoptic(Record):
    image_id: int
    file_name: str
    segments_info: list[_Segment]


class _CocoFile(Record):
    images: list[_Image]
    categories: list[_Category]

    def names(self) -> dict[int, str]:
        """Return the class name of each category."""
        return {category.id: category.name for category in self.categories}

    def classes(self) -> Iterator[ForeignClass]:
        """Yield the classes in the order of their numbers."""
        for category in sorted(self.categories, key=lambda one: one.id):
            yield ForeignClass(category.name, category.color)


class _InstanceFile(_CocoFile):
    annotations: list[_Instance]


class _PanopticFile(_CocoFile):
    annotations: list[_Panoptic]


def read_coco(source: Source, left_out: Tally, options: ReadOptions) -> ForeignDataset:
    """Read instances.

    Args:
        source: holds JSON files with ``images``, ``categories`` and ``annotations``, and the pictures.
        left_out: counts the records that are not taken.
        options: further choices of the user.

    Raises:
        InterchangeError: there is no such file, or one is malformed.
    """
    files = _files(source, left_out, _InstanceFile, "instances", panoptic=False)
    return ForeignDataset(
        classes=[one for _, file in files for one in file.classes()],
        pictures=[
            picture
            for name, file in files
            for picture in _pictures(
                source,
                left_out,
                name,
                file.images,
                _instances(file, name, left_out),
                keep_empty=options.keep_empty,
            )
        ],
        drawing_order="smaller objects lie above larger ones; of one area the later one",
    )


def read_panoptic(source: Source, left_out: Tally, options: ReadOptions) -> ForeignDataset:
    """Read panoptic segments.

    Args:
        source: holds JSON files with ``segments_info``, their PNG files, and the pictures.
        left_out: counts the records that are not taken.
        options: further choices of the user.

    Raises:
        InterchangeError: there is no such file, or one is malformed.
    """
    files = _files(source, left_out, _PanopticFile, "panoptic", panoptic=True)
    return ForeignDataset(
        classes=[one for _, file in files for one in file.classes()],
        pictures=[
            picture
            for name, file in files
            for picture in _pictures(
                source,
                left_out,
                name,
                file.images,
                _segments(file, name, source),
                keep_empty=options.keep_empty,
            )
        ],
        drawing_order="nothing overlaps: each pixel belongs to one segment",
        uncovered=Uncovered.IGNORED,
    )


def _files(
    source: Source, left_out: Tally, kind: type[RecordType], word: str, *, panoptic: bool
) -> list[tuple[str, RecordType]]:
    """Read the files whose name starts with a word, or else all that hold annotations of this kind."""
    names = source.with_suffix(".json")
    called = [name for name in names if posixpath.basename(name).startswith(word)]
    found = []
    for name in called or names:
        data = source.read(name)
        if b'"annotations"' in data and (b'"segments_info"' in data) == panoptic:
            found.append((name, parse(kind, data, name)))
        else:
            left_out.add("JSON files of another kind", name)
    if not found:
        other = "coco" if panoptic else "coco-panoptic"
        raise InterchangeError(
            f"there is no JSON file with {word} of COCO (the other kind is the format {other})"
        )
    return found


def _pictures(
    source: Source,
    left_out: Tally,
    name: str,
    images: Sequence[_Image],
    labels: Mapping[int, Labels],
    *,
    keep_empty: bool,
) -> Iterator[ForeignPicture]:
    split = split_of_list(name)
    known = set()
    for image in images:
        known.add(image.id)
        where = f"{name}, picture {image.file_name!r}"
        file = source.find(image.file_name, near=name, split=split)
        if file is None:
            left_out.add("pictures that are missing", where)
        elif image.id not in labels and not keep_empty:
            left_out.add("pictures without annotation", where, file=file)
        else:
            drawn = labels.get(image.id, Shapes(()))
            yield ForeignPicture(file, where, drawn, split, image_size(image.height, image.width, where))
    for image_id in labels.keys() - known:
        left_out.add("annotations of pictures that the file does not list", f"{name}, picture {image_id}")


def _class_name(names: Mapping[int, str], category_id: int, where: str) -> str:
    try:
        return names[category_id]
    except KeyError:
        raise InterchangeError(f"{where}: the file lists no category {category_id}") from None


def _instances(file: _InstanceFile, name: str, left_out: Tally) -> dict[int, Labels]:
    names = file.names()
    by_image: dict[int, list[tuple[float, list[Shape]]]] = defaultdict(list)
    for number, one in enumerate(file.annotations, 1):
        where = f"{name}, annotation {number if one.id is None else one.id}"
        class_name = _class_name(names, one.category_id, where)
        try:
            regions = list(_regions(one, where, left_out))
        except ValueError as error:
            raise InterchangeError(f"{where}: {error}") from error
        if regions:
            shapes = [Shape(class_name, region, where) for region, _ in regions]
            by_image[one.image_id].append((sum(area for _, area in regions), shapes))
    return {image_id: Shapes(_largest_first(found)) for image_id, found in by_image.items()}


def _largest_first(found: list[tuple[float, list[Shape]]]) -> list[Shape]:
    found.sort(key=lambda pair: pair[0], reverse=True)
    return [shape for _, shapes in found for shape in shapes]


def _regions(one: _Instance, where: str, left_out: Tally) -> Iterator[tuple[Region, float]]:
    """Yield the parts of an instance with their areas in pixels."""
    if isinstance(one.segmentation, _RunLengths):
        counts = one.segmentation.counts
        lengths = coco_counts(counts) if isinstance(counts, str) else counts
        yield RunLengths(lengths, ImageSize(*one.segmentation.size), by_columns=True), sum(lengths[1::2])
        return
    if not one.segmentation:
        left_out.add("annotations without a segmentation (boxes alone)", where)
    for ring in one.segmentation or ():
        if len(ring) % 2:
            raise ValueError(f"a polygon of {len(ring)} numbers, which are no pairs of x and y")
        points_P2 = np.array(ring, np.float64).reshape(-1, 2)
        if len(points_P2) < 3:  # noqa: PLR2004 - COCO holds some
            left_out.add("polygons of fewer than three points", where)
        else:
            yield Polygon(points_P2), _area(points_P2)


def _area(points_P2: Points) -> float:
    x_P, y_P = points_P2.T
    return float(abs(np.dot(x_P, np.roll(y_P, -1)) - np.dot(y_P, np.roll(x_P, -1))) / 2)


@dataclass(frozen=True)
class _SegmentFile:
    """Labels that a PNG file of panoptic segments holds."""

    source: Source
    name: str
    class_names: Mapping[int, str]

    def own_size(self) -> ImageSize | None:
        """Return None: the JSON file says the size."""
        return None

    def ids(self, size: ImageSize, classes: ClassIds) -> UInt8Array:
        """Return ids_HW, uint8: each segment has its class.

        Args:
            size: of the picture, as it was labelled.
            classes: names -> ids.

        Raises:
            InterchangeError: the file is unreadable or of another size, or holds an unlisted segment.
        """
        rgb_HW3 = np.asarray(open_mask(self.source, self.name, size).convert("RGB"))
        segments_U, index_HW = distinct(pack_colors(rgb_HW3[..., ::-1]))  # red is the lowest byte
        segments = segments_U.tolist()
        if unknown := [one for one in segments if one != _UNLABELLED and one not in self.class_names]:
            raise InterchangeError(f"{self.name}: segments {unknown[:5]} are not listed in segments_info")
        ids = [
            classes.background if one == _UNLABELLED else classes.id_of(self.class_names[one], self.name)
            for one in segments
        ]
        return np.array(ids, np.uint8)[index_HW]


def _segments(file: _PanopticFile, name: str, source: Source) -> dict[int, Labels]:
    names = file.names()
    folder = posixpath.splitext(name)[0]
    labels: dict[int, Labels] = {}
    for one in file.annotations:
        where = f"{name}, picture {one.image_id}"
        beside = posixpath.join(folder, one.file_name)
        mask = beside if beside in source else source.find(one.file_name, near=name)
        if mask is None:
            raise InterchangeError(f"{where}: {one.file_name!r} is missing")
        class_names = {part.id: _class_name(names, part.category_id, where) for part in one.segments_info}
        labels[one.image_id] = _SegmentFile(source, mask, class_names)
    return labels
