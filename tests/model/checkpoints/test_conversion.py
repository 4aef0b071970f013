"""The import computes what the published programs compute; ``published_programs`` writes those down again.

Axes: N images, K classes, H W pixels, 3 = red green blue.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from published_programs import PUBLISHED, Program, narrowed, published_shapes, random_state
from torch import Tensor

from model.checkpoints.conversion import Conversion, convert, converted
from model.checkpoints.recognition import SIGNATURES
from model.datasets.palettes import distinct_colors
from model.decoding.decode import labels
from model.errors import ForeignCheckpointError, WeightsError
from model.export.export import prove_weights, write_artifact
from model.labels import ClassPalette
from model.networks.segmentation_network import build, deploy_state
from model.pictures.preprocess import ImageSize

needs_lists = pytest.mark.skipif("BISENET_DATA_ROOT" not in os.environ, reason="needs BISENET_DATA_ROOT")
MEAN = (0.3257, 0.3690, 0.3223)
STD = (0.2112, 0.2148, 0.2115)
SIZE = ImageSize(64, 96)


def palette(num_classes: int) -> ClassPalette:
    return ClassPalette(tuple(f"class {k}" for k in range(num_classes)), distinct_colors(num_classes))


def imported(state: dict[str, Tensor], num_classes: int) -> Conversion:
    return convert(state, palette=palette(num_classes), mean=MEAN, std=STD, source={"file": "test.pth"})


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Compute in one thread: on a busy machine several wait for each other most of the time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@cache
def published_state(name: str) -> dict[str, Tensor]:
    """Return a checkpoint of a generation; that of BiSeNetV2 has three classes and a narrow head."""
    shapes = published_shapes(PUBLISHED[name].list_name)
    return random_state(narrowed(shapes, num_classes=3, width=32) if name.startswith("v2") else shapes)


def num_classes(name: str) -> int:
    return 3 if name.startswith("v2") else 19


@pytest.fixture
def pixels_NHW3() -> Tensor:
    values = np.random.default_rng(5).integers(0, 256, (1, SIZE.height, SIZE.width, 3), np.uint8)
    return torch.from_numpy(values)


@pytest.mark.data
@needs_lists
@pytest.mark.parametrize("name", PUBLISHED)
def test_each_generation_labels_pictures_as_its_program_did(name: str, pixels_NHW3: Tensor) -> None:
    state = published_state(name)
    program = Program(name, state)
    expected_NChw = program.raw(pixels_NHW3, MEAN, STD)
    expected_KHW = program.scores(expected_NChw)[0]
    conversion = imported(state, num_classes(name))
    with torch.inference_mode():
        raw_Khw = conversion.network(pixels_NHW3)[0].numpy()
    assert np.abs(raw_Khw - expected_NChw[0].numpy()).max() < 1e-4 * np.ptp(raw_Khw)
    manifest = conversion.manifest
    found_HW = labels(
        raw_Khw, upsample=manifest.upsample, stride=manifest.stride, padded=SIZE, content=SIZE, original=SIZE
    )
    best_two = expected_KHW.topk(2, dim=0)
    decided_HW = (best_two.values[0] - best_two.values[1] > 1e-3 * np.ptp(expected_KHW.numpy())).numpy()
    assert decided_HW.mean() > 0.9
    assert (found_HW == best_two.indices[0].numpy())[decided_HW].all()
    assert len(np.unique(found_HW)) > 1


@pytest.mark.data
@needs_lists
@pytest.mark.parametrize("twins", [("v1-g0", "v1-g1"), ("v1-g0d", "v1-face"), ("v2-g0", "v2-g4")])
def test_weights_of_the_same_shapes_mean_something_else_in_another_generation(
    twins: tuple[str, str], pixels_NHW3: Tensor
) -> None:
    state = published_state(twins[0])
    one, other = (Program(name, state).labels(pixels_NHW3, MEAN, STD) for name in twins)
    assert (one != other).float().mean() > 0.01


@pytest.mark.data
@needs_lists
def test_what_parallel_training_prefixed_is_the_same_checkpoint() -> None:
    state = published_state("v2-g4")
    plain = imported(state, 3)
    prefixed = imported({f"module.{key}": tensor for key, tensor in state.items()}, 3)
    assert prefixed.recognition == plain.recognition
    weights = prefixed.network.state_dict()
    assert all(torch.equal(tensor, weights[key]) for key, tensor in plain.network.state_dict().items())


@pytest.mark.data
@needs_lists
def test_auxiliary_heads_are_left_behind_and_named() -> None:
    state = published_state("v2-g2")
    assert imported(state, 3).dropped == ("aux2", "aux3", "aux4", "aux5_4")
    assert imported({k: v for k, v in state.items() if not k.startswith("aux")}, 3).dropped == ()


@pytest.mark.data
@needs_lists
def test_the_manifest_says_what_the_checkpoint_was() -> None:
    manifest = imported(published_state("v2-g2"), 3).manifest
    assert (manifest.architecture, manifest.generation) == ("bisenetv2", "v2-g2")
    assert (manifest.upsample, manifest.stride, manifest.precision) == ("pixel_shuffle", 8, "f32")
    assert manifest.parameters == {"head_channels": 32}
    assert (manifest.mean, manifest.std, manifest.palette) == (MEAN, STD, palette(3))
    assert manifest.provenance["imported_from"] == {"file": "test.pth"}
    assert "head.conv_out.0.weight" in manifest.provenance["recognised_by"]


@pytest.mark.data
@needs_lists
@pytest.mark.parametrize(
    ("name", "key"),
    [("v2-g0", "head.conv_out.bias"), ("v2-g2", "head.conv_out.0.bias"), ("v2-g4", "bga.conv.0.weight")],
)
def test_keys_are_named_as_the_file_names_them(name: str, key: str) -> None:
    state = published_state(name)
    with pytest.raises(WeightsError, match=rf"recognised as {name}, but .*missing {key}$"):
        imported({k: v for k, v in state.items() if k != key}, 3)


def current_state() -> dict[str, Tensor]:
    """Return a checkpoint of today's BiSeNetV2, whose keys are our own."""
    return dict(deploy_state(build("bisenetv2", 3, {"head_channels": 8}, mean=MEAN, std=STD)))


