from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from official_trees import LAYOUTS, SIZE
from PIL import Image

from model.artifacts.artifact import read_artifact
from model.artifacts.registry import ModelRegistry
from model.networks.segmentation_network import ARCHITECTURES
from training.config import TrainingConfig, load_config, recipes
from training.data.splits import TrainingData
from training.distributed import ALONE
from training.run.batches import StepBatches
from training.run.run import RunOptions, train
from training.run.train_step import TrainStep

ROOT = Path(__file__).parents[2]
TINY = [
    "schedule.steps=20",
    "schedule.batch_size=2",
    "schedule.validate_every=10",
    "schedule.save_every=10",
    "schedule.keep_every=0",
    "augment.crop=[32, 64]",
    "device=cpu",
]
EVERY_RECIPE = {
    "ade20k-v1",
    "ade20k-v2",
    "camvid-lite",
    "camvid-v2",
    "camvid-v2-long",
    "cityscapes-v1",
    "cityscapes-v1-diss",
    "cityscapes-v2",
    "cityscapes-v2-pretrained",
    "cocostuff-v1",
    "cocostuff-v2",
    "custom",
}


def tiny(recipe: str, root: Path) -> TrainingConfig:
    data = recipe.partition("-")[0]
    overrides = [*TINY, f"data.root={root}"]
    if data == "custom":
        overrides.append("data.dataset=camvid")
    if "v2" in recipe or data == "custom":
        overrides.append("network.parameters.head_channels=8")
    return load_config(recipe, overrides)


@pytest.fixture(scope="session")
def trees(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return the root of each data set."""
    roots = {name: tmp_path_factory.mktemp(name) for name in LAYOUTS}
    for name, root in roots.items():
        LAYOUTS[name](root)
    return roots | {"custom": roots["camvid"]}


def test_there_is_a_recipe_for_each_published_one() -> None:
    assert set(recipes()) == EVERY_RECIPE


@pytest.mark.parametrize("name", recipes())
def test_a_recipe_names_its_anchor_and_the_range_that_it_reports(name: str) -> None:
    text = (files("training") / "recipes" / f"{name}.toml").read_text()
    head = " ".join(line.removeprefix("# ") for line in text.partition("seed =")[0].splitlines())
    assert "nchor" in head
    if name != "custom":
        assert re.search(r"\d\d\.\d", head)
        assert "range" in head or "each after" in head


@pytest.mark.parametrize(
    ("recipe", "lr", "head_factor", "steps", "crop"),
    [
        ("cityscapes-v1", 1e-2, 10, 80_000, (1024, 1024)),
        ("cityscapes-v2", 5e-2, 1, 150_000, (512, 1024)),
        ("cityscapes-v2-pretrained", 5e-3, 10, 150_000, (512, 1024)),
        ("ade20k-v1", 4e-2, 10, 40_000, (512, 512)),
        ("cocostuff-v2", 5e-3, 10, 180_000, (640, 640)),
    ],
)
def test_a_recipe_trains_as_the_published_configuration_does(
    recipe: str, lr: float, head_factor: float, steps: int, crop: tuple[int, int]
) -> None:
    config = load_config(recipe)
    assert (config.optimizer.lr, config.optimizer.head_lr_factor) == (lr, head_factor)
    assert (config.schedule.steps, config.schedule.batch_size, config.augment.crop) == (steps, 16, crop)
    assert config.optimizer.name == "sgd"
    assert (config.loss.ohem_threshold, config.loss.auxiliary_weight) == (0.7, 1.0)
    assert round(config.optimizer.warmup * steps) == 1000


def test_the_light_recipe_spares_its_backbone_and_looks_for_rare_things_as_other_cameras_do() -> None:
    config = load_config("camvid-lite")
    assert (config.optimizer.lr, config.optimizer.backbone_lr_factor) == (2e-3, 0.25)
    assert config.augment.rare.classes == ("pole", "sign", "fence", "pedestrian", "bicyclist")
    assert config.augment.photometric.share > 0
    assert (config.loss.class_weight_base, config.loss.dice) == (0, 1.0)


def served(artifact: Path, name: str, pictures: Path, folder: Path) -> tuple[int, int]:
    """Publish an artifact and segment one of the pictures with it; return height and width of the mask."""
    registry = folder / "registry"
    ModelRegistry(registry).publish(artifact, name)
    picture = next(path for path in sorted(pictures.rglob("*.*")) if path.suffix in {".png", ".jpg"})
    mask = folder / "mask.png"
    program = [sys.executable, "-m", "bisenet", "predict", str(picture), "--out", str(mask)]
    options = ["--model", name, "--registry", str(registry), "--engine", "openvino", "--precision", "f32"]
    environment = os.environ | {"BISENET_MODELS__CACHE_FOLDER": str(folder / "cache")}
    subprocess.run([*program, *options], cwd=ROOT, env=environment, check=True, capture_output=True)
    with Image.open(mask) as image:
        return image.height, image.width


@pytest.mark.parametrize("recipe", recipes())
def test_a_recipe_takes_a_step_on_the_official_layout(recipe: str, trees: dict[str, Path]) -> None:
    config = tiny(recipe, trees[recipe.partition("-")[0]])
    data = TrainingData.load(config.data, torch.device("cpu"))
    learner, crops = TrainStep(config, data, ALONE), StepBatches(config, data, ALONE)
    assert 0 < learner.step(0, config.optimizer.lr, lambda part: crops.cut(0, part)[:2]) < math.inf


@pytest.mark.soak
@pytest.mark.parametrize("recipe", recipes())
def test_a_recipe_trains_on_the_official_layout_and_its_model_is_served(
    recipe: str, trees: dict[str, Path], tmp_path: Path
) -> None:
    root = trees[recipe.partition("-")[0]]
    config = tiny(recipe, root)
    assert train(config, RunOptions(tmp_path / "run", cache_folder=tmp_path / "cache"))
    artifact = read_artifact(tmp_path / "run/artifact")
    assert artifact.manifest.generation == ARCHITECTURES[config.network.architecture].generation
    assert 0 <= artifact.manifest.provenance["validation"]["miou"] <= 1
    assert served(artifact.folder, recipe, root, tmp_path) == SIZE
