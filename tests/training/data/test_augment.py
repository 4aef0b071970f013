from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from training.data.augment import (
    AugmentConfig,
    AugmentPlan,
    RareConfig,
    ScaleLaw,
    Windows,
    augment,
    cut_one_by_one,
    draw_plan,
    gathered,
    rare_pixels,
)
from training.data.photometric import Look, PhotometricConfig
from training.data.pictures import PackedPictures
from training.errors import ConfigError

PAD = (100, 110, 120)
IGNORE = 255
CONFIG = AugmentConfig(crop=(32, 64), scale=(0.5, 2.0), flip=0.5, jitter=0.4)
Cut = Callable[[Sequence[tuple[Tensor, Tensor]], AugmentPlan, tuple[int, int]], tuple[Tensor, Tensor]]
LUMA = torch.tensor([0.299, 0.587, 0.114])


def neutral(count: int, **changes: Tensor) -> AugmentPlan:
    ones = torch.ones(count)
    plan = AugmentPlan(
        zoom_N=ones,
        center_N2=torch.full((count, 2), 0.5),
        flip_N=torch.zeros(count, dtype=torch.bool),
        brightness_N=ones,
        contrast_N=ones,
        saturation_N=ones,
        rare_N2=torch.full((count, 2), -1.0),
        looks=(Look(),) * count,
    )
    return dataclasses.replace(plan, **changes)


def picture(height: int, width: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)
    return image, torch.randint(0, 4, (height, width), generator=generator, dtype=torch.uint8)


def packed(pairs: Sequence[tuple[Tensor, Tensor]]) -> PackedPictures:
    return PackedPictures.pack([(image.permute(1, 2, 0).numpy(), label.numpy()) for image, label in pairs])


