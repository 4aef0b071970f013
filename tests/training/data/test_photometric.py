from __future__ import annotations

import dataclasses
import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from torch import Tensor

from training.data.photometric import Look, PhotometricConfig, draw_looks, photographed
from training.errors import ConfigError

STRONG = PhotometricConfig(share=0.5, hue=20.0, tint=0.2, gamma=1.5, blur=2.0, noise=15.0, jpeg=30)


def scene(height: int = 64, width: int = 96) -> Tensor:
    """Return a picture of soft shapes, uint8."""
    grid = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)
    small = Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC)
    return torch.tensor(np.asarray(small))


def test_a_look_that_changes_nothing_gives_the_picture_back() -> None:
    assert torch.equal(photographed(scene(), Look()), scene())


def test_the_picture_itself_is_not_changed() -> None:
    image = scene()
    photographed(image, Look(hue=10.0, noise=9.0, quality=40))
    assert torch.equal(image, scene())


def test_a_third_of_a_turn_moves_red_to_green() -> None:
    red = torch.tensor([200, 40, 40], dtype=torch.uint8).expand(8, 8, 3)
    assert photographed(red, Look(hue=120.0))[0, 0].tolist() == [40, 200, 40]


def test_a_turn_of_the_hue_leaves_gray_alone() -> None:
    gray = torch.full((8, 8, 3), 90, dtype=torch.uint8)
    assert torch.equal(photographed(gray, Look(hue=33.0)), gray)


def test_a_tint_scales_each_colour() -> None:
    gray = torch.full((8, 8, 3), 100, dtype=torch.uint8)
    assert photographed(gray, Look(tint=(1.2, 1.0, 0.8)))[0, 0].tolist() == [120, 100, 80]


def test_gamma_keeps_black_and_white_and_darkens_what_is_between() -> None:
    ramp = torch.tensor([0, 64, 255], dtype=torch.uint8)[:, None, None].expand(3, 4, 3)
    assert photographed(ramp, Look(gamma=2.0))[:, 0, 0].tolist() == [0, round(64**2 / 255), 255]


def test_blur_is_the_one_that_pillow_approximates() -> None:
    theirs = np.asarray(Image.fromarray(scene().numpy()).filter(ImageFilter.GaussianBlur(1.5)))
    ours = photographed(scene(), Look(blur=1.5)).numpy()
    assert np.abs(ours.astype(int) - theirs)[8:-8, 8:-8].max() <= 3


def test_noise_has_its_deviation_and_depends_on_its_seed_alone() -> None:
    gray = torch.full((128, 128, 3), 128, dtype=torch.uint8)
    one, again, other = (photographed(gray, Look(noise=10.0, noise_seed=seed)) for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert one.float().std().item() == pytest.approx(10, rel=0.03)
    assert one.float().mean().item() == pytest.approx(128, abs=0.3)


@pytest.mark.parametrize("quality", [20, 60, 90])
@pytest.mark.parametrize("size", [(64, 96), (51, 37)])
def test_jpeg_loses_what_a_file_loses(quality: int, size: tuple[int, int]) -> None:
    noisy = photographed(scene(*size), Look(noise=12.0))
    file = io.BytesIO()
    Image.fromarray(noisy.numpy()).save(file, "JPEG", quality=quality, subsampling="4:2:0")
    theirs = np.asarray(Image.open(file)).astype(float)
    ours = photographed(noisy, Look(quality=quality)).numpy().astype(float)
    lost = np.abs(theirs - noisy.numpy()).mean()
    assert np.abs(ours - noisy.numpy()).mean() == pytest.approx(lost, rel=0.1)
    assert np.abs(ours - theirs).mean() < 0.5 * lost


@pytest.mark.parametrize("quality", [1, 49, 50, 99])
def test_one_colour_survives_jpeg(quality: int) -> None:
    color = torch.full((16, 16, 3), 128, dtype=torch.uint8)
    assert torch.equal(photographed(color, Look(quality=quality)), color)


def test_looks_keep_their_ranges_and_their_share() -> None:
    looks = draw_looks(STRONG, 2000, torch.Generator().manual_seed(0))
    assert all(abs(look.hue) <= 20 and 1 / 1.5 <= look.gamma <= 1.5 for look in looks)
    assert all(0.8 <= factor <= 1.2 for look in looks for factor in look.tint)
    for name, most in (("blur", 2.0), ("noise", 15.0)):
        values = np.array([getattr(look, name) for look in looks])
        assert 0.45 < (values > 0).mean() < 0.55
        assert 0.95 * most < values.max() <= most
    encoded = np.array([look.quality for look in looks if look.quality < 100])
    assert 0.45 < len(encoded) / 2000 < 0.55
    assert encoded.min() == 30


def test_looks_depend_on_the_generator_alone() -> None:
    one, again = (draw_looks(STRONG, 9, torch.Generator().manual_seed(4)) for _ in range(2))
    assert one == again
    assert len({look.noise_seed for look in one}) == 9


def test_the_defaults_draw_nothing() -> None:
    generator, untouched = torch.Generator().manual_seed(1), torch.Generator().manual_seed(1)
    assert draw_looks(PhotometricConfig(), 3, generator) == (Look(),) * 3
    assert torch.equal(generator.get_state(), untouched.get_state())


@pytest.mark.parametrize(
    "change",
    [
        {"share": 1.1},
        {"hue": -1.0},
        {"tint": 1.0},
        {"gamma": 0.9},
        {"blur": -1.0},
        {"noise": -1.0},
        {"jpeg": 0},
        {"jpeg": 101},
    ],
)
def test_a_strength_out_of_range_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=rf"augment\.photometric is out of range: {next(iter(change))} = "):
        dataclasses.replace(STRONG, **change)
