"""Folders of training runs as a run leaves them, without training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from model.evaluation.evaluation import EvaluationContext, EvaluationReport, Evaluator, ScoredImage
from model.evaluation.report import ShownImage
from model.labels import ClassPalette
from training.run.record import LOG_FILE, SAMPLE_FOLDER, RunRecord
from training.run.report import FinishedRun
from training.run.sample_grid import write_samples

BEGAN_S = 1_796_000_000.0
MARKUP = "<img src=x onerror=document.title='hit'>"
PALETTE = ClassPalette(("sky", "road", MARKUP), ((110, 180, 230), (100, 100, 115), (60, 70, 200)))
CONFIG: dict[str, Any] = {
    "seed": 0,
    "network": {"architecture": "bisenetv1-lite", "parameters": {}},
    "data": {"dataset": "street.toml", "train_splits": ["train"]},
    "augment": {"crop": [96, 128], "rare": {"share": 0.5, "classes": ["car"]}},
    "optimizer": {"lr": 0.001, "backbone_lr_factor": 0.25},
    "schedule": {"steps": 400, "batch_size": 8},
}


def shown_images(count: int = 2) -> list[ShownImage]:
    """Return pictures whose truth and guess differ here and there."""
    random = np.random.default_rng(0)
    images = []
    for index in range(count):
        truth = random.integers(0, 3, (6, 8), np.uint8).repeat(8, 0).repeat(8, 1)
        truth[:4] = 255
        guess = truth.copy()
        guess[8:16] = 1
        guess[truth == 255] = 0
        image_HW3 = PALETTE.rgb_table[guess]
        images.append(ShownImage(f"val/{index}.png", 0.5 + index / 10, image_HW3, truth, guess))
    return images


def evaluation() -> EvaluationReport:
    """Return the scores of these pictures."""
    evaluator = Evaluator(PALETTE, total=2)
    for index, one in enumerate(shown_images()):
        evaluator.add(ScoredImage.of(index, one.name, one.truth_HW, one.guess_HW, PALETTE))
    names = ("model", "weights", "engine", "device", "processor", "precision", "protocol", "dataset", "split")
    words = dict.fromkeys(names, "a word")
    return evaluator.report(EvaluationContext(**words, data_fingerprint=None, versions={}, command="train"))


def start(**changed: Any) -> dict[str, Any]:
    """Return the first event of a run."""
    return {
        "event": "start",
        "time_s": BEGAN_S,
        "command": "bisenet train street.toml",
        "code": "0.1.0",
        "config": CONFIG | changed,
        "hardware": "a processor, 2 cores",
        "pictures": {"training": 200, "validation": 40},
        "classes": dict(zip(PALETTE.names, PALETTE.colors, strict=True)),
    }


def steps(first: int, last: int, loss: float = 4.0) -> list[dict[str, Any]]:
    """Return what a run logs from one step to another one, with a validation every 100 steps."""
    events: list[dict[str, Any]] = []
    for step in range(first, last + 1, 20):
        at = {"time_s": BEGAN_S + step, "step": step}
        events.append(
            {
                "event": "step",
                **at,
                "loss": loss * 100 / (100 + step),
                "lr": 1e-3,
                "images_per_s": 8.0,
                "data_wait": 0.01,
            }
        )
        if step % 100 == 0:
            iou = {name: min(1.0, step / 1000 * (k + 1)) for k, name in enumerate(PALETTE.names)}
            miou = sum(iou.values()) / len(iou)
            events.append(
                {
                    "event": "validation",
                    **at,
                    "miou": miou,
                    "pixel_accuracy": 0.9,
                    "loss": 50 / step,
                    "iou": iou,
                }
            )
    return events


def append(folder: Path, *events: dict[str, Any]) -> None:
    """Write events into the log of a run."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOG_FILE).open("a") as file:
        file.writelines(json.dumps(event) + "\n" for event in events)


def write_running(folder: Path, last_step: int = 200) -> None:
    """Write a run that goes on, with samples."""
    pictures = write_samples(folder / SAMPLE_FOLDER, shown_images(), PALETTE, 200)
    crops = [{"name": "train/7.png", "files": {"crop": pictures[0]["files"]["picture"]}}]
    append(folder, start(), {"event": "crops", "time_s": BEGAN_S, "step": 0, "pictures": crops})
    samples = {"event": "samples", "time_s": BEGAN_S + last_step, "step": 200, "pictures": pictures}
    append(folder, *steps(20, last_step), samples)


def finish(folder: Path) -> Path:
    """Write the end of a run and its report; return the first page."""
    append(folder, *steps(220, 400), {"event": "artifact", "time_s": BEGAN_S + 405})
    pictures = {title: shown_images() for title in ("Worst pictures", "Best pictures", "Samples")}
    done = FinishedRun(evaluation(), {"torch": "2.13.0", "config": CONFIG}, pictures)
    return done.write(RunRecord.read(folder), folder)
