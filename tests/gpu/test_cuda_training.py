"""Training on a GPU; all are skipped without one."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from official_trees import camvid

from training.config import TrainingConfig, load_config
from training.data.augment import AugmentConfig, Windows, cut_one_by_one, draw_plan, gathered
from training.data.pictures import PackedPictures
from training.data.splits import TrainingData
from training.distributed import ALONE
from training.errors import NonFiniteLossError
from training.optimisation.losses import LossConfig, SegmentationLoss
from training.run.batches import StepBatches
from training.run.checkpoint import CheckpointFolder
from training.run.progress import RunLog
from training.run.stop_signals import StopRequest
from training.run.train_step import TrainStep
from training.run.trainer import Trainer

if not torch.cuda.is_available():
    pytest.skip("no NVIDIA GPU", allow_module_level=True)

CUDA = torch.device("cuda:0")
CONFIG = AugmentConfig(crop=(32, 64), scale=(1.0, 2.0), flip=0.5, jitter=0.4)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> TrainingConfig:
    root = tmp_path_factory.mktemp("camvid")
    camvid(root)
    overrides = [f"data.root={root}", "augment.crop=[32,64]", "schedule.batch_size=4", "schedule.steps=40"]
    small = ["schedule.validate_every=20", "schedule.save_every=20", "network.parameters.head_channels=8"]
    return load_config("camvid-v2", [*overrides, *small, "device=cuda"])


def on_device(config: TrainingConfig, residency: str) -> TrainingData:
    return TrainingData.load(dataclasses.replace(config.data, residency=residency), CUDA)  # type: ignore[arg-type]


def test_a_gather_on_the_device_is_the_one_on_the_host() -> None:
    random = np.random.default_rng(0)
    sizes = [(40, 71), (90, 33)]
    pictures = PackedPictures.pack(
        [
            (random.integers(0, 256, (*size, 3), np.uint8), random.integers(0, 9, size, np.uint8))
            for size in sizes
        ]
    )
    plan, chosen_N = draw_plan(CONFIG, 3, torch.Generator().manual_seed(3)), torch.tensor([1, 0, 1])
    windows = Windows.of(plan, pictures.sizes_M2[chosen_N], CONFIG.crop)
    there, here, ours = (
        way(each, chosen_N, windows, plan, crop=CONFIG.crop, pad_color=(1, 2, 3), ignore_id=255)
        for way, each in ((gathered, pictures.to(CUDA)), (gathered, pictures), (cut_one_by_one, pictures))
    )
    torch.testing.assert_close(there[0].cpu().float(), here[0].float(), atol=1, rtol=0)
    torch.testing.assert_close(there[0].cpu().float(), ours[0].float(), atol=1, rtol=0)
    assert torch.equal(there[1].cpu(), ours[1])


@pytest.mark.parametrize("threshold", [0.05, 0.7, 1.0])
def test_the_loss_is_that_of_a_cpu(threshold: float) -> None:
    generator = torch.Generator().manual_seed(0)
    raw_NKhw = torch.randn((3, 5, 8, 12), generator=generator)
    labels_NHW = torch.randint(0, 5, (3, 64, 96), generator=generator, dtype=torch.uint8)
    labels_NHW[:, :9] = 255
    found = []
    for device in (torch.device("cpu"), CUDA):
        raw = raw_NKhw.detach().to(device).requires_grad_()
        config = LossConfig(ohem_threshold=threshold, class_weight_base=0, dice=0.5, edge=0.5)
        loss = SegmentationLoss(config, torch.ones(5, device=device), 255).total([raw], labels_NHW.to(device))
        (gradient,) = torch.autograd.grad(loss, raw)
        found.append((loss.detach().cpu(), gradient.cpu()))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-6)


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype feature:UserWarning")
@pytest.mark.parametrize("compiled", [False, True])
def test_a_step_never_makes_the_host_wait(config: TrainingConfig, *, compiled: bool) -> None:
    quick = dataclasses.replace(config, compute=dataclasses.replace(config.compute, compile=compiled))
    data = on_device(quick, "device")
    learner, crops = TrainStep(quick, data, ALONE), StepBatches(quick, data, ALONE)
    for step in range(3):  # kernels are chosen and compiled
        learner.step(step, 1e-3, lambda part, step=step: crops.cut(step, part)[:2])  # type: ignore[misc]
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss = learner.step(3, 1e-3, lambda part: crops.cut(3, part)[:2])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert math.isfinite(loss.item())


@pytest.mark.parametrize("residency", ["device", "host"])
def test_a_deterministic_run_is_the_same_again(config: TrainingConfig, residency: str) -> None:
    compute = dataclasses.replace(config.compute, deterministic=True, compile=False)
    strict = dataclasses.replace(config, compute=compute)
    found = []
    compute.set_up(CUDA)
    try:
        data = on_device(strict, residency)
        for _ in range(2):
            learner, crops = TrainStep(strict, data, ALONE), StepBatches(strict, data, ALONE)
            for step in range(3):
                learner.step(step, 1e-3, lambda part, step=step, crops=crops: crops.cut(step, part)[:2])  # type: ignore[misc]
            found.append(learner.network.state_dict())
    finally:
        torch.use_deterministic_algorithms(mode=False)
    one, other = found
    assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("precision", ["bf16", "fp16", "f32"])
@pytest.mark.parametrize("residency", ["device", "host", "files"])
def test_a_run_learns_to_its_end_wherever_its_pictures_are(
    config: TrainingConfig, tmp_path: Path, precision: str, residency: str
) -> None:
    compute = dataclasses.replace(config.compute, precision=precision, compile=False)  # type: ignore[arg-type]
    config = dataclasses.replace(config, compute=compute)
    compute.set_up(CUDA)
    checkpoints = CheckpointFolder(tmp_path)
    trainer = Trainer(config, on_device(config, residency), checkpoints=checkpoints, log=RunLog(tmp_path))
    assert trainer.run(StopRequest())
    assert not trainer.calibrated().training


def test_a_run_ends_with_an_artifact(config: TrainingConfig, tmp_path: Path) -> None:
    for package in ("openvino", "obstore"):
        pytest.importorskip(package)
    from training.run.run import RunOptions, train  # noqa: PLC0415 - needs them

    assert train(config, RunOptions(tmp_path))
    assert (tmp_path / "artifact/manifest.json").is_file()


def test_a_loss_that_is_no_number_moves_no_weight_and_is_found_before_anything_is_saved(
    config: TrainingConfig, tmp_path: Path
) -> None:
    data = on_device(config, "device")
    trainer = Trainer(config, data, checkpoints=CheckpointFolder(tmp_path), log=RunLog(tmp_path))
    trainer.take_step()
    weight = trainer.learner.network.state_dict()["architecture.detail.S1.0.conv.weight"]
    trainer.learner.network.state_dict()["architecture.head.conv_out.1.bias"].fill_(math.nan)
    before = weight.clone()
    trainer.take_step()
    assert torch.equal(weight, before)
    with pytest.raises(NonFiniteLossError, match="step 1; its pictures: "):
        trainer.save("last")
