"""Draws street scenes: road, pavement, buildings, sky, trees, cars, people, poles and signs.

    python examples/street_scenes.py photo.jpg [--scene crossing] [--width 640]
    python examples/street_scenes.py FOLDER

The first form writes one JPEG picture, of 1280x720 pixels unless told otherwise. The second one writes one
for each scene. They show what a model that learned from real streets makes of a street, without a
photograph of one. They need numpy and Pillow.

Ground and walls are traced: for each pixel, the point of the surface at which it looks is found, and the
texture of the surface gives its colour. Everything else is drawn over them, the farthest first. Then the
camera adds blur, noise and a darker rim. All of it is drawn in twice the size and reduced.

Axes: H rows, W columns, N pixels of a surface, 3 = red green blue. Lengths are in metres: x to the right of
the camera, y up from the road, z ahead.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter, ImageFont

Floats = npt.NDArray[np.float32]
Color = tuple[float, float, float]
Point = tuple[float, float, float]
Span = tuple[float, float]

WIDTH, HEIGHT = 1280, 720
OVERSAMPLING = 2
JPEG_QUALITY = 82
FAR_M = 400.0
HAZE_M = 260.0
SHOPS = ("BAKERY", "BOOKS", "FLOWERS", "CAFE", "OPTICIAN", "BICYCLES", "TEA ROOMS", "SHOES", "TAILOR")


def mixed(a: Color, b: Color, share: float) -> Color:
    """Return a colour between two: ``a`` at 0, ``b`` at 1."""
    red, green, blue = (x + (y - x) * share for x, y in zip(a, b, strict=True))
    return red, green, blue


def shaded(color: Color, light: float) -> Color:
    """Return a colour in less light."""
    return mixed((0, 0, 0), color, light)


def rgb(color: Color) -> Floats:
    """Return a colour as an array of 3."""
    return np.array(color, np.float32)


class Noise:
    """Smooth random values in the plane, the same for the same seed."""

    def __init__(self, seed: int) -> None:
        table = np.random.default_rng(seed).random((256, 256), np.float32)
        self._table = np.pad(table, ((0, 1), (0, 1)), mode="wrap").reshape(-1)

    def __call__(self, x: Floats, y: Floats) -> Floats:
        """Return values of 0..1 that change within one unit."""
        x, y = np.broadcast_arrays(x, y)
        column, row = np.floor(x), np.floor(y)
        right, down = (x - column).astype(np.float32), (y - row).astype(np.float32)
        right, down = right * right * (3 - 2 * right), down * down * (3 - 2 * down)
        place = (row.astype(np.int64) & 255) * 257 + (column.astype(np.int64) & 255)
        above, above_right = self._table[place], self._table[place + 1]
        below, below_right = self._table[place + 257], self._table[place + 258]
        top = above + (above_right - above) * right
        value: Floats = top + (below + (below_right - below) * right - top) * down
        return value

    def rough(self, x: Floats, y: Floats, octaves: int = 4) -> Floats:
        """Return values of 0..1 with details of several sizes, the largest of one unit."""
        layers = [self(x * 2**k + 17.3 * k, y * 2**k + 5.7 * k) / 2**k for k in range(octaves)]
        total: Floats = np.sum(layers, axis=0) / np.float32(2 - 0.5 ** (octaves - 1))
        return total


@dataclass(frozen=True)
class Street:
    """Where things lie across the street.

    Args:
        kerbs: x of the left and the right edge of the road.
        walls: x of the buildings on the left and on the right.
        centre: x of the broken line.
        shadow: the ground is in the shadow of the right buildings from this x on.
        zebra: z of a crossing; 0 = none.
        arrow: z of an arrow on the road; 0 = none.
        clouds: 0..1.
    """

    kerbs: Span = (-2.4, 5.6)
    walls: Span = (-5.4, 8.8)
    centre: float = 1.7
    shadow: float = 6.6
    zebra: float = 0.0
    arrow: float = 0.0
    clouds: float = 0.6


@dataclass(frozen=True)
class House:
    """A house in the row beside the street.

    Args:
        start: z of its near end.
        length: along the street.
        eaves: height of its wall.
        wall: colour of its bricks or plaster.
        spacing: between the middles of its windows.
        window: width of a window.
        shop: colour of the shop on the ground floor; None = a door and windows.
        sign: text over the shop.
        roof: height of its roof; 0 = flat.
        bricks: whether the wall shows them.
    """

    start: float
    length: float
    eaves: float
    wall: Color
    spacing: float = 2.4
    window: float = 1.1
    shop: Color | None = None
    sign: str = ""
    roof: float = 2.6
    bricks: bool = True


class Canvas:
    """The oversampled picture, with the distance of what each pixel shows.

    Args:
        street: what the ground is like.
        seed: of the noise.
    """

    eye_m = 1.45
    focal = 0.82 * WIDTH * OVERSAMPLING
    horizon = 0.47 * HEIGHT * OVERSAMPLING
    fog = rgb((210, 215, 219))

    def __init__(self, street: Street, seed: int) -> None:
        self.street = street
        self.noise = Noise(seed)
        self.random = np.random.default_rng(seed)
        width, height = WIDTH * OVERSAMPLING, HEIGHT * OVERSAMPLING
        self.right_W = ((np.arange(width) - width / 2) / self.focal).astype(np.float32)
        self.down_H = ((np.arange(height) - self.horizon) / self.focal).astype(np.float32)
        self.color_HW3 = np.zeros((height, width, 3), np.float32)
        self.depth_HW = np.full((height, width), FAR_M, np.float32)

    def project(self, point: Point) -> Span:
        """Return column and row of a point ahead."""
        x, y, z = point
        scale = self.focal / max(z, 0.05)
        return len(self.right_W) / 2 + x * scale, self.horizon + (self.eye_m - y) * scale

    def rays(self, columns: slice) -> tuple[Floats, Floats]:
        """Return how far rays go to the right and down on a metre ahead, for all rows of some columns."""
        down_HW, right_HW = np.meshgrid(self.down_H, self.right_W[columns], indexing="ij")
        return right_HW, down_HW

    def columns(self, right: Span) -> slice:
        """Return the columns whose rays go that far to the right on a metre ahead."""
        low, high = sorted(right)
        first, last = np.searchsorted(self.right_W, (low, high))
        return slice(int(first), int(last))

    def put(self, columns: slice, where_HW: npt.NDArray[np.bool_], depth_N: Floats, color_N3: Floats) -> None:
        """Draw a surface where it is nearer than the surfaces drawn so far.

        Args:
            columns: of the picture.
            where_HW: which of their pixels the surface covers.
            depth_N: of the covered pixels.
            color_N3: of the covered pixels, 0..255.
        """
        depth_HW, color_HW3 = self.depth_HW[:, columns], self.color_HW3[:, columns]
        nearer_N = depth_N < depth_HW[where_HW]
        rows, places = (index[nearer_N] for index in np.nonzero(where_HW))
        color_HW3[rows, places] = self.hazed(color_N3[nearer_N], depth_N[nearer_N, None])
        depth_HW[rows, places] = depth_N[nearer_N]

    def hazed(self, color: Floats, depth: Floats | float) -> Floats:
        """Mix colours with the air before them."""
        air = 1 - np.exp(-np.asarray(depth, np.float32) / HAZE_M)
        hazy: Floats = color + (self.fog - color) * air
        return hazy


def paint_sky(canvas: Canvas) -> None:
    """Show sky and thin clouds everywhere; they are smooth, so a quarter of the size is enough."""
    height, width = canvas.depth_HW.shape
    right_HW, down_HW = np.meshgrid(canvas.right_W[::4], canvas.down_H[::4])
    up_HW = np.clip(-down_HW, 0, None)
    top, low = rgb((206, 224, 240)), rgb((246, 249, 250))
    sky_HW3 = low + (top - low) * np.clip(up_HW * 1.8, 0, 1)[..., None] ** 0.8
    scale_HW = 1 / (up_HW + 0.18)
    shape_HW = canvas.noise.rough(right_HW * scale_HW * 0.9 + 40, scale_HW * 1.3 + 7, 6)
    cover_HW = np.clip((shape_HW - 0.72 + 0.4 * canvas.street.clouds) * 4, 0, 1)
    shade_HW = np.clip(canvas.noise.rough(right_HW * scale_HW * 1.6, scale_HW * 2.2 + 3) * 1.2, 0, 1)
    cloud_HW3 = rgb((222, 228, 233)) + shade_HW[..., None] * 32
    small = np.clip(sky_HW3 + (cloud_HW3 - sky_HW3) * cover_HW[..., None], 0, 255).astype(np.uint8)
    canvas.color_HW3[:] = np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def paint_ground(canvas: Canvas) -> None:
    """Show road, markings, kerbs and pavements."""
    street, noise = canvas.street, canvas.noise
    right_HW, down_HW = canvas.rays(slice(None))
    where_HW = down_HW > canvas.eye_m / FAR_M
    z_N = canvas.eye_m / down_HW[where_HW]
    x_N = right_HW[where_HW] * z_N
    fine_N, coarse_N = np.clip(14 / z_N, 0, 1), np.clip(40 / z_N, 0, 1)  # no details smaller than pixels
    grain_N = (noise(x_N * 90, z_N * 45) - 0.5) * fine_N + (noise(x_N * 30, z_N * 15) - 0.5) * coarse_N
    patches_N = noise.rough(x_N * 0.35, z_N * 0.12) - 0.5
    tracks_N = sum(np.exp(-(((x_N - lane) / 0.32) ** 2)) for lane in (-1.4, 0.5, 2.9, 4.6))
    color_N3 = rgb((79, 81, 85)) + (grain_N * 22 + patches_N * 26 - tracks_N * 5)[:, None]
    color_N3 = _marked(canvas, color_N3, x_N, z_N)
    color_N3 = _paved(canvas, color_N3, x_N, z_N, grain_N)
    edge_N = street.shadow + 0.5 * (noise(z_N * 0.25, np.zeros_like(z_N)) - 0.5)
    light_N = 1 - 0.42 * np.clip((x_N - edge_N) * 3, 0, 1)
    for wall in street.walls:
        light_N *= 1 - 0.25 * np.exp(-np.abs(x_N - wall) / 0.5)
    canvas.put(slice(None), where_HW, z_N, color_N3 * light_N[:, None])


def _marked(canvas: Canvas, color_N3: Floats, x_N: Floats, z_N: Floats) -> Floats:
    """Paint the lines of the road, worn off in places."""
    street = canvas.street
    worn_N = np.clip(canvas.noise.rough(x_N * 5, z_N * 2.5, 5) * 3.2 - 0.5, 0.35, 1) * 0.92
    white_N = (np.abs(x_N - street.centre) < 0.06) & (z_N % 6 < 2.4)
    yellow_N = np.min(
        [np.abs(x_N - kerb - aside) for kerb, aside in zip(street.kerbs, (0.35, -0.35), strict=True)], 0
    )
    if street.zebra:
        past_N = z_N - street.zebra
        white_N &= (past_N < -2) | (past_N > 4)
        white_N |= (past_N > 0) & (past_N < 2.8) & (x_N * 0.9 % 1.2 < 0.6)
        white_N |= (np.abs(past_N + 1.2) < 0.15) & (x_N < street.centre)
    if street.arrow:
        along_N = z_N - street.arrow
        white_N |= (np.abs(x_N) < 0.09) & (along_N > 0) & (along_N < 2.2)
        white_N |= (along_N >= 2.2) & (along_N < 3.6) & (np.abs(x_N) < 0.32 * (3.6 - along_N))
    on_road_N = (x_N > street.kerbs[0]) & (x_N < street.kerbs[1])
    for line_N, paint in ((white_N, (206, 207, 203)), (yellow_N < 0.05, (188, 164, 84))):
        color_N3 = color_N3 + (rgb(paint) - color_N3) * (worn_N * (line_N & on_road_N))[:, None]
    return color_N3


def _paved(canvas: Canvas, color_N3: Floats, x_N: Floats, z_N: Floats, grain_N: Floats) -> Floats:
    """Lay kerbstones and slabs beside the road."""
    left, right = canvas.street.kerbs
    beyond_N = np.maximum(left - x_N, x_N - right)  # distance from the road
    joint_N = ((x_N % 0.62 < 0.03) | (z_N % 0.9 < 0.04)) & (z_N < 25)
    tone_N = canvas.noise(np.floor(x_N / 0.62) * 7.1, np.floor(z_N / 0.9) * 3.3) - 0.5
    slabs_N3 = rgb((104, 101, 98)) + (tone_N * 16 + grain_N * 16 - joint_N * 24)[:, None]
    stones_N3 = rgb((128, 126, 122)) + (grain_N * 18 - 30 * (z_N % 0.9 < 0.03))[:, None]
    color_N3 = np.where(beyond_N[:, None] > 0, slabs_N3, color_N3)
    color_N3 = np.where((np.abs(beyond_N - 0.08) < 0.09)[:, None], stones_N3, color_N3)
    paved_N3: Floats = np.where((np.abs(beyond_N + 0.05) < 0.06)[:, None], color_N3 * 0.55, color_N3)
    return paved_N3


def paint_house(canvas: Canvas, house: House, wall: float, light: float) -> None:
    """Show the front of a house, its roof, and the end that faces the camera."""
    side, near, far = math.copysign(1, wall), max(house.start - 0.2, 0.4), house.start + house.length + 0.2
    columns = canvas.columns((wall / far, (wall + side * 8) / near))
    right_HW, down_HW = canvas.rays(columns)
    aside_HW = np.maximum(right_HW * side, 1e-4)
    z_HW = abs(wall) / aside_HW
    y_HW = canvas.eye_m - down_HW * z_HW
    where_HW = _between(z_HW, house.start, far - 0.2) & _between(y_HW, 0, house.eaves)
    z_N = z_HW[where_HW]
    s_N = z_N - house.start if side < 0 else house.start + house.length - z_N  # from left to right
    canvas.put(columns, where_HW, z_N, facade(canvas, house, s_N, y_HW[where_HW], z_N) * light)
    if house.roof:
        slope = house.roof / 4
        toward_HW = aside_HW + down_HW / slope
        base = abs(wall) - 0.25 + (canvas.eye_m - house.eaves + 0.05) / slope
        z_HW = base / np.where(np.abs(toward_HW) < 1e-4, 1e-4, toward_HW)
        y_HW = canvas.eye_m - down_HW * z_HW
        where_HW = _between(z_HW, house.start - 0.15, far) & _between(
            y_HW, house.eaves - 0.25, house.eaves + house.roof
        )
        z_N = z_HW[where_HW]
        canvas.put(columns, where_HW, z_N, _slates(canvas, z_N, y_HW[where_HW]) * light)
    into_HW, y_HW = aside_HW * house.start - abs(wall), canvas.eye_m - down_HW * house.start
    gable_HW = house.eaves + house.roof * np.clip(1 - np.abs(into_HW - 4) / 4, 0, 1)
    where_HW = _between(into_HW, 0, 8) & (y_HW > 0) & (y_HW < gable_HW)
    tone_N = canvas.noise.rough(into_HW[where_HW] * 2, y_HW[where_HW] * 2) - 0.5
    end_N3 = rgb(house.wall) * 0.72 + tone_N[:, None] * 30
    canvas.put(columns, where_HW, np.full(len(tone_N), house.start, np.float32), end_N3 * light)


def _between(values: Floats, low: float, high: float) -> npt.NDArray[np.bool_]:
    return (values >= low) & (values < high)


def _slates(canvas: Canvas, z_N: Floats, y_N: Floats) -> Floats:
    tone_N = canvas.noise(np.floor(z_N / 0.35) * 3.7, np.floor(y_N / 0.18) * 1.9) - 0.5
    moss_N = canvas.noise.rough(z_N * 0.4, y_N * 0.6, 3) - 0.5
    color_N3: Floats = (
        rgb((92, 84, 80)) + (tone_N * 22 + moss_N * 24 - 16 * ((y_N % 0.18 < 0.03) & (z_N < 40)))[:, None]
    )
    return color_N3


STOREY_M = 3.1
TRIM = rgb((212, 208, 200))


def facade(canvas: Canvas, house: House, s_N: Floats, y_N: Floats, z_N: Floats) -> Floats:
    """Return the colours of a wall with its windows.

    Args:
        canvas: gives the noise.
        house: what the wall is like.
        s_N: place along the wall.
        y_N: height above the ground.
        z_N: distance from the camera; bricks that are smaller than pixels vanish.
    """
    noise, key = canvas.noise, house.start
    color_N3 = rgb(house.wall) + ((noise.rough(s_N * 0.5 + key, y_N * 0.5, 5) - 0.5) * 34)[:, None]
    if house.bricks:
        row_N = np.floor(y_N / 0.078)
        along_N = s_N / 0.23 + row_N % 2 * 0.5
        tone_N = noise(np.floor(along_N) * 5.3 + key, row_N * 2.1) - 0.5
        color_N3 += (tone_N * 34 * np.clip(16 / z_N, 0, 1))[:, None]
        mortar_N = ((y_N % 0.078 < 0.013) | (along_N % 1 < 0.06)) & (z_N < 14)
        color_N3 = np.where(mortar_N[:, None], color_N3 * 0.8 + 34, color_N3)
    streaks_N = noise.rough(s_N * 2.2, y_N * 0.25 + key, 3) - 0.5
    color_N3 -= (np.clip(1.2 - y_N, 0, 1.2) * 13 + streaks_N * 14)[:, None]
    storey_N, v_N = np.floor(y_N / STOREY_M), y_N % STOREY_M
    column_N, u_N = np.floor(s_N / house.spacing), s_N % house.spacing - house.spacing / 2
    whole_N = (column_N >= 0) & ((column_N + 1) * house.spacing <= house.length)
    upper_N = whole_N & (storey_N >= 1) & ((storey_N + 0.8) * STOREY_M < house.eaves)
    key_N = column_N * 3.1 + storey_N * 7.7 + key
    color_N3 = _windows(canvas, color_N3, upper_N, (u_N, v_N - 0.85, key_N), house.window)
    if house.shop is not None:
        return _shop(canvas, house, color_N3, s_N, y_N)
    ground_N = whole_N & (storey_N == 0)
    color_N3 = _windows(
        canvas, color_N3, ground_N & (column_N % 3 != 1), (u_N, v_N - 0.9, key_N), house.window * 1.2
    )
    door_N = ground_N & (column_N % 3 == 1) & (np.abs(u_N) < 0.48) & (v_N < 2.2)
    panel_N = (np.abs(np.abs(u_N) - 0.22) < 0.15) & (v_N % 1.05 > 0.2)
    paint = rgb(mixed((48, 58, 84), (110, 42, 40), key * 0.37 % 1))
    wall_N3: Floats = np.where(door_N[:, None], paint * (1 - 0.18 * panel_N)[:, None], color_N3)
    return wall_N3


def _windows(
    canvas: Canvas,
    color_N3: Floats,
    where_N: npt.NDArray[np.bool_],
    place: tuple[Floats, Floats, Floats],
    width: float,
) -> Floats:
    """Set windows into a wall: two sashes, a sill, and glass that mirrors the other side of the street.

    Args:
        canvas: gives the noise.
        color_N3: of the wall.
        where_N: which pixels belong to the part of the wall that has a window.
        place: metres right of a window's middle, metres above its sill, a number of its own for each window.
        width: of a window.
    """
    (u_N, v_N, key_N), height = place, 1.5
    aside_N = np.abs(u_N)
    within_N = where_N & (aside_N < width / 2) & _between(v_N, 0, height)
    stone_N = (
        where_N
        & (aside_N < width / 2 + 0.1)
        & (_between(v_N, -0.13, 0) | _between(v_N, height, height + 0.16))
    )
    bars_N = (aside_N > width / 2 - 0.08) | (aside_N < 0.03) | (np.abs(v_N - height / 2) < 0.035)
    bars_N |= (v_N < 0.08) | (v_N > height - 0.08)
    lit_N = canvas.noise(key_N * 13.7, np.full_like(key_N, 3.3))
    mirror_N = canvas.noise.rough(u_N * 0.8 + key_N * 3, v_N * 0.7, 3)
    glass_N3 = rgb((42, 50, 58)) + (mirror_N * 62 + np.clip(v_N / height, 0, 1) * 40 * lit_N)[:, None]
    curtain_N = (aside_N > width * (0.16 + 0.3 * lit_N)) & (lit_N > 0.45)
    glass_N3 = np.where(curtain_N[:, None], glass_N3 * 0.5 + 84, glass_N3)
    reveal_N = np.clip((v_N - height + 0.34) / 0.26, 0, 1)[:, None] * 0.5
    color_N3 = np.where(within_N[:, None], glass_N3 * (1 - reveal_N), color_N3)
    color_N3 = np.where((within_N & bars_N)[:, None], TRIM * (0.93 - 0.3 * reveal_N), color_N3)
    set_N3: Floats = np.where(stone_N[:, None], TRIM * 0.86, color_N3)
    return set_N3


def _shop(canvas: Canvas, house: House, color_N3: Floats, s_N: Floats, y_N: Floats) -> Floats:
    """Put a shop on the ground floor: panes with goods behind them, posts, doors, a sign."""
    noise, key, paint = canvas.noise, house.start, rgb(house.shop or (0, 0, 0))
    unit_N = s_N % 6
    shelf_N, board_N = np.floor(s_N * 3.1), np.floor(y_N * 2.3)
    goods_N = noise(shelf_N * 1.7 + key, board_N * 2.9)
    hue_N3 = np.stack([noise(shelf_N + k * 31, board_N + key) for k in range(3)], axis=1) - 0.5
    dim_N = noise.rough(s_N * 2.5 + key, y_N * 2.5) * 44 + np.clip(y_N / STOREY_M, 0, 1) * 26
    glass_N3 = (
        rgb((34, 37, 40)) + dim_N[:, None] + (goods_N > 0.62)[:, None] * (goods_N[:, None] * 52 + hue_N3 * 30)
    )
    below_N = y_N < STOREY_M
    color_N3 = np.where(below_N[:, None], glass_N3, color_N3)
    door_N = _between(unit_N, 2.6, 3.7)
    frame_N = door_N & (y_N < 2.2) & (~_between(unit_N, 2.7, 3.6) | (y_N < 0.3))
    post_N = (s_N % 1.9 < 0.09) | (unit_N < 0.32) | ((y_N < 0.45) & ~door_N)
    color_N3 = np.where((below_N & (post_N | frame_N))[:, None], paint * 0.46 + 16, color_N3)
    sign_N = _between(y_N, STOREY_M - 0.75, STOREY_M - 0.08)
    color_N3 = np.where(sign_N[:, None], paint * 0.92, color_N3)
    letters_N = sign_N & lettering(house.sign, s_N - 1.4, y_N - STOREY_M + 0.66)
    color_N3 = np.where(letters_N[:, None], rgb((226, 222, 208)), color_N3)
    shop_N3: Floats = np.where((np.abs(y_N - STOREY_M) < 0.08)[:, None], TRIM * 0.8, color_N3)
    return shop_N3


def lettering(word: str, s_N: Floats, y_N: Floats, height: float = 0.46) -> npt.NDArray[np.bool_]:
    """Return which points of a sign lie within the letters of a word.

    Args:
        word: the text.
        s_N: metres right of the word's beginning.
        y_N: metres above the letters' foot.
        height: of a line.
    """
    font, rows = ImageFont.load_default(64), 80
    columns = math.ceil(font.getlength(word)) + 1
    page = Image.new("L", (columns, rows))
    ImageDraw.Draw(page).text((0, 0), word, fill=255, font=font)
    column_N = np.floor(s_N / height * rows).astype(np.int64)
    row_N = np.floor((height - y_N) / height * rows).astype(np.int64)
    on_page_N = (column_N >= 0) & (column_N < columns) & (row_N >= 0) & (row_N < rows)
    ink_N = np.asarray(page)[np.clip(row_N, 0, rows - 1), np.clip(column_N, 0, columns - 1)]
    inked_N: npt.NDArray[np.bool_] = on_page_N & (ink_N > 127)
    return inked_N


def paint_far_end(canvas: Canvas, z: float = 145.0, tall: float = 11.5) -> None:
    """Close the street far away with houses and trees in the haze."""
    columns = canvas.columns((-60 / z, 60 / z))
    right_HW, down_HW = canvas.rays(columns)
    x_HW, y_HW, noise = right_HW * z, canvas.eye_m - down_HW * z, canvas.noise
    zero_HW = np.zeros_like(x_HW)
    top_HW = tall * (0.55 + 0.5 * noise(np.floor(x_HW / 9) * 3.3, zero_HW)) + 0.6 * noise.rough(
        x_HW * 0.9, zero_HW, 3
    )
    where_HW = (y_HW > 0) & (y_HW < top_HW)
    x_N, y_N = x_HW[where_HW], y_HW[where_HW]
    z_N = np.full_like(x_N, z)
    house = House(3, 1e6, 50, (128, 112, 98), spacing=3.2, window=1.3)
    color_N3 = facade(canvas, house, x_N + 500, y_N, z_N)
    green_N3 = rgb((74, 84, 62)) + ((noise.rough(x_N * 0.35, y_N * 0.35 + 9, 5) - 0.5) * 60)[:, None]
    wooded_N = noise.rough(x_N * 0.06, np.full_like(x_N, 2), 2) > 0.5
    canvas.put(columns, where_HW, z_N, np.where(wooded_N[:, None], green_N3, color_N3))


class Layer:
    """A part of the picture on which one thing is drawn before it is laid over the rest.

    Args:
        canvas: the picture.
        x: leftmost and rightmost place of the thing.
        top: its height.
        z: its near and far end.
    """

    def __init__(self, canvas: Canvas, x: Span, top: float, z: Span) -> None:
        self.canvas = canvas
        self.z = z[0]
        corners = [canvas.project((a, b, c)) for a in x for b in (0, top) for c in z]
        height, width = canvas.depth_HW.shape
        self.left = min(max(0, math.floor(min(column for column, _ in corners)) - 4), width - 1)
        self.top = min(max(0, math.floor(min(row for _, row in corners)) - 4), height - 1)
        right = max(self.left + 1, min(width, math.ceil(max(column for column, _ in corners)) + 4))
        bottom = max(self.top + 1, min(height, math.ceil(max(row for _, row in corners)) + 4))
        self.image = Image.new("RGBA", (right - self.left, bottom - self.top))
        self.draw = ImageDraw.Draw(self.image)

    def at(self, point: Point) -> Span:
        """Return where a point lies on the layer."""
        column, row = self.canvas.project(point)
        return column - self.left, row - self.top

    def polygon(self, points: Sequence[Point], color: Color) -> None:
        """Fill a polygon in space."""
        self.draw.polygon([self.at(point) for point in points], fill=_fill(color))

    def rectangle(self, x: Span, y: Span, color: Color) -> None:
        """Fill an upright rectangle that faces the camera, at the near end."""
        self.polygon(
            [(a, b, self.z) for a, b in ((x[0], y[0]), (x[1], y[0]), (x[1], y[1]), (x[0], y[1]))], color
        )

    def line(self, points: Sequence[Point], width: float, color: Color) -> None:
        """Draw a line, as thick as its width in metres looks at its first point."""
        thick = max(1, round(width * self.canvas.focal / points[0][2]))
        self.draw.line([self.at(point) for point in points], fill=_fill(color), width=thick, joint="curve")

    def disc(self, x: float, y: float, radius: float, color: Color, *, flat: float = 1.0) -> None:
        """Fill a circle at the near end; ``flat`` = its width as a share of its height."""
        (column, row), size = self.at((x, y, self.z)), radius * self.canvas.focal / self.z
        self.draw.ellipse(
            (column - size * flat, row - size, column + size * flat, row + size), fill=_fill(color)
        )

    def lay(self, *, grain: float, blur: float = 0.6) -> None:
        """Lay the drawing over the picture, with haze, a little noise and soft edges.

        Args:
            grain: noise in grey levels.
            blur: of the edges, in pixels.
        """
        drawn_HW4 = np.asarray(self.image.filter(ImageFilter.GaussianBlur(blur)), np.float32)
        alpha_HW = drawn_HW4[..., 3] / 255
        color_HW3 = np.clip(drawn_HW4[..., :3] / np.maximum(alpha_HW, 1e-3)[..., None], 0, 255)
        height, width = alpha_HW.shape
        rows_HW, columns_HW = np.mgrid[:height, :width].astype(np.float32) * np.float32(0.15)
        color_HW3 += ((self.canvas.noise.rough(columns_HW, rows_HW) - 0.5) * grain * 2)[..., None]
        place = np.s_[self.top : self.top + height, self.left : self.left + width]
        alpha_HW = alpha_HW * (self.canvas.depth_HW[place] > self.z - 0.3)
        below_HW3 = self.canvas.color_HW3[place]
        below_HW3 += (self.canvas.hazed(color_HW3, self.z) - below_HW3) * alpha_HW[..., None]


def _fill(color: Color) -> tuple[int, int, int, int]:
    red, green, blue = (max(0, min(255, round(value))) for value in color)
    return red, green, blue, 255


def darken_ground(canvas: Canvas, x: Span, z: Span, strength: float) -> None:
    """Lay a soft shadow on the ground under a box."""
    slopes = [a / b for a in x for b in z]
    columns = canvas.columns((min(slopes), max(slopes)))
    right_HW, down_HW = canvas.rays(columns)
    where_HW = down_HW > canvas.eye_m / FAR_M
    far_N = canvas.eye_m / down_HW[where_HW]
    dark_N = strength * (np.abs(canvas.depth_HW[:, columns][where_HW] - far_N) < 0.05 * far_N)
    for value_N, (low, high) in ((right_HW[where_HW] * far_N, x), (far_N, z)):
        dark_N = dark_N * np.clip((value_N - low) / 0.22, 0, 1) * np.clip((high - value_N) / 0.22, 0, 1)
    canvas.color_HW3[:, columns][where_HW] *= (1 - dark_N)[:, None]


PROFILE = (
    (0.06, 0.28, 0.78), (0.00, 0.42, 0.84), (0.02, 0.62, 0.86), (0.05, 0.80, 0.86), (0.12, 0.95, 0.83),
    (0.32, 1.22, 0.70), (0.50, 1.38, 0.63), (0.95, 1.46, 0.61), (1.70, 1.47, 0.61), (2.35, 1.42, 0.62),
    (2.75, 1.20, 0.70), (3.10, 0.98, 0.79), (3.60, 0.90, 0.76), (4.00, 0.80, 0.72), (4.18, 0.62, 0.74),
    (4.15, 0.30, 0.74),
)  # fmt: skip
"""A small car from its back bumper over the roof to its front: metres ahead, height, half of its width."""

GLASS_STRIPS = (4, 5, 9, 10)
"""Strips of the profile, each between two points, that are rear window or windscreen."""

CAR_M = 4.2
DARK: Color = (22, 22, 24)


@dataclass(frozen=True)
class Car:
    """A car that stands or drives along the street.

    Args:
        x: of its middle.
        z: of its end that is nearer.
        paint: its colour.
        coming: whether its front is nearer.
        braking: whether its rear lights are bright.
    """

    x: float
    z: float
    paint: Color
    coming: bool = False
    braking: bool = False

    def draw(self, canvas: Canvas) -> None:
        """Draw the car with its shadow."""
        darken_ground(canvas, (self.x - 1.23, self.x + 1.08), (self.z - 0.3, self.z + CAR_M + 0.3), 0.62)
        layer = Layer(canvas, (self.x - 1.1, self.x + 1.1), 1.6, (self.z, self.z + CAR_M))
        self._wheels(layer)
        self._side(layer)
        self._top(layer)
        self._rims(layer)
        if self.coming:
            self._front(layer)
        else:
            self._back(layer)
        layer.lay(grain=4)

    def _faces(self, layer: Layer, corners: Sequence[Point], color: Color) -> None:
        """Fill a polygon; its corners are metres from the back, above the ground, and to the right."""
        ahead = -1 if self.coming else 1
        back = self.z + (CAR_M if self.coming else 0)
        layer.polygon([(self.x + aside, up, back + ahead * along) for along, up, aside in corners], color)

    def _patch(self, layer: Layer, along: float, up: Span, aside: Span, color: Color) -> None:
        corners = ((up[0], aside[0]), (up[0], aside[1]), (up[1], aside[1]), (up[1], aside[0]))
        self._faces(layer, [(along, y, x) for y, x in corners], color)

    def _lit(self, up: float, ahead: float, aside: float) -> Color:
        """Return the paint of a surface that looks this way: the more upwards, the more sky is in it."""
        length = math.sqrt(up * up + ahead * ahead + aside * aside)
        sky = max(0.0, up / length)
        light = 0.36 + 0.5 * sky + 0.16 * abs(ahead) / length
        return mixed(shaded(self.paint, light), (214, 224, 234), 0.08 + 0.34 * sky**2)

    def _top(self, layer: Layer) -> None:
        """Draw back, rear window, roof, windscreen and bonnet as strips, the nearest last."""
        strips = range(len(PROFILE) - 1)
        for strip in strips if self.coming else strips[::-1]:
            (z0, y0, w0), (z1, y1, w1) = PROFILE[strip], PROFILE[strip + 1]
            corners = [(z0, y0, -w0), (z0, y0, w0), (z1, y1, w1), (z1, y1, -w1)]
            self._faces(layer, corners, self._lit(z1 - z0, y1 - y0, 0.05))
            if strip in GLASS_STRIPS:
                self._glass(layer, PROFILE[strip], PROFILE[strip + 1])

    def _glass(self, layer: Layer, start: Point, end: Point) -> None:
        """Draw a pane whose upper part mirrors the sky."""
        for a, b in zip(np.linspace(0, 1, 9)[:-1], np.linspace(0, 1, 9)[1:], strict=True):
            (za, ya, wa), (zb, yb, wb) = (
                np.array(start) + (np.array(end) - start) * share for share in (a, b)
            )
            sky = float(np.clip((ya / 1.46 - 0.62) * 2.4, 0, 1)) ** 1.6
            corners = [(za, ya, -wa * 0.86), (za, ya, wa * 0.86), (zb, yb, wb * 0.86), (zb, yb, -wb * 0.86)]
            self._faces(layer, corners, mixed((22, 27, 32), (118, 132, 146), sky))

    @property
    def _seen_side(self) -> int:
        return -1 if self.x > 0 else 1

    def _side(self, layer: Layer) -> None:
        """Draw the side that is seen: body in strips, windows with posts between them."""
        side, steps = self._seen_side, 14
        for step in range(steps):
            low, high = 0.28 + 0.69 * step / steps, 0.28 + 0.69 * (step + 1) / steps
            back, front = 0.05 + max(0, low - 0.8) * 0.6, 4.17 - max(0, low - 0.6) * 2.6
            wide = side * (0.80 + 0.06 * math.sin(math.pi * (low - 0.28) / 0.9))
            corners = [(back, low, wide), (front, low, wide), (front, high, wide), (back, high, wide)]
            self._faces(layer, corners, self._lit(0.02 + 0.5 * (step / steps - 0.42), 0, 1))
        self._faces(layer, [(z, y, side * w) for z, y, w in PROFILE[4:12]], self._lit(0.25, 0, 1))
        for back, front in ((0.42, 1.02), (1.10, 2.02), (2.10, 2.84)):
            roofs = np.interp(
                (front, back),
                [0.12, 0.32, 0.5, 0.95, 2.35, 2.75, 3.1],
                [0.95, 1.2, 1.34, 1.41, 1.37, 1.17, 0.97],
            )
            top = [(front, float(roofs[0]), side * 0.64), (back, float(roofs[1]), side * 0.64)]
            self._faces(layer, [(back, 0.99, side * 0.82), (front, 0.99, side * 0.82), *top], (34, 40, 46))
            if min(roofs) > 1.2:
                self._faces(
                    layer, [(back, 1.16, side * 0.74), (front, 1.16, side * 0.74), *top], (74, 84, 94)
                )

    def _wheels(self, layer: Layer) -> None:
        """Draw the tyres inside the arches, the treads that are seen from the end, and the dark below."""
        for middle in (0.78, 3.38):
            for aside in (0.62, 0.80):
                self._faces(layer, _circle(middle, 0.31, self._seen_side * aside), (17, 17, 18))
        for aside in (-0.66, 0.66):
            self._patch(
                layer, 3.7 if self.coming else 0.46, (0.02, 0.5), (aside - 0.1, aside + 0.1), (16, 16, 17)
            )
        self._patch(layer, 0.3, (0.2, 0.4), (-0.7, 0.7), (10, 10, 11))

    def _rims(self, layer: Layer) -> None:
        for middle in (0.78, 3.38):
            for radius, grey in ((0.33, 13), (0.2, 143), (0.16, 95), (0.06, 152)):
                self._faces(
                    layer, _circle(middle, radius, self._seen_side * 0.865), (grey - 2, grey, grey + 3)
                )

    def _back(self, layer: Layer) -> None:
        red = (235, 64, 48) if self.braking else (138, 26, 28)
        for side in (-1, 1):
            outline = ((0.04, 0.72, 0.84), (0.04, 0.72, 0.62), (0.09, 0.94, 0.66), (0.09, 0.94, 0.83))
            self._faces(layer, [(z, y, side * w) for z, y, w in outline], red)
            self._patch(layer, 0.04, (0.72, 0.77), (side * 0.66, side * 0.84), (214, 170, 120))
        self._patch(layer, 0.0, (0.58, 0.69), (-0.26, 0.26), (226, 194, 70))
        self._patch(layer, 0.0, (0.36, 0.44), (-0.8, 0.8), shaded(self.paint, 0.3))
        self._patch(layer, 0.03, (0.28, 0.35), (-0.74, 0.74), DARK)

    def _front(self, layer: Layer) -> None:
        for side in (-1, 1):
            outline = ((4.12, 0.62, 0.72), (4.17, 0.62, 0.46), (4.1, 0.76, 0.46), (3.98, 0.78, 0.71))
            self._faces(layer, [(z, y, side * w) for z, y, w in outline], (206, 213, 218))
            layer.disc(self.x + side * 0.6, 0.69, 0.055, (248, 248, 240))
        self._patch(layer, 4.19, (0.60, 0.72), (-0.4, 0.4), DARK)
        self._patch(layer, 4.19, (0.44, 0.54), (-0.26, 0.26), (226, 228, 226))
        self._patch(layer, 4.19, (0.30, 0.42), (-0.62, 0.62), DARK)


def _circle(along: float, radius: float, aside: float) -> list[Point]:
    """Return points of a wheel of a car that stands on the ground."""
    turns = np.linspace(0, 2 * math.pi, 24)
    return [(along + radius * math.cos(turn), 0.31 + radius * math.sin(turn), aside) for turn in turns]


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

    def draw(self, canvas: Canvas) -> None:
        """Draw trunk, branches and thousands of leaves, the lit ones last."""
        random = np.random.default_rng(round(self.x * 31 + self.z * 17) % 2**31)
        darken_ground(canvas, (self.x - self.crown, self.x + self.crown), (self.z - 1.2, self.z + 2.4), 0.3)
        reach = self.crown * 1.3
        layer = Layer(canvas, (self.x - reach, self.x + reach), self.height * 1.05, (self.z, self.z))
        if self.trunk:
            length = self.trunk * 0.85 + (self.height - self.trunk) * 0.12
            self._branch(layer, random, (self.x, 0.0), (math.pi / 2, length, 0.02 * self.height), 6)
        self._leaves(layer, random)
        layer.lay(grain=9, blur=0.7)

    def _branch(
        self, layer: Layer, random: np.random.Generator, start: Span, shape: Point, forks: int
    ) -> None:
        """Draw a branch and, so many times over, the two that it splits into."""
        angle, length, width = shape
        end = start[0] + length * math.cos(angle), start[1] + length * math.sin(angle)
        bark = mixed((64, 56, 48), (92, 84, 74), random.random() * 0.6)
        layer.line([(*start, self.z), (*end, self.z)], width, bark)
        if forks:
            for side in (-1, 1):
                thinner = (
                    angle + side * random.uniform(0.15, 0.6),
                    length * random.uniform(0.5, 0.72),
                    width * 0.66,
                )
                self._branch(layer, random, end, thinner, forks - 1)

    def _leaves(
        self, layer: Layer, random: np.random.Generator, count: int = 15_000, clumps: int = 40
    ) -> None:
        """Scatter leaves over clumps; those above and towards the sun are lighter."""
        middle, reach = (
            np.array((self.x, (self.height + self.trunk) / 2)),
            np.array((self.crown, (self.height - self.trunk) / 2)),
        )
        places = middle + reach * 0.78 * random.uniform(-1, 1, (clumps, 2)) * np.sqrt(
            random.random((clumps, 1))
        )
        which = random.integers(0, clumps, count)
        angle, radius = random.uniform(0, 2 * math.pi, count), np.sqrt(random.random(count))
        offsets = np.stack([np.cos(angle), np.sin(angle)], axis=1) * radius[:, None]
        leaves = places[which] + offsets * (random.uniform(0.2, 0.42, clumps) * reach.min())[which, None]
        sunny = offsets @ (-0.22, 0.42) + (leaves - middle) / reach @ (-0.15, 0.3)
        light = 0.48 + 0.5 * sunny + random.normal(0, 0.2, count)
        order = np.argsort(light + random.normal(0, 0.18, count))
        sizes = random.uniform(0.025, 0.07, count) * (0.6 + 0.05 * self.height)
        for x, y, bright, size in np.column_stack([leaves, light, sizes])[order].tolist():
            layer.disc(
                x,
                y,
                size,
                mixed((30, 36, 24), self.leaves, max(0.12, bright) * 1.05),
                flat=random.uniform(0.6, 1.5),
            )


SKIN: Color = (172, 134, 112)
HAIR: Color = (52, 42, 36)


@dataclass(frozen=True)
class Person:
    """Somebody on foot, or on a bicycle that is seen from behind.

    Args:
        x: where.
        z: where.
        coat: colour.
        legs: colour of the trousers.
        facing: ``left``, ``right``, ``here`` or ``away``.
        bicycle: whether the person sits on one.
    """

    x: float
    z: float
    coat: Color = (52, 56, 70)
    legs: Color = (36, 38, 48)
    facing: str = "away"
    bicycle: bool = False

    tall = 1.74

    def draw(self, canvas: Canvas) -> None:
        """Draw the shadow, legs, arms, coat and head; heights are shares of the person's."""
        darken_ground(canvas, (self.x - 0.4, self.x + 0.4), (self.z - 0.3, self.z + 0.35), 0.5)
        layer = Layer(canvas, (self.x - 0.8, self.x + 0.8), self.tall + 0.35, (self.z, self.z))
        if self.bicycle:
            layer.disc(self.x, 0.34, 0.34, DARK, flat=0.14)
            layer.line([(self.x, 0.34, self.z), (self.x, 0.95, self.z)], 0.05, (120, 40, 36))
            layer.line([(self.x - 0.28, 1.08, self.z), (self.x + 0.28, 1.08, self.z)], 0.04, (30, 30, 32))
            layer.disc(self.x, 0.78, 0.045, (190, 40, 36))
        if self.facing in {"left", "right"}:
            self._walking(layer, 1 if self.facing == "right" else -1)
        else:
            self._upright(layer)
        layer.lay(grain=6, blur=0.8)

    def _upright(self, layer: Layer) -> None:
        """Draw somebody from behind or from the front."""
        for side, light, raised in ((1, 0.7, 0.0), (-1, 1.0, 0.04)):
            foot = 0.03 + raised
            leg = ((side * 0.08, 0.50), (side * 0.11, 0.27 + raised / 2), (side * 0.10, foot))
            self._limb(layer, leg, (0.10, 0.08, 0.055), shaded(self.legs, light))
            self._limb(layer, ((side * 0.11, foot - 0.01), (side * 0.15, foot - 0.015)), (0.05, 0.045), DARK)
            arm = ((side * 0.2, 0.79), (side * 0.26, 0.63), (side * 0.24, 0.49))
            self._limb(layer, arm, (0.06, 0.05, 0.042), shaded(self.coat, light * 0.96))
            self._limb(layer, ((side * 0.24, 0.475), (side * 0.235, 0.455)), (0.036, 0.036), SKIN)
        for aside in np.linspace(-0.86, 0.86, 7).tolist():  # the coat, lighter towards the sun
            part = ((aside * 0.16, 0.805 - 0.02 * abs(aside)), (aside * 0.13, 0.62), (aside * 0.15, 0.46))
            self._limb(layer, part, (0.045, 0.045, 0.045), shaded(self.coat, 0.8 - 0.15 * aside))
        here = self.facing == "here"
        self._head(layer, 0.0, SKIN if here else HAIR, (0.0, 0.055) if here else (0.0, 0.0))

    def _walking(self, layer: Layer, turn: int) -> None:
        """Draw somebody who walks across: one leg ahead, and the other arm."""
        for ahead, light in ((-1, 0.66), (1, 1.0)):
            foot, up = 0.30 * ahead * turn - 0.02 * turn, 0.03 if ahead > 0 else 0.065
            leg = ((0.02 * turn, 0.50), (0.14 * ahead * turn + 0.05 * turn, 0.275), (foot, up))
            self._limb(layer, leg, (0.11, 0.075, 0.05), shaded(self.legs, light))
            self._limb(layer, ((foot, up - 0.006), (foot + 0.14 * turn, up - 0.012)), (0.045, 0.035), DARK)
        far_arm = ((0.0, 0.78), (0.16 * turn, 0.63), (0.3 * turn, 0.54))
        self._limb(layer, far_arm, (0.055, 0.048, 0.04), shaded(self.coat, 0.6))
        for aside in np.linspace(-0.8, 0.8, 5).tolist():
            part = ((aside * 0.085 + 0.02 * turn, 0.805), (aside * 0.10, 0.64), (aside * 0.12, 0.45))
            self._limb(layer, part, (0.04, 0.045, 0.045), shaded(self.coat, 0.8 - 0.12 * aside))
        near_arm = ((0.0, 0.78), (-0.1 * turn, 0.63), (-0.2 * turn, 0.50))
        self._limb(layer, near_arm, (0.055, 0.05, 0.042), shaded(self.coat, 0.74))
        self._limb(layer, ((-0.21 * turn, 0.485), (-0.22 * turn, 0.465)), (0.036, 0.034), SKIN)
        self._head(layer, 0.04 * turn, SKIN, (-0.035 * turn, 0.03))

    def _head(self, layer: Layer, aside: float, color: Color, hair: Span) -> None:
        self._limb(layer, ((aside * 0.6, 0.83), (aside * 0.8, 0.87)), (0.055, 0.05), shaded(SKIN, 0.85))
        lift = 0.16 if self.bicycle else 0.0
        layer.disc(self.x + aside, 0.935 * self.tall + lift, 0.118, color, flat=0.8)
        layer.disc(self.x + aside + hair[0], 0.935 * self.tall + lift + hair[1], 0.098, HAIR, flat=0.95)

    def _limb(self, layer: Layer, joints: Sequence[Span], radii: Sequence[float], color: Color) -> None:
        """Draw a chain of rounded pieces; joints are metres aside and shares of the height."""
        lift = 0.16 if self.bicycle else 0.0
        places = [(self.x + x, y * self.tall + lift) for x, y in joints]
        for (x, y), radius in zip(places, radii, strict=True):
            layer.disc(x, y, radius, color)
        for a, b, wide_a, wide_b in zip(places, places[1:], radii, radii[1:], strict=False):
            length = math.dist(a, b) or 1.0
            x, y = -(b[1] - a[1]) / length, (b[0] - a[0]) / length  # across the piece
            corners = ((a, wide_a), (b, wide_b), (b, -wide_b), (a, -wide_a))
            layer.polygon([(end[0] + x * wide, end[1] + y * wide, self.z) for end, wide in corners], color)


