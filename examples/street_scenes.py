"""Renders street scenes: road, pavement, buildings, sky, trees, cars, people, poles and signs.

    python examples/street_scenes.py OUT

writes three JPEG files of 1280x720 pixels into the folder OUT. They show what a model that learned from
real streets makes of a street. They hold no picture of a data set, no face and no number plate. Only numpy
and Pillow are needed.

The ground and the walls are traced: each pixel looks at a point of a surface, whose texture says its
colour. All else is drawn from the farthest to the nearest. The camera adds haze, blur, noise and a darker
rim. The scene is drawn in twice the size and then reduced.

Axes: H rows, W columns, P points, 2 = column row, 3 = red green blue; lengths in metres, x to the right of
the camera, y up from the road, z ahead.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter, ImageFont

Array = npt.NDArray[np.float32]
Color = tuple[float, float, float]
Point = tuple[float, float, float]

WIDTH, HEIGHT = 1280, 720
OVERSAMPLING = 2
JPEG_QUALITY = 82
FAR = 400.0
"""Where everything ends in haze."""


SHOPS = ("BAKERY", "BOOKS", "FLOWERS", "CAFE", "OPTICIAN", "BICYCLES", "TEA ROOMS", "SHOES", "TAILOR")


def mixed(a: Color, b: Color, share: float) -> Color:
    """Return a colour between two."""
    red, green, blue = (x + (y - x) * share for x, y in zip(a, b, strict=True))
    return red, green, blue


class Noise:
    """Smooth random values in the plane, the same for the same seed."""

    def __init__(self, seed: int) -> None:
        self._table = np.random.default_rng(seed).random((256, 256), np.float32)

    def __call__(self, x: Array, y: Array) -> Array:
        """Return values of 0..1 that change within one unit."""
        column, row = np.floor(x).astype(np.int64), np.floor(y).astype(np.int64)
        right, down = (x - column).astype(np.float32), (y - row).astype(np.float32)
        right, down = right * right * (3 - 2 * right), down * down * (3 - 2 * down)
        table = self._table
        above = table[row & 255, column & 255] * (1 - right) + table[row & 255, column + 1 & 255] * right
        below = (
            table[row + 1 & 255, column & 255] * (1 - right) + table[row + 1 & 255, column + 1 & 255] * right
        )
        return above * (1 - down) + below * down

    def rough(self, x: Array, y: Array, octaves: int = 5) -> Array:
        """Return values of 0..1 with details of many sizes, the largest of one unit."""
        total = np.zeros(np.broadcast(x, y).shape, np.float32)
        weight = 0.0
        for octave in range(octaves):
            total += self(x * 2**octave + 17.3 * octave, y * 2**octave + 5.7 * octave) / 2**octave
            weight += 1 / 2**octave
        return total / np.float32(weight)


@dataclass
class Camera:
    """A camera that looks straight ahead.

    Args:
        height: above the road.
        focal: focal length as a share of the picture's width.
        horizon: row of the horizon as a share of the picture's height.
    """

    height: float = 1.45
    focal: float = 0.82
    horizon: float = 0.47

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the oversampled picture."""
        return WIDTH * OVERSAMPLING, HEIGHT * OVERSAMPLING

    def rays(self) -> tuple[Array, Array]:
        """Return how far each pixel's ray goes right and down on one metre ahead."""
        width, height = self.size
        columns, rows = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
        focal = np.float32(self.focal * width)
        return (columns - width / 2) / focal, (rows - self.horizon * height) / focal

    def project(self, point: Point) -> tuple[float, float]:
        """Return column and row of a point ahead."""
        x, y, z = point
        width, height = self.size
        scale = self.focal * width / max(z, 0.05)
        return width / 2 + x * scale, self.horizon * height + (self.height - y) * scale


@dataclass
class Street:
    """Where things lie across the street, and in which light.

    Args:
        left_kerb: x of the left edge of the road.
        right_kerb: x of the right edge.
        left_wall: x of the buildings on the left.
        right_wall: x of the buildings on the right.
        centre: x of the broken line.
        sun: where the light comes from.
        shadow_until: the ground is in the shadow of the right buildings from this x on.
        sky_top: colour of the sky overhead.
        sky_low: colour at the horizon.
        clouds: 0..1.
    """

    left_kerb: float = -2.4
    right_kerb: float = 5.6
    left_wall: float = -5.4
    right_wall: float = 8.8
    centre: float = 1.7
    sun: Point = (-0.5, 0.75, -0.35)
    shadow_until: float = 6.6
    sky_top: Color = (206, 224, 240)
    sky_low: Color = (246, 249, 250)
    clouds: float = 0.6
    zebra: float = 0.0
    arrow: float = 0.0


class Canvas:
    """The oversampled picture with the distance of what each pixel shows."""

    def __init__(self, camera: Camera, street: Street, seed: int) -> None:
        self.camera = camera
        self.street = street
        self.noise = Noise(seed)
        self.random = np.random.default_rng(seed)
        self.right_HW, self.down_HW = camera.rays()
        self.color_HW3 = np.zeros((*self.right_HW.shape, 3), np.float32)
        self.depth_HW = np.full(self.right_HW.shape, FAR, np.float32)

    def put(self, where_HW: Array, depth: Array, color: Array) -> None:
        """Show a surface at some pixels, where it is nearer than what they show.

        Args:
            where_HW: bool.
            depth: of the pixels in ``where_HW``.
            color: of them, 3 channels of 0..255.
        """
        nearer = depth < self.depth_HW[where_HW]
        rows, columns = (index[nearer] for index in np.nonzero(where_HW))
        self.color_HW3[rows, columns] = self.hazed(color[nearer], depth[nearer])
        self.depth_HW[rows, columns] = depth[nearer]

    def hazed(self, color: Array, depth: Array) -> Array:
        """Mix colours with the air before them."""
        air = 1 - np.exp(-np.asarray(depth, np.float32)[..., None] / 260)
        return (
            color * (1 - air) + np.array(mixed(self.street.sky_low, (186, 193, 199), 0.7), np.float32) * air
        )


def paint_sky(canvas: Canvas) -> None:
    """Show sky and clouds everywhere."""
    street, down_HW = canvas.street, canvas.down_HW
    up_HW = np.clip(-down_HW, 0, None)
    low, top = np.array(street.sky_low, np.float32), np.array(street.sky_top, np.float32)
    sky = low + (top - low) * np.clip(up_HW * 1.8, 0, 1)[..., None] ** 0.8
    scale = 1 / (up_HW + 0.18)
    shape = canvas.noise.rough(canvas.right_HW * scale * 0.9 + 40, scale * 1.3 + 7, 6)
    cover = np.clip((shape - 0.72 + 0.4 * street.clouds) * 4, 0, 1)[..., None]
    shade = np.clip(canvas.noise.rough(canvas.right_HW * scale * 1.6, scale * 2.2 + 3, 4) * 1.2, 0, 1)[
        ..., None
    ]
    cloud = np.array([222, 228, 233], np.float32) + shade * 32
    canvas.color_HW3[:] = sky * (1 - cover) + cloud * cover


def paint_ground(canvas: Canvas) -> None:
    """Show road, markings, kerbs and pavements."""
    street, camera, noise = canvas.street, canvas.camera, canvas.noise
    where = canvas.down_HW > camera.height / FAR
    z = camera.height / canvas.down_HW[where]
    x = canvas.right_HW[where] * z
    fine = np.clip(14 / z, 0, 1)  # details that are smaller than pixels must vanish
    grain = (noise(x * 90, z * 45) - 0.5) * fine + (noise(x * 30, z * 15) - 0.5) * np.clip(40 / z, 0, 1)
    patches = noise.rough(x * 0.35, z * 0.12, 4) - 0.5
    tracks = sum(np.exp(-(((x - lane) / 0.32) ** 2)) for lane in (-1.4, 0.5, 2.9, 4.6))
    color = np.full((*x.shape, 3), (79, 81, 85), np.float32)
    color += (grain * 22 + patches * 26 - tracks * 5)[:, None]
    color = _marked(canvas, color, x, z)
    color = _paved(canvas, color, x, z, grain)
    light = np.ones_like(x)
    edge = street.shadow_until + 0.5 * (noise(z * 0.25, x * 0) - 0.5)
    light -= 0.42 * np.clip((x - edge) * 3, 0, 1)
    light *= (
        1
        - 0.25 * np.exp(-np.abs(x - street.left_wall) / 0.5)
        - 0.25 * np.exp(-np.abs(x - street.right_wall) / 0.5)
    )
    canvas.put(where, z, color * light[:, None])


