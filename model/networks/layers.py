"""The building blocks of all BiSeNets.

Axes: N images in a batch, C or 3 channels, K classes, H height, W width, h w = the same at a coarser stride.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Literal

from torch import Tensor, nn

BatchNorm = nn.BatchNorm2d
"""Batch normalisation with eps 1e-5 and momentum 0.1, torch's defaults and those of the published weights."""


class SegmentationArchitecture(nn.Module, ABC):
    """A network with one main head and, in its training form, auxiliary heads.

    Both forms share the keys of their common weights: a training state dict without the entries of the
    auxiliary heads is a deploy state dict.
    """

    @abstractmethod
    def features(self, x_N3HW: Tensor) -> tuple[Tensor, ...]:
        """Return the input of the main head, followed by the input of each auxiliary head."""

    @abstractmethod
    def main_head(self) -> nn.Module:
        """Return the main head: its scores are the result."""

    @abstractmethod
    def auxiliary_heads(self) -> dict[str, nn.Module]:
        """Return the heads for the loss alone, by name; none in the deploy form."""

    def pretrained_part(self) -> nn.Module | None:
        """Return the backbone that the weights of a classifier fit; None if there is none."""
        return None

    def forward(self, x_N3HW: Tensor) -> Tensor:
        """Score each cell of the picture.

        Args:
            x_N3HW: normalised RGB, float; both sides multiples of 32.

        Returns:
            raw_NKhw: scores of cells (h = H/stride, w = W/stride), not up-sampled.
        """
        raw_NKhw: Tensor = self.main_head()(self.features(x_N3HW)[0])
        return raw_NKhw

    def forward_train(self, x_N3HW: Tensor) -> tuple[Tensor, ...]:
        """Score each cell by every head.

        Args:
            x_N3HW: as in ``forward``.

        Returns:
            What ``forward`` returns, then the raw scores of each auxiliary head at a stride of its own.
        """
        main, *auxiliary = self.features(x_N3HW)
        # The deploy form has no heads for the auxiliary features, hence no strict zip.
        extra = (head(x) for head, x in zip(self.auxiliary_heads().values(), auxiliary, strict=False))
        return (self.main_head()(main), *extra)


class ConvBnRelu(nn.Module):
    """Convolution without bias, batch normalisation, ReLU; keeps the size at stride 1, halves it at 2."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int = 3, *, stride: int = 1) -> None:
        super().__init__()
        self.conv = conv(in_channels, out_channels, kernel, stride=stride)
        self.bn = BatchNorm(out_channels)
        self.relu: nn.Module = nn.ReLU(inplace=True)

    def forward(self, x_NChw: Tensor) -> Tensor:
        """Return relu(bn(conv(x)))."""
        y_NChw: Tensor = self.relu(self.bn(self.conv(x_NChw)))
        return y_NChw


def conv(
    in_channels: int, out_channels: int, kernel: int = 3, *, stride: int = 1, groups: int = 1
) -> nn.Conv2d:
    """Return a convolution for use before batch normalisation: padded by half its kernel, without bias."""
    return nn.Conv2d(
        in_channels, out_channels, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=False
    )


def depthwise(channels: int, out_channels: int, *, stride: int = 1) -> nn.Conv2d:
    """Return a 3x3 convolution that reads each channel on its own; ``channels`` divides ``out_channels``."""
    return conv(channels, out_channels, stride=stride, groups=channels)


def nearest_upsample(factor: int) -> nn.Upsample:
    """Return an up-sampling that repeats each cell ``factor`` times along both axes."""
    return nn.Upsample(scale_factor=float(factor), mode="nearest")


def aligned_upsample(factor: int) -> nn.Upsample:
    """Return a bilinear up-sampling that keeps the corner cells in the corners."""
    return nn.Upsample(scale_factor=float(factor), mode="bilinear", align_corners=True)


def global_mean(x_NChw: Tensor) -> Tensor:
    """Return the mean of each channel, shape NC11."""
    return x_NChw.mean((2, 3), keepdim=True)


def init_kaiming(
    modules: Iterator[nn.Module], *, fan: Literal["fan_in", "fan_out"], negative_slope: float
) -> None:
    """Draw the weights of the convolutions among ``modules`` from He's normal distribution; biases are 0.

    Source:
        He et al. 2015, "Delving Deep into Rectifiers", equations 10 and 14.
    """
    for module in modules:
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, a=negative_slope, mode=fan)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
