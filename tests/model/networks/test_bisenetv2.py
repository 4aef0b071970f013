from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from model.networks.bisenetv2 import (
    BilateralAggregation,
    BiSeNetV2,
    ContextEmbedding,
    GatherExpansion,
    GatherExpansionDown,
)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def _repeat(x: Tensor, factor: int) -> Tensor:
    return x.repeat_interleave(factor, dim=2).repeat_interleave(factor, dim=3)


def test_each_part_is_as_large_as_in_the_published_weights() -> None:
    with torch.device("meta"):
        parts = BiSeNetV2(19).named_children()
    sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in parts}
    assert sizes == {
        "detail": 519_232,
        "segment": 1_159_504,
        "bga": 478_720,
        "head": 1_201_171,
        "aux2": 37_475,
        "aux3": 112_211,
        "aux4": 374_291,
        "aux5_4": 1_348_883,
    }


def test_the_main_head_is_as_wide_as_it_is_told() -> None:
    with torch.device("meta"):
        wide, narrow = (BiSeNetV2(11, head_channels=c).state_dict() for c in (1024, 64))
    changed = {key for key, value in wide.items() if value.shape != narrow[key].shape}
    assert {key.split(".")[0] for key in changed} == {"head"}
    assert narrow["head.conv_out.1.weight"].shape == (11, 64, 1, 1)


def test_the_heads_score_at_stride_8_and_at_half_the_strides_of_the_stages() -> None:
    network = BiSeNetV2(5, head_channels=8).eval()
    outputs = network.forward_train(torch.zeros(1, 3, 64, 96))
    assert [tuple(o.shape[2:]) for o in outputs] == [(8, 12), (32, 48), (16, 24), (8, 12), (4, 6)]


@pytest.mark.parametrize("training", [True, False])
def test_a_fresh_gather_and_expansion_is_its_shortcut(training: bool) -> None:  # noqa: FBT001
    x = torch.randn(2, 4, 6, 6)
    block = GatherExpansion(4).train(training)
    assert torch.equal(block(x), x.relu())
    down = GatherExpansionDown(4, 8).train(training)
    assert torch.allclose(down(x), down.shortcut(x).relu(), atol=1e-6)


@torch.no_grad()
def test_gather_and_expansion_adds_its_branch_to_the_shortcut() -> None:
    x = torch.randn(2, 4, 6, 6)
    block, down = GatherExpansion(4).eval(), GatherExpansionDown(4, 8).eval()
    for module in (block, down):
        nn.init.constant_(module.get_parameter("conv2.1.bias"), 100)
    assert torch.allclose(block(x), x + 100)
    assert torch.allclose(down(x), down.shortcut(x) + 100)


@torch.no_grad()
def test_context_embedding_adds_one_value_a_channel_to_the_whole_picture() -> None:
    block = ContextEmbedding(4).eval()
    nn.init.constant_(block.conv_gap.get_parameter("bn.bias"), 1)
    seen: list[Tensor] = []
    block.conv_last.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    x = torch.rand(2, 4, 3, 5)
    block(x)
    added = seen[0] - x
    assert added.abs().max() > 0
    assert torch.allclose(
        added, block.conv_gap(block.bn(x.mean((2, 3), keepdim=True))).expand_as(x), atol=1e-6
    )


@torch.no_grad()
def test_detail_and_context_gate_each_other_at_their_own_strides() -> None:
    layer = BilateralAggregation(4).eval()
    detail, context = torch.randn(2, 4, 8, 12), torch.randn(2, 4, 2, 3)
    fine = layer.left1(detail) * torch.sigmoid(_repeat(layer.right1(context), 4))
    coarse = _repeat(layer.left2(detail) * torch.sigmoid(layer.right2(context)), 4)
    assert torch.allclose(layer(detail, context), layer.conv(fine + coarse), atol=1e-6)


@torch.no_grad()
def test_context_may_come_up_to_detail_bilinearly() -> None:
    layer = BilateralAggregation(4, bilinear=True).eval()
    detail, context = torch.randn(2, 4, 8, 12), torch.randn(2, 4, 2, 3)
    up = partial(functional.interpolate, size=(8, 12), mode="bilinear", align_corners=True)
    fine = layer.left1(detail) * torch.sigmoid(up(layer.right1(context)))
    coarse = up(layer.left2(detail) * torch.sigmoid(layer.right2(context)))
    assert torch.allclose(layer(detail, context), layer.conv(fine + coarse), atol=1e-6)


def test_heads_drop_features_in_training_only() -> None:
    head = BiSeNetV2(5, head_channels=64).head
    x = torch.randn(2, 128, 4, 4)
    assert not torch.equal(head.train()(x), head(x))
    assert torch.equal(head.eval()(x), head(x))
