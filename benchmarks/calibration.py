"""Expected calibration error of the confidence that the service tells, and the time that it takes.

    python benchmarks/calibration.py --root FOLDER_OF_CAMVID

The error is taken over all labelled pixels of a split, at the size of its pictures. The time is that of one
512x1024 picture of the split, on one thread and on all, beside the time of its labels in the same run.

Axes: K classes, h w = size of the raw output.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.command_line import make_parser, parse_if_idle
from model.artifacts.manifest import ModelManifest
from model.datasets.dataset import DatasetSpec, LabeledImages
from model.decoding import decode
from model.decoding.confidence import confidence
from model.evaluation.calibration import Calibration, calibration_of
from model.labels import UInt8Array
from model.pictures.preprocess import ImageSize, PreparedImage
from model.quotas import usable_cores
from service.assembly import engine_options
from service.cli.local import local_settings, open_artifact
from service.core.device.engine import Float32Array, InferenceEngine
from service.engines import engine_builder
from service.machine import this_machine

SIZE = ImageSize(512, 1024)


def main() -> None:
    """Print the error, then the times."""
    parser = make_parser(__doc__)
    parser.add_argument("--root", type=Path, required=True, help="folder of CamVid")
    parser.add_argument("--split", default="val")
    parser.add_argument("--model", default="camvid@1")
    parser.add_argument("--precision", default="f32")
    parser.add_argument("--repeats", type=int, default=50)
    options = parse_if_idle(parser)
    pictures = LabeledImages(DatasetSpec.load("camvid", root=options.root), options.split)
    settings = local_settings({"models": {"precision": options.precision, "serve": [options.model]}})
    _, artifact = open_artifact(settings)
    decode.warm_up()
    with closing(engine_builder("openvino", "cpu")(artifact, engine_options(settings))) as engine:
        print(f"{options.model}, {engine.info.engine} {engine.info.precision}; {this_machine().summary}")
        found = calibration(pictures, engine, artifact.manifest)
        print(
            f"{options.split}, {len(pictures)} pictures: accuracy {found.accuracy:.4f}, mean confidence "
            f"{found.mean_confidence:.4f}, expected calibration error (15 bins) {found.expected_error():.4f}"
        )
        report_times(pictures[0][0], engine, artifact.manifest, options.repeats)


def calibration(pictures: LabeledImages, engine: InferenceEngine, manifest: ModelManifest) -> Calibration:
    """Compare the labels of all pictures with the true ones."""
    total = Calibration()
    for index in range(len(pictures)):
        image_HW3, truth_HW = pictures[index]
        prepared = manifest.preprocess.prepare(image_HW3)
        raw_Khw = engine.infer(prepared.pixels_HW3[np.newaxis])[0]
        geometry = geometry_of(prepared, manifest)
        labels_HW = decode.labels(raw_Khw, **geometry)
        confidence_HW = confidence(raw_Khw, labels_HW, **geometry)
        total += calibration_of(truth_HW, labels_HW, confidence_HW, num_classes=manifest.palette.num_classes)
    return total


def geometry_of(prepared: PreparedImage, manifest: ModelManifest) -> dict[str, Any]:
    """Return what decoding needs beside the raw output."""
    return {
        "upsample": manifest.upsample,
        "stride": manifest.stride,
        "padded": prepared.padded,
        "content": prepared.content,
        "original": prepared.original,
    }


def report_times(
    image_HW3: UInt8Array, engine: InferenceEngine, manifest: ModelManifest, repeats: int
) -> None:
    """Time labels and confidence of one picture in turns."""
    scaled = Image.fromarray(image_HW3).resize((SIZE.width, SIZE.height), Image.Resampling.BICUBIC)
    prepared = manifest.preprocess.prepare(np.asarray(scaled))
    raw_Khw: Float32Array = engine.infer(prepared.pixels_HW3[np.newaxis])[0]
    geometry = geometry_of(prepared, manifest)
    labels_HW = decode.labels(raw_Khw, **geometry)
    with ThreadPoolExecutor(usable_cores()) as executor:
        for threads, rows in ((1, None), (usable_cores(), executor)):
            labelling = partial(decode.labels, raw_Khw, **geometry, executor=rows)
            measuring = partial(confidence, raw_Khw, labels_HW, **geometry, executor=rows)
            times_ms = [(milliseconds(labelling), milliseconds(measuring)) for _ in range(repeats)]
            label_ms, confidence_ms = (statistics.median(column) for column in zip(*times_ms, strict=True))
            print(
                f"{SIZE}, {threads} threads: labels {label_ms:.2f} ms, confidence {confidence_ms:.2f} ms more"
            )


def milliseconds(action: Callable[[], object]) -> float:
    """Time one call."""
    began_s = time.perf_counter()
    action()
    return 1e3 * (time.perf_counter() - began_s)


if __name__ == "__main__":
    main()
