"""Random zoom, crop, flip and colour of a whole batch, as one affine sampling and one colour matrix.

Axes: N images in a batch, H height, W width, C channels, 3 = red green blue (values 0..255).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from training.errors import ConfigError

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as every colour jitter of the field uses it
_MAX_VALUE = 255.0


@dataclass(frozen=True)
class AugmentConfig:
    """How a training crop is drawn from its picture.

    Args:
        crop: height and width of a crop in pixels, multiples of 32.
        scale: smallest and largest zoom; drawn log-uniformly, so that halving is as likely as doubling.
        flip: probability of a horizontal mirror image.
        jitter: x; brightness, contrast and saturation factors are each uniform in [1-x, 1+x].

    Raises:
        ConfigError: a value is out of range.
    """

    crop: tuple[int, int]
    scale: tuple[float, float]
    flip: float
    jitter: float

    def __post_init__(self) -> None:
        """Refuse crops that the network would pad, and factors that mean nothing."""
        if any(side < 32 or side % 32 for side in self.crop):  # noqa: PLR2004
            raise ConfigError(f"augment.crop must be multiples of 32, not {self.crop}")
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ConfigError(f"augment.scale must be 0 < smallest <= largest, not {self.scale}")
        if not 0 <= self.flip <= 1 or not 0 <= self.jitter < 1:
            raise ConfigError(f"augment.flip is 0..1 and augment.jitter 0..<1: {self.flip}, {self.jitter}")


@dataclass(frozen=True, eq=False)
class AugmentPlan:
    """The random part of a batch: what to do with each of its N pictures.

    Attributes:
        zoom_N: crop pixels per picture pixel.
        center_N2: x, y in [0, 1]: where the crop lies between its two extreme positions.
        flip_N: bool.
        brightness_N, contrast_N, saturation_N: colour factors.
    """

    zoom_N: Tensor
    center_N2: Tensor
    flip_N: Tensor
    brightness_N: Tensor
    contrast_N: Tensor
    saturation_N: Tensor


def draw_plan(config: AugmentConfig, batch_size: int, generator: torch.Generator) -> AugmentPlan:
    """Draw everything that is random about a batch: a pure function of the generator's state."""
    low, high = (math.log(value) for value in config.scale)
    uniform = torch.rand((7, batch_size), generator=generator)
    factors = 1 + config.jitter * (2 * uniform[4:] - 1)
    return AugmentPlan(
        zoom_N=torch.exp(low + (high - low) * uniform[0]),
        center_N2=uniform[1:3].T,
        flip_N=uniform[3] < config.flip,
        brightness_N=factors[0],
        contrast_N=factors[1],
        saturation_N=factors[2],
    )


def augment(
    images: Sequence[Tensor],
    labels: Sequence[Tensor],
    plan: AugmentPlan,
    *,
    crop: tuple[int, int],
    pad_color: tuple[int, int, int],
    ignore_id: int,
) -> tuple[Tensor, Tensor]:
    """Cut one crop out of each picture as the plan says.

    Colours are sampled bilinearly, labels by the nearest pixel. What lies outside the picture has exactly the
    colour that the network pads with, and the ignore id; it is not jittered.

    Args:
        images: N pictures, each (3, H, W) uint8 RGB, of any sizes, on one device.
        labels: their class ids, each (H, W) uint8.
        plan: what ``draw_plan`` drew for N pictures.
        crop: height and width of the crops.
        pad_color: RGB 0..255.
        ignore_id: the id of pixels without a class.

    Returns:
        images_NHW3: float32 RGB 0..255.
        labels_NHW: uint8.
    """
    device = images[0].device
    content_NC = _canvas(images, labels, pad_color, ignore_id)
    sizes_N2 = torch.tensor([image.shape[1:] for image in images], dtype=torch.float32)
    theta_N23 = _affine(plan, sizes_N2, content_NC.shape[2:], crop).to(device)
    grid_NHW2 = functional.affine_grid(theta_N23, [len(images), 1, *crop], align_corners=False)
    sampled = functional.grid_sample(content_NC[:, :4], grid_NHW2, mode="bilinear", align_corners=False)
    nearest = functional.grid_sample(content_NC[:, 4:], grid_NHW2, mode="nearest", align_corners=False)
    colors = _jittered(sampled, plan, torch.tensor(pad_color, dtype=torch.float32), device)
    return colors, (nearest[:, 0] + ignore_id).to(torch.uint8)


