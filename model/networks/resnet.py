"""ResNet-18 without its classifier (He et al. 2016, arXiv:1512.03385), keyed as torchvision keys it.

Axes: N images in a batch, C or 3 channels, H height, W width, h w = the same at a coarser stride.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from model.networks.layers import BatchNorm, conv, init_kaiming


class ResNet18(nn.Module):
    """The backbone of BiSeNetV1, initialised at random; nothing is downloaded."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = conv(3, 64, 7, stride=2)
        self.bn1 = BatchNorm(64)
        self.relu: nn.Module = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = _stage(64, 64, stride=1)
        self.layer2 = _stage(64, 128, stride=2)
        self.layer3 = _stage(128, 256, stride=2)
        self.layer4 = _stage(256, 512, stride=2)
        init_kaiming(self.modules(), fan="fan_out", negative_slope=0)

    def forward(self, x_N3HW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return 128 channels at stride 8, 256 at stride 16 and 512 at stride 32."""
        quarter = self.layer1(self.maxpool(self.relu(self.bn1(self.conv1(x_N3HW)))))
        feat8 = self.layer2(quarter)
        feat16 = self.layer3(feat8)
        return feat8, feat16, self.layer4(feat16)


def _stage(in_channels: int, out_channels: int, *, stride: int) -> nn.Sequential:
    return nn.Sequential(
        BasicBlock(in_channels, out_channels, stride=stride), BasicBlock(out_channels, out_channels)
    )


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut, which is projected where the shape changes."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = conv(in_channels, out_channels, stride=stride)
        self.bn1 = BatchNorm(out_channels)
        self.conv2 = conv(out_channels, out_channels)
        self.bn2 = BatchNorm(out_channels)
        self.relu: nn.Module = nn.ReLU(inplace=True)
        self.downsample: nn.Module = nn.Identity()
        if stride > 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                conv(in_channels, out_channels, 1, stride=stride), BatchNorm(out_channels)
            )

    def forward(self, x_NChw: Tensor) -> Tensor:
        """Return ``out_channels`` at ``stride`` times the stride."""
        residual = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x_NChw)))))
        return functional.relu(residual + self.downsample(x_NChw))
