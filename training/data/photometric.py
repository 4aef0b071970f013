"""Photometric changes of a crop, as of another camera: colours, blur, noise, JPEG.

Computed by torch on the device of the crop. No pixel moves, so labels stay valid.

Axes: H height, W width of what a crop shows of its picture, 3 = red green blue, h w = blocks of 8 pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

from training.errors import ConfigError

_MAX_BYTE = 255.0
_BLOCK = 8
_MAX_QUALITY = 100
_MAX_SEED = 2**31 - 1

# ITU-R BT.601, full range: RGB -> Y Cb Cr, as JFIF files hold them.
_TO_YCC = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))
# ITU-T T.81, tables K.1 and K.2: the steps of luma and chroma at quality 50.
_LUMA_STEPS = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
_CHROMA_STEPS = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    *(((99,) * _BLOCK,) * 4),
)


@dataclass(frozen=True)
class PhotometricConfig:
    """Strength of the photometric changes; the defaults change nothing.

    Args:
        share: probability of blur, of noise and of JPEG, each on its own.
        hue: largest rotation about the gray axis in degrees.
        tint: x; the factor of each colour is uniform in [1-x, 1+x]: another white balance.
        gamma: x; the exponent of all colours is log-uniform in [1/x, x], from 1.
        blur: largest standard deviation of a Gaussian blur in pixels.
        noise: largest standard deviation of Gaussian noise, of values 0..255.
        jpeg: lowest quality of a JPEG file, 1..100; 100 = none is written.

    Raises:
        ConfigError: a value is out of range.
    """

    share: float = 0.0
    hue: float = 0.0
    tint: float = 0.0
    gamma: float = 1.0
    blur: float = 0.0
    noise: float = 0.0
    jpeg: int = _MAX_QUALITY

    def __post_init__(self) -> None:
        """Refuse strengths out of range."""
        ranges = {
            "share": 0 <= self.share <= 1,
            "hue": 0 <= self.hue <= 180,  # noqa: PLR2004
            "tint": 0 <= self.tint < 1,
            "gamma": self.gamma >= 1,
            "blur": self.blur >= 0,
            "noise": self.noise >= 0,
            "jpeg": 1 <= self.jpeg <= _MAX_QUALITY,
        }
        wrong = [f"{name} = {getattr(self, name)}" for name, is_good in ranges.items() if not is_good]
        if wrong:
            raise ConfigError(f"augment.photometric is out of range: {', '.join(wrong)}")


@dataclass(frozen=True)
class Look:
    """The photometric changes of one crop, in the order of the fields.

    Attributes:
        hue: rotation about the gray axis in degrees.
        tint: factors of red, green and blue.
        gamma: exponent of all colours.
        blur: standard deviation in pixels; 0 = none.
        noise: standard deviation, of values 0..255; 0 = none.
        noise_seed: of the noise.
        quality: of the JPEG file; 100 = none.
    """

    hue: float = 0.0
    tint: tuple[float, float, float] = (1.0, 1.0, 1.0)
    gamma: float = 1.0
    blur: float = 0.0
    noise: float = 0.0
    noise_seed: int = 0
    quality: int = _MAX_QUALITY


def draw_looks(config: PhotometricConfig, count: int, generator: torch.Generator) -> tuple[Look, ...]:
    """Draw the changes of each crop of a batch: a pure function of the generator's state.

    Draws nothing if the configuration changes nothing.
    """
    if config == PhotometricConfig():
        return (Look(),) * count
    uniform = torch.rand((count, 12), generator=generator, dtype=torch.float64).tolist()
    return tuple(_look(config, *row) for row in uniform)


def _look(config: PhotometricConfig, *uniform: float) -> Look:
    hue, red, green, blue, gamma, *rest = uniform
    blurs, blur, noises, noise, seed, encodes, quality = rest
    return Look(
        hue=config.hue * (2 * hue - 1),
        tint=tuple(1 + config.tint * (2 * u - 1) for u in (red, green, blue)),  # type: ignore[arg-type]  # three
        gamma=config.gamma ** (2 * gamma - 1),
        blur=config.blur * blur if blurs < config.share else 0.0,
        noise=config.noise * noise if noises < config.share else 0.0,
        noise_seed=int(_MAX_SEED * seed),
        quality=round(config.jpeg + (_MAX_QUALITY - config.jpeg) * quality)
        if encodes < config.share
        else _MAX_QUALITY,
    )


def photographed(image_HW3: Tensor, look: Look) -> Tensor:
    """Return a picture with photometric changes.

    Args:
        image_HW3: uint8 RGB, on any device; it is not changed.
        look: the changes.

    Returns:
        image_HW3, uint8.
    """
    colors_3HW = _graded(image_HW3.permute(2, 0, 1).float(), look)
    if look.blur:
        colors_3HW = _blurred(colors_3HW, look.blur)
    if look.noise:
        colors_3HW = colors_3HW + look.noise * _noise(colors_3HW, look.noise_seed)
    colors_3HW = colors_3HW.clamp(0, _MAX_BYTE)
    if look.quality < _MAX_QUALITY:
        colors_3HW = _encoded(colors_3HW, look.quality).clamp(0, _MAX_BYTE)
    return colors_3HW.round().to(torch.uint8).permute(1, 2, 0)


def _graded(colors_3HW: Tensor, look: Look) -> Tensor:
    if look.hue or look.tint != (1.0, 1.0, 1.0):
        matrix_33 = torch.tensor(look.tint)[:, None] * _hue_rotation(look.hue)
        colors_3HW = torch.einsum("ij,jhw->ihw", matrix_33.to(colors_3HW.device), colors_3HW)
        colors_3HW = colors_3HW.clamp(0, _MAX_BYTE)
    if look.gamma != 1:
        colors_3HW = _MAX_BYTE * (colors_3HW / _MAX_BYTE) ** look.gamma
    return colors_3HW


def _hue_rotation(degrees: float) -> Tensor:
    """Return the rotation of RGB by an angle about the gray axis (Rodrigues' formula)."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    gray, side = (1 - cos) / 3, sin / math.sqrt(3)
    skew_33 = torch.tensor([[0.0, -side, side], [side, 0.0, -side], [-side, side, 0.0]])
    return cos * torch.eye(3) + gray + skew_33


def _blurred(colors_3HW: Tensor, sigma: float) -> Tensor:
    """Convolve with a Gaussian along both axes, borders repeated."""
    radius = math.ceil(3 * sigma)
    taps = torch.exp(-0.5 * (torch.arange(-radius, radius + 1, device=colors_3HW.device) / sigma) ** 2)
    taps = taps / taps.sum()
    padded = functional.pad(colors_3HW[:, None], (radius,) * 4, mode="replicate")
    return functional.conv2d(functional.conv2d(padded, taps[None, None, None]), taps[None, None, :, None])[
        :, 0
    ]


def _noise(like: Tensor, seed: int) -> Tensor:
    generator = torch.Generator(like.device).manual_seed(seed)
    return torch.randn(like.shape, generator=generator, device=like.device)


def _encoded(colors_3HW: Tensor, quality: int) -> Tensor:
    """Apply the loss of a baseline JPEG file of this quality, with chroma at half the size (4:2:0)."""
    height, width = colors_3HW.shape[1:]
    to_ycc_33 = torch.tensor(_TO_YCC, device=colors_3HW.device)
    ycc_3HW = torch.einsum("ij,jhw->ihw", to_ycc_33, colors_3HW)
    luma_1HW = _quantised(ycc_3HW[:1] - 128, _steps(_LUMA_STEPS, quality)) + 128
    # The last row and column are repeated to an even size: two become one.
    chroma_2HW = functional.pad(ycc_3HW[None, 1:], (0, width % 2, 0, height % 2), mode="replicate")
    chroma_2hw = _quantised(functional.avg_pool2d(chroma_2HW, 2)[0], _steps(_CHROMA_STEPS, quality))
    chroma_2HW = functional.interpolate(chroma_2hw[None], scale_factor=2, mode="bilinear")[0]
    decoded_3HW = torch.cat([luma_1HW, chroma_2HW[:, :height, :width]])
    return torch.einsum("ij,jhw->ihw", torch.linalg.inv(to_ycc_33), decoded_3HW)


def _steps(at_50: tuple[tuple[int, ...], ...], quality: int) -> Tensor:
    """Scale a table of steps as the Independent JPEG Group's library does."""
    percent = 5000 / quality if quality < 50 else 200 - 2 * quality  # noqa: PLR2004
    return ((torch.tensor(at_50) * percent + 50) / 100).floor().clamp(1, _MAX_BYTE)


def _quantised(planes_CHW: Tensor, steps_88: Tensor) -> Tensor:
    """Round the cosine coefficients of each block of 8x8 pixels to multiples of their steps."""
    channels, height, width = planes_CHW.shape
    padded = functional.pad(planes_CHW[None], (0, -width % _BLOCK, 0, -height % _BLOCK), mode="replicate")[0]
    blocks = padded.view(channels, -1, _BLOCK, padded.shape[2] // _BLOCK, _BLOCK).transpose(2, 3)
    cosines_88 = _cosines().to(planes_CHW.device)
    steps_88 = steps_88.to(planes_CHW.device)
    kept = (cosines_88 @ blocks @ cosines_88.T / steps_88).round() * steps_88
    return (cosines_88.T @ kept @ cosines_88).transpose(2, 3).reshape(padded.shape)[:, :height, :width]


@cache
def _cosines() -> Tensor:
    """Return the orthonormal DCT-II of 8 values as a matrix."""
    k = torch.arange(_BLOCK, dtype=torch.float64)
    matrix = torch.cos(math.pi / _BLOCK * (k[None] + 0.5) * k[:, None]) * math.sqrt(2 / _BLOCK)
    matrix[0] /= math.sqrt(2)
    return matrix.float()
