"""What the published programs compute, written down straight, one operation after the other: an oracle.

Nothing here is shared with ``model``. A program reads weights under the keys of its own checkpoints and
returns scores at full size. Axes: N images, K classes, H W pixels.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

Rgb = tuple[float, float, float]
Shapes = dict[str, tuple[int, ...]]
EPS = 1e-5


@dataclass(frozen=True)
class Published:
    """The facts of one generation: the list of its keys, and what its program does with them."""

    list_name: str
    outside: Literal["aligned", "half_pixel", "shuffle"]
    in_place_abn: bool = False
    aligned_inside: bool = False


PUBLISHED = {
    "v1-g0": Published("v1_old_inplaceabn.txt", "aligned", in_place_abn=True),
    "v1-g0d": Published("diss.txt", "aligned", in_place_abn=True),
    "v1-g1": Published("v1_aa3876b.txt", "aligned"),
    "v1-g2": Published("v1_12cd095.txt", "shuffle"),
    "v1-g3": Published("v1_c0422a1.txt", "half_pixel"),
    "v1-g4": Published("v1.txt", "half_pixel"),
    "v1-face": Published("faceparse_zll.txt", "aligned"),
    "v2-g0": Published("v2_old.txt", "aligned", aligned_inside=True),
    "v2-g2": Published("v2_12cd095.txt", "shuffle"),
    "v2-g4": Published("v2.txt", "half_pixel"),
}


def published_shapes(list_name: str) -> Shapes:
    """Return the keys and shapes of a list under BISENET_DATA_ROOT, in its order."""
    lines = Path(os.environ["BISENET_DATA_ROOT"], "state_dicts", list_name).read_text("utf-8").splitlines()
    rows = [line.split("\t") for line in lines if line and not line.startswith("#")]
    return {key: tuple(int(n) for n in shape.strip("()").split(",") if n) for key, shape, *_ in rows}


def narrowed(shapes: Shapes, *, num_classes: int, width: int) -> Shapes:
    """Return a BiSeNetV2 list of fewer classes than 19 and with a head of less than 1024 channels."""

    def size(key: str, axis: int, size: int) -> int:
        if key.startswith("head.") and size == 1024:
            return width
        scores = "conv_out" in key and axis == 0 and size % 19 == 0
        return size // 19 * num_classes if scores else size

    return {key: tuple(size(key, axis, n) for axis, n in enumerate(shape)) for key, shape in shapes.items()}


def random_state(shapes: Shapes) -> dict[str, Tensor]:
    """Return weights with which no branch drowns in another; gammas of both signs; the same every time."""
    return {key: _random_tensor(key, shape).clone() for key, shape in shapes.items()}


@cache
def _random_tensor(key: str, shape: tuple[int, ...]) -> Tensor:
    if key.endswith("num_batches_tracked"):
        return torch.tensor(7)
    random = np.random.default_rng([len(key), *key.encode(), *shape])
    if len(shape) == 4:
        bound = (6 / np.prod(shape[1:])) ** 0.5
        return torch.from_numpy(random.uniform(-bound, bound, shape).astype(np.float32))
    values = random.uniform(-0.5, 0.5, shape).astype(np.float32)
    if key.endswith("running_var"):
        values += 1
    if key.endswith(".weight"):
        values += random.choice([-1, 1], shape)
    return torch.from_numpy(values)


class Program:
    """One generation with its weights.

    Args:
        generation: key of ``PUBLISHED``.
        state: weights under the keys of its list; auxiliary heads are not read.
    """

    def __init__(self, generation: str, state: Mapping[str, Tensor]) -> None:
        self.facts = PUBLISHED[generation]
        self.state = state

    @torch.no_grad()
    def raw(self, pixels_NHW3: Tensor, mean: Rgb, std: Rgb) -> Tensor:
        """Return what the last convolution says of RGB pictures of 0..255, both sides multiples of 32."""
        x = (pixels_NHW3.float() / 255 - torch.tensor(mean)) / torch.tensor(std)
        x = x.permute(0, 3, 1, 2).contiguous()
        return self._v2(x) if "detail.S1.0.conv.weight" in self.state else self._v1(x)

    def scores(self, raw_NChw: Tensor) -> Tensor:
        """Return scores_NKHW at full size."""
        if self.facts.outside == "shuffle":
            return functional.pixel_shuffle(raw_NChw, 8)
        size = (raw_NChw.shape[2] * 8, raw_NChw.shape[3] * 8)
        aligned = self.facts.outside == "aligned"
        return functional.interpolate(raw_NChw, size, mode="bilinear", align_corners=aligned)

    def labels(self, pixels_NHW3: Tensor, mean: Rgb, std: Rgb) -> Tensor:
        """Return the highest-scoring class of each pixel."""
        return self.scores(self.raw(pixels_NHW3, mean, std)).argmax(1)

    def _v1(self, x: Tensor) -> Tensor:
        feat8, feat16, feat32 = self._resnet(x)
        average = self._cbr("cp.conv_avg", _mean(feat32))
        context16 = self._cbr("cp.conv_head32", _repeated(self._refined("cp.arm32", feat32) + average, 2))
        context8 = self._cbr("cp.conv_head16", _repeated(self._refined("cp.arm16", feat16) + context16, 2))
        detail = feat8
        if "sp.conv1.conv.weight" in self.state:
            detail = x
            for name, stride in (("conv1", 2), ("conv2", 2), ("conv3", 2), ("conv_out", 1)):
                detail = self._cbr(f"sp.{name}", detail, stride)
        joined = self._cbr("ffm.convblk", torch.cat([detail, context8], 1))
        weight = _mean(joined)
        if "ffm.conv1.weight" in self.state:
            weight = self._conv("ffm.conv2", self._conv("ffm.conv1", weight).clamp(min=0))
        else:
            weight = self._norm("ffm.bn", self._conv("ffm.conv", weight))
        fused = joined + joined * weight.sigmoid()
        return self._conv("conv_out.conv_out", self._cbr("conv_out.conv", fused))

    def _resnet(self, x: Tensor) -> list[Tensor]:
        y = self._active(self._norm("cp.resnet.bn1", self._conv("cp.resnet.conv1", x, 2)))
        y = functional.max_pool2d(y, 3, 2, 1)
        stages = []
        for layer in (1, 2, 3, 4):
            for block in (0, 1):
                key, stride = f"cp.resnet.layer{layer}.{block}", 2 if layer > 1 and block == 0 else 1
                branch = self._active(self._norm(f"{key}.bn1", self._conv(f"{key}.conv1", y, stride)))
                branch = self._norm(f"{key}.bn2", self._conv(f"{key}.conv2", branch))
                if f"{key}.downsample.0.weight" in self.state:
                    y = self._norm(f"{key}.downsample.1", self._conv(f"{key}.downsample.0", y, stride))
                y = (branch + y).clamp(min=0)
            stages.append(y)
        return stages[1:]

    def _refined(self, key: str, x: Tensor) -> Tensor:
        feat = self._cbr(f"{key}.conv", x)
        return feat * self._norm(f"{key}.bn_atten", self._conv(f"{key}.conv_atten", _mean(feat))).sigmoid()

    def _v2(self, x: Tensor) -> Tensor:
        detail = x
        for stage, count in (("S1", 2), ("S2", 3), ("S3", 3)):
            for i in range(count):
                detail = self._cbr(f"detail.{stage}.{i}", detail, 2 if i == 0 else 1)
        context = self._semantic(x)
        right1 = self._norm("bga.right1.1", self._conv("bga.right1.0", context))
        fine = self._separable("bga.left1", detail) * self._up4(right1).sigmoid()
        left2 = self._norm("bga.left2.1", self._conv("bga.left2.0", detail, 2))
        coarse = functional.avg_pool2d(left2, 3, 2, 1) * self._separable("bga.right2", context).sigmoid()
        fused = self._active(self._norm("bga.conv.1", self._conv("bga.conv.0", fine + self._up4(coarse))))
        last = next(k for k in self.state if k.startswith("head.conv_out.") and k.endswith("weight"))
        return self._conv(last.removesuffix(".weight"), self._cbr("head.conv", fused))

    def _semantic(self, x: Tensor) -> Tensor:
        half = self._cbr("segment.S1S2.conv", x, 2)
        left = self._cbr("segment.S1S2.left.1", self._cbr("segment.S1S2.left.0", half), 2)
        y = self._cbr("segment.S1S2.fuse", torch.cat([left, functional.max_pool2d(half, 3, 2, 1)], 1))
        for stage, count in (("S3", 2), ("S4", 2), ("S5_4", 4)):
            for i in range(count):
                y = self._gathered(f"segment.{stage}.{i}", y)
        whole = self._norm("segment.S5_5.bn", _mean(y))
        return self._cbr("segment.S5_5.conv_last", self._cbr("segment.S5_5.conv_gap", whole) + y)

    def _gathered(self, key: str, x: Tensor) -> Tensor:
        y, channels = self._cbr(f"{key}.conv1", x), x.shape[1]
        if f"{key}.shortcut.0.weight" not in self.state:
            y = self._active(self._norm(f"{key}.dwconv.1", self._conv(f"{key}.dwconv.0", y, groups=channels)))
            return (self._norm(f"{key}.conv2.1", self._conv(f"{key}.conv2.0", y)) + x).clamp(min=0)
        y = self._norm(f"{key}.dwconv1.1", self._conv(f"{key}.dwconv1.0", y, 2, channels))
        y = self._active(self._norm(f"{key}.dwconv2.1", self._conv(f"{key}.dwconv2.0", y, 1, 6 * channels)))
        y = self._norm(f"{key}.conv2.1", self._conv(f"{key}.conv2.0", y))
        x = self._norm(f"{key}.shortcut.1", self._conv(f"{key}.shortcut.0", x, 2, channels))
        return (y + self._norm(f"{key}.shortcut.3", self._conv(f"{key}.shortcut.2", x))).clamp(min=0)

    def _separable(self, key: str, x: Tensor) -> Tensor:
        y = self._norm(f"{key}.1", self._conv(f"{key}.0", x, groups=x.shape[1]))
        return self._conv(f"{key}.2", y)

    def _up4(self, x: Tensor) -> Tensor:
        if not self.facts.aligned_inside:
            return _repeated(x, 4)
        size = (x.shape[2] * 4, x.shape[3] * 4)
        return functional.interpolate(x, size, mode="bilinear", align_corners=True)

    def _conv(self, key: str, x: Tensor, stride: int = 1, groups: int = 1) -> Tensor:
        weight = self.state[f"{key}.weight"]
        bias = self.state.get(f"{key}.bias")
        return functional.conv2d(x, weight, bias, stride, weight.shape[-1] // 2, groups=groups)

    def _norm(self, key: str, x: Tensor) -> Tensor:
        mean, var, gamma, beta = (
            self.state[f"{key}.{name}"].view(1, -1, 1, 1)
            for name in ("running_mean", "running_var", "weight", "bias")
        )
        if self.facts.in_place_abn:
            gamma = gamma.abs() + EPS
        return (x - mean) / (var + EPS).sqrt() * gamma + beta

    def _active(self, x: Tensor) -> Tensor:
        return torch.where(x > 0, x, 0.01 * x) if self.facts.in_place_abn else x.clamp(min=0)

    def _cbr(self, key: str, x: Tensor, stride: int = 1) -> Tensor:
        return self._active(self._norm(f"{key}.bn", self._conv(f"{key}.conv", x, stride)))


def _mean(x: Tensor) -> Tensor:
    return x.mean((2, 3), keepdim=True)


def _repeated(x: Tensor, factor: int) -> Tensor:
    return x.repeat_interleave(factor, dim=2).repeat_interleave(factor, dim=3)