def _marked(canvas: Canvas, color: Array, x: Array, z: Array) -> Array:
    """Paint the lines of the road, worn off in places."""
    street = canvas.street
    worn = np.clip(canvas.noise.rough(x * 5, z * 2.5, 5) * 3.2 - 0.5, 0.35, 1) * 0.92
    dashes = (np.abs(x - street.centre) < 0.06) & (z % 6 < 2.4)
    gutter = (np.abs(x - street.left_kerb - 0.35) < 0.05) | (np.abs(x - street.right_kerb + 0.35) < 0.05)
    white = dashes
    if street.zebra:
        crossing = (z > street.zebra) & (z < street.zebra + 2.8) & ((x * 0.9) % 1.2 < 0.6)
        stop = (np.abs(z - street.zebra + 1.2) < 0.15) & (x < street.centre)
        white = (dashes & ((z < street.zebra - 2) | (z > street.zebra + 4))) | crossing | stop
    if street.arrow:
        along = z - street.arrow
        shaft = (np.abs(x) < 0.09) & (along > 0) & (along < 2.2)
        head = (along >= 2.2) & (along < 3.6) & (np.abs(x) < 0.45 * (3.6 - along) / 1.4)
        white = white | shaft | head
    on_road = (x > street.left_kerb) & (x < street.right_kerb)
    for mask, paint in ((white, (206, 207, 203)), (gutter, (188, 164, 84))):
        share = (mask & on_road).astype(np.float32)[:, None] * worn[:, None]
        color = color * (1 - share) + np.array(paint, np.float32) * share
    return color


def _paved(canvas: Canvas, color: Array, x: Array, z: Array, grain: Array) -> Array:
    """Lay kerbstones and slabs beside the road."""
    street = canvas.street
    beside = (x < street.left_kerb) | (x > street.right_kerb)
    joints = ((x % 0.62 < 0.03) | (z % 0.9 < 0.04)) & (z < 25)
    tone = canvas.noise(np.floor(x / 0.62) * 7.1, np.floor(z / 0.9) * 3.3) - 0.5
    slab = np.array((104, 101, 98), np.float32) + (tone * 16 + grain * 16 - joints * 24)[:, None]
    color = np.where(beside[:, None], slab, color)
    edge = np.minimum(np.abs(x - street.left_kerb + 0.08), np.abs(x - street.right_kerb - 0.08)) < 0.09
    stone = np.array((128, 126, 122), np.float32) + (grain * 18 - 30 * (z % 0.9 < 0.03))[:, None]
    color = np.where(edge[:, None], stone, color)
    drop = (np.abs(x - street.left_kerb - 0.05) < 0.06) | (np.abs(x - street.right_kerb + 0.05) < 0.06)
    return np.where(drop[:, None], color * 0.55, color)


@dataclass(frozen=True)
class House:
    """A house in the row beside the street.

    Args:
        start: z of its near end.
        length: along the street.
        eaves: height of its wall.
        wall: colour of its bricks or plaster.
        trim: colour of frames and sills.
        spacing: between the middles of its windows.
        window: width of a window.
        storey: height of a storey.
        shop: colour of the shop on the ground floor; None = a front door.
        sign: what is written over the shop.
        roof: height of its roof; 0 = flat.
        bricks: whether the wall shows them.
    """

    start: float
    length: float
    eaves: float
    wall: Color
    trim: Color = (212, 208, 200)
    spacing: float = 2.4
    window: float = 1.1
    storey: float = 3.1
    shop: Color | None = None
    sign: str = ""
    roof: float = 2.6
    bricks: bool = True


def paint_house(canvas: Canvas, house: House, wall_x: float, light: float) -> None:
    """Show one house of a row: its front, its roof, and its near end where nothing stands before it."""
    right_HW, down_HW, height = canvas.right_HW, canvas.down_HW, canvas.camera.height
    side = math.copysign(1, wall_x)
    aside_HW = np.maximum(right_HW * side, 1e-4)
    z_HW = abs(wall_x) / aside_HW
    y_HW = height - down_HW * z_HW
    along = (z_HW >= house.start) & (z_HW < house.start + house.length) & (right_HW * side > 0)
    front = along & (y_HW > 0) & (y_HW < house.eaves)
    if front.any():
        z, y = z_HW[front], y_HW[front]
        s = z - house.start if side < 0 else house.start + house.length - z  # from left to right
        canvas.put(front, z, facade(canvas, house, s, y, z, seed=house.start) * light)
    if house.roof:
        slope = house.roof / 4.0
        toward_HW = aside_HW + down_HW / slope
        base = abs(wall_x) - 0.25 + (height - house.eaves + 0.05) / slope
        z_HW = base / np.where(np.abs(toward_HW) < 1e-4, 1e-4, toward_HW)
        y_HW = height - down_HW * z_HW
        on_roof = (z_HW >= house.start - 0.15) & (z_HW < house.start + house.length + 0.15) & (z_HW > 0)
        on_roof &= (y_HW > house.eaves - 0.25) & (y_HW < house.eaves + house.roof) & (right_HW * side > 0)
        z, y = z_HW[on_roof], y_HW[on_roof]
        canvas.put(on_roof, z, _slates(canvas, z, y) * light)
    x_HW = right_HW * side * house.start
    y_HW = height - down_HW * house.start
    into = x_HW - abs(wall_x)
    gable = house.eaves + house.roof * np.clip(1 - np.abs(into - 4) / 4, 0, 1)
    end = (into >= 0) & (into < 8) & (y_HW > 0) & (y_HW < gable)
    if end.any():
        z = np.full(int(end.sum()), house.start, np.float32)
        tone = canvas.noise.rough(into[end] * 2, y_HW[end] * 2, 4)[:, None] - 0.5
        canvas.put(end, z, (np.array(house.wall, np.float32) * 0.72 + tone * 30) * light)


def _slates(canvas: Canvas, z: Array, y: Array) -> Array:
    tone = canvas.noise(np.floor(z / 0.35) * 3.7, np.floor(y / 0.18) * 1.9) - 0.5
    rows = ((y % 0.18) < 0.03) & (z < 40)
    color = np.array((92, 84, 80), np.float32) + (tone * 22 - rows * 16)[:, None]
    return color + (canvas.noise.rough(z * 0.4, y * 0.6, 3)[:, None] - 0.5) * 24


