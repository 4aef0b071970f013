"""The loss: cross entropy of the hard pixels of every head; optional Dice and edge terms of the main head.

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
_FLOAT_BITS = 31  # of float32, without the sign


@dataclass(frozen=True)
class LossConfig:
    """Terms and weights of the loss.

    Args:
        ohem_threshold: pixels whose class got less than this probability are hard, 0..1; 1 keeps all pixels.
        class_weight_base: c in the class weights 1 / ln(c + frequency); larger is flatter. 0 = no weights.
        auxiliary_weight: of each auxiliary (booster) head; the main head has 1. 0 = the network has none.
        dice: weight of the main head's Dice loss; 0 = without.
        edge: weight of the main head's cross entropy over the pixels next to another class; 0 = without.
        edge_width: side of the square in which such a neighbour counts, in pixels, odd.

    Raises:
        ConfigError: a value is out of range.

    Source:
        OHEM 0.7: the BiSeNet papers' published code. Weights: Paszke et al., ENet, 2016. Dice: Milletari et
        al., V-Net, 2016. Dice and edges beside cross entropy: the segmentation recipes of super-gradients.
    """

    ohem_threshold: float
    class_weight_base: float
    auxiliary_weight: float = 1.0
    dice: float = 0.0
    edge: float = 0.0
    edge_width: int = 3

    def __post_init__(self) -> None:
        """Refuse thresholds and weights out of range."""
        if not 0 < self.ohem_threshold <= 1:
            raise ConfigError(f"loss.ohem_threshold must lie in (0, 1], not {self.ohem_threshold}")
        if self.class_weight_base != 0 and self.class_weight_base <= 1:
            raise ConfigError(f"loss.class_weight_base must be 0 or above 1, not {self.class_weight_base}")
        if min(self.auxiliary_weight, self.dice, self.edge) < 0:
            raise ConfigError("loss: auxiliary_weight, dice and edge must not be negative")
        if self.edge_width < 3 or self.edge_width % 2 == 0:  # noqa: PLR2004
            raise ConfigError(f"loss.edge_width must be odd and at least 3, not {self.edge_width}")


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
class SegmentationLoss:
    """The loss of all heads of a batch.

    Cross entropy is averaged over the hard pixels (online hard example mining): those whose class has less
    probability than the threshold; if these are fewer than one in 16 of the labelled pixels, the hardest
    sixteenth. The mean is weighted by class.

    Args:
        config: terms and weights.
        weights_K: float32, one weight a class, on the device of the scores.
        ignore_id: the id of pixels without a class.
    """

    config: LossConfig
    weights_K: Tensor
    ignore_id: int

    def total(self, heads: Sequence[Tensor], labels_NHW: Tensor) -> Tensor:
        """Add up the terms of the main head and of each auxiliary head.

        Args:
            heads: raw scores, each (N, K, h, w), any float type; up-sampled bilinearly to the labels' size.
            labels_NHW: uint8 class ids or ``ignore_id``.

        Returns:
            A scalar, float32; 0, still connected to the graph, if no pixel is labelled.
        """
        config = self.config
        target = _Target.of(labels_NHW, self._weights_by_id())
        floor = -math.log(config.ohem_threshold)
        main, *auxiliary = [_cross_entropy(raw_NKhw, target, floor) for raw_NKhw in heads]
        total = main
        if auxiliary:
            total = total + config.auxiliary_weight * torch.stack(auxiliary).sum()
        if config.dice:
            total = total + config.dice * dice_loss(heads[0], target.labels_N1HW, target.weights_N1HW > 0)
        if config.edge:
            near = target.near_edges(labels_NHW, config.edge_width)
            total = total + config.edge * _cross_entropy(heads[0], near, 0.0)
        return total

    def _weights_by_id(self) -> Tensor:
        table = self.weights_K.new_zeros(self.ignore_id + 1)
        table[: len(self.weights_K)] = self.weights_K
        return table


def dice_loss(raw_NKhw: Tensor, labels_N1HW: Tensor, labelled_N1HW: Tensor) -> Tensor:
    """Return one minus the overlap of probability and truth, averaged over the classes that occur.

    Args:
        raw_NKhw: raw scores, up-sampled bilinearly to the labels' size.
        labels_N1HW: int64 class ids; any of a class where not labelled.
        labelled_N1HW: bool.

    Returns:
        A scalar, float32, 0..1.

    Source:
        1 - 2 |P T| / (|P| + |T|), Milletari et al., V-Net, 2016, per class over the batch.
    """
    size = labels_N1HW.shape[2:]
    scores_NKHW = functional.interpolate(raw_NKhw.float(), size=size, mode="bilinear", align_corners=False)
    share_NKHW = scores_NKHW.softmax(1) * labelled_N1HW
    truth_NKHW = torch.zeros_like(share_NKHW).scatter_(1, labels_N1HW, labelled_N1HW.float())
    axes = (0, 2, 3)
    truth_K = truth_NKHW.sum(axes)
    overlap_K = 2 * (share_NKHW * truth_NKHW).sum(axes) / (share_NKHW.sum(axes) + truth_K).clamp_min(1e-6)
    occurs_K = (truth_K > 0).float()
    return ((1 - overlap_K) * occurs_K).sum() / occurs_K.sum().clamp_min(1)


@dataclass(frozen=True, eq=False)
class _Target:
    """The labels of a batch, for every head.

    Attributes:
        labels_N1HW: int64; ignored pixels have any class id.
        weights_N1HW: float32; 0 where ignored.
        min_kept: int64 scalar: least number of pixels that count.
    """

    labels_N1HW: Tensor
    weights_N1HW: Tensor
    min_kept: Tensor

    @classmethod
    def of(cls, labels_NHW: Tensor, weights_by_id: Tensor) -> _Target:
        labels_N1HW = labels_NHW.long()[:, None]
        weights_N1HW = weights_by_id[labels_N1HW]
        labelled_N1HW = weights_N1HW > 0
        min_kept = labelled_N1HW.count_nonzero() // _MIN_KEPT_SHARE
        return cls(labels_N1HW * labelled_N1HW, weights_N1HW, min_kept)

    def near_edges(self, labels_NHW: Tensor, width: int) -> _Target:
        """Keep the labelled pixels whose square of ``width`` contains another id, the ignore id included."""
        ids_N1HW = labels_NHW[:, None].float()
        highest, lowest = (
            functional.max_pool2d(sign * ids_N1HW, width, stride=1, padding=width // 2) for sign in (1, -1)
        )
        edge_N1HW = highest != -lowest
        return _Target(self.labels_N1HW, self.weights_N1HW * edge_N1HW, torch.zeros_like(self.min_kept))


def _cross_entropy(raw_NKhw: Tensor, target: _Target, floor: float) -> Tensor:
    loss: Tensor = _HardCrossEntropy.apply(raw_NKhw, target, floor)  # type: ignore[no-untyped-call]  # torch's
    return loss


class _HardCrossEntropy(torch.autograd.Function):
    """Weighted mean cross entropy over the hard pixels of one head, with its gradient in the same pass.

    Full-size scores of a batch are tens of megabytes, and autograd would write and read six such arrays.
    Here they exist for one picture at a time and stay in the cache: 2 to 4 times as fast on two cores.
    """

    @staticmethod
    def forward(ctx: Any, raw_NKhw: Tensor, target: _Target, floor: float) -> Tensor:
        """Return the loss; pixels with an entropy of at least ``floor`` are hard."""
        scored = _hardest(raw_NKhw, target, floor)
        # Nothing labelled: 0 / tiny = 0, never 0 / 0.
        weight = scored.weight.clamp_min(torch.finfo(torch.float32).tiny)
        # In float32 until it is scaled: the share of one pixel in a large batch is too small for fp16.
        ctx.save_for_backward(scored.gradient_NKhw.float() / weight)
        ctx.dtype = raw_NKhw.dtype
        return scored.total / weight

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None]:
        """Scale the gradient of ``forward``."""
        (gradient_NKhw,) = ctx.saved_tensors
        return (gradient_NKhw * upstream[0]).to(ctx.dtype), None, None


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
    kept: Tensor
    gradient_NKhw: Tensor


def _hardest(raw_NKhw: Tensor, target: _Target, floor: float) -> _Scored:
    """Score the pixels from ``floor`` on, or from a lower floor that keeps enough of them."""
    if raw_NKhw.is_cuda:
        return _hardest_at_once(raw_NKhw, target, floor)
    scored = _score(raw_NKhw, target, torch.tensor(floor))
    if scored.kept >= target.min_kept:
        return scored
    hardest = scored.entropy_N1HW.flatten().topk(int(target.min_kept), sorted=False).values
    return _score(raw_NKhw, target, hardest.min())


def _hardest_at_once(raw_NKhw: Tensor, target: _Target, floor: float) -> _Scored:
    """Score a whole batch, for a GPU: it has the memory, and many small kernels would be slow.

    The host does not read the number of hard pixels: it would wait for the device at every step.
    """
    log_p_NKHW = _log_shares(raw_NKhw, target.labels_N1HW)
    entropy_N1HW = -log_p_NKHW.gather(1, target.labels_N1HW)
    counted_N1HW = entropy_N1HW * (target.weights_N1HW > 0)
    enough = kth_largest(counted_N1HW, target.min_kept)
    kept_N1HW = target.weights_N1HW * (entropy_N1HW >= torch.fmin(enough, enough.new_full((), floor)))
    slope_NKHW = _slope(log_p_NKHW, target.labels_N1HW, kept_N1HW)
    return _scored(counted_N1HW, kept_N1HW, _gathered(slope_NKHW, raw_NKhw))


def kth_largest(values: Tensor, k: Tensor) -> Tensor:
    """Return the k-th largest of many values, without waiting for the device.

    Floats of one sign have the order of their bits, so counting finds the answer bit by bit.

    Args:
        values: float32, not negative.
        k: int64 scalar; 0 gives NaN.

    Returns:
        A scalar, float32.
    """
    bits = values.view(torch.int32)
    found = torch.zeros((), dtype=torch.int32, device=values.device)
    for position in reversed(range(_FLOAT_BITS)):
        higher = found | (1 << position)
        found = torch.where((bits >= higher).count_nonzero() >= k, higher, found)
    return found.view(torch.float32)


def _score(raw_NKhw: Tensor, target: _Target, floor: Tensor) -> _Scored:
    pictures = len(raw_NKhw)
    parts = [
        _score_picture(raw, labels, weights, floor)
        for raw, labels, weights in zip(
            raw_NKhw.chunk(pictures),
            target.labels_N1HW.chunk(pictures),
            target.weights_N1HW.chunk(pictures),
            strict=True,
        )
    ]
    entropies, gradients, kept_weights = zip(*parts, strict=True)
    return _scored(torch.cat(entropies), torch.cat(kept_weights), torch.cat(gradients))


def _scored(entropy_N1HW: Tensor, kept_N1HW: Tensor, gradient_NKhw: Tensor) -> _Scored:
    return _Scored(
        entropy_N1HW=entropy_N1HW,
        total=(entropy_N1HW * kept_N1HW).sum(),
        weight=kept_N1HW.sum(),
        kept=kept_N1HW.count_nonzero(),
        gradient_NKhw=gradient_NKhw,
    )


def _score_picture(
    raw_1Khw: Tensor, labels_11HW: Tensor, weights_11HW: Tensor, floor: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return entropies, the gradient of their weighted sum over the hard pixels, and the kept weights."""
    log_p_1KHW = _log_shares(raw_1Khw, labels_11HW)
    entropy_11HW = -log_p_1KHW.gather(1, labels_11HW)
    kept_11HW = weights_11HW * (entropy_11HW >= floor)
    slope_1KHW = _slope(log_p_1KHW, labels_11HW, kept_11HW)
    return entropy_11HW * (weights_11HW > 0), _gathered(slope_1KHW, raw_1Khw), kept_11HW


