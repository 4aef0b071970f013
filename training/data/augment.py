"""Random zoom, crop, flip and colour of a batch. Only the window of each crop is sampled.

A share of the crops shows a pixel of a rare class. Last come the photometric changes.

A CPU cuts crop by crop with one compiled kernel; a GPU samples the whole batch in one gather, directly from
the resident bytes. Both follow the same plan and give the same pixels.

Axes: N crops in a batch, H height, W width, 3 = red green blue (values 0..255).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor

from training.data.photometric import Look, PhotometricConfig, draw_looks, photographed
from training.data.pictures import PackedPictures
from training.errors import ConfigError

ScaleLaw = Literal["log-uniform", "uniform"]
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as every colour jitter of the field uses it
_MAX_VALUE = 255.0


@dataclass(frozen=True)
class RareConfig:
    """Crops around a pixel of a rare class.

    Args:
        share: probability of such a crop, if its picture has such a pixel, 0..1.
        classes: names of rare classes; those of a picture are equally likely.

    Raises:
        ConfigError: the share is no probability, or classes are missing.
    """

    share: float = 0.0
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse shares out of range."""
        if not 0 <= self.share <= 1 or bool(self.share) != bool(self.classes):
            raise ConfigError(
                "augment.rare: share is 0..1, and above 0 where classes are named:"
                f" {self.share}, {list(self.classes)}"
            )

    def ids(self, names: Sequence[str]) -> tuple[int, ...]:
        """Return the ids of the rare classes.

        Args:
            names: of all classes, by id.

        Raises:
            ConfigError: a rare class is not among them.
        """
        if unknown := set(self.classes) - set(names):
            raise ConfigError(
                f"augment.rare.classes: no class is called {', '.join(sorted(unknown))};"
                f" there are {', '.join(names)}"
            )
        return tuple(names.index(name) for name in self.classes)


@dataclass(frozen=True)
class AugmentConfig:
    """How a training crop is drawn from its picture.

    Args:
        crop: height and width of a crop in pixels, multiples of 32.
        scale: smallest and largest zoom.
        flip: probability of a horizontal mirror image.
        jitter: x; brightness, contrast and saturation factors are each uniform in [1-x, 1+x].
        scale_law: ``log-uniform``: halving is as likely as doubling; ``uniform``: as in the published code.
        rare: crops around a pixel of a rare class.
        photometric: variation of colours and noise.

    Raises:
        ConfigError: a value is out of range.
    """

    crop: tuple[int, int]
    scale: tuple[float, float]
    flip: float
    jitter: float
    scale_law: ScaleLaw = "log-uniform"
    rare: RareConfig = field(default_factory=RareConfig)
    photometric: PhotometricConfig = field(default_factory=PhotometricConfig)

    def __post_init__(self) -> None:
        """Refuse crops that the network would pad, and factors out of range."""
        if any(side < 32 or side % 32 for side in self.crop):  # noqa: PLR2004
            raise ConfigError(f"augment.crop must be multiples of 32, not {self.crop}")
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ConfigError(f"augment.scale must be 0 < smallest <= largest, not {self.scale}")
        if not 0 <= self.flip <= 1 or not 0 <= self.jitter < 1:
            raise ConfigError(f"augment.flip is 0..1 and augment.jitter 0..<1: {self.flip}, {self.jitter}")
        if self.scale_law not in get_args(ScaleLaw):
            raise ConfigError(
                f"augment.scale_law must be one of {get_args(ScaleLaw)}, not {self.scale_law!r}"
            )


@dataclass(frozen=True, eq=False)
class AugmentPlan:
    """The random choices for each of the N pictures of a batch.

    Attributes:
        zoom_N: crop pixels per picture pixel.
        center_N2: x, y in [0, 1]: where the crop lies between its two extreme positions.
        flip_N: bool.
        brightness_N, contrast_N, saturation_N: colour factors.
        rare_N2: choice of the rare class and of its pixel, each in [0, 1); negative = no rare pixel.
        looks: photometric changes of each crop.
    """

    zoom_N: Tensor
    center_N2: Tensor
    flip_N: Tensor
    brightness_N: Tensor
    contrast_N: Tensor
    saturation_N: Tensor
    rare_N2: Tensor
    looks: tuple[Look, ...]

    def part(self, which: slice) -> AugmentPlan:
        """Return the plan of a part of the batch."""
        return AugmentPlan(
            self.zoom_N[which],
            self.center_N2[which],
            self.flip_N[which],
            self.brightness_N[which],
            self.contrast_N[which],
            self.saturation_N[which],
            self.rare_N2[which],
            self.looks[which],
        )