def facade(canvas: Canvas, house: House, s: Array, y: Array, distance: Array, seed: float) -> Array:
    """Return the colours of a wall with windows.

    Args:
        canvas: gives the noise.
        house: what the wall is like.
        s: along the wall.
        y: above the ground.
        distance: from the camera; bricks that are smaller than pixels vanish.
        seed: tells houses apart.
    """
    noise = canvas.noise
    fine = np.clip(16 / distance, 0, 1)
    color = np.broadcast_to(np.array(house.wall, np.float32), (len(s), 3)).copy()
    color += ((noise.rough(s * 0.5 + seed, y * 0.5, 5) - 0.5) * 34)[:, None]
    if house.bricks:
        row = np.floor(y / 0.078)
        brick = np.floor(s / 0.23 + (row % 2) * 0.5)
        color += ((noise(brick * 5.3 + seed, row * 2.1) - 0.5) * 34 * fine)[:, None]
        mortar = (y % 0.078 < 0.013) | ((s / 0.23 + (row % 2) * 0.5) % 1 < 0.06)
        color = np.where((mortar & (distance < 14))[:, None], color * 0.8 + 34, color)
    streaks = noise.rough(s * 2.2, y * 0.25 + seed, 3) - 0.5
    color -= (np.clip(1.2 - y, 0, 1.2) * 13 + streaks * 14)[:, None]
    storey, v = np.floor(y / house.storey), y % house.storey
    column, u = np.floor(s / house.spacing), s % house.spacing - house.spacing / 2
    margin = (column >= 0) & ((column + 1) * house.spacing <= house.length)
    upper = margin & (storey >= 1) & ((storey + 0.8) * house.storey < house.eaves)
    color = _window(
        canvas, house, color, upper, u, v - 0.85, column * 3.1 + storey * 7.7 + seed, house.window, 1.5
    )
    if house.shop is None:
        color = _window(
            canvas,
            house,
            color,
            margin & (storey == 0) & (column % 3 != 1),
            u,
            v - 0.9,
            column + seed,
            house.window * 1.2,
            1.5,
        )
        door = margin & (storey == 0) & (column % 3 == 1) & (np.abs(u) < 0.48) & (v < 2.2)
        panel = (np.abs(np.abs(u) - 0.22) < 0.15) & ((v % 1.05) > 0.2)
        paint = np.array(mixed((48, 58, 84), (110, 42, 40), (seed * 0.37) % 1), np.float32)
        return np.where(door[:, None], paint * np.where(panel, 0.82, 1.0)[:, None], color)
    return _shop(canvas, house, color, s, y, seed)


def _window(
    canvas: Canvas,
    house: House,
    color: Array,
    where: Array,
    u: Array,
    v: Array,
    key: Array,
    width: float,
    height: float,
) -> Array:
    """Set windows into a wall: frame, two sashes, a sill, glass that mirrors the other side of the street."""
    within = where & (np.abs(u) < width / 2) & (v > 0) & (v < height)
    sill = where & (np.abs(u) < width / 2 + 0.1) & (v > -0.13) & (v <= 0)
    lintel = where & (np.abs(u) < width / 2 + 0.08) & (v >= height) & (v < height + 0.16)
    frame = within & (
        (np.abs(u) > width / 2 - 0.08)
        | (v < 0.08)
        | (v > height - 0.08)
        | (np.abs(u) < 0.03)
        | (np.abs(v - height / 2) < 0.035)
    )
    lit = canvas.noise(key * 13.7, key * 0 + 3.3)[:, None]
    mirror = canvas.noise.rough(u * 0.8 + key * 3, v * 0.7, 3)[:, None]
    glass = np.array((42, 50, 58), np.float32) + mirror * 62 + np.clip(v / height, 0, 1)[:, None] * 40 * lit
    curtain = (np.abs(u) > width * (0.16 + 0.3 * lit[:, 0])) & (lit[:, 0] > 0.45)
    glass = np.where(curtain[:, None], glass * 0.5 + 84, glass)
    reveal = np.clip((v - height + 0.34) / 0.26, 0, 1)[:, None] * 0.5
    color = np.where(within[:, None], glass * (1 - reveal), color)
    trim = np.array(house.trim, np.float32)
    color = np.where(frame[:, None], trim * (0.93 - 0.3 * reveal), color)
    return np.where((sill | lintel)[:, None], trim * 0.86, color)


def _shop(canvas: Canvas, house: House, color: Array, s: Array, y: Array, seed: float) -> Array:
    """Put a shop on the ground floor: stall riser, panes, goods behind them, a sign above."""
    unit = s % 6.0
    pane = s % 1.9
    below = y < house.storey
    sign = np.array(house.shop, np.float32)
    goods = canvas.noise.rough(s * 2.5 + seed, y * 2.5, 4)[:, None]
    shelf = canvas.noise(np.floor(s * 3.1) * 1.7 + seed, np.floor(y * 2.3) * 2.9)[:, None]
    hue = np.stack(
        [canvas.noise(np.floor(s * 3.1) + k * 31, np.floor(y * 2.3) + seed) for k in range(3)], axis=1
    )
    glass = np.array((34, 37, 40), np.float32) + goods * 44 + (shelf > 0.62) * (shelf * 52 + (hue - 0.5) * 30)
    glass += (np.clip(y / house.storey, 0, 1) * 26)[:, None]
    color = np.where(below[:, None], glass, color)
    post = below & ((pane < 0.09) | (unit < 0.32))
    color = np.where(post[:, None], sign * 0.45 + 22, color)
    door = below & (unit > 2.6) & (unit < 3.7)
    color = np.where(
        (door & (y < 2.2) & ((unit < 2.7) | (unit > 3.6) | (y < 0.3)))[:, None], sign * 0.4 + 14, color
    )
    color = np.where((below & (y < 0.45) & ~door)[:, None], sign * 0.5 + 12, color)
    board = (y > house.storey - 0.75) & (y < house.storey - 0.08)
    letters = board & lettering(house.sign, s - 1.4, y - house.storey + 0.66)
    color = np.where(board[:, None], sign * 0.92, color)
    color = np.where(letters[:, None], np.array((226, 222, 208), np.float32), color)
    cornice = (y >= house.storey - 0.08) & (y < house.storey + 0.08)
    return np.where(cornice[:, None], np.array(house.trim, np.float32) * 0.8, color)


def lettering(word: str, s: Array, y: Array, height: float = 0.46) -> npt.NDArray[np.bool_]:
    """Return which points of a sign lie within the letters of a word.

    Args:
        word: what is written.
        s: metres right of the word's beginning.
        y: metres above the letters' foot.
        height: of a line.
    """
    font = ImageFont.load_default(64)
    width = math.ceil(font.getlength(word)) + 1
    page = Image.new("L", (width, 80))
    ImageDraw.Draw(page).text((0, 0), word, fill=255, font=font)
    column, row = np.floor(s / height * 80).astype(int), np.floor((height - y) / height * 80).astype(int)
    within = (column >= 0) & (column < width) & (row >= 0) & (row < 80)
    inked: npt.NDArray[np.bool_] = np.asarray(page)[np.clip(row, 0, 79), np.clip(column, 0, width - 1)] > 127
    return within & inked


def paint_far_end(canvas: Canvas, z: float, tall: float) -> None:
    """Close the street far away with a row of houses and trees in the haze."""
    x_HW, y_HW = canvas.right_HW * z, canvas.camera.height - canvas.down_HW * z
    noise = canvas.noise
    top = tall * (0.55 + 0.5 * noise(np.floor(x_HW / 9) * 3.3, x_HW * 0)) + 0.6 * noise.rough(
        x_HW * 0.9, x_HW * 0, 3
    )
    where = (y_HW > 0) & (y_HW < top)
    x, y = x_HW[where], y_HW[where]
    house = House(0, 1e6, 50, (128, 112, 98), spacing=3.2, window=1.3)
    color = facade(canvas, house, x + 500, y, np.full_like(x, z), seed=3)
    leaves = noise.rough(x * 0.35, y * 0.35 + 9, 5)
    green = np.array((74, 84, 62), np.float32) + (leaves[:, None] - 0.5) * 60
    color = np.where((noise.rough(x * 0.06, x * 0 + 2, 2) > 0.5)[:, None], green, color)
    canvas.put(where, np.full(len(x), z, np.float32), color)