KEY = "head.conv_out.1.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"detail.S1.0.bn.bias": None}, r"recognised as v2-g4, but .* missing detail\.S1\.0\.bn\.bias"),
        ({"head.extra": torch.zeros(1)}, r"unknown head\.extra"),
        ({KEY: torch.zeros(3, 9, 1, 1)}, r"head\.conv\.conv\.weight is float .* not float \(9, 128, 3, 3\)"),
        (
            {"head.conv_out.1.bias": torch.zeros(4)},
            r"head\.conv_out\.1\.bias is float \(4,\), not float \(3,\)",
        ),
        ({KEY: torch.zeros(3, 8, 1, 1, dtype=torch.int64)}, f"{KEY} is integer"),
    ],
)
def test_what_does_not_belong_to_the_generation_is_named(
    change: dict[str, Tensor | None], message: str
) -> None:
    state = {key: value for key, value in {**current_state(), **change}.items() if value is not None}
    with pytest.raises(WeightsError, match=message):
        imported(state, 3)


def test_another_number_of_classes_is_refused_before_anything_is_built() -> None:
    with pytest.raises(ForeignCheckpointError, match="v2-g4 with 3 classes, not 19"):
        imported(current_state(), 19)


def test_half_precision_is_imported_at_its_values() -> None:
    state = {
        key: value.half() if value.is_floating_point() else value for key, value in current_state().items()
    }
    weights = imported(state, 3).network.architecture.state_dict()
    assert all(torch.equal(value.to(weights[key].dtype), weights[key]) for key, value in state.items())
    assert weights[KEY].dtype == torch.float32


def test_in_place_abn_becomes_batch_normalisation() -> None:
    kernel = torch.randn(2, 3, 1, 1)
    state = {
        "bn.weight": torch.tensor([-2.0, 0.0, 3.0]),
        "bn.bias": torch.tensor([-1.0, 0.0, 1.0]),
        "conv.weight": kernel,
    }
    found = converted(state, SIGNATURES["v1-g0"])
    assert found.keys() == {*state, "bn.num_batches_tracked"}
    assert torch.allclose(found["bn.weight"], torch.tensor([2.00001, 0.00001, 3.00001]), rtol=1e-7)
    assert torch.equal(found["bn.bias"], state["bn.bias"])
    assert torch.equal(found["conv.weight"], kernel)
    assert converted(state, SIGNATURES["v1-g1"]) == state


@pytest.mark.data
@needs_lists
@pytest.mark.parametrize("name", ["v1-g0", "v2-g0"])
def test_what_no_network_of_ours_does_is_exported_too(name: str, tmp_path: Path) -> None:
    conversion = imported(published_state(name), num_classes(name))
    artifact = write_artifact(tmp_path / "artifact", conversion.network, conversion.manifest)
    prove_weights(artifact)  # write_artifact has proven the graph
    assert artifact.manifest.generation == name