def draw_plan(config: AugmentConfig, batch_size: int, generator: torch.Generator) -> AugmentPlan:
    """Draw the random choices of a batch: a pure function of the generator's state."""
    uniform = torch.rand((7, batch_size), generator=generator)
    factors = 1 + config.jitter * (2 * uniform[4:] - 1)
    return AugmentPlan(
        zoom_N=_zoom(config, uniform[0]),
        center_N2=uniform[1:3].T,
        flip_N=uniform[3] < config.flip,
        brightness_N=factors[0],
        contrast_N=factors[1],
        saturation_N=factors[2],
        rare_N2=_rare(config.rare, batch_size, generator),
        looks=draw_looks(config.photometric, batch_size, generator),
    )


def _rare(config: RareConfig, batch_size: int, generator: torch.Generator) -> Tensor:
    """Draw the choices of rare pixels; draws nothing without rare classes."""
    if not config.share:
        return torch.full((batch_size, 2), -1.0)
    uniform = torch.rand((3, batch_size), generator=generator)
    return torch.where(uniform[0, :, None] < config.share, uniform[1:].T, -1.0)


def _zoom(config: AugmentConfig, uniform_N: Tensor) -> Tensor:
    low, high = config.scale
    if config.scale_law == "uniform":
        return low + (high - low) * uniform_N
    return torch.exp(math.log(low) + math.log(high / low) * uniform_N)


@dataclass(frozen=True, eq=False)
class Windows:
    """The position of each crop in its picture, in whole pixels of both.

    Attributes:
        source_N4: top, left, height, width of the window in the picture.
        target_N4: top, left, height, width of the window in the crop; the rest is padding.
    """

    source_N4: Tensor
    target_N4: Tensor

    @classmethod
    def of(
        cls,
        plan: AugmentPlan,
        sizes_N2: Tensor,
        crop: tuple[int, int],
        wanted_N2: Tensor | None = None,
    ) -> Windows:
        """Place the crops of a plan in pictures of these heights and widths.

        Args:
            plan: of N crops.
            sizes_N2: int64.
            crop: height and width.
            wanted_N2: int64: row and column of a pixel that the crop shows; negative = any; None = all are.
        """
        crop_2 = torch.tensor(crop)
        zoom_N1 = plan.zoom_N[:, None]
        # The window of the crop, at most the whole picture; the zoom is rounded to whole pixels.
        source_N2 = torch.minimum((crop_2 / zoom_N1).round().long().clamp_min(1), sizes_N2)
        target_N2 = torch.minimum((source_N2 * zoom_N1).round().long().clamp_min(1), crop_2)
        target_N2 = torch.where(source_N2 < sizes_N2, crop_2, target_N2)
        center_N2 = plan.center_N2.flip(1)
        # A window smaller than the picture slides inside it; a picture smaller than the crop inside the crop.
        start_N2 = ((sizes_N2 - source_N2) * center_N2).round().long()
        if wanted_N2 is not None:
            # The pixel is anywhere in the window, as far as the picture's borders allow.
            around_N2 = wanted_N2 - ((source_N2 - 1) * center_N2).round().long()
            around_N2 = around_N2.clamp_min(0).minimum(sizes_N2 - source_N2)
            start_N2 = torch.where(wanted_N2 >= 0, around_N2, start_N2)
        source = torch.cat([start_N2, source_N2], dim=1)
        target = torch.cat([((crop_2 - target_N2) * center_N2).round().long(), target_N2], dim=1)
        return cls(source, target)


