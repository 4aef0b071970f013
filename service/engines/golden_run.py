"""What makes an engine trustworthy: it computes the artifact's golden sample.

Axes: N images in a batch, K channels of the head, h w = H/stride W/stride.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np

from model.artifacts.artifact import Artifact, check_golden
from service.core.device.engine import Float32Array, ImageBatch, Precision

PixelType = Literal["uint8", "float32"]


def prove(
    infer: Callable[[ImageBatch], Float32Array],
    artifact: Artifact,
    *,
    pixels: PixelType,
    precision: Precision,
) -> None:
    """Run the golden sample and compare.

    Args:
        infer: what is to be trusted, images_NHW3 -> raw_NKhw.
        artifact: whose golden sample.
        pixels: what the picture is fed as.
        precision: what ``infer`` computes in: decides the tolerance.

    Raises:
        GoldenMismatchError: it computes something else.
    """
    golden = artifact.golden()
    images_NHW3: ImageBatch = golden.image_HW3[np.newaxis].astype(pixels)
    check_golden(golden, infer(images_NHW3)[0], precision)