@dataclass(frozen=True)
class Pole:
    """A lamp post, a sign or a traffic light.

    Args:
        x: where.
        z: where.
        height: in metres.
        carries: ``lamp``, ``sign`` or ``light``.
        arm: how far a lamp reaches to the right.
    """

    x: float
    z: float
    height: float = 7.5
    carries: str = "lamp"
    arm: float = 1.4

    def draw(self, canvas: Canvas) -> None:
        """Draw the pole and what it carries."""
        reach = abs(self.arm) + 0.8
        layer = Layer(canvas, (self.x - reach, self.x + reach), self.height + 0.6, (self.z, self.z))
        wide = 0.15 if self.carries == "lamp" else 0.11
        for offset, share, color in (
            (0.0, 1.0, (84, 88, 90)),
            (-0.25, 0.35, (118, 122, 124)),
            (0.3, 0.35, (58, 61, 63)),
        ):
            x = self.x + offset * wide
            layer.line([(x, 0, self.z), (x, self.height, self.z)], wide * share, color)
        {"lamp": self._lamp, "sign": self._sign, "light": self._light}[self.carries](layer)
        layer.lay(grain=3, blur=0.5)

    def _lamp(self, layer: Layer) -> None:
        tip, up = self.x + self.arm, self.height
        bend = [(self.x, up), (self.x + self.arm * 0.4, up + 0.32), (tip, up + 0.36)]
        layer.line([(x, y, self.z) for x, y in bend], 0.08, (88, 92, 94))
        layer.rectangle((tip - 0.1, tip + 0.5), (up + 0.29, up + 0.42), (150, 152, 150))

    def _sign(self, layer: Layer) -> None:
        middle = self.height - 0.38
        for radius, color in ((0.36, (150, 152, 152)), (0.345, (196, 34, 38)), (0.25, (236, 236, 232))):
            layer.disc(self.x, middle, radius, color)
        layer.rectangle((self.x - 0.14, self.x - 0.05), (middle - 0.12, middle + 0.13), DARK)
        layer.disc(self.x + 0.08, middle, 0.12, DARK, flat=0.65)
        layer.disc(self.x + 0.08, middle, 0.06, (236, 236, 232), flat=0.55)

    def _light(self, layer: Layer) -> None:
        layer.rectangle(
            (self.x - 0.26, self.x + 0.26), (self.height - 1.05, self.height + 0.12), (20, 21, 22)
        )
        layer.rectangle(
            (self.x - 0.17, self.x + 0.17), (self.height - 0.98, self.height + 0.05), (34, 36, 37)
        )
        for row, color in enumerate(((240, 58, 44), (70, 52, 20), (22, 58, 40))):
            layer.disc(self.x, self.height - 0.14 - 0.33 * row, 0.125, color)
        layer.disc(self.x, self.height - 0.14, 0.06, (255, 150, 120))


