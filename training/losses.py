"""The loss: cross entropy of the hard pixels, the same for the main head and every auxiliary one.

Axes: N images in a batch, K classes, H height, W width of the labels, h w = a head's own height and width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from training.errors import ConfigError

_MIN_KEPT_SHARE = 16


@dataclass(frozen=True)
class LossConfig:
    """What a wrong pixel costs.

    Args:
        ohem_threshold: pixels whose class got less than this probability are hard, 0..1; 1 keeps all pixels.
        class_weight_base: c in the class weights 1 / ln(c + frequency); larger is flatter. 0 = no weights.

    Raises:
        ConfigError: a value is out of range.

    Source:
        OHEM 0.7: the BiSeNet papers' published code. Weights: Paszke et al., ENet, 2016.
    """

    ohem_threshold: float
    class_weight_base: float

    def __post_init__(self) -> None:
        """Refuse thresholds and weights without a meaning."""
        if not 0 < self.ohem_threshold <= 1:
            raise ConfigError(f"loss.ohem_threshold must lie in (0, 1], not {self.ohem_threshold}")
        if self.class_weight_base != 0 and self.class_weight_base <= 1:
            raise ConfigError(f"loss.class_weight_base must be 0 or above 1, not {self.class_weight_base}")


def class_weights(frequencies_K: Tensor, config: LossConfig) -> Tensor:
    """Weigh classes by rarity.

    Args:
        frequencies_K: share of each class, sums to 1.
        config: of the loss.

    Returns:
        weights_K: float32, above 0.
    """
    if config.class_weight_base == 0:
        return torch.ones_like(frequencies_K)
    return 1 / torch.log(config.class_weight_base + frequencies_K)


@dataclass(frozen=True, eq=False)
class OhemCrossEntropy:
    """Cross entropy averaged over the hard pixels of a batch (online hard example mining).

    A pixel is hard when the probability of its class is below ``threshold``; at least one in 16 of the
    labelled pixels is kept, the hardest first. The mean is weighted by class.

    Args:
        threshold: probability, (0, 1].
        weights_K: float32, one weight a class.
        ignore_id: the id of pixels without a class.
    """

    threshold: float
    weights_K: Tensor
    ignore_id: int

    def total(self, heads: Sequence[Tensor], labels_NHW: Tensor) -> Tensor:
        """Sum the loss of the main head and of each auxiliary head, all with weight 1.

        Args:
            heads: raw scores, each (N, K, h, w), any float type; up-sampled bilinearly to the labels' size.
            labels_NHW: uint8 class ids or ``ignore_id``.

        Returns:
            A scalar, float32; 0, still connected to the graph, when nothing is labelled.
        """
        table = self.weights_K.new_zeros(self.ignore_id + 1)
        table[: len(self.weights_K)] = self.weights_K
        target = _Target.of(labels_NHW, table)
        floor = -math.log(self.threshold)
        losses = [
            _HardCrossEntropy.apply(raw_NKhw, target, floor)  # type: ignore[no-untyped-call]  # torch's
            for raw_NKhw in heads
        ]
        return torch.stack(losses).sum()


@dataclass(frozen=True, eq=False)
class _Target:
    """What every head of a batch is compared with.

    Attributes:
        labels_N1HW: int64; the ignored have any id of a class.
        weights_N1HW: float32; 0 where ignored.
        min_kept: pixels that count at least.
    """

    labels_N1HW: Tensor
    weights_N1HW: Tensor
    min_kept: int

    @classmethod
    def of(cls, labels_NHW: Tensor, weights_by_id: Tensor) -> _Target:
        labels_N1HW = labels_NHW.long()[:, None]
        weights_N1HW = weights_by_id[labels_N1HW]
        labelled_N1HW = weights_N1HW > 0
        return cls(
            labels_N1HW * labelled_N1HW, weights_N1HW, int(labelled_N1HW.count_nonzero()) // _MIN_KEPT_SHARE
        )


class _HardCrossEntropy(torch.autograd.Function):
    """Weighted mean cross entropy over the hard pixels of one head, its gradient made in the same pass.

    Full-size scores of a batch are tens of megabytes, and autograd would write and read six such arrays.
    Here they exist for one picture at a time and stay in the cache: 2 to 4 times faster on two cores.
    """

    @staticmethod
    def forward(ctx: Any, raw_NKhw: Tensor, target: _Target, floor: float) -> Tensor:
        """Return the loss; ``floor`` is the entropy from which on a pixel is hard."""
        scored = _score(raw_NKhw, target, floor)
        if scored.kept < target.min_kept:
            floor = float(scored.entropy_N1HW.flatten().topk(target.min_kept, sorted=False).values.min())
            scored = _score(raw_NKhw, target, floor)
        # Nothing labelled: 0 / tiny = 0, never 0 / 0.
        weight = scored.weight.clamp_min(torch.finfo(torch.float32).tiny)
        ctx.save_for_backward(scored.gradient_NKhw / weight)
        return scored.total / weight

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None]:
        """Scale the gradient that ``forward`` made."""
        (gradient_NKhw,) = ctx.saved_tensors
        return gradient_NKhw * upstream[0], None, None


@dataclass(frozen=True, eq=False)
class _Scored:
    """Sums over the kept pixels of a batch.

    Attributes:
        entropy_N1HW: cross entropy of each pixel, 0 where ignored.
        total: weighted entropies.
        weight: weights.
        kept: pixels.
        gradient_NKhw: of ``total`` by the raw scores.
    """

    entropy_N1HW: Tensor
    total: Tensor
    weight: Tensor
    kept: int
    gradient_NKhw: Tensor


def _score(raw_NKhw: Tensor, target: _Target, floor: float) -> _Scored:
    # A GPU has bandwidth for the whole batch, and no time for many small kernels.
    pieces = 1 if raw_NKhw.is_cuda else len(raw_NKhw)
    parts = [
        _score_piece(raw, labels, weights, floor)
        for raw, labels, weights in zip(
            raw_NKhw.chunk(pieces),
            target.labels_N1HW.chunk(pieces),
            target.weights_N1HW.chunk(pieces),
            strict=True,
        )
    ]
    entropies, gradients, kept_weights = zip(*parts, strict=True)
    entropy_N1HW, kept_N1HW = torch.cat(entropies), torch.cat(kept_weights)
    return _Scored(
        entropy_N1HW=entropy_N1HW,
        total=(entropy_N1HW * kept_N1HW).sum(),
        weight=kept_N1HW.sum(),
        kept=int(kept_N1HW.count_nonzero()),
        gradient_NKhw=torch.cat(gradients),
    )


def _score_piece(
    raw_NKhw: Tensor, labels_N1HW: Tensor, weights_N1HW: Tensor, floor: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return entropies, the gradient of their weighted sum over the hard pixels, and the kept weights."""
    size = labels_N1HW.shape[2:]
    scores_NKHW = functional.interpolate(
        raw_NKhw.float().contiguous(), size=size, mode="bilinear", align_corners=False
    )
    log_p_NKHW = functional.log_softmax(scores_NKHW, dim=1)
    entropy_N1HW = -log_p_NKHW.gather(1, labels_N1HW)
    kept_N1HW = weights_N1HW * (entropy_N1HW >= floor)
    # d entropy / d score of class k = p_k - [k is the label]
    slope_NKHW = log_p_NKHW.exp_().mul_(kept_N1HW).scatter_add_(1, labels_N1HW, -kept_N1HW)
    return entropy_N1HW * (weights_N1HW > 0), _gathered(slope_NKHW, raw_NKhw), kept_N1HW


def _gathered(slope_NKHW: Tensor, raw_NKhw: Tensor) -> Tensor:
    """Carry a slope by up-sampled scores back to the raw ones: the transpose of bilinear up-sampling.

    As two matrix products in the type of the raw scores, which the slope is rounded to anyway: for bf16 that
    is 2 to 10 times as fast on a CPU as torch's own backward.
    """
    dtype, device = raw_NKhw.dtype, raw_NKhw.device
    (rows_hH, columns_wW) = (
        functional.interpolate(torch.eye(small, device=device)[None], size=large, mode="linear")[0].to(dtype)
        for small, large in zip(raw_NKhw.shape[2:], slope_NKHW.shape[2:], strict=True)
    )
    return rows_hH @ (slope_NKHW.to(dtype) @ columns_wW.T)
