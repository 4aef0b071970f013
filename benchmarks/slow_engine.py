"""An engine that waits and computes nothing: ``--engine slow_engine:20`` takes 20 ms for each picture.

Axes: N images in a batch, K channels of the head, h w = H/stride W/stride.
"""

from __future__ import annotations

import time

import numpy as np

from model.artifacts.artifact import Artifact
from service.core.device.engine import (
    EngineInfo,
    EngineOptions,
    Float32Array,
    ImageBatch,
    InferenceEngine,
    Precision,
)


def precisions(_device: str) -> tuple[Precision, ...]:
    """Return the one precision that it claims."""
    return ("f32",)


def build(artifact: Artifact, options: EngineOptions) -> InferenceEngine:
    """Build an engine that takes as many milliseconds for a picture as ``options.arguments`` says."""
    return SlowEngine(artifact, EngineInfo("slow", options.device, "f32"), 1e-3 * float(options.arguments))


class SlowEngine:
    """Sleeps, then says that the first class is everywhere.

    Args:
        artifact: says the shape of the scores.
        info: of this engine.
        picture_s: time for each picture, in seconds.
    """

    def __init__(self, artifact: Artifact, info: EngineInfo, picture_s: float) -> None:
        self.info = info
        self._manifest = artifact.manifest
        self._picture_s = picture_s

    def infer(self, images_NHW3: ImageBatch) -> Float32Array:
        """Return raw_NKhw."""
        count, height, width, _ = images_NHW3.shape
        time.sleep(self._picture_s * count)
        manifest = self._manifest
        sub_pixels = manifest.stride**2 if manifest.upsample == "pixel_shuffle" else 1
        channels = manifest.palette.num_classes * sub_pixels
        raw_NKhw = np.zeros(
            (count, channels, height // manifest.stride, width // manifest.stride), np.float32
        )
        raw_NKhw[:, :sub_pixels] = 1.0
        return raw_NKhw

    def close(self) -> None:
        """Free nothing."""