@pytest.fixture(params=[cut_one_by_one, gathered], ids=["as on a CPU", "as on a GPU"])
def cut(request: pytest.FixtureRequest) -> Cut:
    """Return each of the two ways to cut crops."""

    def cut(
        pairs: Sequence[tuple[Tensor, Tensor]], plan: AugmentPlan, crop: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        pictures, chosen_N = packed(pairs), torch.arange(len(pairs))
        windows = Windows.of(plan, pictures.sizes_M2, crop)
        found: tuple[Tensor, Tensor] = request.param(
            pictures, chosen_N, windows, plan, crop=crop, pad_color=PAD, ignore_id=IGNORE
        )
        return found

    return cut


def test_a_neutral_plan_gives_the_picture_back(cut: Cut) -> None:
    image, label = picture(32, 64)
    images_NHW3, labels_NHW = cut([(image, label)], neutral(1), (32, 64))
    torch.testing.assert_close(images_NHW3[0].float(), image.permute(1, 2, 0).float(), atol=0.51, rtol=0)
    assert torch.equal(labels_NHW[0], label)


def test_a_flip_mirrors_picture_and_labels(cut: Cut) -> None:
    image, label = picture(32, 64)
    images_NHW3, labels_NHW = cut([(image, label)], neutral(1, flip_N=torch.tensor([True])), (32, 64))
    torch.testing.assert_close(
        images_NHW3[0].float(), image.permute(1, 2, 0).flip(1).float(), atol=0.51, rtol=0
    )
    assert torch.equal(labels_NHW[0], label.flip(1))


@pytest.mark.parametrize(
    ("center", "rows", "columns"), [((0.0, 0.0), (0, 32), (0, 64)), ((1.0, 1.0), (8, 40), (16, 80))]
)
def test_a_crop_reaches_each_border_of_the_picture(
    cut: Cut, center: tuple[float, float], rows: tuple[int, int], columns: tuple[int, int]
) -> None:
    image, label = picture(40, 80)
    _, labels_NHW = cut([(image, label)], neutral(1, center_N2=torch.tensor([center])), (32, 64))
    assert torch.equal(labels_NHW[0], label[slice(*rows), slice(*columns)])


@pytest.mark.parametrize(("center", "rows"), [(0.0, slice(0, 16)), (0.5, slice(8, 24)), (1.0, slice(16, 32))])
def test_a_small_picture_lies_anywhere_in_its_crop(cut: Cut, center: float, rows: slice) -> None:
    image, label = picture(16, 16)
    _, labels_NHW = cut([(image, label)], neutral(1, center_N2=torch.tensor([[0.0, center]])), (32, 32))
    assert torch.equal(labels_NHW[0, rows, :16], label)
    assert (labels_NHW != IGNORE).sum() == 16 * 16


@pytest.mark.parametrize("neighbour", [(16, 16), (64, 64)])
def test_outside_of_a_picture_is_padding_that_no_jitter_touches(cut: Cut, neighbour: tuple[int, int]) -> None:
    bright = torch.full((2,), 1.4)
    plan = neutral(2, center_N2=torch.zeros(2, 2), brightness_N=bright, contrast_N=bright)
    images_NHW3, labels_NHW = cut([picture(16, 16), picture(*neighbour)], plan, (32, 32))
    assert torch.equal(images_NHW3[0, 17:], torch.tensor(PAD, dtype=torch.uint8).expand(15, 32, 3))
    assert (labels_NHW[0, 16:] == IGNORE).all()
    assert (labels_NHW[0, :16, :16] != IGNORE).all()


@pytest.mark.parametrize("seed", range(12))
def test_labels_are_sampled_and_never_mixed(cut: Cut, seed: int) -> None:
    image, label = picture(24, 40, seed)
    label = torch.where(label < 2, label * 0, label * 0 + 3)
    plan = draw_plan(CONFIG, 1, torch.Generator().manual_seed(seed))
    _, labels_NHW = cut([(image, label)], plan, CONFIG.crop)
    assert set(labels_NHW.flatten().tolist()) <= {0, 3, IGNORE}


@pytest.mark.parametrize("seed", range(12))
def test_colours_move_with_their_labels(cut: Cut, seed: int) -> None:
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
    close = (images_NHW3[..., 0].float() - labels_NHW).abs() < 95.5
    assert close[inside].float().mean() > 0.95


def test_jitter_is_brightness_then_contrast_then_saturation(cut: Cut) -> None:
    image = torch.tensor([90, 60, 30], dtype=torch.uint8)[:, None, None].expand(3, 32, 32).contiguous()
    plan = neutral(
        1, brightness_N=torch.tensor([1.2]), contrast_N=torch.tensor([0.7]), saturation_N=torch.tensor([1.3])
    )
    images_NHW3, _ = cut([(image, torch.zeros(32, 32, dtype=torch.uint8))], plan, (32, 32))
    color = torch.tensor([90.0, 60.0, 30.0]) * 1.2
    pivot = LUMA @ torch.tensor(PAD, dtype=torch.float32)
    color = (color - pivot) * 0.7 + pivot
    color = (color - LUMA @ color) * 1.3 + LUMA @ color
    torch.testing.assert_close(images_NHW3[0, 16, 16].float(), color, atol=0.51, rtol=0)


def test_colours_stay_within_bytes(cut: Cut) -> None:
    plan = neutral(1, brightness_N=torch.tensor([1.9]), contrast_N=torch.tensor([1.9]))
    images_NHW3, _ = cut([picture(32, 32)], plan, (32, 32))
    assert images_NHW3.min() == 0
    assert images_NHW3.max() == 255


def test_pictures_of_several_sizes_share_a_batch_without_touching_each_other(cut: Cut) -> None:
    pairs = [picture(32, 64, 1), picture(50, 70, 2)]
    plan = draw_plan(CONFIG, 2, torch.Generator().manual_seed(5))
    together = cut(pairs, plan, CONFIG.crop)
    for index, pair in enumerate(pairs):
        alone = cut([pair], plan.part(slice(index, index + 1)), CONFIG.crop)
        assert torch.equal(together[0][index], alone[0][0])
        assert torch.equal(together[1][index], alone[1][0])


@given(seed=st.integers(0, 10_000), law=st.sampled_from(["uniform", "log-uniform"]))
def test_both_ways_cut_the_same_crops(seed: int, law: ScaleLaw) -> None:
    config = dataclasses.replace(CONFIG, scale_law=law)
    pictures = packed([picture(40, 71, seed), picture(90, 33, seed + 1)])
    plan = draw_plan(config, 3, torch.Generator().manual_seed(seed))
    chosen_N = torch.tensor([1, 0, 1])
    windows = Windows.of(plan, pictures.sizes_M2[chosen_N], config.crop)
    one, other = (
        way(pictures, chosen_N, windows, plan, crop=config.crop, pad_color=PAD, ignore_id=IGNORE)
        for way in (cut_one_by_one, gathered)
    )
    assert torch.equal(one[1], other[1])
    torch.testing.assert_close(one[0].float(), other[0].float(), atol=1, rtol=0)  # halves round either way
    again = augment(pictures, [1, 0, 1], plan, crop=config.crop, pad_color=PAD, ignore_id=IGNORE)
    assert torch.equal(again[0], one[0])


def test_scales_are_as_likely_as_their_law_says() -> None:
    uniform = dataclasses.replace(CONFIG, scale_law="uniform")
    zoom_N = draw_plan(uniform, 2000, torch.Generator().manual_seed(1)).zoom_N
    assert abs(zoom_N.mean() - 1.25) < 0.05
    assert zoom_N.min() >= 0.5
    assert zoom_N.max() <= 2.0


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
        {"scale_law": "cubic"},
    ],
)
def test_a_config_out_of_range_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(change))):
        dataclasses.replace(CONFIG, **change)


RARE = dataclasses.replace(CONFIG, rare=RareConfig(1.0, ("pole",)))


@given(seed=st.integers(0, 10_000), row=st.integers(0, 89), column=st.integers(0, 119))
def test_a_rare_thing_is_in_its_crop_wherever_it_lies(seed: int, row: int, column: int) -> None:
    image, label = torch.zeros(3, 90, 120, dtype=torch.uint8), torch.zeros(90, 120, dtype=torch.uint8)
    label[row, column] = 7
    plan = dataclasses.replace(
        draw_plan(RARE, 1, torch.Generator().manual_seed(seed)),
        zoom_N=torch.ones(1),
        flip_N=torch.ones(1) > 0,
    )
    _, labels_NHW = augment(
        packed([(image, label)]), [0], plan, crop=CONFIG.crop, pad_color=PAD, ignore_id=IGNORE, rare_ids=[7]
    )
    assert (labels_NHW == 7).sum() == 1