def _log_shares(raw_NKhw: Tensor, labels_N1HW: Tensor) -> Tensor:
    scores_NKHW = functional.interpolate(
        raw_NKhw.float().contiguous(), size=labels_N1HW.shape[2:], mode="bilinear", align_corners=False
    )
    return functional.log_softmax(scores_NKHW, dim=1)


def _slope(log_p_NKHW: Tensor, labels_N1HW: Tensor, kept_N1HW: Tensor) -> Tensor:
    """Return the gradient of the weighted entropies by the scores; takes the memory of ``log_p_NKHW``."""
    # d entropy / d score of class k = p_k - [k is the label]
    return _less_at_label(log_p_NKHW.exp_().mul_(kept_N1HW), labels_N1HW, kept_N1HW)


def _less_at_label(slope_NKHW: Tensor, labels_N1HW: Tensor, kept_N1HW: Tensor) -> Tensor:
    if slope_NKHW.is_cuda and torch.are_deterministic_algorithms_enabled():
        return _less_where_equal(slope_NKHW, labels_N1HW, kept_N1HW)
    return slope_NKHW.scatter_add_(1, labels_N1HW, -kept_N1HW)


def _less_where_equal(slope_NKHW: Tensor, labels_N1HW: Tensor, kept_N1HW: Tensor) -> Tensor:
    """Add at class indices; ``scatter_add_`` would sort all pixels on a GPU with deterministic algorithms."""
    classes_K11 = torch.arange(slope_NKHW.shape[1], device=slope_NKHW.device)[:, None, None]
    return slope_NKHW.sub_(kept_N1HW * (labels_N1HW == classes_K11))


def _gathered(slope_NKHW: Tensor, raw_NKhw: Tensor) -> Tensor:
    """Return the gradient by the raw scores from that by the up-sampled ones (transposed up-sampling).

    Two matrix products in the type of the raw scores, to which the gradient is rounded anyway: for bf16 2 to
    10 times as fast on a CPU as torch's own backward.
    """
    dtype, device = raw_NKhw.dtype, raw_NKhw.device
    (rows_hH, columns_wW) = (
        functional.interpolate(torch.eye(small, device=device)[None], size=large, mode="linear")[0].to(dtype)
        for small, large in zip(raw_NKhw.shape[2:], slope_NKHW.shape[2:], strict=True)
    )
    return rows_hH @ (slope_NKHW.to(dtype) @ columns_wW.T)