class Layer:
    """A part of the picture on which one thing is drawn before it is laid over the rest.

    Args:
        canvas: the picture.
        near: x, y, z of one corner of the box in which the thing stands.
        far: of the opposite corner.
    """

    def __init__(self, canvas: Canvas, near: Point, far: Point) -> None:
        self.canvas = canvas
        self.depth = min(near[2], far[2])
        corners = [
            canvas.camera.project((x, y, z))
            for x in (near[0], far[0])
            for y in (near[1], far[1])
            for z in (near[2], far[2])
        ]
        width, height = canvas.camera.size
        columns, rows = zip(*corners, strict=True)
        self.left, self.top = max(0, math.floor(min(columns)) - 4), max(0, math.floor(min(rows)) - 4)
        right, bottom = min(width, math.ceil(max(columns)) + 4), min(height, math.ceil(max(rows)) + 4)
        self.image = Image.new("RGBA", (max(1, right - self.left), max(1, bottom - self.top)))
        self.draw = ImageDraw.Draw(self.image)

    def scale(self, z: float) -> float:
        """Return pixels of a metre at a distance."""
        return self.canvas.camera.focal * self.canvas.camera.size[0] / z

    def at(self, point: Point) -> tuple[float, float]:
        """Return where a point lies on the layer."""
        column, row = self.canvas.camera.project(point)
        return column - self.left, row - self.top

    def polygon(self, points: Sequence[Point], color: Color) -> None:
        """Fill a polygon in space."""
        self.draw.polygon([self.at(point) for point in points], fill=_rgb(color))

    def line(self, points: Sequence[Point], width: float, color: Color) -> None:
        """Draw a line as thick as it would be there, in metres."""
        thick = max(1, round(width * self.scale(points[0][2])))
        self.draw.line([self.at(point) for point in points], fill=_rgb(color), width=thick, joint="curve")

    def disc(self, center: Point, radius: float, color: Color, *, flat: float = 1.0) -> None:
        """Fill a circle that faces the camera; ``flat`` = its width as a share of its height."""
        (column, row), size = self.at(center), radius * self.scale(center[2])
        self.draw.ellipse(
            (column - size * flat, row - size, column + size * flat, row + size), fill=_rgb(color)
        )

    def lay(self, *, grain: float = 5.0, blur: float = 0.6) -> None:
        """Lay the drawing over the picture, with haze, a little noise and soft edges."""
        drawn = np.asarray(self.image.filter(ImageFilter.GaussianBlur(blur)), np.float32)
        alpha = drawn[..., 3:] / 255
        height, width = alpha.shape[:2]
        hard = np.maximum(alpha, 1e-3)
        color = drawn[..., :3] / hard if blur else drawn[..., :3]
        color = np.clip(color, 0, 255)
        rows, columns = np.mgrid[:height, :width].astype(np.float32)
        color += ((self.canvas.noise.rough(columns * 0.15, rows * 0.15, 4) - 0.5) * grain * 2)[..., None]
        depth = np.full(alpha.shape[:2], self.depth, np.float32)
        place = np.s_[self.top : self.top + height, self.left : self.left + width]
        alpha = alpha * (self.canvas.depth_HW[place] > self.depth - 0.3)[..., None]
        below = self.canvas.color_HW3[place]
        self.canvas.color_HW3[place] = below * (1 - alpha) + self.canvas.hazed(color, depth) * alpha


def _rgb(color: Color) -> tuple[int, int, int, int]:
    red, green, blue = (max(0, min(255, round(value))) for value in color)
    return red, green, blue, 255


def darken_ground(canvas: Canvas, x: tuple[float, float], z: tuple[float, float], strength: float) -> None:
    """Lay a soft shadow on the ground under a box."""
    where = canvas.down_HW > canvas.camera.height / FAR
    far = canvas.camera.height / canvas.down_HW[where]
    across = canvas.right_HW[where] * far
    soft = 0.22
    inside = np.ones_like(far)
    for value, (low, high) in ((across, x), (far, z)):
        inside *= np.clip((value - low) / soft, 0, 1) * np.clip((high - value) / soft, 0, 1)
    on_ground = np.abs(canvas.depth_HW[where] - far) < 0.05 * far
    canvas.color_HW3[where] *= (1 - strength * inside * on_ground)[:, None]


PROFILE = (
    (0.06, 0.28, 0.78), (0.00, 0.42, 0.84), (0.02, 0.62, 0.86), (0.05, 0.80, 0.86), (0.12, 0.95, 0.83),
    (0.32, 1.22, 0.70), (0.50, 1.38, 0.63), (0.95, 1.46, 0.61), (1.70, 1.47, 0.61), (2.35, 1.42, 0.62),
    (2.75, 1.20, 0.70), (3.10, 0.98, 0.79), (3.60, 0.90, 0.76), (4.00, 0.80, 0.72), (4.18, 0.62, 0.74),
    (4.15, 0.30, 0.74),
)  # fmt: skip
"""A small car from back to front over the roof: metres ahead, height, half of its width there."""

GLASS_BACK, GLASS_FRONT = (4, 6), (9, 11)
"""Between which points of the profile the rear window and the windscreen are."""


