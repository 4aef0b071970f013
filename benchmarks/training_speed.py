"""Time of the parts of a training step against plain implementations, in turns.

``augment``: crops of 512x1024 out of pairs of 2048x1024, decoded already, one core each. OpenCV resizes
picture and labels whole, then crops, mirrors and jitters, as the published code does. Target: >= 2.5x.
``step``: BiSeNetV2 on a CPU: bf16 if it has that, channels last, our loss, fused optimiser, against float32,
NCHW, autograd on full-size scores. Target: <= 0.6x of its time.
``gpu``: whole steps, data resident, compiled, bf16, against an eager float32 loop that augments on the host.
Targets: data wait <= 3 %, >= 2x the crops a second. Needs CUDA.

    python benchmarks/training_speed.py augment step
    python -m benchmarks.training_speed gpu --crop 512 1024 --batch 16
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from benchmarks.command_line import make_parser, parse_if_idle
from model.datasets.dataset import DatasetSpec
from model.datasets.palettes import distinct_colors
from model.labels import ClassPalette, UInt8Array
from service.machine import this_machine
from training.config import TrainingConfig, load_config
from training.data.augment import AugmentConfig, AugmentPlan, augment, draw_plan
from training.data.pictures import PackedPictures, Pair, ResidentPictures
from training.data.split_facts import SplitFacts
from training.data.splits import TrainingData
from training.distributed import ALONE
from training.run.batches import StepBatches
from training.run.train_step import TrainStep

CLASSES = 19
PAD = (83, 94, 82)
BATCH = 8


def main() -> None:
    """Run the parts that the command line names."""
    parser = make_parser(__doc__)
    parser.add_argument("parts", nargs="+", choices=("augment", "step", "gpu"))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--crop", type=int, nargs=2, help="height and width of the crops of a step")
    parser.add_argument("--batch", type=int, default=BATCH)
    options = parse_if_idle(parser)
    print(this_machine().summary)
    for part in options.parts:
        {"augment": report_augment, "step": report_step, "gpu": report_gpu}[part](options)


def report_augment(options: argparse.Namespace) -> None:
    """Print milliseconds a crop of both ways, for two ranges of scales."""
    import cv2  # noqa: PLC0415 - only this part needs it

    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    pairs = [street(seed) for seed in range(4)]
    packed = PackedPictures.pack(pairs)
    print(f"augment: 2048x1024 -> 512x1024, 1 thread, OpenCV {cv2.__version__}")
    for scale in ((0.75, 2.0), (0.25, 2.0)):
        config = AugmentConfig((512, 1024), scale, 0.5, 0.4, "uniform")
        ours, peers = [], []
        for seed in range(options.rounds):
            plan = draw_plan(config, BATCH, torch.Generator().manual_seed(seed))
            ours.append(partial(by_us, packed, plan, config.crop))
            peers.append(partial(batch_by_opencv, pairs, plan, config.crop))
        compare(f"  scale {scale[0]} to {scale[1]}", ours, peers, per=BATCH, wanted="speed-up")


def by_us(packed: PackedPictures, plan: AugmentPlan, crop: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Augment a batch; uint8 out."""
    indices = [n % len(packed) for n in range(BATCH)]
    return augment(packed, indices, plan, crop=crop, pad_color=PAD, ignore_id=255)


def batch_by_opencv(pairs: Sequence[Pair], plan: AugmentPlan, crop: tuple[int, int]) -> list[Pair]:
    """Augment the same batch picture by picture."""
    return [by_opencv(pairs[n % len(pairs)], plan, n, crop) for n in range(BATCH)]


