from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from training.augment import AugmentConfig, AugmentPlan, augment, draw_plan
from training.errors import ConfigError

PAD = (100, 110, 120)
IGNORE = 255
CONFIG = AugmentConfig(crop=(32, 64), scale=(0.5, 2.0), flip=0.5, jitter=0.4)
LUMA = torch.tensor([0.299, 0.587, 0.114])


def neutral(count: int, **changes: Tensor) -> AugmentPlan:
    ones = torch.ones(count)
    plan = AugmentPlan(
        ones, torch.full((count, 2), 0.5), torch.zeros(count, dtype=torch.bool), ones, ones, ones
    )
    return dataclasses.replace(plan, **changes)


def picture(height: int, width: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)
    return image, torch.randint(0, 4, (height, width), generator=generator, dtype=torch.uint8)


def cut(
    pairs: list[tuple[Tensor, Tensor]], plan: AugmentPlan, crop: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    images, labels = zip(*pairs, strict=True)
    return augment(images, labels, plan, crop=crop, pad_color=PAD, ignore_id=IGNORE)


def test_a_neutral_plan_gives_the_picture_back() -> None:
    image, label = picture(32, 64)
    images_NHW3, labels_NHW = cut([(image, label)], neutral(1), (32, 64))
    torch.testing.assert_close(images_NHW3[0], image.permute(1, 2, 0).float(), atol=1e-2, rtol=0)
    assert torch.equal(labels_NHW[0], label)


def test_a_flip_mirrors_picture_and_labels() -> None:
    image, label = picture(32, 64)
    images_NHW3, labels_NHW = cut([(image, label)], neutral(1, flip_N=torch.tensor([True])), (32, 64))
    torch.testing.assert_close(images_NHW3[0], image.permute(1, 2, 0).flip(1).float(), atol=1e-2, rtol=0)
    assert torch.equal(labels_NHW[0], label.flip(1))


@pytest.mark.parametrize(
    ("center", "rows", "columns"), [((0.0, 0.0), (0, 32), (0, 64)), ((1.0, 1.0), (8, 40), (16, 80))]
)
def test_a_crop_reaches_each_border_of_the_picture(
    center: tuple[float, float], rows: tuple[int, int], columns: tuple[int, int]
) -> None:
    image, label = picture(40, 80)
    _, labels_NHW = cut([(image, label)], neutral(1, center_N2=torch.tensor([center])), (32, 64))
    assert torch.equal(labels_NHW[0], label[slice(*rows), slice(*columns)])


@pytest.mark.parametrize("neighbour", [(16, 16), (64, 64)])
def test_outside_of_a_picture_is_padding_that_no_jitter_touches(neighbour: tuple[int, int]) -> None:
    bright = torch.full((2,), 1.4)
    plan = neutral(2, center_N2=torch.zeros(2, 2), brightness_N=bright, contrast_N=bright)
    images_NHW3, labels_NHW = cut([picture(16, 16), picture(*neighbour)], plan, (32, 32))
    assert torch.equal(images_NHW3[0, 17:], torch.tensor(PAD).expand(15, 32, 3))
    assert (labels_NHW[0, 16:] == IGNORE).all()
    assert (labels_NHW[0, :16, :16] != IGNORE).all()


@given(seed=st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_labels_are_sampled_and_never_mixed(seed: int) -> None:
    image, label = picture(24, 40, seed)
    label = torch.where(label < 2, label * 0, label * 0 + 3)
    plan = draw_plan(CONFIG, 1, torch.Generator().manual_seed(seed))
    _, labels_NHW = cut([(image, label)], plan, CONFIG.crop)
    assert set(labels_NHW.flatten().tolist()) <= {0, 3, IGNORE}


@given(seed=st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_colours_move_with_their_labels(seed: int) -> None:
    label = torch.tensor([[10, 200]], dtype=torch.uint8).repeat_interleave(48, 0).repeat_interleave(48, 1)
    image = label.expand(3, -1, -1).contiguous()
    plan = dataclasses.replace(
        draw_plan(CONFIG, 1, torch.Generator().manual_seed(seed)),
        brightness_N=torch.ones(1),
        contrast_N=torch.ones(1),
        saturation_N=torch.ones(1),
    )
    images_NHW3, labels_NHW = cut([(image, label)], plan, CONFIG.crop)
    inside = labels_NHW != IGNORE
    close = (images_NHW3[..., 0] - labels_NHW).abs() < 95.5
    assert close[inside].float().mean() > 0.95


def test_jitter_is_brightness_then_contrast_then_saturation() -> None:
    image = torch.tensor([90, 60, 30], dtype=torch.uint8)[:, None, None].expand(3, 32, 32).contiguous()
    plan = neutral(
        1, brightness_N=torch.tensor([1.2]), contrast_N=torch.tensor([0.7]), saturation_N=torch.tensor([1.3])
    )
    images_NHW3, _ = cut([(image, torch.zeros(32, 32, dtype=torch.uint8))], plan, (32, 32))
    color = torch.tensor([90.0, 60.0, 30.0]) * 1.2
    pivot = LUMA @ torch.tensor(PAD, dtype=torch.float32)
    color = (color - pivot) * 0.7 + pivot
    color = (color - LUMA @ color) * 1.3 + LUMA @ color
    torch.testing.assert_close(images_NHW3[0, 16, 16], color, atol=1e-2, rtol=0)


def test_colours_stay_within_bytes() -> None:
    plan = neutral(1, brightness_N=torch.tensor([1.9]), contrast_N=torch.tensor([1.9]))
    images_NHW3, _ = cut([picture(32, 32)], plan, (32, 32))
    assert images_NHW3.min() == 0
    assert images_NHW3.max() == 255


def test_pictures_of_several_sizes_share_a_batch_without_touching_each_other() -> None:
    pairs = [picture(32, 64, 1), picture(50, 70, 2)]
    plan = draw_plan(CONFIG, 2, torch.Generator().manual_seed(5))
    together = cut(pairs, plan, CONFIG.crop)
    for index, pair in enumerate(pairs):
        own = AugmentPlan(
            **{f.name: getattr(plan, f.name)[index : index + 1] for f in dataclasses.fields(plan)}
        )
        alone = cut([pair], own, CONFIG.crop)
        torch.testing.assert_close(together[0][index], alone[0][0], atol=2e-2, rtol=0)
        assert (together[1][index] == alone[1][0]).float().mean() > 0.99


def test_a_plan_depends_on_the_generator_alone_and_keeps_its_ranges() -> None:
    first, again = (draw_plan(CONFIG, 500, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(first.zoom_N, again.zoom_N)
    assert 0.5 <= first.zoom_N.min() < 0.6
    assert 1.8 < first.zoom_N.max() <= 2.0
    assert abs(first.zoom_N.log().mean()) < 0.1
    assert 0.4 < first.flip_N.float().mean() < 0.6
    assert 0.6 <= first.saturation_N.min() <= first.saturation_N.max() <= 1.4


@pytest.mark.parametrize(
    "change",
    [
        {"crop": (32, 60)},
        {"crop": (0, 64)},
        {"scale": (2.0, 1.0)},
        {"scale": (0.0, 1.0)},
        {"flip": 1.5},
        {"jitter": 1.0},
    ],
)
def test_a_config_out_of_range_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(change))):
        dataclasses.replace(CONFIG, **change)
