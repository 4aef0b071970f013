"""The evaluator of cityscapesscripts on label maps of any 19 classes: an oracle."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as evaluator  # noqa: N813
from cityscapesscripts.helpers.labels import labels as known_labels
from PIL import Image

from model.labels import UInt8Array

EVALUATED_IDS = [label.id for label in known_labels if label.id >= 0 and not label.ignoreInEval]
"""What the evaluator scores: class k of ours goes by the k-th of these; 0 is what it ignores."""


def cityscapes_scores(
    folder: Path, pairs: Iterable[tuple[UInt8Array, UInt8Array]], num_classes: int
) -> tuple[float, list[list[int]]]:
    """Write (truth, guess) pairs as files; return the evaluator's mean IoU and its counts of our classes."""
    table = np.zeros(256, np.uint8)
    table[:num_classes] = EVALUATED_IDS[:num_classes]
    files: list[tuple[str, str]] = []
    for index, (truth_HW, guess_HW) in enumerate(pairs):
        names = f"city_{index:06}_000000_gtFine_labelIds.png", f"city_{index:06}_000000.png"
        paths = folder / names[0], folder / names[1]
        for path, ids_HW in zip(paths, (truth_HW, guess_HW), strict=True):
            Image.fromarray(table[ids_HW]).save(path)
        files.append((str(paths[1]), str(paths[0])))
    arguments: Any = evaluator.args
    arguments.evalInstLevelScore, arguments.JSONOutput, arguments.quiet = False, False, True
    arguments.evalLabels = []
    guesses, truths = zip(*files, strict=True)
    result = evaluator.evaluateImgLists(list(guesses), list(truths), arguments)
    ids = EVALUATED_IDS[:num_classes]
    counts = np.array(result["confMatrix"])[np.ix_(ids, ids)]
    return float(result["averageScoreClasses"]), counts.tolist()
