from __future__ import annotations

import contextlib
import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as coco

from model.labels import UInt8Array
from model.pictures.preprocess import ImageSize
from training.interchange.shapes import (
    Bitmap,
    OutlinedShape,
    Points,
    Polygon,
    Region,
    RunLengths,
    coco_counts,
    ellipse,
    turned,
)

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning:pycocotools")

SIZE = 200


def painted(region: Region, height: int = SIZE, width: int = SIZE) -> UInt8Array:
    ids_HW = np.zeros((height, width), np.uint8)
    region.paint(ids_HW, 1)
    return ids_HW


def coco_polygon(points_P2: Points) -> UInt8Array:
    runs = coco.frPyObjects([points_P2.reshape(-1).tolist()], SIZE, SIZE)
    decoded: UInt8Array = coco.decode(runs)[..., 0]
    return decoded


def outline(random: np.random.Generator, radius: float) -> Points:
    angle_P = np.sort(random.uniform(0, 2 * math.pi, random.integers(5, 40)))
    radius_P = radius * random.uniform(0.5, 1, len(angle_P))
    circle_P2 = np.stack([np.cos(angle_P), np.sin(angle_P)], axis=1)
    points_P2: Points = random.uniform(80, 120, 2) + circle_P2 * radius_P[:, None]
    return points_P2


@pytest.mark.parametrize(("radius", "least"), [(20, 0.93), (60, 0.97), (140, 0.985)])
def test_a_polygon_covers_what_pycocotools_covers(radius: float, least: float) -> None:
    random = np.random.default_rng(0)
    for _ in range(50):
        points_P2 = outline(random, radius)
        mine, theirs = painted(Polygon(points_P2)) > 0, coco_polygon(points_P2) > 0
        assert (mine & theirs).sum() >= least * (mine | theirs).sum()
        assert mine.sum() == pytest.approx(theirs.sum(), rel=0.03)


def test_a_polygon_between_pixels_covers_exactly_those_whose_centres_it_holds() -> None:
    square = Polygon(np.array([(1, 2), (4, 2), (4, 4), (1, 4)], np.float64))
    assert np.argwhere(painted(square, 6, 6)).tolist() == [[2, 1], [2, 2], [2, 3], [3, 1], [3, 2], [3, 3]]


def test_a_line_that_crosses_itself_has_a_hole() -> None:
    bow = Polygon(np.array([(0, 0), (8, 8), (8, 0), (0, 8)], np.float64))
    ids_HW = painted(bow, 8, 8)
    assert ids_HW[4, 1] == ids_HW[4, 6] == 1
    assert ids_HW[1, 4] == ids_HW[6, 4] == 0


