"""mIoU of a model on the pictures of a split as they are, and as other cameras might have taken them.

    PYTHONPATH=. python benchmarks/robustness.py ARTIFACT --root FOLDER_OF_CAMVID

Each change of ``training.data.photometric`` is applied alone, at three strengths, to each picture at its own
size. Prints a table in Markdown.
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import torch

from benchmarks.command_line import make_parser
from model.artifacts.artifact import read_artifact
from model.artifacts.manifest import ModelManifest
from model.datasets.dataset import DatasetSpec, LabeledImages
from model.decoding.decode import labels
from model.evaluation.metrics import ConfusionMatrix, confusion_matrix
from service.assembly import engine_options
from service.cli.local import local_settings
from service.core.device.engine import InferenceEngine
from service.engines import engine_builder
from training.data.photometric import Look, photographed

_SEED = 7

CHANGES: dict[str, tuple[tuple[str, Look], ...]] = {
    "none": (("", Look()),),
    "hue rotated": tuple((f"{hue} degrees", Look(hue=hue)) for hue in (8, 15, 25)),
    "white balance": tuple(
        (f"red x {1 + tint:.2f}, blue x {1 - tint:.2f}", Look(tint=(1 + tint, 1.0, 1 - tint)))
        for tint in (0.08, 0.15, 0.25)
    ),
    "darker": tuple((f"gamma {gamma}", Look(gamma=gamma)) for gamma in (1.3, 1.7, 2.2)),
    "blurred": tuple((f"sigma {sigma} pixels", Look(blur=sigma)) for sigma in (0.7, 1.2, 2.0)),
    "noise": tuple((f"sigma {sigma} of 255", Look(noise=sigma, noise_seed=_SEED)) for sigma in (6, 12, 24)),
    "JPEG": tuple((f"quality {quality}", Look(quality=quality)) for quality in (50, 30, 15)),
}


def main() -> None:
    """Print the table."""
    parser = make_parser(__doc__)
    parser.add_argument("artifact", type=Path, help="folder of the model")
    parser.add_argument("--root", type=Path, required=True, help="folder of CamVid")
    parser.add_argument("--split", default="val")
    parser.add_argument("--precision", default="bf16")
    options = parser.parse_args()
    pictures = LabeledImages(DatasetSpec.load("camvid", root=options.root), options.split)
    artifact = read_artifact(options.artifact)
    settings = local_settings({"models": {"precision": options.precision}})
    print("| change | strength | mIoU, % | pixels, % |\n| --- | --- | --- | --- |", flush=True)
    with closing(engine_builder("openvino", "cpu")(artifact, engine_options(settings))) as engine:
        for name, strengths in CHANGES.items():
            for strength, look in strengths:
                matrix = scores(pictures, look, engine, artifact.manifest)
                print(
                    f"| {name} | {strength} | {percent(matrix.miou)} | {percent(matrix.pixel_accuracy)} |",
                    flush=True,
                )


def scores(
    pictures: LabeledImages, look: Look, engine: InferenceEngine, manifest: ModelManifest
) -> ConfusionMatrix:
    """Count the pixels of all pictures, each changed by ``look``."""
    total = ConfusionMatrix.zeros(manifest.palette.num_classes)
    for index in range(len(pictures)):
        image_HW3, truth_HW = pictures[index]
        changed_HW3 = photographed(torch.from_numpy(image_HW3), look).numpy()
        prepared = manifest.preprocess.prepare(changed_HW3)
        guess_HW = labels(
            engine.infer(prepared.pixels_HW3[None])[0],
            upsample=manifest.upsample,
            stride=manifest.stride,
            padded=prepared.padded,
            content=prepared.content,
            original=prepared.original,
        )
        total += confusion_matrix(
            truth_HW, guess_HW, num_classes=manifest.palette.num_classes, ignore_id=manifest.palette.ignore_id
        )
    return total


def percent(share: float | None) -> str:
    """Return a share as text."""
    return "-" if share is None else f"{100 * share:.1f}"


if __name__ == "__main__":
    main()
