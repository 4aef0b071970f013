"""BiSeNetV1 (Yu et al. 2018, arXiv:1808.00897), with the details of the published CoinCheung/BiSeNet weights.

A ResNet-18 gives context at stride 32, a shallow path gives detail at stride 8, and a fusion module weighs
their channels. The form without the shallow path takes detail from the ResNet's stride 8.

Axes: N images in a batch, C or 3 channels, K classes, H height, W width, h w = the same at a coarser stride.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from model.networks.layers import (
    BatchNorm,
    ConvBnRelu,
    SegmentationArchitecture,
    conv,
    global_mean,
    init_kaiming,
    nearest_upsample,
)
from model.networks.resnet import BasicBlock, ResNet18

_CONTEXT_CHANNELS = 128
_DETAIL_CHANNELS = 128
_FUSED_CHANNELS = _CONTEXT_CHANNELS + _DETAIL_CHANNELS
_SQUEEZED_CHANNELS = _FUSED_CHANNELS // 4
_AUXILIARY_CHANNELS = 64


class BiSeNetV1(SegmentationArchitecture):
    """Bilateral segmentation network, first version, on ResNet-18.

    The defaults build the current generation; ``model.networks.generations`` lists all published ones.

    Args:
        num_scores: values that a head gives a cell: K, or those of all its pixels.
        spatial_path: take detail from a separate path, not from the ResNet's stride 8.
        squeezed_fusion: compute the channel weights of the fusion through a quarter of the channels, without
            normalisation.
        head_bias: give the last convolution of each head a bias.
        negative_slope: share that negative values keep after a normalisation; 0 is ReLU.
        with_auxiliary: build the training form, with its two auxiliary heads.
    """

    def __init__(
        self,
        num_scores: int,
        *,
        spatial_path: bool = True,
        squeezed_fusion: bool = False,
        head_bias: bool = True,
        negative_slope: float = 0,
        with_auxiliary: bool = True,
    ) -> None:
        super().__init__()
        self.spatial_path = spatial_path
        self.with_auxiliary = with_auxiliary
        self.cp = ContextPath()
        if spatial_path:
            self.sp = SpatialPath()
        attention = _squeezed_attention() if squeezed_fusion else channel_attention(_FUSED_CHANNELS)
        self.ffm = FeatureFusion(_FUSED_CHANNELS, _FUSED_CHANNELS, attention)
        self.conv_out = Head(_FUSED_CHANNELS, _FUSED_CHANNELS, num_scores, bias=head_bias)
        if with_auxiliary:
            aux = (_CONTEXT_CHANNELS, _AUXILIARY_CHANNELS, num_scores)
            self.conv_out16 = Head(*aux, bias=head_bias)
            self.conv_out32 = Head(*aux, bias=head_bias)
        if negative_slope:
            _leak(self, negative_slope)

    def features(self, x_N3HW: Tensor) -> tuple[Tensor, ...]:
        """Return the fused features (256 channels, stride 8) and the context at strides 8 and 16."""
        feat8, context8, context16 = self.cp(x_N3HW)
        detail = self.sp(x_N3HW) if self.spatial_path else feat8
        return self.ffm(detail, context8), context8, context16

    def main_head(self) -> nn.Module:
        """Return ``conv_out``."""
        return self.conv_out

    def pretrained_part(self) -> nn.Module:
        """Return the ResNet."""
        return self.cp.resnet

    def auxiliary_heads(self) -> dict[str, nn.Module]:
        """Return the heads on the context, named by the stage of the ResNet."""
        if not self.with_auxiliary:
            return {}
        return {"conv_out16": self.conv_out16, "conv_out32": self.conv_out32}


def _leak(network: nn.Module, negative_slope: float) -> None:
    """Replace the activations after a normalisation; those of sums and of the fusion stay ReLU."""
    for module in network.modules():
        if isinstance(module, ConvBnRelu | BasicBlock | ResNet18):
            module.relu = nn.LeakyReLU(negative_slope, inplace=True)


class ContextPath(nn.Module):
    """ResNet-18, its two deepest stages refined by attention and brought up to stride 8."""

    def __init__(self) -> None:
        super().__init__()
        self.resnet = ResNet18()
        self.arm16 = AttentionRefinement(256, _CONTEXT_CHANNELS)
        self.arm32 = AttentionRefinement(512, _CONTEXT_CHANNELS)
        self.conv_head32 = ConvBnRelu(_CONTEXT_CHANNELS, _CONTEXT_CHANNELS)
        self.conv_head16 = ConvBnRelu(_CONTEXT_CHANNELS, _CONTEXT_CHANNELS)
        self.conv_avg = ConvBnRelu(512, _CONTEXT_CHANNELS, 1)
        self.up = nearest_upsample(2)
        for own in (self.conv_head32, self.conv_head16, self.conv_avg):
            init_kaiming(own.modules(), fan="fan_in", negative_slope=1)

    def forward(self, x_N3HW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the ResNet's features at stride 8 and the context at strides 8 and 16, 128 channels each."""
        feat8, feat16, feat32 = self.resnet(x_N3HW)
        context32 = self.arm32(feat32) + self.conv_avg(global_mean(feat32))
        context16 = self.conv_head32(self.up(context32))
        context8 = self.conv_head16(self.up(self.arm16(feat16) + context16))
        return feat8, context8, context16


