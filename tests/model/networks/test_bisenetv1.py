from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from model.networks.bisenetv1 import AttentionRefinement, BiSeNetV1
from model.networks.generations import GENERATIONS
from model.networks.resnet import BasicBlock


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def _build(generation: str) -> BiSeNetV1:
    return BiSeNetV1(19, **GENERATIONS[generation].form)  # type: ignore[arg-type]


def _sizes(generation: str) -> dict[str, int]:
    with torch.device("meta"):
        parts = _build(generation).named_children()
    return {name: sum(p.numel() for p in part.parameters()) for name, part in parts}


def _recorded_input(module: nn.Module) -> list[Tensor]:
    seen: list[Tensor] = []
    module.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    return seen


@pytest.fixture(scope="module", params=["v1-g4", "v1-diss"])
def network(request: pytest.FixtureRequest) -> BiSeNetV1:
    """Return both forms, in evaluation mode; tests leave their weights as they are."""
    torch.manual_seed(0)
    return _build(request.param).eval()


def test_each_part_is_as_large_as_in_the_published_weights() -> None:
    assert _sizes("v1-g4") == {
        "cp": 12_456_256,
        "sp": 91_968,
        "ffm": 132_096,
        "conv_out": 595_219,
        "conv_out16": 75_091,
        "conv_out32": 75_091,
    }


def test_each_part_is_as_large_as_in_the_published_weights_without_spatial_path() -> None:
    assert _sizes("v1-diss") == {
        "cp": 12_456_256,
        "ffm": 98_816,
        "conv_out": 595_200,
        "conv_out16": 75_072,
        "conv_out32": 75_072,
    }


def test_the_heads_score_at_strides_8_8_and_16(network: BiSeNetV1) -> None:
    outputs = network.forward_train(torch.zeros(1, 3, 64, 96))
    assert [tuple(o.shape) for o in outputs] == [(1, 19, 8, 12), (1, 19, 8, 12), (1, 19, 4, 6)]


@torch.no_grad()
def test_context_is_brought_up_by_repeating_its_cells(network: BiSeNetV1) -> None:
    inputs = [_recorded_input(head) for head in (network.cp.conv_head32, network.cp.conv_head16)]
    network(torch.rand(1, 3, 64, 96))
    for (x,) in inputs:
        cells = x[..., ::2, ::2]
        assert cells.std() > 0
        assert torch.equal(x, cells.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3))


@torch.no_grad()
def test_attention_scales_each_channel_by_its_own_weight() -> None:
    arm = AttentionRefinement(3, 4).eval()
    nn.init.zeros_(arm.bn_atten.weight)
    arm.bn_atten.bias.copy_(torch.tensor([-100.0, 0.0, 1.0, 100.0]))
    x = torch.rand(2, 3, 8, 8)
    weight = torch.tensor([0.0, 0.5, 0.7310586, 1.0]).view(1, 4, 1, 1)
    assert torch.allclose(arm(x), arm.conv(x) * weight, atol=1e-6)


@torch.no_grad()
def test_fusion_without_a_preference_adds_half(network: BiSeNetV1) -> None:
    fusion = copy.deepcopy(network.ffm)
    nn.init.zeros_(fusion.get_parameter("bn.weight" if network.spatial_path else "conv2.weight"))
    detail, context = torch.rand(2, 1, 128, 4, 6)
    joined = fusion.convblk(torch.cat((detail, context), dim=1))
    assert torch.allclose(fusion(detail, context), 1.5 * joined)


@torch.no_grad()
def test_detail_comes_from_its_own_path_or_else_from_stride_8_of_the_resnet(network: BiSeNetV1) -> None:
    joined = _recorded_input(network.ffm.convblk)
    x = torch.rand(1, 3, 64, 96)
    network(x)
    detail = network.sp(x) if network.spatial_path else network.cp.resnet(x)[0]
    assert torch.equal(joined[0][:, :128], detail)
    assert torch.equal(joined[0][:, 128:], network.cp(x)[1])


def test_what_was_normalised_in_place_leaks() -> None:
    with torch.device("meta"):
        leaky = _build("v1-g0")
    kinds = {key: type(module) for key, module in leaky.named_modules() if key.endswith("relu")}
    assert kinds.pop("ffm.relu") is nn.ReLU
    assert set(kinds.values()) == {nn.LeakyReLU}
    assert {
        "cp.resnet.relu",
        "cp.resnet.layer4.1.relu",
        "sp.conv1.relu",
        "conv_out.conv.relu",
    } <= kinds.keys()


@torch.no_grad()
def test_sums_do_not_leak() -> None:
    block = BasicBlock(2, 2).eval()
    block.relu = nn.LeakyReLU(0.5)
    assert block(torch.full((1, 2, 3, 3), -100.0)).max() == 0
