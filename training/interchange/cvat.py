"""Reads exports of CVAT: ``CVAT for images 1.1`` (XML) and ``Segmentation mask 1.1``.

Source:
    The format descriptions in the documentation of CVAT.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from xml.etree.ElementTree import Element, ParseError

import numpy as np
from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from model.pictures.preprocess import ImageSize
from training.errors import InterchangeError
from training.interchange.foreign import (
    ForeignClass,
    ForeignDataset,
    ForeignPicture,
    ReadOptions,
    Shape,
    Shapes,
)
from training.interchange.shapes import Polygon, Region, RunLengths, ellipse, turned
from training.interchange.source import Source
from training.interchange.split_names import named_split, split_of_list
from training.interchange.tally import Tally
from training.interchange.values import hex_color, image_size
from training.interchange.voc import LABEL_MAP, read_voc

_KINDS_WITHOUT_AREA = ("tag", "points", "polyline", "cuboid", "skeleton")


def read_cvat(source: Source, left_out: Tally, options: ReadOptions) -> ForeignDataset:
    """Read an export of CVAT.

    Args:
        source: holds ``annotations.xml``, or ``labelmap.txt`` beside ``SegmentationClass``.
        left_out: counts the records that are not taken.
        options: further choices of the user.

    Raises:
        InterchangeError: neither is there, or a file is malformed.
    """
    if any(name.rsplit("/", 1)[-1] == LABEL_MAP for name in source.names):
        return read_voc(source, left_out, options)
    trees = [(name, _parsed(source.read(name), name)) for name in source.with_suffix(".xml")]
    trees = [(name, root) for name, root in trees if root.tag == "annotations"]
    if not trees:
        raise InterchangeError(
            f"there is no annotations.xml and no {LABEL_MAP}: export the task as 'CVAT for images 1.1' or "
            "'Segmentation mask 1.1'"
        )
    reader = _Reader(source, left_out, keep_empty=options.keep_empty)
    return ForeignDataset(
        classes=[one for _, root in trees for one in _classes(root)],
        pictures=[picture for name, root in trees for picture in reader.pictures(name, root)],
        drawing_order="shapes of higher z_order lie above; of one z_order the later one",
    )


class _Reader:
    def __init__(self, source: Source, left_out: Tally, *, keep_empty: bool) -> None:
        self._source = source
        self._left_out = left_out
        self._keep_empty = keep_empty

    def pictures(self, name: str, root: Element) -> Iterator[ForeignPicture]:
        """Yield the labelled pictures of one file."""
        if root.find("track") is not None:
            raise InterchangeError(
                f"{name}: holds tracks of a film: export the task as 'CVAT for images 1.1', with every frame"
            )
        for image in root.iterfind("image"):
            picture = self._picture(image, name)
            if picture is not None:
                yield picture

    def _picture(self, image: Element, origin: str) -> ForeignPicture | None:
        said = image.get("name", "")
        where = f"{origin}, image {said!r}"
        split = named_split(image.get("subset", "")) or split_of_list(origin)
        file = self._source.find(said, near=origin, split=split)
        shapes = self._shapes(image, where)
        if file is None:
            self._left_out.add("pictures that are missing", where)
        elif not shapes.shapes and not self._keep_empty:
            self._left_out.add("pictures without a shape", where, file=file)
        else:
            return ForeignPicture(file, where, shapes, split, _size(image, where))
        return None

    def _shapes(self, image: Element, where: str) -> Shapes:
        found = []
        for number, element in enumerate(image, 1):
            place = f"{where}, shape {number}"
            reader = _REGIONS.get(element.tag)
            if reader is None:
                self._left_out.add(f"shapes of kind {element.tag}", place)
                continue
            try:
                z_order = int(element.get("z_order", "0"))
                found.append((z_order, Shape(element.attrib["label"], reader(element), place)))
            except KeyError as error:
                raise InterchangeError(f"{place}: the attribute {error.args[0]} is missing") from error
            except (ValueError, OverflowError) as error:
                raise InterchangeError(f"{place}: {error}") from error
        return Shapes([shape for _, shape in sorted(found, key=lambda pair: pair[0])])


def _parsed(data: bytes, name: str) -> Element:
    try:
        root: Element = fromstring(data, forbid_dtd=True)
    except (ParseError, DefusedXmlException, ValueError, LookupError) as error:
        raise InterchangeError(f"{name}: not a readable XML file: {error!r}") from error
    return root


def _size(image: Element, where: str) -> ImageSize:
    try:
        height, width = int(image.attrib["height"]), int(image.attrib["width"])
    except (KeyError, ValueError) as error:
        raise InterchangeError(f"{where}: width or height is missing or no number") from error
    return image_size(height, width, where)


def _classes(root: Element) -> Iterator[ForeignClass]:
    for label in root.iterfind("meta//label"):
        if label.findtext("parent") is None and label.findtext("type") not in _KINDS_WITHOUT_AREA:
            yield ForeignClass(label.findtext("name", ""), hex_color(label.findtext("color", "")))


def _numbers(element: Element, *names: str) -> Iterator[float]:
    return (float(element.attrib[name]) for name in names)


def _polygon(element: Element) -> Region:
    points = [[float(value) for value in pair.split(",")] for pair in element.attrib["points"].split(";")]
    if any(len(point) != 2 for point in points):  # noqa: PLR2004 - x and y
        raise ValueError("points are pairs of x and y")
    return Polygon(np.array(points, np.float64))


def _box(element: Element) -> Region:
    left, top, right, bottom = _numbers(element, "xtl", "ytl", "xbr", "ybr")
    corners_P2 = np.array([(left, top), (right, top), (right, bottom), (left, bottom)], np.float64)
    return Polygon(turned(corners_P2, corners_P2.mean(axis=0), float(element.get("rotation", "0"))))


def _ellipse(element: Element) -> Region:
    center_2, radii_2 = np.array([*_numbers(element, "cx", "cy", "rx", "ry")]).reshape(2, 2)
    return Polygon(ellipse(center_2, radii_2, float(element.get("rotation", "0"))))


def _mask(element: Element) -> Region:
    left, top, width, height = (int(element.attrib[name]) for name in ("left", "top", "width", "height"))
    counts = [int(count) for count in element.attrib["rle"].split(",")]
    return RunLengths(counts, ImageSize(height, width), left=left, top=top)


_REGIONS: Mapping[str, Callable[[Element], Region]] = MappingProxyType(
    {"polygon": _polygon, "box": _box, "ellipse": _ellipse, "mask": _mask}
)
