from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch

from model.artifacts.artifact import Artifact
from model.artifacts.registry import ModelRegistry
from model.errors import ModelError
from model.networks.segmentation_network import SegmentationNetwork, build
from training.errors import FinetuneError
from training.run.finetune import FinetuneSource, adopt, find_source


def network(num_classes: int = 3, name: str = "bisenetv2", seed: int = 0) -> SegmentationNetwork:
    parameters = {"head_channels": 16} if name == "bisenetv2" else {}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build(name, num_classes, parameters, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))


def test_other_classes_keep_the_trunk_and_say_which_weights_are_new(
    tiny_artifact: Artifact, tiny_registry: Path
) -> None:
    source = find_source(str(tiny_artifact.folder), ModelRegistry(tiny_registry))
    learner = network(7)
    adoption = adopt(learner, source)
    own = learner.architecture.state_dict()
    for key in adoption.loaded:
        assert torch.equal(own[key], source.state[key].to(own[key].dtype)), key
    new = dict(adoption.reinitialised)
    assert new["head.conv_out.1.weight"] == "(4, 16, 1, 1) in the file, (7, 16, 1, 1) here"
    assert new["aux2.conv.conv.weight"] == "not in the file"
    assert {key.split(".")[0] for key in adoption.loaded} == {"detail", "segment", "bga", "head"}
    assert adoption.unused == ()
    lines = adoption.lines()
    assert lines == [
        "loaded 325 tensors; 58 of the network begin at random, 0 of the file are unused",
        "  loaded          detail 48, segment 239, bga 32, head 6",
        "  re-initialised  not in the file: aux2 14, aux3 14, aux4 14, aux5_4 14",
        "  re-initialised  head.conv_out.1.weight: (4, 16, 1, 1) in the file, (7, 16, 1, 1) here",
        "  re-initialised  head.conv_out.1.bias: (4,) in the file, (7,) here",
    ]


def test_a_model_of_the_registry_brings_its_normalisation(tiny_registry: Path) -> None:
    source = find_source("tiny@1", ModelRegistry(tiny_registry))
    assert source.origin == "tiny@1"
    assert source.normalisation == ((0.25, 0.5, 0.75), (0.25, 0.25, 0.25))


def test_a_model_that_is_not_there_is_refused(tiny_registry: Path) -> None:
    with pytest.raises(ModelError, match="nothing"):
        find_source("nothing", ModelRegistry(tiny_registry))


def test_a_checkpoint_of_the_published_code_is_renamed(tmp_path: Path, tiny_registry: Path) -> None:
    donor = network(seed=5).architecture.state_dict()
    torch.save({f"module.{key}": value for key, value in donor.items()}, tmp_path / "model.pth")
    learner = network()
    adoption = adopt(learner, find_source(str(tmp_path / "model.pth"), ModelRegistry(tiny_registry)))
    assert adoption.reinitialised == ()
    assert all(torch.equal(value, donor[key]) for key, value in learner.architecture.state_dict().items())


def test_imagenet_weights_of_resnet18_become_the_context_path(tmp_path: Path, tiny_registry: Path) -> None:
    donor = {
        key.removeprefix("cp.resnet."): value
        for key, value in network(name="bisenetv1", seed=5).architecture.state_dict().items()
        if key.startswith("cp.resnet.")
    }
    torch.save(donor | {"fc.weight": torch.zeros(10, 512)}, tmp_path / "resnet18.pth")
    learner = network(name="bisenetv1")
    adoption = adopt(learner, find_source(str(tmp_path / "resnet18.pth"), ModelRegistry(tiny_registry)))
    assert {key.rpartition(".resnet.")[0] for key in adoption.loaded} == {"cp"}
    assert len(adoption.loaded) == len(donor)
    assert adoption.unused == ("cp.resnet.fc.weight",)


def efficientnet(seed: int = 5) -> dict[str, torch.Tensor]:
    """Return ImageNet's EfficientNet-Lite0 as it is published: names with underscores, and a classifier."""
    backbone = network(name="bisenetv1-lite", seed=seed).architecture.pretrained_part()
    assert backbone is not None
    names = {"conv_stem", "bn0", "bn1", "bn2", "blocks", "expand_conv", "depthwise_conv", "project_conv"}
    published = {
        ".".join(f"_{part}" if part in names else part for part in key.split(".")): value
        for key, value in backbone.state_dict().items()
    }
    classifier = {"_conv_head.weight": (8, 320, 1, 1), "_bn1.weight": (8,), "_fc.weight": (10, 8)}
    return published | {key: torch.zeros(shape) for key, shape in classifier.items()}


def test_imagenet_weights_of_efficientnet_lite0_become_the_backbone(
    tmp_path: Path, tiny_registry: Path
) -> None:
    torch.save(efficientnet(), tmp_path / "lite0.pth")
    source = find_source(str(tmp_path / "lite0.pth"), ModelRegistry(tiny_registry))
    learner = network(name="bisenetv1-lite")
    adoption = adopt(learner, source)
    donor = network(name="bisenetv1-lite", seed=5).architecture.state_dict()
    own = learner.architecture.state_dict()
    assert set(adoption.loaded) == {key for key in own if key.startswith("backbone.")}
    assert all(torch.equal(own[key], donor[key]) for key in adoption.loaded)
    assert adoption.unused == ()
    assert source.origin.endswith("lite0.pth, an EfficientNet-Lite0 whose classifier is left out")


def test_imagenet_weights_of_efficientnet_lite0_bring_their_normalisation(
    tmp_path: Path, tiny_registry: Path
) -> None:
    torch.save(efficientnet(), tmp_path / "lite0.pth")
    source = find_source(str(tmp_path / "lite0.pth"), ModelRegistry(tiny_registry))
    assert source.normalisation == ((127 / 255,) * 3, (128 / 255,) * 3)


def test_the_published_backbone_in_parts_is_joined(tmp_path: Path, tiny_registry: Path) -> None:
    donor = network(seed=5).architecture
    parts = {name: donor.get_submodule(name).state_dict() for name in ("detail", "segment", "bga")}
    torch.save(parts, tmp_path / "backbone_v2.pth")
    adoption = adopt(network(), find_source(str(tmp_path / "backbone_v2.pth"), ModelRegistry(tiny_registry)))
    assert {key.split(".")[0] for key in adoption.loaded} == {"detail", "segment", "bga"}
    assert len(adoption.loaded) == sum(map(len, parts.values()))


def test_weights_of_which_none_fits_are_refused(tmp_path: Path, tiny_registry: Path) -> None:
    safetensors.torch.save_file({"other.weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    source = find_source(str(tmp_path / "other.safetensors"), ModelRegistry(tiny_registry))
    with pytest.raises(FinetuneError, match=r"no weight of .*other\.safetensors fits"):
        adopt(network(), source)


def test_adopting_is_by_key_and_shape_alone() -> None:
    learner = network()
    before = {key: value.clone() for key, value in learner.architecture.state_dict().items()}
    key, narrow = "detail.S1.0.conv.weight", "detail.S1.1.conv.weight"
    adoption = adopt(
        learner,
        FinetuneSource("x", {key: torch.ones_like(before[key]), narrow: torch.ones(1), "new": torch.ones(1)}),
    )
    after = learner.architecture.state_dict()
    assert (adoption.loaded, adoption.unused) == ((key,), ("new",))
    assert (after[key] == 1).all()
    assert torch.equal(after[narrow], before[narrow])
