"""BiSeNetV2 (Yu et al. 2020, arXiv:2004.02147), with the details of the published CoinCheung/BiSeNet weights.

A shallow wide branch gives detail at stride 8, a deep narrow one gives context at stride 32, and a bilateral
layer lets each gate the other.

Axes: N images in a batch, C or 3 channels, K classes, H height, W width, h w = the same at a coarser stride.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.networks.layers import (
    BatchNorm,
    ConvBnRelu,
    SegmentationArchitecture,
    aligned_upsample,
    conv,
    depthwise,
    global_mean,
    init_kaiming,
    nearest_upsample,
)

_EXPANSION = 6
_DROPOUT = 0.1
_AUXILIARY_CHANNELS = 128
_CONTEXT_TO_DETAIL = 4
"""Context ends at stride 32, detail at stride 8."""


class BiSeNetV2(SegmentationArchitecture):
    """Bilateral segmentation network, second version.

    The defaults build the current generation; ``model.networks.generations`` lists all published ones.

    Args:
        num_scores: values that a head gives a cell: K, or those of all its pixels.
        head_channels: width of the main head; 1024 in the paper.
        bilinear_context: up-sample context to detail bilinearly, corners aligned, not by repeating its cells.
        with_auxiliary: build the training form, with its four auxiliary heads.
    """

    def __init__(
        self,
        num_scores: int,
        *,
        head_channels: int = 1024,
        bilinear_context: bool = False,
        with_auxiliary: bool = True,
    ) -> None:
        super().__init__()
        self.with_auxiliary = with_auxiliary
        self.detail = DetailBranch()
        self.segment = SemanticBranch()
        self.bga = BilateralAggregation(bilinear=bilinear_context)
        self.head = Head(128, head_channels, num_scores)
        if with_auxiliary:
            self.aux2 = _auxiliary_head(16, num_scores, stride=4)
            self.aux3 = _auxiliary_head(32, num_scores, stride=8)
            self.aux4 = _auxiliary_head(64, num_scores, stride=16)
            self.aux5_4 = _auxiliary_head(128, num_scores, stride=32)
        init_kaiming(self.modules(), fan="fan_out", negative_slope=0)

    def features(self, x_N3HW: Tensor) -> tuple[Tensor, ...]:
        """Return the fused features (128 channels, stride 8) and the stages at strides 4, 8, 16 and 32."""
        *stages, context = self.segment(x_N3HW)
        return (self.bga(self.detail(x_N3HW), context), *stages)

    def main_head(self) -> nn.Module:
        """Return ``head``."""
        return self.head

    def auxiliary_heads(self) -> dict[str, nn.Module]:
        """Return the heads on the stages of the semantic branch."""
        if not self.with_auxiliary:
            return {}
        return {"aux2": self.aux2, "aux3": self.aux3, "aux4": self.aux4, "aux5_4": self.aux5_4}


class DetailBranch(nn.Module):
    """Eight plain convolutions to 128 channels at stride 8: edges and small things."""

    def __init__(self) -> None:
        super().__init__()
        self.S1 = nn.Sequential(ConvBnRelu(3, 64, stride=2), ConvBnRelu(64, 64))
        self.S2 = nn.Sequential(ConvBnRelu(64, 64, stride=2), ConvBnRelu(64, 64), ConvBnRelu(64, 64))
        self.S3 = nn.Sequential(ConvBnRelu(64, 128, stride=2), ConvBnRelu(128, 128), ConvBnRelu(128, 128))

    def forward(self, x_N3HW: Tensor) -> Tensor:
        """Return 128 channels at stride 8."""
        y_NChw: Tensor = self.S3(self.S2(self.S1(x_N3HW)))
        return y_NChw


class SemanticBranch(nn.Module):
    """Stem, gather-and-expansion stages and the context embedding: the meaning of regions."""

    def __init__(self) -> None:
        super().__init__()
        self.S1S2 = Stem()
        self.S3 = nn.Sequential(GatherExpansionDown(16, 32), GatherExpansion(32))
        self.S4 = nn.Sequential(GatherExpansionDown(32, 64), GatherExpansion(64))
        self.S5_4 = nn.Sequential(
            GatherExpansionDown(64, 128), GatherExpansion(128), GatherExpansion(128), GatherExpansion(128)
        )
        self.S5_5 = ContextEmbedding(128)

    def forward(self, x_N3HW: Tensor) -> tuple[Tensor, ...]:
        """Return the stages at strides 4, 8, 16 and 32 and, last, the context at stride 32."""
        stage2 = self.S1S2(x_N3HW)
        stage3 = self.S3(stage2)
        stage4 = self.S4(stage3)
        stage5 = self.S5_4(stage4)
        return stage2, stage3, stage4, stage5, self.S5_5(stage5)


class Stem(nn.Module):
    """To 16 channels at stride 4, half by convolution, half by pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = ConvBnRelu(3, 16, stride=2)
        self.left = nn.Sequential(ConvBnRelu(16, 8, 1), ConvBnRelu(8, 16, stride=2))
        self.right = nn.MaxPool2d(3, stride=2, padding=1)
        self.fuse = ConvBnRelu(32, 16)

    def forward(self, x_N3HW: Tensor) -> Tensor:
        """Return 16 channels at stride 4."""
        half = self.conv(x_N3HW)
        y_NChw: Tensor = self.fuse(torch.cat((self.left(half), self.right(half)), dim=1))
        return y_NChw


