"""EfficientNet-Lite0 without its classifier (Tan and Le 2019, arXiv:1905.11946; the Lite form of 2020).

Lite drops squeeze-and-excite and clips activations at 6, so that 8 bits lose little. Details are those of the
published ImageNet weights: a convolution of stride 2 pads right and bottom more than left and top, as
TensorFlow's ``same`` does on even sizes, and batch normalisation has eps 1e-3.

Axes: N images in a batch, C or 3 channels, H height, W width, h w = the same at a coarser stride.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.networks.layers import conv, init_kaiming

CHANNELS_4, CHANNELS_8, CHANNELS_16, CHANNELS_32 = 24, 40, 112, 320
"""Channels of the features that ``EfficientNetLite0`` returns, by their stride."""

_STEM_CHANNELS = 32
_EPS = 1e-3
_EXPANSION = 6


class _Stage(NamedTuple):
    repeats: int
    channels: int
    kernel: int
    stride: int


_STAGES = (
    _Stage(1, 16, 3, 1),
    _Stage(2, CHANNELS_4, 3, 2),
    _Stage(2, CHANNELS_8, 5, 2),
    _Stage(3, 80, 3, 2),
    _Stage(3, CHANNELS_16, 5, 1),
    _Stage(4, 192, 5, 2),
    _Stage(1, CHANNELS_32, 3, 1),
)
"""Table 1 of the paper; only the first stage does not expand."""

_ENDS = (3, 5, 11, 16)
"""Blocks that lead to the last features of strides 4, 8, 16 and 32."""


class EfficientNetLite0(nn.Module):
    """The backbone of the light BiSeNetV1, initialised at random.

    Keys are those of the published weights without their leading underscores.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv_stem = SameConv2d(3, _STEM_CHANNELS, 3, stride=2)
        self.bn0 = _norm(_STEM_CHANNELS)
        self.relu = nn.ReLU6(inplace=True)
        self.blocks = nn.ModuleList(_blocks())
        init_kaiming(self.modules(), fan="fan_out", negative_slope=0)

    def forward(self, x_N3HW: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return 24 channels at stride 4, 40 at stride 8, 112 at stride 16 and 320 at stride 32.

        Both sides are multiples of 32.
        """
        x = self.relu(self.bn0(self.conv_stem(x_N3HW)))
        ends = []
        for number, block in enumerate(self.blocks, start=1):
            x = block(x)
            if number in _ENDS:
                ends.append(x)
        feat4, feat8, feat16, feat32 = ends
        return feat4, feat8, feat16, feat32


class InvertedResidual(nn.Module):
    """Expands, convolves each channel on its own, projects; adds its input where the shape stays.

    Args:
        in_channels: of the input.
        out_channels: of the output.
        kernel: 3 or 5, of the depthwise convolution.
        stride: 1 or 2.
        expansion: expanded channels for each input channel; 1 = the input is not expanded.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, *, stride: int, expansion: int
    ) -> None:
        super().__init__()
        expanded = in_channels * expansion
        self.is_expanding = expansion > 1
        self.is_residual = stride == 1 and in_channels == out_channels
        if self.is_expanding:
            self.expand_conv = conv(in_channels, expanded, 1)
            self.bn0 = _norm(expanded)
        self.depthwise_conv = DepthwiseConv2d(expanded, kernel, stride=stride)
        self.bn1 = _norm(expanded)
        self.project_conv = conv(expanded, out_channels, 1)
        self.bn2 = _norm(out_channels)
        self.relu = nn.ReLU6(inplace=True)

    def forward(self, x_NChw: Tensor) -> Tensor:
        """Return ``out_channels`` at ``stride`` times the stride."""
        y = self.relu(self.bn0(self.expand_conv(x_NChw))) if self.is_expanding else x_NChw
        y = self.relu(self.bn1(self.depthwise_conv(y)))
        y_NChw: Tensor = self.bn2(self.project_conv(y))
        return y_NChw + x_NChw if self.is_residual else y_NChw


class SameConv2d(nn.Conv2d):
    """Convolution without bias, padded as TensorFlow's ``same`` pads even sizes.

    At stride 2 its first window begins kernel // 2 - 1 pixels, not kernel // 2, before the first pixel.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, *, stride: int, groups: int = 1
    ) -> None:
        padding = kernel // 2 if stride == 1 else 0
        super().__init__(
            in_channels, out_channels, kernel, stride=stride, padding=padding, groups=groups, bias=False
        )
        self._sides = (kernel // 2 - 1, kernel // 2) * 2

    def forward(self, x_NChw: Tensor) -> Tensor:
        """Return ``out_channels``; at stride 2 both sides of the input are even and are halved."""
        return super().forward(x_NChw if self.padding[0] else functional.pad(x_NChw, self._sides))


class DepthwiseConv2d(SameConv2d):
    """Convolves each channel on its own; on a CPU in float32, also under autocast to bf16.

    oneDNN takes 3 to 8 times as long for its gradients in bf16 as in float32 (torch 2.13, Xeon with AMX, one
    thread): 65 % of a training step.
    """

    def __init__(self, channels: int, kernel: int, *, stride: int) -> None:
        super().__init__(channels, channels, kernel, stride=stride, groups=channels)

    def forward(self, x_NChw: Tensor) -> Tensor:
        """Return as many channels, of the type of the input."""
        if x_NChw.device.type == "cpu" and x_NChw.dtype == torch.bfloat16:
            with torch.autocast("cpu", enabled=False):
                return super().forward(x_NChw.float()).to(torch.bfloat16)
        return super().forward(x_NChw)


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=_EPS)


def _blocks() -> list[InvertedResidual]:
    blocks: list[InvertedResidual] = []
    channels = _STEM_CHANNELS
    for stage in _STAGES:
        for repeat in range(stage.repeats):
            blocks.append(
                InvertedResidual(
                    channels,
                    stage.channels,
                    stage.kernel,
                    stride=1 if repeat else stage.stride,
                    expansion=_EXPANSION if blocks else 1,
                )
            )
            channels = stage.channels
    return blocks