def test_a_rare_thing_lies_anywhere_in_its_crop() -> None:
    image, label = torch.zeros(3, 200, 200, dtype=torch.uint8), torch.zeros(200, 200, dtype=torch.uint8)
    label[100, 100] = 7
    plan = dataclasses.replace(draw_plan(RARE, 200, torch.Generator().manual_seed(0)), zoom_N=torch.ones(200))
    _, labels_NHW = augment(
        packed([(image, label)]),
        [0] * 200,
        plan,
        crop=CONFIG.crop,
        pad_color=PAD,
        ignore_id=IGNORE,
        rare_ids=[7],
    )
    _, rows, columns = (labels_NHW == 7).nonzero().T
    assert (rows.min(), rows.max()) == (0, 31)
    assert columns.min() <= 1
    assert columns.max() >= 62


def test_each_rare_class_of_a_picture_is_as_likely_as_the_others() -> None:
    label = torch.zeros(40, 40, dtype=torch.uint8)
    label[:20] = 5
    label[30, 30] = 6
    pictures = packed([(torch.zeros(3, 40, 40, dtype=torch.uint8), label)])
    rare_N2 = torch.rand((400, 2), generator=torch.Generator().manual_seed(0))
    wanted_N2 = rare_pixels(pictures, [0] * 400, rare_N2, [5, 6, 9])
    chosen = label[wanted_N2[:, 0], wanted_N2[:, 1]]
    assert 170 < (chosen == 6).sum() < 230
    assert (chosen != 0).all()


def test_a_picture_without_anything_rare_is_cropped_as_ever() -> None:
    pictures = packed([picture(90, 120)])
    plan = draw_plan(RARE, 3, torch.Generator().manual_seed(1))
    crops = [
        augment(pictures, [0] * 3, each, crop=CONFIG.crop, pad_color=PAD, ignore_id=IGNORE, rare_ids=[7])
        for each in (plan, dataclasses.replace(plan, rare_N2=torch.full((3, 2), -1.0)))
    ]
    assert torch.equal(crops[0][1], crops[1][1])


def test_only_a_share_of_the_crops_looks_for_rare_things() -> None:
    config = dataclasses.replace(CONFIG, rare=RareConfig(0.3, ("pole",)))
    rare_N2 = draw_plan(config, 2000, torch.Generator().manual_seed(1)).rare_N2
    looks = rare_N2[:, 0] >= 0
    assert 0.25 < looks.float().mean() < 0.35
    assert ((rare_N2 >= 0).all(1) == looks).all()


def test_options_that_are_off_draw_nothing() -> None:
    generators = [torch.Generator().manual_seed(3) for _ in range(2)]
    draw_plan(CONFIG, 5, generators[0])
    torch.rand((7, 5), generator=generators[1])
    assert torch.equal(generators[0].get_state(), generators[1].get_state())


def test_rare_classes_are_named_as_the_data_set_names_them() -> None:
    rare = RareConfig(0.5, ("pole", "sign"))
    assert rare.ids(("sky", "sign", "pole")) == (2, 1)
    with pytest.raises(ConfigError, match="no class is called pole; there are sky, sign"):
        rare.ids(("sky", "sign"))


@pytest.mark.parametrize(("share", "classes"), [(1.5, ("pole",)), (0.5, ()), (0.0, ("pole",))])
def test_rare_crops_that_mean_nothing_are_refused(share: float, classes: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match=r"augment\.rare"):
        RareConfig(share, classes)


@pytest.mark.parametrize("flip", [False, True])
def test_another_camera_changes_what_a_crop_shows_and_no_padding(*, flip: bool) -> None:
    plan = neutral(
        1,
        center_N2=torch.zeros(1, 2),
        flip_N=torch.tensor([flip]),
        looks=(Look(gamma=2.0, noise=20.0, quality=20),),
    )
    images_NHW3, labels_NHW = augment(
        packed([picture(16, 16)]), [0], plan, crop=(32, 32), pad_color=PAD, ignore_id=IGNORE
    )
    plain, _ = augment(
        packed([picture(16, 16)]),
        [0],
        dataclasses.replace(plan, looks=(Look(),)),
        crop=(32, 32),
        pad_color=PAD,
        ignore_id=IGNORE,
    )
    shown = labels_NHW != IGNORE
    assert torch.equal(images_NHW3[~shown], plain[~shown])
    assert (images_NHW3[shown] != plain[shown]).float().mean() > 0.9


def test_a_plan_s_parts_keep_their_looks_and_rare_pixels() -> None:
    config = dataclasses.replace(RARE, photometric=PhotometricConfig(share=0.5, noise=9.0))
    plan = draw_plan(config, 6, torch.Generator().manual_seed(2))
    part = plan.part(slice(2, 4))
    assert part.looks == plan.looks[2:4]
    assert torch.equal(part.rare_N2, plan.rare_N2[2:4])