def by_opencv(pair: Pair, plan: AugmentPlan, n: int, crop: tuple[int, int]) -> tuple[UInt8Array, UInt8Array]:
    """Augment as the published code does: resize whole, pad, crop, mirror, jitter; uint8 out."""
    import cv2  # noqa: PLC0415 - as above

    zoom = float(plan.zoom_N[n])
    size = (round(2048 * zoom), round(1024 * zoom))
    image, label = cv2.resize(pair[0], size), cv2.resize(pair[1], size, interpolation=cv2.INTER_NEAREST)
    below, right = max(0, crop[0] - size[1]), max(0, crop[1] - size[0])
    if below or right:
        image = cv2.copyMakeBorder(image, 0, below, 0, right, cv2.BORDER_CONSTANT, value=PAD)
        label = cv2.copyMakeBorder(label, 0, below, 0, right, cv2.BORDER_CONSTANT, value=255)
    x, y = plan.center_N2[n].tolist()
    top, left = round((image.shape[0] - crop[0]) * y), round((image.shape[1] - crop[1]) * x)
    image = image[top : top + crop[0], left : left + crop[1]]
    label = label[top : top + crop[0], left : left + crop[1]]
    if plan.flip_N[n]:
        image, label = cv2.flip(image, 1), cv2.flip(label, 1)
    return jitter_by_opencv(image, plan, n), np.ascontiguousarray(label)


def jitter_by_opencv(image: UInt8Array, plan: AugmentPlan, n: int) -> UInt8Array:
    """Do brightness and contrast by one table, saturation by one matrix: faster than three of each."""
    import cv2  # noqa: PLC0415 - as above

    gain = float(plan.brightness_N[n] * plan.contrast_N[n])
    values = np.arange(256) * gain + (1 - float(plan.contrast_N[n])) * 74
    mix = float(plan.saturation_N[n])
    matrix = mix * np.eye(3) + (1 - mix) * np.tile([0.299, 0.587, 0.114], (3, 1))
    return cv2.transform(cv2.LUT(image, values.clip(0, 255).astype(np.uint8)), matrix.astype(np.float32))


def report_step(options: argparse.Namespace) -> None:
    """Print seconds a step of both ways on the CPU."""
    crop = tuple(options.crop or (256, 320))
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    config, data = scene(crop, options.batch, torch.device("cpu"))
    crops = StepBatches(config, data, ALONE)
    images, labels, _ = crops.cut(0, 0)
    learner, plain = TrainStep(config, data, ALONE), plain_learner(config, data)
    print(
        f"step: BiSeNetV2 (128), {options.batch} crops of {crop[0]}x{crop[1]},"
        f" {torch.get_num_threads()} threads"
    )
    compare(
        f"  {config.compute.on(data.device).precision} channels last : f32 NCHW",
        [lambda: learner.step(0, 1e-4, lambda _: (images, labels)).item()] * options.rounds,
        [lambda: plain(images.permute(0, 3, 1, 2).float(), labels).item()] * options.rounds,
        per=1,
        wanted="time",
    )


def plain_learner(config: TrainingConfig, data: TrainingData) -> Callable[[Tensor, Tensor], Tensor]:
    """Return a step as it is usually written: float32, NCHW, nothing fused, losses through autograd."""
    network = TrainStep(config, data, ALONE).network.to(memory_format=torch.contiguous_format).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, foreach=False)

    def step(images_N3HW: Tensor, labels_NHW: Tensor) -> Tensor:
        target = labels_NHW.long()
        heads = network.architecture.forward_train((images_N3HW / 255 - 0.5) / 0.25)
        loss = torch.stack([plain_ohem(raw_NKhw, target) for raw_NKhw in heads]).sum()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return loss.detach()

    return step


def plain_ohem(raw_NKhw: Tensor, target: Tensor) -> Tensor:
    """Mine hard pixels as the published code does."""
    scores = functional.interpolate(raw_NKhw, target.shape[1:], mode="bilinear", align_corners=False)
    loss = functional.cross_entropy(scores, target, ignore_index=255, reduction="none").view(-1)
    enough = int((target != 255).sum()) // 16
    hard = loss[loss > 0.3567]
    return hard.mean() if len(hard) >= enough else loss.topk(enough).values.mean()


