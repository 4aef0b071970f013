from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from model.export.export import _traced
from model.networks.bisenetv1_lite import BiSeNetV1Lite
from model.networks.segmentation_network import ARCHITECTURES, build


def lite(**changes: Any) -> BiSeNetV1Lite:
    return BiSeNetV1Lite(5, **{**ARCHITECTURES["bisenetv1-lite"].parameters, **changes}).eval()


def recorded_input(module: nn.Module) -> list[Tensor]:
    seen: list[Tensor] = []
    module.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    return seen


@torch.no_grad()
def test_the_heads_score_at_strides_4_8_and_16() -> None:
    outputs = lite(sub_cells=2).forward_train(torch.zeros(1, 3, 64, 96))
    assert [tuple(o.shape) for o in outputs] == [(1, 5, 16, 24), (1, 5, 8, 12), (1, 5, 4, 6)]


@torch.no_grad()
def test_detail_comes_from_strides_4_and_8_of_the_backbone() -> None:
    network = lite(detail_channels=16, context_channels=48)
    joined = recorded_input(network.ffm.convblk)
    x = torch.rand(1, 3, 64, 96)
    network(x)
    feat4, feat8, feat16, feat32 = network.backbone(x)
    wanted = (network.detail(feat4), feat8, network.cp(feat16, feat32)[0])
    assert [part.shape[1] for part in wanted] == [16, 40, 48]
    assert torch.equal(joined[0], torch.cat(wanted, dim=1))


@pytest.mark.parametrize(
    ("parameter", "weight"),
    [
        ("context_channels", "cp.conv_head16.conv.weight"),
        ("detail_channels", "detail.conv.weight"),
        ("fused_channels", "ffm.convblk.conv.weight"),
        ("head_channels", "conv_out.conv.conv.weight"),
    ],
)
def test_each_parameter_is_a_number_of_channels(parameter: str, weight: str) -> None:
    network = lite(**{parameter: 24})
    assert network.get_parameter(weight).shape[0] == 24
    assert network(torch.zeros(1, 3, 32, 32)).shape == (1, 5, 4, 4)


def test_its_pretrained_part_is_the_backbone() -> None:
    network = lite()
    assert network.pretrained_part() is network.backbone


def test_its_padding_becomes_part_of_the_exported_convolutions() -> None:
    openvino = pytest.importorskip("openvino")
    network = build("bisenetv1-lite", 5, {}, mean=(0.5,) * 3, std=(0.5,) * 3, with_auxiliary=False)
    graph = openvino.convert_model(_traced(network.eval()), input=[([-1, -1, -1, 3], openvino.Type.f32)])
    kinds = [node.get_type_name() for node in graph.get_ops()]
    assert "Pad" not in kinds
    padded = {
        (tuple(node.get_attributes()["pads_begin"]), tuple(node.get_attributes()["pads_end"]))
        for node in graph.get_ops()
        if node.get_type_name().endswith("Convolution") and node.get_attributes()["strides"] == [2, 2]
    }
    assert padded == {((0, 0), (1, 1)), ((1, 1), (2, 2)), ((1, 1), (1, 1))}


@torch.no_grad()
def test_equal_scores_of_all_sub_cells_are_the_scores_of_their_cell() -> None:
    coarse, fine = lite(), lite(sub_cells=2)
    state = coarse.state_dict()
    for key in ("conv_out.conv_out.weight", "conv_out.conv_out.bias"):
        state[key] = state[key].repeat_interleave(4, dim=0)
    fine.load_state_dict(state)
    x = torch.rand(1, 3, 64, 96)
    assert torch.equal(fine(x), coarse(x).repeat_interleave(2, 2).repeat_interleave(2, 3))
