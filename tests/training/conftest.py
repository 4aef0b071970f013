"""A data set that is small and can be learned: each class has its own colour."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from training.config import TrainingConfig, load_config
from training.data.splits import TrainingData

DATASET_TOML = """
name = "blocks"
[splits]
train = "train.csv"
val = "val.csv"
[[classes]]
name = "red"
color = [255, 0, 0]
[[classes]]
name = "green"
color = [0, 255, 0]
[[classes]]
name = "blue"
color = [0, 0, 255]
"""
CONFIG_TOML = """
seed = 3
device = "cpu"
[network]
architecture = "bisenetv2"
parameters = {{ head_channels = 8 }}
[data]
dataset = "{dataset}"
train_splits = ["train"]
val_split = "val"
[augment]
crop = [32, 64]
scale = [0.5, 2.0]
flip = 0.5
jitter = 0.4
rare = {{ share = 0.5, classes = ["blue"] }}
photometric = {{ share = 0.5, hue = 9.0, gamma = 1.2, blur = 1.0, noise = 5.0, jpeg = 60 }}
[loss]
ohem_threshold = 0.7
class_weight_base = 1.1
[optimizer]
name = "adamw"
lr = 1e-3
weight_decay = 0.05
warmup = 0.1
poly_power = 0.9
head_lr_factor = 1.0
ema_decay = 0.9
[schedule]
steps = 4
batch_size = 2
validate_every = 3
save_every = 2
[compute]
precision = "f32"
"""
SPLITS = {"train": 5, "val": 2}
COLORS = np.array([[200, 40, 40], [40, 200, 40], [40, 40, 200]], np.uint8)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Keep torch to one thread: pictures are so small that a second one only waits."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def dataset_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the data-set file of pictures of two sizes; blocks of 16 pixels have a class each."""
    folder = tmp_path_factory.mktemp("blocks")
    random = np.random.default_rng(0)
    for split, count in SPLITS.items():
        lines = []
        for index in range(count):
            label_HW = random.integers(0, 3, (3 + index % 2, 5), np.uint8).repeat(16, 0).repeat(16, 1)
            image_HW3 = COLORS[label_HW] + random.integers(0, 40, (*label_HW.shape, 3), np.uint8)
            label_HW[:2] = 255
            names = f"{split}{index}.png", f"{split}{index}_ids.png"
            for name, array in zip(names, (image_HW3, label_HW), strict=True):
                Image.fromarray(array).save(folder / name)
            lines.append(",".join(names))
        (folder / f"{split}.csv").write_text("\n".join(lines))
    (folder / "blocks.toml").write_text(DATASET_TOML)
    return folder / "blocks.toml"


@pytest.fixture(scope="session")
def config_file(dataset_file: Path) -> Path:
    """Return the configuration of a run of four steps."""
    path = dataset_file.with_name("run.toml")
    path.write_text(CONFIG_TOML.format(dataset=dataset_file))
    return path


@pytest.fixture(scope="session")
def config(config_file: Path) -> TrainingConfig:
    """Return the configuration of a run of four steps."""
    return load_config(str(config_file))


@pytest.fixture(scope="session")
def data(config: TrainingConfig) -> TrainingData:
    """Return what that run learns from, decoded."""
    return TrainingData.load(config.data, torch.device("cpu"))