@dataclass(frozen=True)
class Car:
    """A car that stands or drives along the street.

    Args:
        x: of its middle.
        z: of its end that is nearer.
        paint: its colour.
        coming: whether its front is nearer.
        scale: of a small car's size.
        braking: whether its rear lights are bright.
    """

    x: float
    z: float
    paint: Color
    coming: bool = False
    scale: float = 1.0
    braking: bool = False

    @property
    def depth(self) -> float:
        """Distance, for the order of drawing."""
        return self.z

    def draw(self, canvas: Canvas) -> None:
        """Draw the car with its shadow."""
        half, length, tall = 0.88 * self.scale, 4.2 * self.scale, 1.5 * self.scale
        darken_ground(
            canvas, (self.x - half - 0.35, self.x + half + 0.2), (self.z - 0.3, self.z + length + 0.3), 0.62
        )
        layer = Layer(
            canvas, (self.x - half - 0.2, 0, self.z), (self.x + half + 0.2, tall + 0.1, self.z + length)
        )
        self._wheels(layer)
        self._side(layer)
        self._top(layer)
        self._end(layer)
        layer.lay(grain=4)

    def point(self, ahead: float, up: float, aside: float) -> Point:
        """Return a point of the car in the world: metres from its back, above the ground, to the right."""
        along = 4.2 - ahead if self.coming else ahead
        return self.x + aside * self.scale, up * self.scale, self.z + along * self.scale

    def _shade(self, up: float, ahead: float, aside: float) -> Color:
        """Return the paint under a light: faces that look up mirror the sky, the others the street."""
        normal = math.sqrt(up * up + ahead * ahead + aside * aside)
        up, facing = up / normal, abs(ahead) / normal
        light = 0.36 + 0.5 * max(0.0, up) + 0.16 * facing
        return mixed(mixed((0, 0, 0), self.paint, light), (214, 224, 234), 0.08 + 0.34 * max(0.0, up) ** 2)

    def _order(self) -> Sequence[int]:
        """Return the strips of the profile from the farthest to the nearest."""
        strips = range(len(PROFILE) - 1)
        return strips if self.coming else strips[::-1]

    def _top(self, layer: Layer) -> None:
        for strip in self._order():
            (z0, y0, w0), (z1, y1, w1) = PROFILE[strip], PROFILE[strip + 1]
            corners = [
                self.point(z0, y0, -w0),
                self.point(z0, y0, w0),
                self.point(z1, y1, w1),
                self.point(z1, y1, -w1),
            ]
            layer.polygon(corners, self._shade(z1 - z0, y1 - y0, 0.05))
            if GLASS_BACK[0] <= strip < GLASS_BACK[1] or GLASS_FRONT[0] <= strip < GLASS_FRONT[1]:
                self._glass(layer, strip)

    def _glass(self, layer: Layer, strip: int) -> None:
        (z0, y0, w0), (z1, y1, w1) = PROFILE[strip], PROFILE[strip + 1]
        for step in range(8):
            a, b = step / 8, (step + 1) / 8
            rows = [(z0 + (z1 - z0) * s, y0 + (y1 - y0) * s, (w0 + (w1 - w0) * s) * 0.86) for s in (a, b)]
            (za, ya, wa), (zb, yb, wb) = rows
            up = (ya / 1.46 - 0.62) * 2.4
            tint = mixed((22, 27, 32), (118, 132, 146), max(0.0, min(1.0, up)) ** 1.6)
            corners = [
                self.point(za, ya, -wa),
                self.point(za, ya, wa),
                self.point(zb, yb, wb),
                self.point(zb, yb, -wb),
            ]
            layer.polygon(corners, tint)

    def _side(self, layer: Layer) -> None:
        """Draw the side that is seen: body in strips, windows with posts between them."""
        side = -1 if self.x > 0 else 1
        steps = 14
        for step in range(steps):
            low, high = 0.28 + 0.69 * step / steps, 0.28 + 0.69 * (step + 1) / steps
            bulge = math.sin(math.pi * (low - 0.28) / 0.9)
            back = 0.05 if low < 0.8 else 0.05 + (low - 0.8) * 0.6
            front = 4.17 if low < 0.6 else 4.17 - (low - 0.6) * 2.6
            light = self._shade(0.02 + 0.5 * (step / steps - 0.42), 0, 1)
            wide = 0.80 + 0.06 * bulge
            layer.polygon(
                [
                    self.point(back, low, side * wide),
                    self.point(front, low, side * wide),
                    self.point(front, high, side * wide),
                    self.point(back, high, side * wide),
                ],
                light,
            )
        outline = [self.point(z, y, side * w) for z, y, w in PROFILE[4:12]]
        layer.polygon(outline, self._shade(0.25, 0, 1))
        for back, front in ((0.42, 1.02), (1.10, 2.02), (2.10, 2.84)):
            self._pane(layer, side, back, front)

    def _pane(self, layer: Layer, side: int, back: float, front: float) -> None:
        def roof(z: float) -> float:
            return float(
                np.interp(
                    z, [0.12, 0.32, 0.5, 0.95, 2.35, 2.75, 3.1], [0.95, 1.2, 1.34, 1.41, 1.37, 1.17, 0.97]
                )
            )

        points = [
            (back, 0.99, 0.82),
            (front, 0.99, 0.82),
            (front, roof(front), 0.64),
            (back, roof(back), 0.64),
        ]
        layer.polygon([self.point(z, y, side * w) for z, y, w in points], (34, 40, 46))
        upper = [
            (back, 1.16, 0.74),
            (front, 1.16, 0.74),
            (front, roof(front), 0.64),
            (back, roof(back), 0.64),
        ]
        if roof(front) > 1.2 and roof(back) > 1.2:
            layer.polygon([self.point(z, y, side * w) for z, y, w in upper], (74, 84, 94))

    def _wheels(self, layer: Layer) -> None:
        side = -1 if self.x > 0 else 1
        ends = (0.28, 0.28)
        for ahead in (0.78, 3.38):
            circle = [
                (ahead + 0.32 * math.cos(a), 0.31 + 0.31 * math.sin(a))
                for a in np.linspace(0, 2 * math.pi, 24)
            ]
            for inner, color in ((0.62, (14, 14, 15)), (0.80, (20, 20, 21))):
                layer.polygon([self.point(z, y, side * inner) for z, y in circle], color)
        for aside in (-0.66, 0.66):  # the treads that are seen from behind
            near = 0.46 if not self.coming else 3.7
            layer.polygon(
                [
                    self.point(near, ends[0] - 0.26, aside - 0.1),
                    self.point(near, ends[0] - 0.26, aside + 0.1),
                    self.point(near, 0.5, aside + 0.1),
                    self.point(near, 0.5, aside - 0.1),
                ],
                (16, 16, 17),
            )
        layer.polygon(
            [
                self.point(0.3, 0.2, -0.7),
                self.point(0.3, 0.2, 0.7),
                self.point(0.3, 0.4, 0.7),
                self.point(0.3, 0.4, -0.7),
            ],
            (10, 10, 11),
        )

    def _rims(self, layer: Layer) -> None:
        side = -1 if self.x > 0 else 1
        for ahead in (0.78, 3.38):
            for radius, color in (
                (0.33, (13, 13, 14)),
                (0.2, (140, 143, 147)),
                (0.16, (92, 95, 99)),
                (0.06, (150, 152, 155)),
            ):
                circle = [
                    (ahead + radius * math.cos(a), 0.31 + radius * math.sin(a))
                    for a in np.linspace(0, 2 * math.pi, 24)
                ]
                layer.polygon([self.point(z, y, side * 0.865) for z, y in circle], color)

    def _end(self, layer: Layer) -> None:
        """Draw what is on the nearer end: lights, plate, bumper; and the wheels on the side."""
        self._rims(layer)
        if self.coming:
            self._front(layer)
            return
        red = (235, 64, 48) if self.braking else (138, 26, 28)
        for aside in (-1, 1):
            layer.polygon(
                [
                    self.point(0.04, 0.72, aside * 0.84),
                    self.point(0.04, 0.72, aside * 0.62),
                    self.point(0.09, 0.94, aside * 0.66),
                    self.point(0.09, 0.94, aside * 0.83),
                ],
                red,
            )
            layer.polygon(
                [
                    self.point(0.04, 0.72, aside * 0.84),
                    self.point(0.04, 0.72, aside * 0.66),
                    self.point(0.04, 0.77, aside * 0.66),
                    self.point(0.04, 0.77, aside * 0.84),
                ],
                (214, 170, 120),
            )
        self._patch(layer, 0.0, (0.58, 0.69), 0.26, (226, 194, 70))
        self._patch(layer, 0.0, (0.36, 0.44), 0.80, mixed((0, 0, 0), self.paint, 0.3))
        self._patch(layer, 0.03, (0.28, 0.35), 0.74, (24, 24, 26))

    def _front(self, layer: Layer) -> None:
        for aside in (-1, 1):
            layer.polygon(
                [
                    self.point(4.12, 0.62, aside * 0.72),
                    self.point(4.17, 0.62, aside * 0.46),
                    self.point(4.1, 0.76, aside * 0.46),
                    self.point(3.98, 0.78, aside * 0.71),
                ],
                (206, 213, 218),
            )
            layer.disc(self.point(4.18, 0.69, aside * 0.6), 0.055 * self.scale, (248, 248, 240))
        self._patch(layer, 4.19, (0.60, 0.72), 0.4, (26, 27, 29))
        self._patch(layer, 4.19, (0.44, 0.54), 0.26, (226, 228, 226))
        self._patch(layer, 4.19, (0.30, 0.42), 0.62, (22, 22, 24))

    def _patch(self, layer: Layer, ahead: float, up: tuple[float, float], half: float, color: Color) -> None:
        layer.polygon(
            [
                self.point(ahead, up[0], -half),
                self.point(ahead, up[0], half),
                self.point(ahead, up[1], half),
                self.point(ahead, up[1], -half),
            ],
            color,
        )


@dataclass(frozen=True)
class Tree:
    """A tree in leaf, or a bush if it has no trunk.

    Args:
        x: of its trunk.
        z: of its trunk.
        height: of its top.
        crown: half of its crown's width.
        trunk: height at which the crown begins; 0 = on the ground.
        leaves: their colour in the light.
    """

    x: float
    z: float
    height: float = 9.0
    crown: float = 2.8
    trunk: float = 2.6
    leaves: Color = (112, 118, 84)

    @property
    def depth(self) -> float:
        """Distance, for the order of drawing."""
        return self.z

    def draw(self, canvas: Canvas) -> None:
        """Draw trunk, branches and thousands of leaves, the lit ones last."""
        random = np.random.default_rng(round(self.x * 31 + self.z * 17) % 2**31)
        darken_ground(canvas, (self.x - self.crown, self.x + self.crown), (self.z - 1.2, self.z + 2.4), 0.3)
        layer = Layer(
            canvas,
            (self.x - self.crown * 1.3, 0, self.z),
            (self.x + self.crown * 1.3, self.height * 1.05, self.z),
        )
        if self.trunk:
            self._branch(
                layer,
                random,
                (self.x, 0.0),
                math.pi / 2,
                (self.height - self.trunk) * 0.12 + self.trunk * 0.85,
                0.04 * self.height * 0.5,
                6,
            )
        middle = np.array((self.x, (self.height + self.trunk) / 2))
        reach = np.array((self.crown, (self.height - self.trunk) / 2))
        clumps = middle + reach * 0.78 * random.uniform(-1, 1, (40, 2)) * np.sqrt(random.random((40, 1)))
        sizes = random.uniform(0.2, 0.42, 40) * reach.min()
        self._leaves(layer, random, clumps, sizes, middle, reach)
        layer.lay(grain=9, blur=0.7)

    def _branch(
        self,
        layer: Layer,
        random: np.random.Generator,
        start: tuple[float, float],
        angle: float,
        length: float,
        width: float,
        left: int,
    ) -> None:
        end = start[0] + length * math.cos(angle), start[1] + length * math.sin(angle)
        layer.line(
            [(*start, self.z), (*end, self.z)],
            width,
            mixed((64, 56, 48), (92, 84, 74), random.random() * 0.6),
        )
        if left:
            for turn in (random.uniform(0.15, 0.6), -random.uniform(0.15, 0.6)):
                self._branch(
                    layer,
                    random,
                    end,
                    angle + turn,
                    length * random.uniform(0.5, 0.72),
                    width * 0.66,
                    left - 1,
                )

    def _leaves(
        self,
        layer: Layer,
        random: np.random.Generator,
        clumps: Array,
        sizes: Array,
        middle: Array,
        reach: Array,
    ) -> None:
        """Scatter leaves over clumps; those above and towards the sun are lighter."""
        count = 15000
        which = random.integers(0, len(clumps), count)
        angle, radius = random.uniform(0, 2 * math.pi, count), np.sqrt(random.random(count))
        offset = np.stack([np.cos(angle), np.sin(angle)], axis=1) * radius[:, None]
        places = clumps[which] + offset * sizes[which, None]
        toward = (
            offset @ np.array((-0.45, 0.85)) * 0.5 + ((places - middle) / reach) @ np.array((-0.3, 0.6)) * 0.5
        )
        light = 0.48 + 0.5 * toward + random.normal(0, 0.2, count)
        for place, bright in sorted(
            zip(places.tolist(), light.tolist(), strict=True), key=lambda one: one[1] + random.normal(0, 0.18)
        ):
            color = mixed((30, 36, 24), self.leaves, max(0.12, bright) * 1.05)
            layer.disc(
                (place[0], place[1], self.z),
                random.uniform(0.025, 0.07) * (0.6 + 0.05 * self.height),
                color,
                flat=random.uniform(0.6, 1.5),
            )


