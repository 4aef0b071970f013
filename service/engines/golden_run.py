"""The check of every engine before its first picture: it must reproduce the artifact's golden sample.

Axes: N images in a batch, K channels of the head, h w = H/stride W/stride.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np

from model.artifacts.artifact import Artifact, check_golden
from service.core.device.engine import Float32Array, ImageBatch, Precision

PixelType = Literal["uint8", "float32"]


def run_golden_sample(
    infer: Callable[[ImageBatch], Float32Array],
    artifact: Artifact,
    *,
    pixels: PixelType,
    precision: Precision,
) -> None:
    """Run the golden sample through an engine and compare the scores.

    Args:
        infer: the engine's function, images_NHW3 -> raw_NKhw.
        artifact: has the golden sample.
        pixels: type of the pixels that ``infer`` gets.
        precision: that ``infer`` computes in; it determines the tolerance.

    Raises:
        GoldenMismatchError: the scores differ by more than the tolerance.
    """
    golden = artifact.golden()
    images_NHW3: ImageBatch = golden.image_HW3[np.newaxis].astype(pixels)
    check_golden(golden, infer(images_NHW3)[0], precision)
