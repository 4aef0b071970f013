from __future__ import annotations

import copy
import dataclasses
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from model.artifacts.manifest import ModelManifest
from model.errors import NetworkError, WeightsError
from model.labels import ClassPalette
from model.networks.generations import GENERATIONS
from model.networks.layers import SegmentationArchitecture
from model.networks.segmentation_network import (
    ARCHITECTURES,
    SegmentationNetwork,
    blank_network,
    build,
    deploy_state,
    from_manifest,
)
from model.pictures.preprocess import PreprocessSpec, Rgb

MEAN = (0.3257, 0.3690, 0.3223)
STD = (0.2112, 0.2148, 0.2115)
NAMES = sorted(ARCHITECTURES)


class Echo(SegmentationArchitecture):
    """Answers what it is given, in the type of its one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def features(self, x_N3HW: Tensor) -> tuple[Tensor, ...]:
        return (x_N3HW,)

    def main_head(self) -> nn.Module:
        return nn.Identity()

    def auxiliary_heads(self) -> dict[str, nn.Module]:
        return {}


def _build(name: str, num_classes: int = 5, *, with_auxiliary: bool = True) -> SegmentationNetwork:
    return build(name, num_classes, {}, mean=MEAN, std=STD, with_auxiliary=with_auxiliary).eval()


@torch.no_grad()
def _fill(network: SegmentationNetwork) -> SegmentationNetwork:
    """Give each weight a value, the same on any machine, with which no branch drowns in another."""
    random = np.random.default_rng(0)
    for key, tensor in network.architecture.state_dict().items():
        is_factor = tensor.ndim == 1 and key.endswith((".weight", ".running_var"))
        bound = (4 / tensor[0].numel()) ** 0.5 if tensor.ndim == 4 else 0.5
        if tensor.is_floating_point():
            values = random.uniform(-bound, bound, tuple(tensor.shape)) + is_factor
            tensor.copy_(torch.from_numpy(values))
    return network


def _images(*shape: int) -> Tensor:
    """Return uint8 pictures that any machine can compute."""
    values = torch.arange(math.prod(shape)) * 37 % 251
    return values.to(torch.uint8).view(*shape)


def _prepared(image_HW3: Tensor, mean: Rgb = MEAN) -> Tensor:
    return torch.from_numpy(PreprocessSpec(mean).prepare(image_HW3.numpy()).pixels_HW3)


@pytest.fixture(scope="module", params=NAMES)
def network(request: pytest.FixtureRequest) -> SegmentationNetwork:
    """Return the training form of each architecture, in evaluation mode; tests leave it as it is."""
    return _fill(_build(request.param))


@pytest.fixture
def echo() -> SegmentationNetwork:
    """Return a network that answers what its architecture is given."""
    return SegmentationNetwork(Echo(), mean=MEAN, std=STD)


def _published(list_name: str) -> dict[str, str]:
    folder = Path(os.environ["BISENET_DATA_ROOT"], "state_dicts")
    lines = (folder / list_name).read_text(encoding="utf-8").splitlines()
    rows = [line.split("\t") for line in lines if line and not line.startswith("#")]
    return {row[0]: row[1] for row in rows}


def _shapes(name: str) -> dict[str, str]:
    with torch.device("meta"):
        state = _build(name, 19).architecture.state_dict()
    return {key: str(tuple(value.shape)) for key, value in state.items()}


@pytest.mark.data
@pytest.mark.skipif("BISENET_DATA_ROOT" not in os.environ, reason="needs BISENET_DATA_ROOT")
@pytest.mark.parametrize(
    ("name", "list_name"),
    [("bisenetv1", "v1.txt"), ("bisenetv2", "v2.txt"), ("bisenetv1-diss", "faceparse_zll.txt")],
)
def test_keys_and_shapes_are_the_published_ones(name: str, list_name: str) -> None:
    assert _shapes(name) == _published(list_name)


@pytest.mark.data
@pytest.mark.skipif("BISENET_DATA_ROOT" not in os.environ, reason="needs BISENET_DATA_ROOT")
def test_only_the_batch_counters_are_newer_than_the_published_diss_weights() -> None:
    shapes = _shapes("bisenetv1-diss").items()
    assert {k: v for k, v in shapes if not k.endswith(".num_batches_tracked")} == _published("diss.txt")


@pytest.mark.parametrize(
    ("name", "entries", "trained", "deployed"),
    [
        ("bisenetv1", 222, 13_425_721, 13_275_539),
        ("bisenetv1-diss", 191, 13_300_416, 13_150_272),
        ("bisenetv2", 383, 5_231_487, 3_358_627),
    ],
)
def test_both_forms_are_as_large_as_the_published_ones(
    name: str, entries: int, trained: int, deployed: int
) -> None:
    with torch.device("meta"):
        training, deploy = _build(name, 19), _build(name, 19, with_auxiliary=False)
    assert len(training.state_dict()) == entries
    assert sum(p.numel() for p in training.parameters()) == trained
    assert sum(p.numel() for p in deploy.parameters()) == deployed


# Scores of one cell; float64 agrees to 1e-4.
GOLDEN = {
    "bisenetv1": (5.1156, 1.1445, -14.1333, -3.5725, 9.2700),
    "bisenetv1-diss": (-16.2845, -49.4340, 7.3276, 10.7929, -30.4590),
    "bisenetv1-lite": (1.228, 1.0408, -3.2582, 0.7366, -3.8064),
    "bisenetv2": (-0.7671, -0.5788, 0.3577, -1.0575, 0.6792),
}


@pytest.mark.parametrize("gray", [(0.5, 0.5, 0.5), (0.5, 0.5, 0.25)])
def test_one_value_for_three_colours_normalises_as_three_do(gray: Rgb) -> None:
    network = SegmentationNetwork(Echo(), mean=gray, std=gray)
    x_N3HW = network.normalised(_images(1, 32, 32, 3))
    wanted = (_images(1, 32, 32, 3) / 255 - torch.tensor(gray)) / torch.tensor(gray)
    assert torch.equal(x_N3HW, wanted.permute(0, 3, 1, 2))


@torch.no_grad()
def test_the_function_never_changes(network: SegmentationNetwork, request: pytest.FixtureRequest) -> None:
    name = request.node.callspec.params["network"]
    raw_NKhw = network(_images(2, 64, 96, 3))
    assert raw_NKhw[1, :, 3, 5].tolist() == pytest.approx(GOLDEN[name], rel=1e-3, abs=1e-3)


@torch.no_grad()
def test_the_first_training_output_is_the_answer_itself(network: SegmentationNetwork) -> None:
    images = _images(2, 64, 96, 3)
    main, *auxiliary = network.forward_train(images)
    assert torch.equal(main, network(images))
    assert len(auxiliary) == len(network.architecture.auxiliary_heads()) > 0


@torch.no_grad()
def test_the_deploy_form_answers_as_the_training_form(
    network: SegmentationNetwork, request: pytest.FixtureRequest
) -> None:
    deploy = _build(request.node.callspec.params["network"], with_auxiliary=False)
    deploy.architecture.load_state_dict(deploy_state(network))
    images = _images(1, 64, 96, 3)
    assert torch.equal(deploy(images), network(images))
    assert len(deploy.forward_train(images)) == 1


@torch.no_grad()
def test_one_pixel_is_a_picture(network: SegmentationNetwork, request: pytest.FixtureRequest) -> None:
    cells = 32 // ARCHITECTURES[request.node.callspec.params["network"]].stride
    raw_NKhw = network(_images(1, 1, 1, 3))
    assert raw_NKhw.shape == (1, 5, cells, cells)
    assert raw_NKhw.isfinite().all()


def test_pixels_are_normalised_by_channel_and_stay_in_place(echo: SegmentationNetwork) -> None:
    images = _images(2, 32, 64, 3)
    x_N3HW = echo(images)
    expected = (images.double() / 255 - torch.tensor(MEAN).double()) / torch.tensor(STD).double()
    assert torch.allclose(x_N3HW.double(), expected.permute(0, 3, 1, 2), atol=1e-5)
    assert x_N3HW.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_pixels_are_normalised_in_full_and_then_take_the_type_of_the_weights(
    echo: SegmentationNetwork, dtype: torch.dtype
) -> None:
    images = _images(1, 32, 32, 3)
    full = echo(images)
    echo.architecture.to(dtype)
    assert torch.equal(echo(images), full.to(dtype))


@given(height=st.integers(1, 100), width=st.integers(1, 100), mean=st.tuples(*[st.floats(0, 1)] * 3))
@settings(deadline=None)
def test_padding_is_that_of_the_preprocessing(height: int, width: int, mean: Rgb) -> None:
    image_HW3 = _images(height, width, 3)
    echo = SegmentationNetwork(Echo(), mean=mean, std=STD)
    assert torch.equal(echo(image_HW3[None]), echo(_prepared(image_HW3, mean)[None]))


@pytest.mark.parametrize("size", [(33, 50), (64, 95), (1, 70)])
@torch.no_grad()
def test_any_size_is_answered_as_if_it_had_been_prepared_before(
    network: SegmentationNetwork, size: tuple[int, int]
) -> None:
    image_HW3 = _images(*size, 3)
    expected = network(_prepared(image_HW3)[None])
    assert torch.equal(network(image_HW3[None]), expected)
    assert torch.equal(network(image_HW3[None].float()), expected)


def test_normalisation_is_no_part_of_the_weights(echo: SegmentationNetwork) -> None:
    assert echo.state_dict().keys() == {"architecture.weight"}


def test_a_training_step_reaches_every_weight_without_leaving_bfloat16_or_channels_last(
    network: SegmentationNetwork,
) -> None:
    trained = copy.deepcopy(network).train()
    trained.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's types lack it
    strays: list[str] = []

    def check(module: nn.Module, _: object, output: object) -> None:
        if isinstance(output, Tensor) and not (
            output.dtype == torch.bfloat16 and output.is_contiguous(memory_format=torch.channels_last)
        ):
            strays.append(f"{type(module).__name__} {output.dtype} {output.stride()}")

    for module in trained.architecture.modules():
        module.register_forward_hook(check)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = trained.forward_train(_images(2, 64, 96, 3))
        loss = torch.stack([output.float().square().mean() for output in outputs]).sum()
    torch.autograd.backward(loss)
    assert strays == []
    assert [key for key, p in trained.named_parameters() if p.grad is None] == []


def test_training_refuses_a_batch_of_one(echo: SegmentationNetwork) -> None:
    with pytest.raises(NetworkError, match="batch of at least 2"):
        echo.train().forward_train(_images(1, 32, 32, 3))


# torch deprecates its tracer; openvino.convert_model records modules with it.
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@torch.no_grad()
def test_a_trace_in_openvino_computes_the_same_at_any_batch_and_size_without_padding(
    network: SegmentationNetwork,
) -> None:
    example = torch.zeros(1, 64, 96, 3)
    traced = torch.jit.trace(network, example, check_trace=False)  # type: ignore[no-untyped-call]
    graph = openvino.convert_model(traced, input=[openvino.PartialShape([-1, -1, -1, 3])])
    assert not {"Tile", "Pad", "ScatterUpdate"} & {op.get_type_name() for op in graph.get_ops()}
    compiled = openvino.Core().compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for shape in ((1, 32, 32, 3), (3, 96, 64, 3)):
        images = _images(*shape).float()
        expected = network(images).numpy()
        assert np.abs(compiled(images.numpy())[0] - expected).max() <= 1e-4 * np.ptp(expected)


@torch.no_grad()
def test_an_exported_program_takes_any_batch() -> None:
    network = _fill(_build("bisenetv2", with_auxiliary=False))
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(network, (torch.zeros(2, 64, 96, 3),), dynamic_shapes=({0: batch},))
    images = _images(5, 64, 96, 3).float()
    assert torch.equal(program.module()(images), network(images))


def test_an_unknown_architecture_is_named_beside_the_known_ones() -> None:
    with pytest.raises(NetworkError, match="unknown architecture 'unet'; known: bisenetv1, "):
        build("unet", 5, {}, mean=MEAN, std=STD)


def test_an_unknown_parameter_is_named() -> None:
    with pytest.raises(NetworkError, match="bisenetv1 has no parameter head_channels"):
        build("bisenetv1", 5, {"head_channels": 64}, mean=MEAN, std=STD)


@pytest.mark.parametrize("value", [0, -1, 4097, True, 64.0, "64"])
def test_a_parameter_out_of_range_is_named(value: float | str) -> None:
    with pytest.raises(NetworkError, match=r"bisenetv2: head_channels must be an integer of 1\.\.4096, not "):
        build("bisenetv2", 5, {"head_channels": value}, mean=MEAN, std=STD)


@pytest.mark.parametrize("num_classes", [0, 256])
def test_a_number_of_classes_that_no_label_map_holds_is_refused(num_classes: int) -> None:
    with pytest.raises(NetworkError, match=f"not {num_classes}"):
        build("bisenetv2", num_classes, {}, mean=MEAN, std=STD)


def _manifest() -> ModelManifest:
    palette = ClassPalette(("sky", "road"), ((1, 2, 3), (4, 5, 6)))
    return ModelManifest(
        architecture="bisenetv2",
        generation=ARCHITECTURES["bisenetv2"].generation,
        parameters={"head_channels": 8},
        upsample="bilinear",
        stride=8,
        palette=palette,
        mean=MEAN,
        std=STD,
        precision="f32",
    )


def _state() -> dict[str, Tensor]:
    return dict(deploy_state(build("bisenetv2", 2, {"head_channels": 8}, mean=MEAN, std=STD)))


@torch.no_grad()
def test_a_manifest_and_its_weights_make_the_network_again() -> None:
    trained = _fill(build("bisenetv2", 2, {"head_channels": 8}, mean=MEAN, std=STD))
    network = from_manifest(_manifest(), deploy_state(trained))
    images = _images(1, 32, 64, 3)
    assert torch.equal(network(images), trained.eval()(images))


def test_a_stride_that_the_generation_does_not_have_is_refused() -> None:
    with pytest.raises(NetworkError, match="v2-g4 has stride 8, not 4"):
        blank_network(dataclasses.replace(_manifest(), stride=4))


def test_weights_may_be_stored_in_half_precision() -> None:
    halves = {k: v.half() if v.is_floating_point() else v for k, v in _state().items()}
    network = from_manifest(_manifest(), halves)
    assert {p.dtype for p in network.parameters()} == {torch.float32}


KEY = "head.conv_out.1.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({KEY: None}, f"missing {KEY}"),
        ({"aux2.extra": torch.zeros(1)}, r"unknown aux2\.extra"),
        ({KEY: torch.zeros(3, 8, 1, 1)}, rf"{KEY} is float \(3, 8, 1, 1\), not float \(2, 8, 1, 1\)"),
        ({KEY: torch.zeros(2, 8, 1, 1, dtype=torch.int32)}, f"{KEY} is integer"),
    ],
)
def test_weights_that_do_not_fit_are_named(change: dict[str, Tensor | None], message: str) -> None:
    state = {key: value for key, value in {**_state(), **change}.items() if value is not None}
    with pytest.raises(WeightsError, match=message):
        from_manifest(_manifest(), state)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"generation": "v1-g4"}, "bisenetv2 has no generation 'v1-g4', only v2-g0, v2-g2, v2-g4"),
        ({"architecture": "unet"}, "unknown architecture 'unet'"),
        ({"upsample": "bilinear_aligned"}, "v2-g4 is up-sampled bilinear, not bilinear_aligned"),
    ],
)
def test_a_manifest_that_contradicts_its_generation_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(NetworkError, match=message):
        from_manifest(dataclasses.replace(_manifest(), **change), _state())


@pytest.mark.parametrize("generation", GENERATIONS)
def test_every_generation_can_be_built_and_has_scores_for_each_class(generation: str) -> None:
    facts = GENERATIONS[generation]
    manifest = dataclasses.replace(
        _manifest(),
        architecture=facts.architecture,
        generation=generation,
        parameters={},
        upsample=facts.upsample,
        stride=facts.stride,
    )
    with torch.device("meta"):
        network = blank_network(manifest).eval()
        raw_NKhw = network.architecture(torch.zeros(1, 3, 64, 96))
    scores = 128 if facts.upsample == "pixel_shuffle" else 2
    assert raw_NKhw.shape == (1, scores, 64 // facts.stride, 96 // facts.stride)
