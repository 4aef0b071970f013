from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from training.errors import ConfigError
from training.optimisation.losses import (
    LossConfig,
    SegmentationLoss,
    _hardest,
    _hardest_at_once,
    _less_at_label,
    _less_where_equal,
    _Target,
    class_weights,
    dice_loss,
    kth_largest,
)

IGNORE = 255
K = 5


def ohem(threshold: float, **terms: Any) -> LossConfig:
    return LossConfig(ohem_threshold=threshold, class_weight_base=0, **terms)


def reference(raw: Tensor, labels: Tensor, weights_K: Tensor, threshold: float) -> Tensor:
    """Return the published definition, by autograd on full-size scores."""
    target = labels.long()
    scores = functional.interpolate(raw, size=labels.shape[1:], mode="bilinear", align_corners=False)
    entropy = functional.cross_entropy(scores, target, ignore_index=IGNORE, reduction="none")[
        target != IGNORE
    ]
    weight = weights_K[target[target != IGNORE]]
    hard = entropy >= -math.log(threshold)
    if int(hard.sum()) < len(entropy) // 16:
        hard = entropy >= entropy.topk(len(entropy) // 16).values.min()
    return (entropy * weight)[hard].sum() / weight[hard].sum()


def batch(
    seed: int, *, sharpness: float = 1.0, small: tuple[int, int] = (4, 6)
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    raw = sharpness * torch.randn((3, K, *small), generator=generator)
    labels = torch.randint(0, K, (3, 32, 48), generator=generator, dtype=torch.uint8)
    labels[torch.rand(labels.shape, generator=generator) < 0.2] = IGNORE
    return raw.requires_grad_(), labels, torch.rand(K, generator=generator) + 0.5


@given(
    seed=st.integers(0, 10_000),
    threshold=st.sampled_from([0.05, 0.3, 0.7, 1.0]),
    sharpness=st.sampled_from([0.1, 3.0]),
)
@settings(max_examples=40, deadline=None)
def test_value_and_gradient_are_those_of_the_definition(
    seed: int, threshold: float, sharpness: float
) -> None:
    raw, labels, weights_K = batch(seed, sharpness=sharpness)
    wanted = reference(raw, labels, weights_K, threshold)
    (wanted_gradient,) = torch.autograd.grad(wanted, raw)
    loss = SegmentationLoss(ohem(threshold), weights_K, IGNORE).total([raw], labels)
    (gradient,) = torch.autograd.grad(loss, raw)
    torch.testing.assert_close(loss, wanted, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(gradient, wanted_gradient, atol=1e-6, rtol=1e-3)


def test_heads_of_any_stride_add_up_with_weight_one() -> None:
    labels, weights_K = batch(1)[1:]
    heads = [batch(2, small=small)[0] for small in ((4, 6), (16, 24), (2, 3))]
    loss = SegmentationLoss(ohem(0.7), weights_K, IGNORE)
    total = loss.total(heads, labels)
    parts = [loss.total([head], labels) for head in heads]
    torch.testing.assert_close(total, torch.stack(parts).sum())


def test_only_hard_pixels_are_learned_from() -> None:
    labels = torch.zeros((2, 32, 32), dtype=torch.uint8)
    labels[:, :, 16:] = 1
    raw = torch.zeros((2, 2, 32, 32))
    raw[:, 0] = 9.0  # sure of class 0: right on the left half, wrong on the right half
    raw.requires_grad_()
    (gradient,) = torch.autograd.grad(
        SegmentationLoss(ohem(0.7), torch.ones(2), IGNORE).total([raw], labels), raw
    )
    assert (gradient[..., :16] == 0).all()
    assert (gradient[..., 16:] != 0).all()


def test_a_batch_without_labels_costs_nothing_and_stays_connected() -> None:
    raw, labels, weights_K = batch(3)
    loss = SegmentationLoss(ohem(0.7), weights_K, IGNORE).total([raw], torch.full_like(labels, IGNORE))
    (gradient,) = torch.autograd.grad(loss, raw)
    assert loss == 0
    assert (gradient == 0).all()


def test_a_single_easy_pixel_is_no_number_trouble() -> None:
    labels = torch.full((1, 32, 32), IGNORE, dtype=torch.uint8)
    labels[0, 0, 0] = 0
    raw = torch.zeros((1, 2, 4, 4))
    raw[:, 0] = 50.0
    loss = SegmentationLoss(ohem(0.7), torch.ones(2), IGNORE).total([raw.requires_grad_()], labels)
    assert loss == 0


def test_half_precision_scores_give_nearly_the_same_gradient() -> None:
    raw, labels, weights_K = batch(4)
    loss = SegmentationLoss(ohem(0.7), weights_K, IGNORE)
    (exact,) = torch.autograd.grad(loss.total([raw], labels), raw)
    half = raw.detach().bfloat16().requires_grad_()
    (rounded,) = torch.autograd.grad(loss.total([half], labels), half)
    assert rounded.dtype == torch.bfloat16
    assert functional.cosine_similarity(rounded.float().flatten(), exact.flatten(), dim=0) > 0.999


def test_the_share_of_one_pixel_is_not_too_small_for_fp16() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, K, (2, 512, 512), generator=generator, dtype=torch.uint8)
    half = torch.randn((2, K, 64, 64), generator=generator).half().requires_grad_()
    exact = half.detach().float().requires_grad_()
    loss, scale = SegmentationLoss(ohem(0.7), torch.ones(K), IGNORE), 2.0**16  # of a gradient scaler
    (wanted,) = torch.autograd.grad(scale * loss.total([exact], labels), exact)
    (gradient,) = torch.autograd.grad(scale * loss.total([half], labels), half)
    large = wanted.abs() > wanted.abs().max() / 100
    assert ((gradient - wanted) / wanted)[large].abs().mean() < 1e-3


def test_class_weights_follow_the_formula_and_favour_the_rare() -> None:
    frequencies_K = torch.tensor([0.7, 0.2, 0.1, 0.0])
    weights_K = class_weights(frequencies_K, LossConfig(ohem_threshold=0.7, class_weight_base=1.1))
    torch.testing.assert_close(weights_K[0], torch.tensor(1 / math.log(1.8)))
    assert weights_K.tolist() == sorted(weights_K.tolist())
    flat = class_weights(frequencies_K, LossConfig(ohem_threshold=0.7, class_weight_base=0))
    assert flat.tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize(("threshold", "base"), [(0.0, 1.1), (1.1, 1.1), (0.7, 1.0), (0.7, -1.0)])
def test_a_config_out_of_range_is_refused(threshold: float, base: float) -> None:
    with pytest.raises(ConfigError, match="loss"):
        LossConfig(ohem_threshold=threshold, class_weight_base=base)


@given(seed=st.integers(0, 1000), k=st.integers(1, 500))
def test_the_kth_largest_is_found_by_counting(seed: int, k: int) -> None:
    values = torch.rand(500, generator=torch.Generator().manual_seed(seed)) * 9
    values[::7] = values[0]
    assert kth_largest(values, torch.tensor(k)) == values.topk(k).values.min()


def test_no_pixel_wanted_keeps_the_floor_on_a_device() -> None:
    none = kth_largest(torch.rand(9), torch.tensor(0))
    assert torch.fmin(none, torch.tensor(0.3)) == torch.tensor(0.3)


def test_auxiliary_heads_count_by_their_weight() -> None:
    raw, labels, weights_K = batch(6)
    extra = batch(7)[0]
    parts = {
        share: SegmentationLoss(ohem(0.7, auxiliary_weight=share), weights_K, IGNORE).total(
            [raw, extra], labels
        )
        for share in (0.0, 0.4, 1.0)
    }
    torch.testing.assert_close(parts[0.4], 0.6 * parts[0.0] + 0.4 * parts[1.0])


def test_the_dice_loss_is_one_minus_the_overlap() -> None:
    labels = torch.zeros((1, 1, 32, 32), dtype=torch.int64)
    labels[..., 16:] = 1
    sure = torch.zeros((1, 3, 32, 32))
    sure.scatter_(1, labels, 60.0)
    everything = torch.ones_like(labels, dtype=torch.bool)
    assert dice_loss(sure, labels, everything) < 1e-5
    assert dice_loss(-sure, labels, everything) > 0.999
    # Half of the pixels are right: 2 * 512 / (1024 + 512) for class 0, nothing for class 1; no class 2.
    only_0 = torch.zeros((1, 3, 32, 32))
    only_0[:, 0] = 60.0
    torch.testing.assert_close(dice_loss(only_0, labels, everything), torch.tensor(1 - (2 / 3 + 0) / 2))
    assert dice_loss(only_0, labels, ~everything) == 0


def test_the_edge_term_looks_at_pixels_next_to_another_class_only() -> None:
    labels = torch.zeros((1, 32, 32), dtype=torch.uint8)
    labels[:, :, 16:] = 1
    raw = torch.zeros((1, 2, 32, 32), requires_grad=True)
    with_edges = SegmentationLoss(ohem(1.0, edge=1.0, edge_width=5), torch.ones(2), IGNORE).total(
        [raw], labels
    )
    without = SegmentationLoss(ohem(1.0), torch.ones(2), IGNORE).total([raw], labels)
    (gradient,) = torch.autograd.grad(with_edges - without, raw)
    touched = gradient[0, 0].abs().sum(0) > 0
    assert touched.nonzero().flatten().tolist() == [14, 15, 16, 17]


def test_all_terms_together_survive_a_batch_without_labels() -> None:
    raw, labels, weights_K = batch(3)
    loss = SegmentationLoss(ohem(0.7, dice=1.0, edge=0.5), weights_K, IGNORE)
    total = loss.total([raw], torch.full_like(labels, IGNORE))
    (gradient,) = torch.autograd.grad(total, raw)
    assert total == 0
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize(
    "change",
    [{"auxiliary_weight": -1.0}, {"dice": -0.1}, {"edge": -0.1}, {"edge_width": 4}, {"edge_width": 1}],
)
def test_a_term_out_of_range_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(change))):
        ohem(0.7, **change)


