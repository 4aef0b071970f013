from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from model.networks.layers import (
    ConvBnRelu,
    aligned_upsample,
    conv,
    depthwise,
    global_mean,
    init_kaiming,
    nearest_upsample,
)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("kernel", [1, 3, 7])
@pytest.mark.parametrize(("stride", "expected"), [(1, (9, 14)), (2, (5, 7))])
def test_a_convolution_keeps_the_size_or_halves_it_upwards(
    kernel: int, stride: int, expected: tuple[int, int]
) -> None:
    block = ConvBnRelu(3, 4, kernel, stride=stride)
    assert block(torch.zeros(2, 3, 9, 14)).shape == (2, 4, *expected)


def test_a_block_ends_in_relu() -> None:
    y = ConvBnRelu(3, 8)(torch.randn(2, 3, 8, 8))
    assert y.min() == 0
    assert y.max() > 0


def test_a_convolution_before_a_normalisation_has_no_bias() -> None:
    assert conv(3, 8).bias is None


def test_a_depthwise_convolution_reads_each_channel_on_its_own() -> None:
    layer = depthwise(2, 6)
    x = torch.randn(1, 2, 5, 5)
    other = x.clone()
    other[:, 1] += 1
    changed = (layer(x) != layer(other)).flatten(2).any(2)
    assert changed.tolist() == [[False, False, False, True, True, True]]


def test_nearest_up_sampling_repeats_each_cell() -> None:
    x = torch.randn(1, 2, 3, 4)
    repeated = x.repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)
    assert torch.equal(nearest_upsample(4)(x), repeated)


def test_aligned_up_sampling_keeps_corners_and_goes_straight_between_them() -> None:
    row = torch.tensor([0.0, 5.0, 15.0]).view(1, 1, 1, 3).expand(1, 1, 3, 3)
    found = aligned_upsample(2)(row)[0, 0, 3]
    assert torch.allclose(found, torch.tensor([0.0, 2.0, 4.0, 7.0, 11.0, 15.0]), atol=1e-5)


def test_the_global_mean_is_an_average_pooling_over_everything() -> None:
    x = torch.randn(2, 3, 5, 7)
    assert torch.allclose(global_mean(x), functional.avg_pool2d(x, (5, 7)), atol=1e-6)


@pytest.mark.parametrize(
    ("fan", "negative_slope", "variance"),
    [("fan_in", 1.0, 1 / (32 * 9)), ("fan_out", 0.0, 2 / (128 * 9)), ("fan_in", 0.0, 2 / (32 * 9))],
)
def test_initial_weights_have_the_variance_of_he(fan: str, negative_slope: float, variance: float) -> None:
    layer = nn.Conv2d(32, 128, 3)
    init_kaiming(iter([layer]), fan=fan, negative_slope=negative_slope)  # type: ignore[arg-type]
    assert layer.weight.var().item() == pytest.approx(variance, rel=0.1)
    assert layer.bias is not None
    assert not layer.bias.any()