@dataclass(frozen=True)
class Person:
    """Somebody on foot, or on a bicycle that is seen from behind.

    Args:
        x: where.
        z: where.
        coat: colour.
        legs: colour of the trousers.
        facing: ``left``, ``right``, ``here`` or ``away``.
        height: in metres.
        bicycle: whether the person sits on one.
    """

    x: float
    z: float
    coat: Color = (52, 56, 70)
    legs: Color = (36, 38, 48)
    facing: str = "away"
    height: float = 1.74
    bicycle: bool = False

    @property
    def depth(self) -> float:
        """Distance, for the order of drawing."""
        return self.z

    def draw(self, canvas: Canvas) -> None:
        """Draw the shadow, legs, arms, coat and head."""
        darken_ground(canvas, (self.x - 0.4, self.x + 0.4), (self.z - 0.3, self.z + 0.35), 0.5)
        layer = Layer(canvas, (self.x - 0.8, 0, self.z), (self.x + 0.8, self.height + 0.35, self.z))
        if self.bicycle:
            self._cycle(layer)
        turn = {"left": -1, "right": 1}.get(self.facing, 0)
        if turn:
            self._sideways(layer, turn)
        else:
            self._upright(layer)
        layer.lay(grain=6, blur=0.8)

    def _upright(self, layer: Layer) -> None:
        lift = 0.16 if self.bicycle else 0.0
        for side, shade, raised in ((1, 0.7, 0.0), (-1, 1.0, 0.07)):
            trousers, sleeve = mixed((0, 0, 0), self.legs, shade), mixed((0, 0, 0), self.coat, shade * 0.96)
            foot = 0.05 + raised + lift
            self._limb(
                layer,
                ((side * 0.08, 0.50), (side * 0.11, 0.27 + raised / 2), (side * 0.10, foot / self.height)),
                (0.10, 0.08, 0.055),
                trousers,
                lift,
            )
            self._limb(
                layer,
                ((side * 0.11, foot / self.height - 0.01), (side * 0.15, foot / self.height - 0.015)),
                (0.05, 0.045),
                (26, 24, 24),
                0,
            )
            self._limb(
                layer,
                ((side * 0.2, 0.79), (side * 0.26, 0.63), (side * 0.24, 0.49)),
                (0.06, 0.05, 0.042),
                sleeve,
                lift,
            )
            self._limb(
                layer, ((side * 0.24, 0.475), (side * 0.235, 0.455)), (0.036, 0.036), (168, 130, 108), lift
            )
        for step in range(7):  # the coat, lighter towards the sun
            aside = -1 + 2 * (step + 0.5) / 7
            color = mixed((0, 0, 0), self.coat, 0.95 - 0.15 * (aside + 1))
            self._limb(
                layer,
                ((aside * 0.16, 0.805 - 0.02 * abs(aside)), (aside * 0.13, 0.62), (aside * 0.15, 0.46)),
                (0.045, 0.045, 0.045),
                color,
                lift,
            )
        self._limb(layer, ((0, 0.83), (0, 0.87)), (0.055, 0.05), (150, 116, 98), lift)
        here = self.facing == "here"
        self._head(
            layer, 0.0, lift, (178, 140, 118) if here else (54, 44, 38), hair=(0.0, 0.055) if here else None
        )

    def _sideways(self, layer: Layer, turn: int) -> None:
        """Draw somebody who walks across: one leg and the other arm ahead."""
        for ahead, shade in ((-1, 0.66), (1, 1.0)):
            step = ahead * turn
            trousers, sleeve = mixed((0, 0, 0), self.legs, shade), mixed((0, 0, 0), self.coat, shade * 0.9)
            knee = 0.14 * step + 0.05 * turn
            foot = 0.30 * step - (0.04 * turn if ahead < 0 else 0)
            up = 0.065 if ahead < 0 else 0.03
            self._limb(
                layer, ((0.02 * turn, 0.50), (knee, 0.275), (foot, up)), (0.11, 0.075, 0.05), trousers, 0
            )
            self._limb(
                layer,
                ((foot, up - 0.006), (foot + 0.14 * turn, up - 0.012 - 0.01 * (ahead < 0))),
                (0.045, 0.035),
                (26, 24, 24),
                0,
            )
            if ahead < 0:
                self._limb(
                    layer,
                    ((0, 0.78), (0.16 * turn, 0.63), (0.3 * turn, 0.54)),
                    (0.055, 0.048, 0.04),
                    sleeve,
                    0,
                )
        for step_ in range(5):
            aside = -1 + 2 * (step_ + 0.5) / 5
            color = mixed((0, 0, 0), self.coat, 0.92 - 0.12 * (aside + 1))
            self._limb(
                layer,
                ((aside * 0.085 + 0.02 * turn, 0.805), (aside * 0.10, 0.64), (aside * 0.12, 0.45)),
                (0.04, 0.045, 0.045),
                color,
                0,
            )
        sleeve = mixed((0, 0, 0), self.coat, 0.74)
        self._limb(
            layer, ((0, 0.78), (-0.1 * turn, 0.63), (-0.2 * turn, 0.50)), (0.055, 0.05, 0.042), sleeve, 0
        )
        self._limb(layer, ((-0.21 * turn, 0.485), (-0.22 * turn, 0.465)), (0.036, 0.034), (168, 130, 108), 0)
        self._limb(layer, ((0.02 * turn, 0.83), (0.03 * turn, 0.87)), (0.05, 0.05), (150, 116, 98), 0)
        self._head(layer, 0.04 * turn, 0, (178, 140, 118), hair=(-0.035 * turn, 0.03))

    def _head(
        self, layer: Layer, aside: float, lift: float, color: Color, *, hair: tuple[float, float] | None
    ) -> None:
        up = 0.935 * self.height + lift
        layer.disc((self.x + aside, up, self.z), 0.118, color, flat=0.8)
        if hair:
            layer.disc((self.x + aside + hair[0], up + hair[1], self.z), 0.098, (52, 42, 36), flat=0.95)

    def _limb(
        self,
        layer: Layer,
        joints: Sequence[tuple[float, float]],
        radii: Sequence[float],
        color: Color,
        lift: float,
    ) -> None:
        """Draw a chain of rounded pieces; joints are metres aside and shares of the height."""
        places = [(self.x + x, y * self.height + lift) for x, y in joints]
        for (x, y), radius in zip(places, radii, strict=True):
            layer.disc((x, y, self.z), radius, color)
        for a, b, wide_a, wide_b in zip(places, places[1:], radii, radii[1:], strict=False):
            length = math.dist(a, b) or 1.0
            across = -(b[1] - a[1]) / length, (b[0] - a[0]) / length
            ends = ((a, wide_a, 1), (b, wide_b, 1), (b, wide_b, -1), (a, wide_a, -1))
            layer.polygon(
                [
                    (x + across[0] * wide * sign, y + across[1] * wide * sign, self.z)
                    for (x, y), wide, sign in ends
                ],
                color,
            )

    def _cycle(self, layer: Layer) -> None:
        layer.disc((self.x, 0.34, self.z), 0.34, (22, 22, 23), flat=0.14)
        layer.line([(self.x, 0.34, self.z), (self.x, 0.95, self.z)], 0.05, (120, 40, 36))
        layer.line([(self.x - 0.28, 1.08, self.z), (self.x + 0.28, 1.08, self.z)], 0.04, (30, 30, 32))
        layer.disc((self.x, 0.78, self.z), 0.045, (190, 40, 36))


