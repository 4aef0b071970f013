from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from model.networks.efficientnet_lite import DepthwiseConv2d, EfficientNetLite0, SameConv2d


def tensorflow_same(x_NChw: Tensor, conv: nn.Conv2d) -> Tensor:
    """Convolve as TensorFlow's ``same``: by its formula for the padding of each axis."""
    kernel, stride = conv.kernel_size[0], conv.stride[0]
    sides = []
    for size in (x_NChw.shape[3], x_NChw.shape[2]):
        total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        sides += [total // 2, total - total // 2]
    return functional.conv2d(functional.pad(x_NChw, sides), conv.weight, stride=stride, groups=conv.groups)


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("stride", [1, 2])
def test_padding_is_tensorflows_same(kernel: int, stride: int) -> None:
    x = torch.rand(1, 4, 12, 18)
    for conv in (SameConv2d(4, 6, kernel, stride=stride), DepthwiseConv2d(4, kernel, stride=stride)):
        torch.testing.assert_close(conv(x), tensorflow_same(x, conv))


def test_it_is_as_large_as_the_published_weights_without_their_classifier() -> None:
    with torch.device("meta"):
        network = EfficientNetLite0()
    classifier = 320 * 1280 + 2 * 1280 + 1280 * 1000 + 1000
    assert sum(p.numel() for p in network.parameters()) == 4_652_008 - classifier
    assert network.get_parameter("blocks.3.depthwise_conv.weight").shape == (144, 1, 5, 5)
    assert network.get_parameter("blocks.15.project_conv.weight").shape == (320, 1152, 1, 1)


def test_normalisation_is_that_of_the_published_weights() -> None:
    with torch.device("meta"):
        network = EfficientNetLite0()
    assert {m.eps for m in network.modules() if isinstance(m, nn.BatchNorm2d)} == {1e-3}


@torch.no_grad()
def test_features_come_at_strides_4_8_16_and_32() -> None:
    features = EfficientNetLite0().eval()(torch.rand(1, 3, 64, 96))
    assert [tuple(f.shape[1:]) for f in features] == [(24, 16, 24), (40, 8, 12), (112, 4, 6), (320, 2, 3)]


@torch.no_grad()
def test_a_block_adds_its_input_where_the_shape_stays() -> None:
    network = EfficientNetLite0().eval()
    inputs = {n for n, block in enumerate(network.blocks) if block.is_residual}
    assert inputs == {2, 4, 6, 7, 9, 10, 12, 13, 14}
    block = network.blocks[2]
    nn.init.zeros_(block.bn2.weight)
    x = torch.rand(1, 24, 8, 8)
    assert torch.equal(block(x), x)


def test_activations_are_clipped_at_6() -> None:
    network = EfficientNetLite0()
    assert {type(m) for name, m in network.named_modules() if name.endswith("relu")} == {nn.ReLU6}


def test_depthwise_gradients_are_those_of_float32_under_autocast_on_a_cpu() -> None:
    torch.manual_seed(0)
    conv = DepthwiseConv2d(8, 5, stride=2)
    x = torch.rand(2, 8, 12, 12).to(torch.bfloat16)
    gradients = []
    for enabled in (True, False):
        conv.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            y = conv(x if enabled else x.float())
        assert y.dtype == (torch.bfloat16 if enabled else torch.float32)
        y.float().sum().backward()
        assert conv.weight.grad is not None
        gradients.append(conv.weight.grad.clone())
    assert torch.equal(*gradients)