def test_a_polygon_is_cut_at_the_edges_of_the_picture() -> None:
    assert painted(Polygon(np.array([(-50, -50), (500, -50), (500, 500), (-50, 500)], np.float64))).all()
    assert not painted(Polygon(np.array([(-50, -50), (-10, -50), (-10, 500)], np.float64))).any()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Polygon(np.zeros((2, 2))), r"2 points, not 3\.\."),
        (lambda: Polygon(np.zeros((200_000, 2))), "200000 points"),
        (lambda: Polygon(np.array([(0, 0), (1, math.nan), (2, 2)])), "not finite"),
        (lambda: Polygon(np.array([(0, 0), (1, 3e9), (2, 2)])), "far outside"),
        (lambda: Polygon(np.zeros((3, 3))), "pairs of x and y"),
        (lambda: OutlinedShape("circle", np.zeros((1, 2))), r"1 points, not 2\.\."),
        (lambda: OutlinedShape("polygon", np.zeros((3, 2)), [np.zeros((1, 2))]), "1 points"),
    ],
)
def test_points_that_are_no_shape_are_refused(make: Callable[[], Region], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_a_line_that_zigzags_for_ever_is_refused_before_it_fills_the_memory() -> None:
    zigzag_P2 = np.stack([np.arange(90_000) % 500, np.arange(90_000) % 2 * 2000], axis=1).astype(np.float64)
    with pytest.raises(ValueError, match="crosses rows more than"):
        painted(Polygon(zigzag_P2), 2000, 500)


def test_an_outlined_shape_is_what_labelme_draws() -> None:
    corners_P2 = np.array([(1, 1), (3, 1), (3, 3), (1, 3)], np.float64)
    assert painted(OutlinedShape("polygon", corners_P2), 5, 5).sum() == 9
    assert painted(OutlinedShape("rectangle", corners_P2[[2, 0]]), 5, 5).sum() == 9
    circle = painted(OutlinedShape("circle", np.array([(4, 4), (4, 7)], np.float64)), 9, 9)
    assert circle[4].tolist() == [0, 1, 1, 1, 1, 1, 1, 1, 0]
    assert (circle == circle.T).all()


def test_a_hole_is_cut_out() -> None:
    square_P2 = np.array([(0, 0), (8, 0), (8, 8), (0, 8)], np.float64)
    ids_HW = painted(OutlinedShape("polygon", square_P2, [square_P2 / 4 + 3]), 9, 9)
    assert ids_HW[4, 4] == 0
    assert ids_HW[1, 1] == ids_HW[7, 7] == 1


def test_an_ellipse_turns_clockwise() -> None:
    center_2 = np.array([10.0, 10.0])
    level_HW = painted(Polygon(ellipse(center_2, np.array([8.0, 3.0]), 0)), 20, 20)
    upright_HW = painted(Polygon(ellipse(center_2, np.array([8.0, 3.0]), 90)), 20, 20)
    assert level_HW.sum() == pytest.approx(math.pi * 24, rel=0.05)
    assert (upright_HW == level_HW.T).all()
    right_of_it = np.array([(11.0, 10.0)])
    np.testing.assert_allclose(turned(right_of_it, center_2, 90), [(10, 11)])  # y points down


@given(st.data())
def test_run_lengths_are_those_of_pycocotools(data: st.DataObject) -> None:
    shape = data.draw(st.tuples(st.integers(1, 30), st.integers(1, 30)))
    mask_HW = data.draw(arrays(np.uint8, shape, elements=st.integers(0, 1)))
    text = coco.encode(np.asfortranarray(mask_HW))["counts"].decode()
    runs = RunLengths(coco_counts(text), ImageSize(*shape), by_columns=True)
    assert (painted(runs, *shape) == mask_HW).all()


def test_run_lengths_along_rows_are_those_of_cvat() -> None:
    runs = RunLengths([1, 2, 3], ImageSize(2, 3), left=1, top=1)
    assert painted(runs, 4, 5).tolist() == [[0] * 5, [0, 0, 1, 1, 0], [0] * 5, [0] * 5]


@pytest.mark.parametrize("counts", [[3], [-1, 7], [7], [1 << 62, 1 << 62], []])
def test_run_lengths_that_do_not_add_up_are_refused(counts: list[int]) -> None:
    with pytest.raises(ValueError, match="add up to the 2x3 pixels"):
        painted(RunLengths(counts, ImageSize(2, 3)), 2, 3)


def test_a_mask_outside_of_its_picture_is_refused() -> None:
    with pytest.raises(ValueError, match="does not lie within 4x4"):
        painted(Bitmap(np.ones((2, 2), np.bool_), left=3), 4, 4)
    with pytest.raises(ValueError, match="does not lie within"):
        painted(Bitmap(np.ones((2, 2), np.bool_), top=-1), 4, 4)
    with pytest.raises(ValueError, match="larger than its picture"):
        painted(RunLengths([100_000_000], ImageSize(10_000, 10_000)), 4, 4)


@pytest.mark.parametrize(
    ("text", "message"), [("\x7f", "means nothing"), ("o", "within a number"), ("é", "means")]
)
def test_text_that_is_no_run_lengths_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        coco_counts(text)


@given(st.text(st.characters(min_codepoint=48, max_codepoint=111), max_size=30))
def test_no_text_makes_run_lengths_paint_outside(text: str) -> None:
    with contextlib.suppress(ValueError):
        painted(RunLengths(coco_counts(text), ImageSize(5, 7), by_columns=True), 5, 7)


def test_pycocotools_still_takes_run_lengths_that_do_not_add_up() -> None:
    """One reason for reading run lengths here; once this fails, the library may be safe enough."""
    unset_HW = coco.decode({"size": [4, 4], "counts": b"0"})
    assert unset_HW.shape == (4, 4)