@dataclass(frozen=True)
class Pole:
    """A lamp post, a sign or a traffic light.

    Args:
        x: where.
        z: where.
        height: in metres.
        kind: ``lamp``, ``sign``, ``light``.
        arm: how far a lamp reaches over the road, to the right.
    """

    x: float
    z: float
    height: float = 7.5
    kind: str = "lamp"
    arm: float = 1.4

    @property
    def depth(self) -> float:
        """Distance, for the order of drawing."""
        return self.z

    def draw(self, canvas: Canvas) -> None:
        """Draw the pole and what it carries."""
        layer = Layer(
            canvas,
            (self.x - abs(self.arm) - 0.8, 0, self.z),
            (self.x + abs(self.arm) + 0.8, self.height + 0.6, self.z),
        )
        thick = 0.15 if self.kind == "lamp" else 0.11
        for offset, color in ((0.0, (84, 88, 90)), (-0.25, (118, 122, 124)), (0.3, (58, 61, 63))):
            x = self.x + offset * thick
            layer.line(
                [(x, 0, self.z), (x, self.height, self.z)], thick * (1 if offset == 0 else 0.35), color
            )
        getattr(self, f"_{self.kind}")(layer)
        layer.lay(grain=3, blur=0.5)

    def _lamp(self, layer: Layer) -> None:
        tip = self.x + self.arm
        layer.line(
            [
                (self.x, self.height, self.z),
                (self.x + self.arm * 0.4, self.height + 0.32, self.z),
                (tip, self.height + 0.36, self.z),
            ],
            0.08,
            (88, 92, 94),
        )
        layer.polygon(
            [
                (tip - 0.1, self.height + 0.44, self.z),
                (tip + 0.5, self.height + 0.4, self.z),
                (tip + 0.5, self.height + 0.3, self.z),
                (tip - 0.1, self.height + 0.28, self.z),
            ],
            (150, 152, 150),
        )

    def _sign(self, layer: Layer) -> None:
        top = self.height - 0.38
        for radius, color in ((0.36, (150, 152, 152)), (0.345, (196, 34, 38)), (0.25, (236, 236, 232))):
            layer.disc((self.x, top, self.z), radius, color)
        layer.polygon(
            [
                (self.x - 0.14, top - 0.12, self.z),
                (self.x - 0.04, top - 0.12, self.z),
                (self.x - 0.04, top + 0.13, self.z),
                (self.x - 0.14, top + 0.13, self.z),
            ],
            (24, 24, 26),
        )
        layer.disc((self.x + 0.08, top, self.z), 0.11, (24, 24, 26), flat=0.6)
        layer.disc((self.x + 0.08, top, self.z), 0.05, (236, 236, 232), flat=0.5)

    def _light(self, layer: Layer) -> None:
        top = self.height
        layer.polygon(
            [
                (self.x - 0.26, top - 1.05, self.z),
                (self.x + 0.26, top - 1.05, self.z),
                (self.x + 0.26, top + 0.12, self.z),
                (self.x - 0.26, top + 0.12, self.z),
            ],
            (20, 21, 22),
        )
        layer.polygon(
            [
                (self.x - 0.17, top - 0.98, self.z),
                (self.x + 0.17, top - 0.98, self.z),
                (self.x + 0.17, top + 0.05, self.z),
                (self.x - 0.17, top + 0.05, self.z),
            ],
            (34, 36, 37),
        )
        for row, color in enumerate(((240, 58, 44), (70, 52, 20), (22, 58, 40))):
            layer.disc((self.x, top - 0.14 - 0.33 * row, self.z), 0.125, color)
        layer.disc((self.x, top - 0.14, self.z), 0.06, (255, 150, 120))


@dataclass(frozen=True)
class Fence:
    """A fence of bars along the street.

    Args:
        x: where.
        start: z of its near end.
        end: z of its far end.
        height: in metres.
    """

    x: float
    start: float
    end: float
    height: float = 1.1

    @property
    def depth(self) -> float:
        """Distance, for the order of drawing."""
        return self.start

    def draw(self, canvas: Canvas) -> None:
        """Draw bars and two rails, the farthest first."""
        layer = Layer(canvas, (self.x - 0.1, 0, self.start), (self.x + 0.1, self.height + 0.1, self.end))
        for z in np.arange(self.end, self.start, -0.14):
            layer.line([(self.x, 0.1, z), (self.x, self.height, z)], 0.03, (48, 50, 52))
        for z in np.arange(self.end, self.start, -2.0):
            layer.line([(self.x, 0, z), (self.x, self.height + 0.06, z)], 0.08, (58, 60, 62))
        for up in (0.15, self.height):
            for z in np.arange(self.end - 0.5, self.start, -0.5):
                layer.line([(self.x, up, z), (self.x, up, z + 0.5)], 0.05, (62, 64, 66))
        layer.lay(grain=2, blur=0.4)


Thing = Car | Tree | Person | Pole | Fence


@dataclass(frozen=True)
class Scene:
    """A street, the houses beside it and the things on it."""

    name: str
    seed: int
    street: Street
    left: Sequence[House]
    right: Sequence[House]
    things: Sequence[Thing]
    camera: Camera = field(default_factory=Camera)
    far_end: tuple[float, float] = (150.0, 11.0)


def render(scene: Scene) -> Image.Image:
    """Return the picture of a scene."""
    canvas = Canvas(scene.camera, scene.street, scene.seed)
    paint_sky(canvas)
    paint_far_end(canvas, *scene.far_end)
    for houses, wall, light in (
        (scene.left, scene.street.left_wall, 1.08),
        (scene.right, scene.street.right_wall, 0.74),
    ):
        for house in sorted(houses, key=lambda one: one.start):
            paint_house(canvas, house, wall, light)
    paint_ground(canvas)
    for thing in sorted(scene.things, key=lambda one: one.depth, reverse=True):
        thing.draw(canvas)
    return photograph(canvas)