class AttentionRefinement(nn.Module):
    """Convolves, then weighs each channel by its mean over the whole picture."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = ConvBnRelu(in_channels, out_channels)
        self.conv_atten = conv(out_channels, out_channels, 1)
        self.bn_atten = BatchNorm(out_channels)
        init_kaiming(self.modules(), fan="fan_in", negative_slope=1)

    def forward(self, x_NChw: Tensor) -> Tensor:
        """Return ``out_channels`` at the same stride."""
        feat: Tensor = self.conv(x_NChw)
        return feat * torch.sigmoid(self.bn_atten(self.conv_atten(global_mean(feat))))


class SpatialPath(nn.Module):
    """Three convolutions of stride 2 and a projection: edges and small things."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = ConvBnRelu(3, 64, 7, stride=2)
        self.conv2 = ConvBnRelu(64, 64, stride=2)
        self.conv3 = ConvBnRelu(64, 64, stride=2)
        self.conv_out = ConvBnRelu(64, _DETAIL_CHANNELS, 1)
        init_kaiming(self.modules(), fan="fan_in", negative_slope=1)

    def forward(self, x_N3HW: Tensor) -> Tensor:
        """Return 128 channels at stride 8."""
        y_NChw: Tensor = self.conv_out(self.conv3(self.conv2(self.conv1(x_N3HW))))
        return y_NChw


class FeatureFusion(nn.Module):
    """Joins detail and context, and strengthens the channels that matter in this picture.

    Args:
        in_channels: of detail and context together.
        channels: of the fused features.
        attention: the layers, by the names of their weights, that turn the mean of each channel into its
            weight before the sigmoid; they are applied in order.
    """

    def __init__(self, in_channels: int, channels: int, attention: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.convblk = ConvBnRelu(in_channels, channels, 1)
        for name, layer in attention.items():
            self.add_module(name, layer)
        self._attention = tuple(attention)
        init_kaiming(self.modules(), fan="fan_in", negative_slope=1)

    def forward(self, detail_NChw: Tensor, context_NChw: Tensor) -> Tensor:
        """Return the fused channels at the same stride."""
        feat: Tensor = self.convblk(torch.cat((detail_NChw, context_NChw), dim=1))
        weight = global_mean(feat)
        for name in self._attention:
            weight = self.get_submodule(name)(weight)
        return feat * torch.sigmoid(weight) + feat


def channel_attention(channels: int) -> dict[str, nn.Module]:
    """Return the layers of a ``FeatureFusion`` of today's form."""
    return {"conv": conv(channels, channels, 1), "bn": BatchNorm(channels)}


def _squeezed_attention() -> dict[str, nn.Module]:
    return {
        "conv1": conv(_FUSED_CHANNELS, _SQUEEZED_CHANNELS, 1),
        "relu": nn.ReLU(inplace=True),
        "conv2": conv(_SQUEEZED_CHANNELS, _FUSED_CHANNELS, 1),
    }


class Head(nn.Module):
    """Turns features into raw scores at their own stride."""

    def __init__(self, in_channels: int, channels: int, num_scores: int, *, bias: bool) -> None:
        super().__init__()
        self.conv = ConvBnRelu(in_channels, channels)
        self.conv_out = nn.Conv2d(channels, num_scores, 1, bias=bias)
        init_kaiming(self.modules(), fan="fan_in", negative_slope=1)

    def forward(self, x_NChw: Tensor) -> Tensor:
        """Return raw_NKhw."""
        raw_NKhw: Tensor = self.conv_out(self.conv(x_NChw))
        return raw_NKhw