@dataclass(frozen=True)
class Fence:
    """A fence of bars along the street.

    Args:
        x: where.
        z: of its near end.
        end: z of its far end.
    """

    x: float
    z: float
    end: float

    tall = 1.1

    def draw(self, canvas: Canvas) -> None:
        """Draw bars, posts and rails, the farthest first."""
        layer = Layer(canvas, (self.x - 0.1, self.x + 0.1), self.tall + 0.1, (self.z, self.end))
        for step, low, high, wide in ((0.14, 0.1, self.tall, 0.03), (2.0, 0, self.tall + 0.06, 0.08)):
            for z in np.arange(self.end, self.z, -step).tolist():
                layer.line([(self.x, low, z), (self.x, high, z)], wide, (52, 54, 56))
        for y in (0.15, self.tall):
            for z in np.arange(self.end - 0.5, self.z, -0.5).tolist():
                layer.line([(self.x, y, z), (self.x, y, z + 0.5)], 0.05, (62, 64, 66))
        layer.lay(grain=2, blur=0.4)


Thing = Car | Tree | Person | Pole | Fence


@dataclass(frozen=True)
class Scene:
    """A street, the houses beside it and the things on it."""

    street: Street
    left: Sequence[House]
    right: Sequence[House]
    things: Sequence[Thing]
    seed: int