def augment(
    pictures: PackedPictures,
    indices: Sequence[int],
    plan: AugmentPlan,
    *,
    crop: tuple[int, int],
    pad_color: tuple[int, int, int],
    ignore_id: int,
    rare_ids: Sequence[int] = (),
) -> tuple[Tensor, Tensor]:
    """Cut one crop out of each picture by a plan.

    Colours are sampled bilinearly, labels by the nearest pixel. Pixels outside the picture have the padding
    colour of the network and the ignore id; they are not jittered.

    Args:
        pictures: of any sizes, on one device.
        indices: N of them; one may occur twice.
        plan: result of ``draw_plan`` for N pictures.
        crop: height and width of the crops.
        pad_color: RGB 0..255.
        ignore_id: the id of pixels without a class.
        rare_ids: ids of the rare classes.

    Returns:
        images_NHW3: uint8 RGB.
        labels_NHW: uint8.
    """
    chosen = torch.tensor(indices)
    wanted_N2 = rare_pixels(pictures, indices, plan.rare_N2, rare_ids)
    windows = Windows.of(plan, pictures.sizes_M2[chosen], crop, wanted_N2)
    cut = gathered if pictures.colors.is_cuda else cut_one_by_one
    images_NHW3, labels_NHW = cut(
        pictures, chosen, windows, plan, crop=crop, pad_color=pad_color, ignore_id=ignore_id
    )
    _photograph(images_NHW3, windows, plan)
    return images_NHW3, labels_NHW


def rare_pixels(
    pictures: PackedPictures, indices: Sequence[int], rare_N2: Tensor, rare_ids: Sequence[int]
) -> Tensor:
    """Choose the rare pixels that crops must show.

    Args:
        pictures: on one device; waits for a GPU once per crop.
        indices: of the N pictures.
        rare_N2: of the plan.
        rare_ids: ids of the rare classes.

    Returns:
        wanted_N2: row and column; -1 = no rare pixel is asked for, or the picture has none.
    """
    wanted_N2 = torch.full((len(indices), 2), -1)
    for n, index in enumerate(indices):
        which, where = rare_N2[n].tolist()
        if which >= 0:
            label_HW = pictures.label(index).cpu()
            present = [class_id for class_id in rare_ids if bool((label_HW == class_id).any())]
            if present:
                rare = (label_HW == present[int(which * len(present))]).nonzero()
                wanted_N2[n] = rare[int(where * len(rare))]
    return wanted_N2


def _photograph(images_NHW3: Tensor, windows: Windows, plan: AugmentPlan) -> None:
    """Apply the photometric changes to the crops; padding keeps its colour."""
    width = images_NHW3.shape[2]
    for n, look in enumerate(plan.looks):
        if look == Look():
            continue
        top, left, rows, columns = windows.target_N4[n].tolist()
        left = width - left - columns if plan.flip_N[n] else left
        shown_HW3 = images_NHW3[n, top : top + rows, left : left + columns]
        shown_HW3.copy_(photographed(shown_HW3, look))


def cut_one_by_one(
    pictures: PackedPictures,
    chosen_N: Tensor,
    windows: Windows,
    plan: AugmentPlan,
    *,
    crop: tuple[int, int],
    pad_color: tuple[int, int, int],
    ignore_id: int,
) -> tuple[Tensor, Tensor]:
    """Cut the crops one by one: the fastest way on a CPU."""
    # numba is needed here only: a machine that trains on a GPU need not have it.
    from training.data.crop_kernel import cut_crop  # noqa: PLC0415

    count = len(chosen_N)
    # Planes in memory: the kernel writes whole rows of one colour. The network reads through a permutation.
    pad = torch.tensor(pad_color, dtype=torch.uint8)
    images_N3HW = pad[:, None, None].expand(3, *crop).repeat(count, 1, 1, 1)
    labels_NHW = torch.full((count, *crop), ignore_id, dtype=torch.uint8)
    terms_N3 = _color_terms(plan, pad.float())
    for n, index in enumerate(chosen_N.tolist()):
        cut_crop(
            pictures.image(index).numpy(),
            pictures.label(index).numpy(),
            windows.source_N4[n].tolist(),
            windows.target_N4[n].tolist(),
            terms_N3[n].tolist(),
            flip=bool(plan.flip_N[n]),
            image_3HW=images_N3HW[n].numpy(),
            label_HW=labels_NHW[n].numpy(),
        )
    return images_N3HW.permute(0, 2, 3, 1), labels_NHW