def photograph(canvas: Canvas) -> Image.Image:
    """Reduce the picture and give it what a lens and a sensor add."""
    large = Image.fromarray(np.clip(canvas.color_HW3, 0, 255).astype(np.uint8))
    small = np.asarray(large.resize((WIDTH, HEIGHT), Image.Resampling.BOX), np.float32)
    rows, columns = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)
    rim = ((columns / WIDTH - 0.5) ** 2 + (rows / HEIGHT - 0.5) ** 2)[..., None]
    toned = 255 * np.clip(small / 255 * (1.05 - 0.16 * rim), 0, 1) ** 1.03
    glow = np.asarray(
        Image.fromarray(np.clip(toned - 190, 0, 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(9)),
        np.float32,
    )
    sensor = (
        canvas.random.normal(0, 2.6, toned.shape).astype(np.float32)
        + canvas.random.normal(0, 1.2, toned.shape[:2])[..., None]
    )
    picture = Image.fromarray(np.clip(toned + glow * 0.22 + sensor, 0, 255).astype(np.uint8))
    return picture.filter(ImageFilter.GaussianBlur(0.55))


def high_street() -> Scene:
    """Return a street of shops with parked cars, people and lamp posts."""
    shops = [
        ((150, 112, 84), (48, 72, 62)),
        ((196, 186, 168), (130, 34, 36)),
        ((128, 84, 68), (36, 50, 92)),
        ((164, 140, 110), (168, 128, 44)),
    ]
    left = [
        House(
            2.0 + 9.6 * k,
            9.4,
            8.4 + 1.3 * (k * 7 % 3),
            wall,
            shop=color,
            sign=SHOPS[k % len(SHOPS)],
            roof=2.6,
            bricks=k % 4 != 1,
        )
        for k, (wall, color) in enumerate(shops * 4)
    ]
    right = [
        House(
            1.0 + 10.8 * k,
            10.6,
            9.2 + 1.2 * (k * 5 % 3),
            wall,
            shop=color,
            sign=SHOPS[(k + 5) % len(SHOPS)],
            spacing=2.7,
            roof=2.8,
            bricks=k % 4 != 2,
        )
        for k, (wall, color) in enumerate((shops[2:] + shops[:2]) * 4)
    ]
    things: list[Thing] = [
        Car(0.1, 15.5, (52, 66, 104), braking=True),
        Car(0.2, 31.0, (170, 172, 174)),
        Car(3.5, 24.0, (140, 34, 34), coming=True),
        Car(3.6, 52.0, (186, 188, 190), coming=True),
        *(
            Car(-1.75, z, paint, scale=0.98)
            for z, paint in (
                (21.5, (92, 98, 96)),
                (27.5, (30, 32, 36)),
                (33.5, (176, 178, 180)),
                (40.0, (62, 84, 74)),
            )
        ),
        *(Pole(-2.8, z, arm=1.6) for z in (19.0, 44.0, 69.0)),
        *(Pole(6.0, z, arm=-1.6) for z in (31.0, 57.0)),
        Pole(6.1, 12.5, 2.7, "sign"),
        Person(-3.9, 9.5, (70, 44, 46)),
        Person(-4.3, 14.0, (54, 60, 78)),
        Person(-3.4, 24.0, (104, 98, 84), facing="here"),
        Person(7.3, 11.5, (48, 58, 52), facing="here"),
        Person(7.0, 19.0, (130, 60, 52)),
        Person(7.8, 27.0, (44, 46, 60)),
    ]
    return Scene("high-street", 11, Street(), left, right, things)


def avenue() -> Scene:
    """Return a residential street with trees."""
    street = Street(
        left_kerb=-2.6,
        right_kerb=5.4,
        left_wall=-9.5,
        right_wall=12.0,
        centre=1.5,
        shadow_until=9.0,
        clouds=0.35,
    )
    walls = [(156, 104, 80), (188, 168, 140), (140, 92, 72), (202, 194, 180)]
    left = [
        House(3 + 11.5 * k, 9.6, 6.2, wall, spacing=3.1, window=1.3, roof=3.4, bricks=k % 4 < 3)
        for k, wall in enumerate(walls * 3)
    ]
    right = [
        House(6 + 11.5 * k, 9.6, 6.2, wall, spacing=3.1, window=1.3, roof=3.4, bricks=k % 4 != 1)
        for k, wall in enumerate((walls[1:] + walls[:1]) * 3)
    ]
    things: list[Thing] = [
        *(Tree(-4.6, z, 8.6 + z % 3, 3.0, 2.7) for z in (16.0, 28.0, 41.0, 56.0, 74.0)),
        *(Tree(7.4, z, 9.0 + z % 4, 3.2, 2.8, (104, 118, 70)) for z in (13.0, 24.5, 37.0, 50.0, 66.0)),
        *(Tree(-6.6, z, 1.6, 1.5, 0.0, (86, 104, 58)) for z in (9.0, 11.5, 14.0, 19.0, 22.0)),
        *(Tree(9.4, z, 1.7, 1.6, 0.0, (86, 104, 58)) for z in (14.0, 17.0, 21.0, 27.0)),
        *(
            Car(-1.8, z, paint)
            for z, paint in (
                (11.0, (168, 172, 176)),
                (17.5, (44, 60, 96)),
                (24.0, (100, 30, 30)),
                (31.0, (38, 40, 44)),
            )
        ),
        *(Car(4.5, z, paint, coming=True) for z, paint in ((16.0, (72, 78, 80)), (29.0, (180, 182, 184)))),
        Car(2.9, 40.0, (28, 44, 70), coming=True),
        Pole(-3.1, 13.5, arm=1.5),
        Pole(6.0, 33.0, arm=-1.5),
        Person(-3.9, 12.0, (92, 50, 46), facing="here"),
        Person(6.9, 17.0, (52, 60, 84)),
        Person(0.3, 20.0, (150, 160, 60), (30, 32, 40), bicycle=True),
    ]
    return Scene("avenue", 23, street, left, right, things, far_end=(140.0, 12.0))


def crossing() -> Scene:
    """Return a wide road with traffic lights, a zebra crossing and people on it."""
    street = Street(
        left_kerb=-3.0,
        right_kerb=8.0,
        left_wall=-7.0,
        right_wall=12.5,
        centre=2.6,
        zebra=11.0,
        arrow=4.6,
        shadow_until=10.0,
        clouds=0.8,
    )
    left = [
        House(
            4 + 13 * k,
            12.6,
            12.4 - 1.4 * (k % 3),
            wall,
            spacing=3.0,
            window=1.7,
            storey=3.4,
            shop=None if k % 2 else (56, 66, 84),
            sign=SHOPS[(4 + k) % len(SHOPS)],
            roof=0.0,
            bricks=k % 2 == 0,
        )
        for k, wall in enumerate([(176, 160, 134), (142, 98, 76), (190, 182, 168), (128, 92, 74)] * 2)
    ]
    right = [
        House(
            4 + 12 * k,
            11.7,
            9.5 + 1.5 * (k % 2),
            wall,
            spacing=2.6,
            shop=(110, 40, 42) if k % 2 else (40, 66, 58),
            sign=SHOPS[(k + 6) % len(SHOPS)],
            roof=2.4,
        )
        for k, wall in enumerate([(150, 106, 84), (184, 172, 150), (134, 94, 76), (168, 132, 104)] * 2)
    ]
    things: list[Thing] = [
        Car(0.0, 22.0, (150, 152, 156), braking=True),
        Car(5.0, 18.5, (36, 56, 98), coming=True),
        Car(5.2, 33.0, (128, 32, 32), coming=True),
        Car(0.2, 38.0, (40, 42, 46)),
        Pole(-3.5, 10.2, 3.5, "light"),
        Pole(8.5, 10.0, 3.5, "light"),
        Pole(-3.7, 30.0, 8.0, arm=1.8),
        Pole(8.6, 36.0, 8.0, arm=-1.8),
        Pole(8.7, 20.0, 2.8, "sign"),
        Fence(-3.4, 16.0, 34.0),
        Person(-2.2, 12.3, (60, 66, 92), facing="right"),
        Person(8.6, 13.2, (108, 52, 48), (58, 60, 70), facing="left"),
        Person(-5.4, 11.5, (96, 60, 52), facing="here"),
        Person(9.8, 14.0, (84, 88, 100), facing="here"),
        Person(10.6, 22.0, (120, 96, 70)),
        Tree(-5.4, 27.0, 8.6, 2.6, 2.9),
        Tree(10.5, 44.0, 9.5, 3.2, 3.0),
        Tree(-5.4, 46.0, 9.0, 3.0, 2.8, (98, 112, 70)),
    ]
    return Scene("crossing", 37, street, left, right, things)


SCENES: Sequence[Callable[[], Scene]] = (high_street, avenue, crossing)


def main() -> None:
    """Write the scenes into a folder."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="folder of the pictures")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    for make in SCENES:
        scene = make()
        path = out / f"{scene.name}.jpg"
        render(scene).save(path, quality=JPEG_QUALITY, optimize=True)
        print(f"{path}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
