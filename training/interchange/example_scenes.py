"""Made-up street scenes with the class of every pixel, drawn in a few hundredths of a second.

A scene is a street that can be looked at from any place along it: a row of places makes a film. Things are
drawn from the farthest to the nearest, each at once into the picture and into its labels. Textures come last.

Axes: H height, W width, 3 = red green blue. Lengths are in metres: x to the right, y up, z along the street.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from model.labels import ClassPalette, Color, UInt8Array
from model.pictures.preprocess import ImageSize

SIZE = ImageSize(192, 256)

PALETTE = ClassPalette(
    ("sky", "building", "road", "greenery", "car"),
    ((128, 190, 230), (160, 90, 70), (110, 100, 120), (90, 150, 60), (60, 70, 190)),
)
SKY, BUILDING, ROAD, GREENERY, CAR = range(PALETTE.num_classes)

LENGTH_M = 240.0
"""Length of a street."""

_OVERSAMPLING = 2
_FOCAL = 0.85
_HORIZON = 0.45
_CAMERA_M = 1.5
_NEAREST_M = 1.0
_FARTHEST_M = 110.0
_FOG_M = 90.0
_GRAIN = np.array([2.0, 9.0, 7.0, 16.0, 4.0], np.float32)
"""Noise of each class in grey levels."""

_LANE_M = -1.4
"""Position of the camera and of the car ahead; the other cars are parked at the sides."""

_PAINTS: Sequence[Color] = ((176, 178, 182), (44, 48, 54), (52, 76, 132), (150, 40, 38), (206, 206, 202))
_NOISE = 2.5
_LEAVES = 70
_WINDOW: Color = (66, 74, 84)
_FOG: Color = (196, 204, 210)

Point = tuple[float, float, float]
Span = tuple[float, float]


@dataclass(frozen=True)
class _House:
    """A house at the side of the street.

    Attributes:
        x: of its front; negative on the left.
        z: of its near end.
        length: along the street.
        height: of its flat roof.
        color: of its walls.
        spacing: between the middles of its windows.
    """

    x: float
    z: float
    length: float
    height: float
    color: Color
    spacing: float

    @property
    def end(self) -> float:
        """Its far end."""
        return self.z + self.length

    def draw(self, view: _View) -> None:
        """Draw the near wall, the front and its windows."""
        far_x = self.x + math.copysign(9, self.x)
        near_wall = view.upright((self.x, self.z), (far_x, self.z), (0, self.height))
        view.face(near_wall, _shaded(self.color, 0.72), BUILDING)
        front = view.upright((self.x, self.z), (self.x, self.end), (0, self.height))
        view.face(front, self.color, BUILDING)
        for storey in range(int(self.height / 3)):
            for number in range(int(self.length / self.spacing)):
                z = self.z + (number + 0.3) * self.spacing
                rows = storey * 3 + 1.0, storey * 3 + 2.3
                view.face(
                    view.upright((self.x, z), (self.x, z + 0.45 * self.spacing), rows), _WINDOW, BUILDING
                )


@dataclass(frozen=True)
class _Tree:
    """A tree.

    Attributes:
        x: of its trunk.
        z: of its trunk.
        height: of its top.
        leaves: clumps as (x, y, radius, light), the first three as shares of the height.
        color: of the leaves.
    """

    x: float
    z: float
    height: float
    leaves: Sequence[tuple[float, float, float, float]]
    color: Color

    @property
    def end(self) -> float:
        """Its far end."""
        return self.z

    def draw(self, view: _View) -> None:
        """Draw the trunk and the leaves."""
        half = 0.02 * self.height
        trunk = view.upright((self.x - half, self.z), (self.x + half, self.z), (0, 0.5 * self.height))
        view.face(trunk, (84, 70, 56), GREENERY)
        for x, y, radius, light in self.leaves:
            place = self.x + x * self.height, y * self.height, self.z
            view.disc(place, radius * self.height, _shaded(self.color, light), GREENERY)


@dataclass(frozen=True)
class _Car:
    """A car that is seen from behind.

    Attributes:
        x: of its middle.
        z: of its near end.
        color: of its paint.
    """

    x: float
    z: float
    color: Color

    @property
    def end(self) -> float:
        """Its far end."""
        return self.z + 4

    def draw(self, view: _View) -> None:
        """Draw the side that is seen, the back, window, lights, plate and wheels."""
        side = self.x - math.copysign(0.85, self.x - view.x)
        view.face(view.upright((side, self.z), (side, self.end), (0.3, 0.95)), _shaded(self.color, 0.6), CAR)
        cabin = [(0.95, 0.2), (0.95, 3.0), (1.45, 2.2), (1.45, 0.6)]
        view.face([(side, y, self.z + ahead) for y, ahead in cabin], _WINDOW, CAR)
        for middle in (-0.7, 0.7):
            self._patch(view, (middle - 0.12, middle + 0.12), (0, 0.4), (22, 22, 24))
        self._patch(view, (-0.85, 0.85), (0.28, 0.95), self.color)
        roof = [(-0.82, 0.95), (0.82, 0.95), (0.62, 1.48), (-0.62, 1.48)]
        view.face([(self.x + aside, y, self.z) for aside, y in roof], _shaded(self.color, 0.85), CAR)
        self._patch(view, (-0.6, 0.6), (1.0, 1.36), (48, 54, 60))
        for middle in (-0.72, 0.72):
            self._patch(view, (middle - 0.1, middle + 0.1), (0.7, 0.9), (180, 36, 32))
        self._patch(view, (-0.25, 0.25), (0.5, 0.62), (224, 206, 110))

    def _patch(self, view: _View, aside: Span, up: Span, color: Color) -> None:
        """Draw a rectangle on the back."""
        left, right = self.x + aside[0], self.x + aside[1]
        view.face(view.upright((left, self.z), (right, self.z), up), color, CAR)


_Thing = _House | _Tree | _Car


class Scene:
    """One street.

    Args:
        seed: the same seed makes the same street.
    """

    def __init__(self, seed: Sequence[int]) -> None:
        random = np.random.default_rng(seed)
        self._half_road = random.uniform(4.4, 6.2)
        self._light = random.uniform(0.7, 1.15)
        self._sky = _varied(random, (176, 204, 230), 20)
        self._asphalt = _varied(random, (96, 97, 100), 14)
        self._grass = _varied(random, (94, 122, 66), 16)
        self._texture = int(random.integers(1 << 31))
        self._ahead = (
            float(random.uniform(7, 30)),
            _varied(random, _PAINTS[int(random.integers(len(_PAINTS)))], 14),
        )
        self._things: Sequence[_Thing] = [*self._houses(random), *self._trees(random), *self._cars(random)]

    def picture(self, z: float, *, frame: int = 0) -> tuple[UInt8Array, UInt8Array]:
        """Draw the view from a place in the left lane.

        Args:
            z: how far along the street, 0..240.
            frame: chooses the noise of the camera, and nothing else.

        Returns:
            image_HW3: RGB, uint8, of ``SIZE``.
            label_HW: class ids, uint8.
        """
        view = _View(_LANE_M, z)
        view.backdrop(self._sky, self._grass)
        half, end = self._half_road, z + 10 * _FARTHEST_M
        view.face([(-half, 0, z), (half, 0, z), (half, 0, end), (-half, 0, end)], self._asphalt, ROAD)
        for start in np.arange(math.floor(z / 6) * 6 + _FARTHEST_M // 6 * 6, z - 6, -6.0):
            line = [(-0.08, 0, start), (0.08, 0, start), (0.08, 0, start + 2.5), (-0.08, 0, start + 2.5)]
            view.face(line, (196, 196, 190), ROAD)
        distance, paint = self._ahead
        things: list[_Thing] = [*self._things, _Car(_LANE_M, z + distance, paint)]
        for thing in sorted(things, key=lambda thing: thing.z, reverse=True):
            if thing.end - z > _NEAREST_M and thing.z - z < _FARTHEST_M:
                thing.draw(view)
        return view.developed(self._light, (self._texture, frame))

    def _houses(self, random: np.random.Generator) -> Iterator[_House]:
        for side in (-1, 1):
            z = random.uniform(-10, 5)
            while z < LENGTH_M + _FARTHEST_M:
                length = random.uniform(8, 18)
                x = side * (self._half_road + random.uniform(2.5, 6))
                wall = _varied(
                    random, ((158, 112, 88), (190, 178, 158), (142, 132, 126))[random.integers(3)], 20
                )
                yield _House(x, z, length, random.uniform(6, 13), wall, random.uniform(2.2, 3.4))
                z += length + random.choice([0.0, random.uniform(4, 14)])

    def _trees(self, random: np.random.Generator) -> Iterator[_Tree]:
        for side in (-1, 1):
            z = random.uniform(4, 14)
            while z < LENGTH_M + _FARTHEST_M:
                angle, reach = random.uniform(0, 2 * math.pi, _LEAVES), np.sqrt(random.random(_LEAVES))
                x, y = 0.3 * reach * np.cos(angle), 0.68 + 0.3 * reach * np.sin(angle)
                light = 0.75 + 0.9 * (y - 0.68) - 0.4 * x + random.normal(0, 0.12, _LEAVES)
                leaves = np.stack([x, y, random.uniform(0.05, 0.11, _LEAVES), light], axis=1)
                place = side * (self._half_road + random.uniform(0.8, 2.2))
                darkest_first = [tuple(leaf) for leaf in leaves[light.argsort()].tolist()]
                yield _Tree(place, z, random.uniform(4, 9), darkest_first, _varied(random, (96, 122, 70), 18))
                z += random.uniform(7, 30)

    def _cars(self, random: np.random.Generator) -> Iterator[_Car]:
        for lane in (-1, 1):
            z = random.uniform(6, 18)
            while z < LENGTH_M + _FARTHEST_M:
                x = lane * (self._half_road - random.uniform(0.9, 1.3))
                yield _Car(x, z, _varied(random, _PAINTS[int(random.integers(len(_PAINTS)))], 14))
                z += random.choice([random.uniform(5.5, 7), random.uniform(12, 40)])


class _View:
    """The view of a camera: a picture and its labels, both oversampled.

    Args:
        x: of the camera.
        z: of the camera.
    """

    def __init__(self, x: float, z: float) -> None:
        self.x, self._z = x, z
        self._width, self._height = SIZE.width * _OVERSAMPLING, SIZE.height * _OVERSAMPLING
        self._focal, self._horizon = _FOCAL * self._width, _HORIZON * self._height
        self._image = Image.new("RGB", (self._width, self._height))
        self._labels = Image.new("L", self._image.size)
        self._draws = ImageDraw.Draw(self._image), ImageDraw.Draw(self._labels)

    def backdrop(self, sky: Color, grass: Color) -> None:
        """Fill the picture with sky above the horizon and grass below."""
        rows = np.linspace(1, 0, self._height, dtype=np.float32)[:, None, None]
        gradient = np.array(sky, np.float32) + (1 - rows) * (np.array(_FOG, np.float32) - sky)
        self._image.paste(
            Image.fromarray(np.broadcast_to(gradient, (self._height, self._width, 3)).astype(np.uint8))
        )
        below = (0, round(self._horizon), self._width, self._height)
        self._draws[0].rectangle(below, fill=grass)
        self._draws[1].rectangle(below, fill=GREENERY)

    @staticmethod
    def upright(start: Span, end: Span, rows: Span) -> list[Point]:
        """Return the corners of an upright rectangle over a line on the ground.

        Args:
            start: x and z.
            end: x and z.
            rows: lowest and highest y.
        """
        low, high = rows
        (x, z), (end_x, end_z) = start, end
        return [(x, low, z), (end_x, low, end_z), (end_x, high, end_z), (x, high, z)]

    def face(self, points: Sequence[Point], color: Color, class_id: int) -> None:
        """Fill a flat polygon; the part behind the camera is cut off."""
        ahead = list(_clipped([(x - self.x, y - _CAMERA_M, z - self._z) for x, y, z in points]))
        if len(ahead) > 2:  # noqa: PLR2004 - a polygon
            places = [
                (self._width / 2 + x * self._focal / z, self._horizon - y * self._focal / z)
                for x, y, z in ahead
            ]
            self._draws[0].polygon(places, fill=_fogged(color, min(z for _, _, z in ahead)))
            self._draws[1].polygon(places, fill=class_id)

    def disc(self, place: Point, radius: float, color: Color, class_id: int) -> None:
        """Fill a circle that faces the camera."""
        x, y, z = place[0] - self.x, place[1] - _CAMERA_M, place[2] - self._z
        if z < _NEAREST_M:
            return
        scale = self._focal / z
        left, top = self._width / 2 + (x - radius) * scale, self._horizon - (y + radius) * scale
        box = left, top, left + 2 * radius * scale, top + 2 * radius * scale
        self._draws[0].ellipse(box, fill=_fogged(color, z))
        self._draws[1].ellipse(box, fill=class_id)

    def developed(self, light: float, seed: Sequence[int]) -> tuple[UInt8Array, UInt8Array]:
        """Return picture and labels in their size, with the textures of the classes, light and noise."""
        size = SIZE.width, SIZE.height
        label_HW = np.asarray(self._labels)[
            _OVERSAMPLING // 2 :: _OVERSAMPLING, _OVERSAMPLING // 2 :: _OVERSAMPLING
        ]
        image_HW3 = np.asarray(self._image.resize(size, Image.Resampling.BOX), np.float32) * light
        texture, sensor = (np.random.default_rng([*seed[: 1 + k]]) for k in range(2))
        grain_HW = texture.normal(0, 1, SIZE.shape).astype(np.float32) * _GRAIN[label_HW]
        noise_HW3 = sensor.normal(0, _NOISE, image_HW3.shape).astype(np.float32)
        lit_HW3 = np.clip(image_HW3 + grain_HW[..., None] + noise_HW3, 0, 255).astype(np.uint8)
        return lit_HW3, np.ascontiguousarray(label_HW)


def _clipped(points: Sequence[Point]) -> Iterator[Point]:
    """Yield the corners of the part of a polygon that is far enough ahead."""
    for before, point in zip([points[-1], *points], points, strict=False):
        if (before[2] < _NEAREST_M) != (point[2] < _NEAREST_M):
            share = (_NEAREST_M - before[2]) / (point[2] - before[2])
            x, y = (a + (b - a) * share for a, b in zip(before[:2], point[:2], strict=True))
            yield x, y, _NEAREST_M
        if point[2] >= _NEAREST_M:
            yield point


def _fogged(color: Color, distance: float) -> Color:
    fog = 1 - math.exp(-distance / _FOG_M)
    red, green, blue = (round(a + (b - a) * fog) for a, b in zip(color, _FOG, strict=True))
    return red, green, blue


def _shaded(color: Color, light: float) -> Color:
    red, green, blue = (min(255, round(value * max(0.3, light))) for value in color)
    return red, green, blue


def _varied(random: np.random.Generator, color: Color, spread: float) -> Color:
    """Return a colour near another one: lighter or darker, and a little off in hue."""
    values = np.array(color) + random.normal(0, spread) + random.normal(0, spread / 5, 3)
    red, green, blue = np.clip(values, 8, 247).astype(int).tolist()
    return red, green, blue