def report_gpu(options: argparse.Namespace) -> None:
    """Print crops a second and the share of waiting of whole steps, data included, of both ways."""
    if not torch.cuda.is_available():
        sys.exit("gpu: torch finds no CUDA device")
    device, crop = torch.device("cuda:0"), tuple(options.crop or (512, 1024))
    torch.backends.cudnn.benchmark = True
    config, data = scene(crop, options.batch, device)
    on_host = scene(crop, options.batch, torch.device("cpu"))[1]
    learner, crops = TrainStep(config, data, ALONE), StepBatches(config, data, ALONE)
    plain, host_crops = plain_learner(config, data), StepBatches(config, on_host, ALONE)
    waited_s: list[float] = []

    def ours(step: int) -> None:
        def cut(part: int) -> tuple[Tensor, Tensor]:
            images, labels, waited = crops.cut(step, part)
            waited_s.append(waited)
            return images, labels

        learner.step(step, 1e-4, cut)

    def peer(step: int) -> None:
        images, labels, _ = host_crops.cut(step, 0)
        plain(images.permute(0, 3, 1, 2).to(device).float(), labels.to(device)).item()

    print(f"gpu: {torch.cuda.get_device_name(0)}, {options.batch} crops of {crop[0]}x{crop[1]}")
    ours_s, peer_s = (steps_s(way, options.rounds) for way in (ours, peer))
    share = 100 * sum(waited_s[-20 * options.rounds :]) / (20 * options.rounds * ours_s)
    print(
        f"  ours {options.batch / ours_s:8.1f} crops/s (data wait {share:.2f} %),"
        f" plain {options.batch / peer_s:8.1f} crops/s, ratio {peer_s / ours_s:.2f}"
    )


def steps_s(way: Callable[[int], None], rounds: int) -> float:
    """Return the median seconds of a step over rounds of 20, after 20 to warm up."""
    times = []
    for turn in range(rounds + 1):
        torch.cuda.synchronize()
        started_s = time.perf_counter()
        for step in range(20):
            way(20 * turn + step)
        torch.cuda.synchronize()
        times.append((time.perf_counter() - started_s) / 20)
    return statistics.median(times[1:])


def compare(
    name: str,
    ours: Sequence[Callable[[], object]],
    peers: Sequence[Callable[[], object]],
    *,
    per: int,
    wanted: str,
) -> None:
    """Time pairs of calls in turn and print medians and their ratio."""
    ours[0]()
    peers[0]()
    ours_ms, peer_ms = [], []
    for own, peer in zip(ours, peers, strict=True):
        for call, times in ((own, ours_ms), (peer, peer_ms)):
            started_s = time.perf_counter()
            call()
            times.append(1e3 * (time.perf_counter() - started_s) / per)
    own, peer = statistics.median(ours_ms), statistics.median(peer_ms)
    ratio = peer / own if wanted == "speed-up" else own / peer
    print(f"{name:32} ours {own:9.2f} ms, plain {peer:9.2f} ms, {wanted} {ratio:.2f}x")


def street(seed: int) -> Pair:
    """Make a smooth picture of 2048x1024 with regions as labels."""
    random = np.random.default_rng(seed)
    size, nearest = (2048, 1024), Image.Resampling.NEAREST
    grid, ids = (
        random.integers(0, 256, (64, 128, 3), np.uint8),
        random.integers(0, CLASSES, (16, 32), np.uint8),
    )
    return np.array(Image.fromarray(grid).resize(size)), np.array(Image.fromarray(ids).resize(size, nearest))


def scene(crop: Sequence[int], batch: int, device: torch.device) -> tuple[TrainingConfig, TrainingData]:
    """Return a run on made pictures: the shipped model's recipe, with this crop and batch."""
    config = load_config(
        "camvid-v2",
        [f"augment.crop={list(crop)}", f"schedule.batch_size={batch}", "loss.class_weight_base=0"],
    )
    pairs = [street(seed) for seed in range(16)]
    packed = PackedPictures.pack(pairs).to(device)
    source = ResidentPictures(packed, tuple(map(str, range(len(pairs)))), "", device)
    palette = ClassPalette(tuple(f"class {k}" for k in range(CLASSES)), distinct_colors(CLASSES))
    spec = DatasetSpec("made", root=Path(), palette=palette, splits={}, label_map={})
    facts = SplitFacts("train", "", len(pairs), {}, dict.fromkeys(range(CLASSES), 1), [[1] * 256] * 3, [])
    data = TrainingData(spec, source, source, (facts,), device, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    return dataclasses.replace(config, device=str(device)), data


if __name__ == "__main__":
    main()