def test_a_deterministic_gpu_subtracts_at_the_label_what_others_do() -> None:
    generator = torch.Generator().manual_seed(0)
    slope_NKHW = torch.rand((2, K, 8, 9), generator=generator)
    labels_N1HW = torch.randint(0, K, (2, 1, 8, 9), generator=generator)
    kept_N1HW = torch.rand((2, 1, 8, 9), generator=generator).round(decimals=1)
    ways = (_less_at_label, _less_where_equal)
    assert torch.equal(*(way(slope_NKHW.clone(), labels_N1HW, kept_N1HW) for way in ways))


@pytest.mark.parametrize("threshold", [0.05, 0.7, 1.0])
def test_a_batch_that_is_scored_at_once_has_the_loss_of_its_pictures(threshold: float) -> None:
    raw_NKhw, labels_NHW, weights_K = batch(3)
    table = torch.zeros(IGNORE + 1)
    table[:K] = weights_K
    target = _Target.of(labels_NHW, table)
    floor = -math.log(threshold)
    one_by_one, at_once = (way(raw_NKhw.detach(), target, floor) for way in (_hardest, _hardest_at_once))
    assert int(at_once.kept) == int(one_by_one.kept)
    torch.testing.assert_close(at_once.total, one_by_one.total)
    torch.testing.assert_close(at_once.weight, one_by_one.weight)
    torch.testing.assert_close(at_once.gradient_NKhw, one_by_one.gradient_NKhw)