def render(scene: Scene) -> Image.Image:
    """Return the picture of a scene."""
    canvas = Canvas(scene.street, scene.seed)
    paint_sky(canvas)
    paint_far_end(canvas)
    left, right = scene.street.walls
    for houses, wall, light in ((scene.left, left, 1.08), (scene.right, right, 0.74)):
        for house in houses:
            paint_house(canvas, house, wall, light)
    paint_ground(canvas)
    for thing in sorted(scene.things, key=lambda one: one.z, reverse=True):
        thing.draw(canvas)
    return photograph(canvas)


def photograph(canvas: Canvas) -> Image.Image:
    """Reduce the picture and add what a lens and a sensor add."""
    large = Image.fromarray(np.clip(canvas.color_HW3, 0, 255).astype(np.uint8))
    small_HW3 = np.asarray(large.resize((WIDTH, HEIGHT), Image.Resampling.BOX), np.float32)
    rows_HW, columns_HW = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)
    rim_HW = (columns_HW / WIDTH - 0.5) ** 2 + (rows_HW / HEIGHT - 0.5) ** 2
    toned_HW3 = 255 * np.clip(small_HW3 / 255 * (1.05 - 0.16 * rim_HW)[..., None], 0, 1) ** 1.03
    bright = Image.fromarray(np.clip(toned_HW3 - 190, 0, 255).astype(np.uint8))
    glow_HW3 = np.asarray(bright.filter(ImageFilter.GaussianBlur(9)), np.float32)
    noise_HW3 = (
        canvas.random.normal(0, 2.6, toned_HW3.shape) + canvas.random.normal(0, 1.2, rim_HW.shape)[..., None]
    )
    exposed_HW3 = np.clip(toned_HW3 + glow_HW3 * 0.22 + noise_HW3, 0, 255).astype(np.uint8)
    return Image.fromarray(exposed_HW3).filter(ImageFilter.GaussianBlur(0.55))


