from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from training.errors import ConfigError
from training.losses import LossConfig, OhemCrossEntropy, class_weights

IGNORE = 255
K = 5


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
    loss = OhemCrossEntropy(threshold, weights_K, IGNORE).total([raw], labels)
    (gradient,) = torch.autograd.grad(loss, raw)
    torch.testing.assert_close(loss, wanted, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(gradient, wanted_gradient, atol=1e-6, rtol=1e-3)


def test_heads_of_any_stride_add_up_with_weight_one() -> None:
    labels, weights_K = batch(1)[1:]
    heads = [batch(2, small=small)[0] for small in ((4, 6), (16, 24), (2, 3))]
    loss = OhemCrossEntropy(0.7, weights_K, IGNORE)
    total = loss.total(heads, labels)
    parts = [loss.total([head], labels) for head in heads]
    torch.testing.assert_close(total, torch.stack(parts).sum())


def test_only_hard_pixels_are_learned_from() -> None:
    labels = torch.zeros((2, 32, 32), dtype=torch.uint8)
    labels[:, :, 16:] = 1
    raw = torch.zeros((2, 2, 32, 32))
    raw[:, 0] = 9.0  # sure of class 0: right on the left half, wrong on the right half
    raw.requires_grad_()
    (gradient,) = torch.autograd.grad(OhemCrossEntropy(0.7, torch.ones(2), IGNORE).total([raw], labels), raw)
    assert (gradient[..., :16] == 0).all()
    assert (gradient[..., 16:] != 0).all()


def test_a_batch_without_labels_costs_nothing_and_stays_connected() -> None:
    raw, labels, weights_K = batch(3)
    loss = OhemCrossEntropy(0.7, weights_K, IGNORE).total([raw], torch.full_like(labels, IGNORE))
    (gradient,) = torch.autograd.grad(loss, raw)
    assert loss == 0
    assert (gradient == 0).all()


def test_a_single_easy_pixel_is_no_number_trouble() -> None:
    labels = torch.full((1, 32, 32), IGNORE, dtype=torch.uint8)
    labels[0, 0, 0] = 0
    raw = torch.zeros((1, 2, 4, 4))
    raw[:, 0] = 50.0
    loss = OhemCrossEntropy(0.7, torch.ones(2), IGNORE).total([raw.requires_grad_()], labels)
    assert loss == 0


def test_half_precision_scores_give_nearly_the_same_gradient() -> None:
    raw, labels, weights_K = batch(4)
    loss = OhemCrossEntropy(0.7, weights_K, IGNORE)
    (exact,) = torch.autograd.grad(loss.total([raw], labels), raw)
    half = raw.detach().bfloat16().requires_grad_()
    (rounded,) = torch.autograd.grad(loss.total([half], labels), half)
    assert rounded.dtype == torch.bfloat16
    assert functional.cosine_similarity(rounded.float().flatten(), exact.flatten(), dim=0) > 0.999


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