def _color_terms(plan: AugmentPlan, pad: Tensor) -> Tensor:
    """Return gain, saturation and offset, shape (N, 3): saturation after contrast after brightness.

    A colour c becomes gain (s c + (1 - s) luma) + offset. Contrast pivots on the gray of the mean colour, the
    same for every picture of a set. Saturation leaves gray alone, and so the offset.
    """
    gray = torch.tensor(LUMA) @ pad
    gain_N = plan.brightness_N * plan.contrast_N
    return torch.stack([gain_N, plan.saturation_N, (1 - plan.contrast_N) * gray], dim=1)


def gathered(
    pictures: PackedPictures,
    chosen_N: Tensor,
    windows: Windows,
    plan: AugmentPlan,
    *,
    crop: tuple[int, int],
    pad_color: tuple[int, int, int],
    ignore_id: int,
) -> tuple[Tensor, Tensor]:
    """Cut the crops by one gather over the batch: without a loop, and the host does not wait."""
    device = pictures.colors.device
    pad = torch.tensor(pad_color, dtype=torch.float32)
    numbers = torch.cat([windows.source_N4, windows.target_N4], dim=1)
    place_N10 = torch.cat(
        [pictures.starts_M[chosen_N, None], pictures.sizes_M2[chosen_N, 1:], numbers], dim=1
    )
    small = (place_N10, plan.flip_N, _color_terms(plan, pad), pad, torch.tensor(LUMA))
    return _gather(pictures, *(_sent(each, device) for each in small), crop=crop, ignore_id=ignore_id)


def _sent(values: Tensor, device: torch.device) -> Tensor:
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values


def _gather(
    pictures: PackedPictures, *on_device: Tensor, crop: tuple[int, int], ignore_id: int
) -> tuple[Tensor, Tensor]:
    place_N10, flip_N, terms_N3, pad, luma_weights = on_device
    colors, labels = pictures.colors, pictures.labels
    start, stride, top, left, height, width, y0, x0, rows, columns = (
        column[:, None, None] for column in place_N10.T
    )
    ys = torch.arange(crop[0], device=colors.device)[None, :, None]
    xs = torch.arange(crop[1], device=colors.device)[None, None, :]
    xs = torch.where(flip_N[:, None, None], crop[1] - 1 - xs, xs)
    inside = (ys >= y0) & (ys < y0 + rows) & (xs >= x0) & (xs < x0 + columns)
    # Continuous positions in the window, pixel centres at .5, clamped to the centres of its border.
    v = ((ys - y0 + 0.5) * height / rows).clamp_min(0.5).minimum(height - 0.5)
    u = ((xs - x0 + 0.5) * width / columns).clamp_min(0.5).minimum(width - 0.5)
    nearest = start + (top + v.long()) * stride + left + u.long()
    labels_NHW = torch.where(inside, labels[nearest], ignore_id).to(torch.uint8)
    row, column = (v - 0.5).long(), (u - 0.5).long()
    # At the border the next pixel has weight 0; it only must not lie outside the buffer.
    down = torch.where(row + 1 < height, stride, 0)
    right = torch.where(column + 1 < width, 1, 0)
    corner = start + (top + row) * stride + left + column
    dv, du = (v - 0.5 - row)[..., None], (u - 0.5 - column)[..., None]
    pixels_P3 = colors.view(-1, 3)
    upper = pixels_P3[corner].float().lerp(pixels_P3[corner + right].float(), du)
    lower = pixels_P3[corner + down].float().lerp(pixels_P3[corner + down + right].float(), du)
    sampled_NHW3 = upper.lerp(lower, dv)
    gain, saturation, offset = (term[:, None, None, None] for term in terms_N3.T)
    luma = (sampled_NHW3 * luma_weights).sum(-1, keepdim=True)
    mixed = gain * (saturation * sampled_NHW3 + (1 - saturation) * luma) + offset
    colors_NHW3 = torch.where(inside[..., None], mixed.clamp(0, _MAX_VALUE).round(), pad)
    return colors_NHW3.to(torch.uint8), labels_NHW