def terrace(
    first: House, walls: Sequence[Color], count: int, *, shops: Sequence[Color | None], sign: int
) -> list[House]:
    """Return a row of houses like the first one, each with a wall, a shop and a height of its own."""
    return [
        replace(
            first,
            start=first.start + (first.length + 0.2) * k,
            eaves=first.eaves + 1.2 * (k * 7 % 3),
            wall=walls[k % len(walls)],
            shop=shops[k % len(shops)],
            sign=SHOPS[(sign + k) % len(SHOPS)],
            bricks=k % 4 != 1,
        )
        for k in range(count)
    ]


def high_street() -> Scene:
    """Return a street of shops with parked cars, people and lamp posts."""
    walls = ((150, 112, 84), (196, 186, 168), (128, 84, 68), (164, 140, 110))
    shops = ((48, 72, 62), (130, 34, 36), (36, 50, 92), (168, 128, 44))
    parked = ((21.5, (92, 98, 96)), (27.5, (30, 32, 36)), (33.5, (176, 178, 180)), (40.0, (62, 84, 74)))
    return Scene(
        street=Street(),
        left=terrace(House(2.0, 9.4, 8.4, walls[0]), walls, 16, shops=shops, sign=2),
        right=terrace(House(1.0, 10.6, 9.2, walls[0], 2.7), walls[::-1], 16, shops=shops[::-1], sign=5),
        things=[
            Car(0.1, 15.5, (52, 66, 104), braking=True),
            Car(0.2, 31.0, (170, 172, 174)),
            Car(3.5, 24.0, (140, 34, 34), coming=True),
            Car(3.6, 52.0, (186, 188, 190), coming=True),
            *(Car(-1.75, z, paint) for z, paint in parked),
            *(Pole(-2.8, z, arm=1.6) for z in (19.0, 44.0, 69.0)),
            *(Pole(6.0, z, arm=-1.6) for z in (31.0, 57.0)),
            Pole(6.1, 12.5, 2.7, "sign"),
            Person(-3.9, 9.5, (70, 44, 46)),
            Person(-4.3, 14.0, (54, 60, 78)),
            Person(-3.4, 24.0, (104, 98, 84), facing="here"),
            Person(7.3, 11.5, (48, 58, 52), facing="here"),
            Person(7.0, 19.0, (130, 60, 52)),
            Person(7.8, 27.0, (44, 46, 60)),
        ],
        seed=11,
    )