class GatherExpansion(nn.Module):
    """Residual block that gathers 3x3, expands each channel sixfold depthwise, and projects back."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        expanded = channels * _EXPANSION
        self.conv1 = ConvBnRelu(channels, channels)
        # The ReLU is in the published weights' code, not in the paper.
        self.dwconv = nn.Sequential(depthwise(channels, expanded), BatchNorm(expanded), nn.ReLU(inplace=True))
        self.conv2 = _projection(expanded, channels)

    def forward(self, x_NChw: Tensor) -> Tensor:
        """Return as many channels at the same stride."""
        return functional.relu(self.conv2(self.dwconv(self.conv1(x_NChw))) + x_NChw)


class GatherExpansionDown(nn.Module):
    """Gather-and-expansion at half the size, with a depthwise separable shortcut."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        expanded = in_channels * _EXPANSION
        self.conv1 = ConvBnRelu(in_channels, in_channels)
        self.dwconv1 = nn.Sequential(depthwise(in_channels, expanded, stride=2), BatchNorm(expanded))
        self.dwconv2 = nn.Sequential(
            depthwise(expanded, expanded), BatchNorm(expanded), nn.ReLU(inplace=True)
        )
        self.conv2 = _projection(expanded, out_channels)
        self.shortcut = nn.Sequential(
            depthwise(in_channels, in_channels, stride=2),
            BatchNorm(in_channels),
            conv(in_channels, out_channels, 1),
            BatchNorm(out_channels),
        )

    def forward(self, x_NChw: Tensor) -> Tensor:
        """Return ``out_channels`` at twice the stride."""
        expanded = self.dwconv2(self.dwconv1(self.conv1(x_NChw)))
        return functional.relu(self.conv2(expanded) + self.shortcut(x_NChw))


def _projection(in_channels: int, out_channels: int) -> nn.Sequential:
    """Return the last convolution of a residual branch; gamma 0 makes the block start as its shortcut."""
    bn = BatchNorm(out_channels)
    nn.init.zeros_(bn.weight)
    return nn.Sequential(conv(in_channels, out_channels, 1), bn)


class ContextEmbedding(nn.Module):
    """Adds the mean features of the whole picture to each of its cells."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bn = BatchNorm(channels)
        self.conv_gap = ConvBnRelu(channels, channels, 1)
        self.conv_last = ConvBnRelu(channels, channels)

    def forward(self, x_NChw: Tensor) -> Tensor:
        """Return as many channels at the same stride."""
        y_NChw: Tensor = self.conv_last(self.conv_gap(self.bn(global_mean(x_NChw))) + x_NChw)
        return y_NChw


class BilateralAggregation(nn.Module):
    """Fuses detail (stride 8) and context (stride 32); each is gated by the other at its own stride.

    Args:
        channels: of detail and of context.
        bilinear: blend the cells of context on their way to stride 8, corners aligned; else repeat them.
    """

    def __init__(self, channels: int = 128, *, bilinear: bool = False) -> None:
        super().__init__()
        self.left1 = _separable(channels)
        self.left2 = nn.Sequential(
            conv(channels, channels, stride=2), BatchNorm(channels), nn.AvgPool2d(3, stride=2, padding=1)
        )
        self.right1 = nn.Sequential(conv(channels, channels), BatchNorm(channels))
        self.right2 = _separable(channels)
        self.up = (aligned_upsample if bilinear else nearest_upsample)(_CONTEXT_TO_DETAIL)
        self.conv = nn.Sequential(conv(channels, channels), BatchNorm(channels), nn.ReLU(inplace=True))

    def forward(self, detail_NChw: Tensor, context_NChw: Tensor) -> Tensor:
        """Return the fused features at stride 8."""
        fine = self.left1(detail_NChw) * torch.sigmoid(self.up(self.right1(context_NChw)))
        coarse = self.left2(detail_NChw) * torch.sigmoid(self.right2(context_NChw))
        fused_NChw: Tensor = self.conv(fine + self.up(coarse))
        return fused_NChw


def _separable(channels: int) -> nn.Sequential:
    """Return a depthwise 3x3 with batch normalisation, then a bare 1x1."""
    return nn.Sequential(depthwise(channels, channels), BatchNorm(channels), conv(channels, channels, 1))


class Head(nn.Module):
    """Turns features into raw scores.

    Args:
        in_channels: of the features.
        channels: of the first convolution.
        num_scores: values that a cell is given.
        widen_to: doubles the size and convolves to so many channels before the scores.
    """

    def __init__(
        self, in_channels: int, channels: int, num_scores: int, *, widen_to: int | None = None
    ) -> None:
        super().__init__()
        self.conv = ConvBnRelu(in_channels, channels)
        self.drop = nn.Dropout(_DROPOUT)
        widen: nn.Module = nn.Identity()
        if widen_to is not None:
            widen = nn.Sequential(nearest_upsample(2), ConvBnRelu(channels, widen_to))
        self.conv_out = nn.Sequential(widen, nn.Conv2d(widen_to or channels, num_scores, 1))

    def forward(self, x_NChw: Tensor) -> Tensor:
        """Return raw_NKhw at the stride of ``x_NChw``, or at half of it."""
        raw_NKhw: Tensor = self.conv_out(self.drop(self.conv(x_NChw)))
        return raw_NKhw


def _auxiliary_head(in_channels: int, num_scores: int, *, stride: int) -> Head:
    """Return the head of a stage; its last layer has one channel for each pixel of a cell of the stage."""
    return Head(in_channels, _AUXILIARY_CHANNELS, num_scores, widen_to=stride**2)