def _canvas(
    images: Sequence[Tensor], labels: Sequence[Tensor], pad_color: tuple[int, int, int], ignore_id: int
) -> Tensor:
    """Lay all pictures on one canvas, as differences from the padding, so that 0 means "outside".

    Returns:
        (N, 5, H, W) float32: red, green, blue minus ``pad_color``; 1 inside; label minus ``ignore_id``.
    """
    height = max(image.shape[1] for image in images)
    width = max(image.shape[2] for image in images)
    canvas = torch.zeros((len(images), 5, height, width), device=images[0].device)
    pad = torch.tensor(pad_color, dtype=torch.float32, device=canvas.device)[:, None, None]
    for place, image, label in zip(canvas, images, labels, strict=True):
        rows, columns = label.shape
        torch.sub(image, pad, out=place[:3, :rows, :columns])
        place[3, :rows, :columns] = 1
        place[4, :rows, :columns].copy_(label).sub_(ignore_id)
    return canvas


def _affine(plan: AugmentPlan, sizes_N2: Tensor, canvas: Sequence[int], crop: tuple[int, int]) -> Tensor:
    """Map crop coordinates to canvas coordinates, both in [-1, 1], as ``affine_grid`` wants them."""
    canvas_xy = torch.tensor([canvas[1], canvas[0]], dtype=torch.float32)
    picture_N2 = sizes_N2.flip(1)
    window_N2 = torch.tensor([crop[1], crop[0]], dtype=torch.float32) / plan.zoom_N[:, None]
    # A window smaller than the picture slides inside it; a larger one slides so that it holds the picture.
    center_N2 = window_N2 / 2 + (picture_N2 - window_N2) * plan.center_N2
    theta_N23 = torch.zeros((len(sizes_N2), 2, 3))
    theta_N23[:, 0, 0] = window_N2[:, 0] / canvas_xy[0] * torch.where(plan.flip_N, -1.0, 1.0)
    theta_N23[:, 1, 1] = window_N2[:, 1] / canvas_xy[1]
    theta_N23[:, :, 2] = 2 * center_N2 / canvas_xy - 1
    return theta_N23


def _jittered(sampled_N4HW: Tensor, plan: AugmentPlan, pad: Tensor, device: torch.device) -> Tensor:
    """Apply brightness, contrast and saturation at once: each is linear, so one 3x4 matrix holds all three.

    With d = colour - pad (0 outside) and a = share of the pixel that lies inside, the result is
    ``M d + a (M pad + offset - pad) + pad``: jittered inside, exactly the padding outside.
    """
    matrix_N33, offset_N3 = _color_matrix(plan, pad)
    constant_N3 = matrix_N33 @ pad + offset_N3 - pad
    matrix_N34 = torch.cat([matrix_N33, constant_N3[:, :, None]], dim=2).to(device)
    count, _, height, width = sampled_N4HW.shape
    flat_NP3 = torch.bmm(sampled_N4HW.reshape(count, 4, -1).transpose(1, 2), matrix_N34.transpose(1, 2))
    return flat_NP3.add_(pad.to(device)).clamp_(0, _MAX_VALUE).reshape(count, height, width, 3)


def _color_matrix(plan: AugmentPlan, pad: Tensor) -> tuple[Tensor, Tensor]:
    """Return matrices (N, 3, 3) and offsets (N, 3): saturation after contrast after brightness.

    Contrast pivots on the gray of the mean colour, which is the same for every picture of a set.
    """
    luma = torch.tensor(_LUMA)
    saturation = plan.saturation_N[:, None, None]
    mix_N33 = saturation * torch.eye(3) + (1 - saturation) * luma.expand(3, 3)
    gain_N = plan.brightness_N * plan.contrast_N
    offset_N = (1 - plan.contrast_N) * (luma @ pad)
    # Saturation leaves gray alone, so it does not change the offset, which is gray.
    return mix_N33 * gain_N[:, None, None], offset_N[:, None].expand(-1, 3)