def avenue() -> Scene:
    """Return a residential street with trees."""
    walls = ((156, 104, 80), (188, 168, 140), (140, 92, 72), (202, 194, 180))
    first = House(3, 9.6, 6.2, walls[0], spacing=3.1, window=1.3, roof=3.4)
    bush = Tree(0, 0, 1.6, 1.5, 0, (86, 104, 58))
    parked = ((11.0, (168, 172, 176)), (17.5, (44, 60, 96)), (24.0, (100, 30, 30)), (31.0, (38, 40, 44)))
    return Scene(
        street=Street((-2.6, 5.4), (-9.5, 12.0), centre=1.5, shadow=9.0, clouds=0.35),
        left=terrace(first, walls, 12, shops=(None,), sign=0),
        right=terrace(replace(first, start=6), walls[::-1], 12, shops=(None,), sign=0),
        things=[
            *(Tree(-4.6, z, 8.6 + z % 3, 3.0, 2.7) for z in (16.0, 28.0, 41.0, 56.0, 74.0)),
            *(Tree(7.4, z, 9.0 + z % 4, 3.2, 2.8, (106, 116, 78)) for z in (13.0, 24.5, 37.0, 50.0, 66.0)),
            *(replace(bush, x=-6.6, z=z) for z in (9.0, 11.5, 14.0, 19.0, 22.0)),
            *(replace(bush, x=9.4, z=z) for z in (14.0, 17.0, 21.0, 27.0)),
            *(Car(-1.8, z, paint) for z, paint in parked),
            Car(4.5, 16.0, (72, 78, 80), coming=True),
            Car(4.5, 29.0, (180, 182, 184), coming=True),
            Car(2.9, 40.0, (28, 44, 70), coming=True),
            Pole(-3.1, 13.5, arm=1.5),
            Pole(6.0, 33.0, arm=-1.5),
            Person(-3.9, 12.0, (92, 50, 46), facing="here"),
            Person(6.9, 17.0, (52, 60, 84)),
            Person(0.3, 20.0, (150, 160, 60), (30, 32, 40), bicycle=True),
        ],
        seed=23,
    )


