"""Time of evaluation against the bare engine, and of counting pixels, with the shipped model.

    python benchmarks/evaluation.py --root FOLDER_OF_CAMVID

Three measurements, as medians of rounds: ``ss`` over a split, from files to counted pixels, against the
    engine
alone on pictures of the size that it sees, in turns; counting 2 Mpx; and ``mscf`` of one 1024x2048 picture
against the number of its chips times the time of one.

Axes: N pictures in a batch, H height, W width, 3 = red green blue.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.command_line import make_parser, parse_if_idle
from model.artifacts.manifest import ModelManifest
from model.datasets.dataset import DatasetSpec, LabeledImages
from model.evaluation.metrics import confusion_matrix
from model.evaluation.network_passes import segment
from model.evaluation.protocols import DEFAULT_CROP, find_protocol, make_plan
from model.labels import UInt8Array
from model.pictures.preprocess import ImageSize, size_of
from model.quotas import usable_cores
from service.assembly import engine_options
from service.cli.local import local_settings, open_artifact
from service.cli.scoring import EvaluatedModel, evaluate_split, open_evaluated_model
from service.core.device.engine import InferenceEngine
from service.engines import engine_builder
from service.machine import this_machine

LARGE = ImageSize(1024, 2048)
NUM_CLASSES = 19
MODEL = "camvid@1"


def main() -> None:
    """Print one line for each measurement."""
    parser = make_parser(__doc__)
    parser.add_argument("--root", type=Path, required=True, help="folder of CamVid")
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--rounds", type=int, default=5)
    options = parse_if_idle(parser)
    count_pixels(options.rounds)
    pictures = LabeledImages(DatasetSpec.load("camvid", root=options.root), "val")
    settings = local_settings({"models": {"precision": options.precision, "serve": [MODEL]}})
    _, artifact = open_artifact(settings)
    bare = engine_builder("openvino", "cpu")(artifact, engine_options(settings))
    with open_evaluated_model(settings) as candidate, closing(bare):
        print(f"{candidate.version}, {bare.info.engine} {bare.info.precision}; {this_machine().summary}")
        single_scale(candidate, bare, pictures, options.rounds)
        many_chips(artifact.manifest, bare, options.rounds)


def count_pixels(rounds: int) -> None:
    """Count pixels of large label maps, one thread."""
    random = np.random.default_rng(0)
    noise_HW = random.integers(0, NUM_CLASSES, (LARGE.height, LARGE.width), np.uint8)
    blocks = random.integers(0, NUM_CLASSES, (LARGE.height // 32, LARGE.width // 32), np.uint8)
    areas_HW = np.kron(blocks, np.ones((32, 32), np.uint8))
    for name, truth_HW in (("noise", noise_HW), ("areas", areas_HW)):
        count = partial(confusion_matrix, truth_HW, noise_HW, num_classes=NUM_CLASSES)
        median_s = statistics.median(seconds(count) for _ in range(4 * rounds))
        print(f"counting {LARGE}, {name}: {1e3 * median_s:.2f} ms")


def single_scale(
    candidate: EvaluatedModel, engine: InferenceEngine, pictures: LabeledImages, rounds: int
) -> None:
    """Evaluate a split, and run the engine alone on as many pictures of the same size."""
    protocol = find_protocol("ss")
    image_HW3, _ = pictures[0]
    seen = make_plan(protocol, size_of(image_HW3)).passes[0].scaled
    images_NHW3 = noise(seen)[np.newaxis]
    engine.infer(images_NHW3)

    def bare() -> None:
        for _ in range(len(pictures)):
            engine.infer(images_NHW3)

    def whole() -> None:
        evaluate_split(candidate, pictures, protocol, command="")

    whole()
    ratios, speeds = [], []
    for _ in range(rounds):
        engine_s, evaluation_s = seconds(bare), seconds(whole)
        ratios.append(engine_s / evaluation_s)
        speeds.append(len(pictures) / evaluation_s)
    print(
        f"ss over {len(pictures)} pictures seen at {seen}: {statistics.median(speeds):.1f} pictures/s,"
        f" {statistics.median(ratios):.2f} of the bare engine"
    )


def many_chips(manifest: ModelManifest, engine: InferenceEngine, rounds: int) -> None:
    """Evaluate one large picture by ``mscf``, and run the engine alone on one chip."""
    image_HW3 = noise(LARGE)
    chip_NHW3 = noise(ImageSize(DEFAULT_CROP, DEFAULT_CROP))[np.newaxis].astype(np.float32)
    protocol = find_protocol("mscf")
    runs = make_plan(protocol, LARGE).runs
    engine.infer(chip_NHW3)
    ratios, times = [], []
    with ThreadPoolExecutor(usable_cores()) as rows:
        for _ in range(rounds):
            chips_s = statistics.median(seconds(lambda: engine.infer(chip_NHW3)) for _ in range(7))
            whole = partial(segment, image_HW3, protocol, engine.infer, manifest, executor=rows)
            times.append(seconds(whole))
            ratios.append(times[-1] / (runs * chips_s))
    print(
        f"mscf of {LARGE}: {statistics.median(times):.2f} s, {statistics.median(ratios):.2f} times"
        f" {runs} chips of the bare engine"
    )


def noise(size: ImageSize) -> UInt8Array:
    """Return image_HW3 of noise; the time of a network does not depend on its pictures."""
    return np.random.default_rng(0).integers(0, 256, (size.height, size.width, 3), np.uint8)


def seconds(action: Callable[[], object]) -> float:
    """Time one call."""
    began_s = time.perf_counter()
    action()
    return time.perf_counter() - began_s


if __name__ == "__main__":
    main()
