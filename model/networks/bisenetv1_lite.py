"""BiSeNetV1 made light: its context path is an EfficientNet-Lite0, its detail comes from the same backbone.

A separate spatial path would cost as much as half the backbone (512x1024); strides 4 and 8 of the backbone
give edges and small objects already, pretrained on ImageNet.

Axes: N images in a batch, C or 3 channels, K classes, H height, W width, h w = the same at a coarser stride.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.networks.bisenetv1 import AttentionRefinement, FeatureFusion, Head, channel_attention
from model.networks.efficientnet_lite import (
    CHANNELS_4,
    CHANNELS_8,
    CHANNELS_16,
    CHANNELS_32,
    EfficientNetLite0,
)
from model.networks.layers import (
    ConvBnRelu,
    SegmentationArchitecture,
    global_mean,
    init_kaiming,
    nearest_upsample,
)

_AUXILIARY_CHANNELS = 64


class BiSeNetV1Lite(SegmentationArchitecture):
    """Bilateral segmentation network, first version, on EfficientNet-Lite0.

    Args:
        num_scores: values that a head gives a cell.
        context_channels: of the refined features of strides 32, 16 and 8.
        detail_channels: of stride 4 when it is brought down to stride 8; those of stride 8 are not changed.
        fused_channels: of detail and context together.
        head_channels: width of the main head.
        sub_cells: scores along each side of a cell of stride 8 in the main head. With 2 its output has stride
            4 for the cost of a wider last layer; a pole of one or two pixels is too thin for stride 8.
        with_auxiliary: build the training form, with its two auxiliary heads.
    """

    def __init__(
        self,
        num_scores: int,
        *,
        context_channels: int,
        detail_channels: int,
        fused_channels: int,
        head_channels: int,
        sub_cells: int = 1,
        with_auxiliary: bool = True,
    ) -> None:
        super().__init__()
        self.with_auxiliary = with_auxiliary
        self.backbone = EfficientNetLite0()
        self.cp = ContextRefinement(context_channels)
        self.detail = ConvBnRelu(CHANNELS_4, detail_channels, stride=2)
        init_kaiming(self.detail.modules(), fan="fan_in", negative_slope=1)
        joined = detail_channels + CHANNELS_8 + context_channels
        self.ffm = FeatureFusion(joined, fused_channels, channel_attention(fused_channels))
        self.conv_out = SubCellHead(fused_channels, head_channels, num_scores, sub_cells)
        if with_auxiliary:
            self.conv_out16 = Head(context_channels, _AUXILIARY_CHANNELS, num_scores, bias=True)
            self.conv_out32 = Head(context_channels, _AUXILIARY_CHANNELS, num_scores, bias=True)

    def features(self, x_N3HW: Tensor) -> tuple[Tensor, ...]:
        """Return the fused features (stride 8) and the context at strides 8 and 16."""
        feat4, feat8, feat16, feat32 = self.backbone(x_N3HW)
        context8, context16 = self.cp(feat16, feat32)
        detail = torch.cat((self.detail(feat4), feat8), dim=1)
        return self.ffm(detail, context8), context8, context16

    def main_head(self) -> nn.Module:
        """Return ``conv_out``."""
        return self.conv_out

    def pretrained_part(self) -> nn.Module:
        """Return the EfficientNet."""
        return self.backbone

    def auxiliary_heads(self) -> dict[str, nn.Module]:
        """Return the heads on the context, named as those of ``BiSeNetV1``."""
        if not self.with_auxiliary:
            return {}
        return {"conv_out16": self.conv_out16, "conv_out32": self.conv_out32}


class SubCellHead(Head):
    """Scores several sub-cells of each cell.

    Args:
        in_channels: of the features.
        channels: width of the head.
        num_scores: of a sub-cell.
        sub_cells: along each side of a cell.
    """

    def __init__(self, in_channels: int, channels: int, num_scores: int, sub_cells: int) -> None:
        super().__init__(in_channels, channels, num_scores * sub_cells**2, bias=True)
        self.sub_cells = sub_cells

    def forward(self, x_NChw: Tensor) -> Tensor:
        """Return raw_NKhw with ``sub_cells`` times the rows and columns of the features."""
        scores_NShw = super().forward(x_NChw)
        return scores_NShw if self.sub_cells == 1 else functional.pixel_shuffle(scores_NShw, self.sub_cells)


class ContextRefinement(nn.Module):
    """Refines strides 16 and 32 by attention and brings them up to stride 8."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.arm16 = AttentionRefinement(CHANNELS_16, channels)
        self.arm32 = AttentionRefinement(CHANNELS_32, channels)
        self.conv_head32 = ConvBnRelu(channels, channels)
        self.conv_head16 = ConvBnRelu(channels, channels)
        self.conv_avg = ConvBnRelu(CHANNELS_32, channels, 1)
        self.up = nearest_upsample(2)
        for own in (self.conv_head32, self.conv_head16, self.conv_avg):
            init_kaiming(own.modules(), fan="fan_in", negative_slope=1)

    def forward(self, feat16: Tensor, feat32: Tensor) -> tuple[Tensor, Tensor]:
        """Return the context at strides 8 and 16."""
        context32 = self.arm32(feat32) + self.conv_avg(global_mean(feat32))
        context16 = self.conv_head32(self.up(context32))
        return self.conv_head16(self.up(self.arm16(feat16) + context16)), context16