def crossing() -> Scene:
    """Return a wide road with traffic lights, a zebra crossing and people at it."""
    walls = ((176, 160, 134), (142, 98, 76), (190, 182, 168), (128, 92, 74))
    return Scene(
        street=Street((-3.0, 8.0), (-7.0, 12.5), centre=2.6, zebra=11.0, arrow=4.6, shadow=10.0, clouds=0.8),
        left=terrace(
            House(4, 12.6, 10.2, walls[0], 3.0, 1.7, roof=0.0), walls, 8, shops=((56, 66, 84), None), sign=4
        ),
        right=terrace(
            House(4, 11.7, 9.0, walls[0], 2.6, roof=2.4),
            walls[::-1],
            8,
            shops=((40, 66, 58), (110, 40, 42)),
            sign=6,
        ),
        things=[
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
            Tree(-5.4, 46.0, 9.0, 3.0, 2.8),
        ],
        seed=37,
    )


SCENES: Mapping[str, Callable[[], Scene]] = {
    "high-street": high_street,
    "avenue": avenue,
    "crossing": crossing,
}


def main() -> None:
    """Write one scene into a file, or all of them into a folder."""
    parser = argparse.ArgumentParser(description="Draw street scenes.")
    parser.add_argument("out", type=Path, help="a JPEG file, or a folder for all scenes")
    parser.add_argument("--scene", choices=SCENES, default="crossing", help="the scene of the file")
    parser.add_argument("--width", type=int, default=WIDTH, help="pixels across, at most 1280")
    arguments = parser.parse_args()
    if arguments.out.suffix.lower() in {".jpg", ".jpeg"}:
        files = {arguments.out: SCENES[arguments.scene]}
    else:
        files = {arguments.out / f"{name}.jpg": scene for name, scene in SCENES.items()}
    for path, scene in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = render(scene())
        picture.thumbnail((arguments.width, HEIGHT), Image.Resampling.LANCZOS)
        picture.save(path, quality=JPEG_QUALITY, optimize=True)
        print(f"{path}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
