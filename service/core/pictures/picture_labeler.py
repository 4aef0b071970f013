"""Labels decoded pictures as the service does, for commands and jobs.

Axes: H height, W width, 3 = red green blue.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from model.evaluation import protocols
from model.labels import LabelMap, UInt8Array
from model.pictures.preprocess import ImageSize, size_of
from service.core.models.loaded_model import LoadedModel
from service.core.pictures.picture import RawPicture
from service.core.pictures.segmenter import Segmentation, Segmenter
from service.core.scheduling.scheduler import Lane

_TIMEOUT_S = 3600.0
"""Longer than any picture takes: its own command or job waits for it, and nobody else."""


@dataclass(frozen=True, eq=False)
class LabelledPicture:
    """The labels of one picture.

    Attributes:
        label_map: class ids at the size of the picture.
        inference_size: size of the network's input; smaller if the picture was reduced.
        timings_ms: time of each stage in milliseconds.
    """

    label_map: LabelMap
    inference_size: ImageSize
    timings_ms: Mapping[str, float]


class PictureLabeler:
    """Labels each picture at once, where a large one is reduced before the network, or tile by tile.

    Args:
        segmenter: labels the pictures.
        model: the loaded model.
        lane: how urgent the pictures are.
        tiles: ``passes.tile_protocol``; None = each picture is labelled at once.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        model: LoadedModel,
        lane: Lane = Lane.INTERACTIVE,
        tiles: protocols.Protocol | None = None,
    ) -> None:
        self.version = model.version
        self.engine = model.engine
        self._segmenter = segmenter
        self._model = model
        self._lane = lane
        self._tiles = tiles

    async def label(self, image_HW3: UInt8Array) -> LabelledPicture:
        """Label one picture.

        Args:
            image_HW3: upright uint8 RGB of any size.

        Raises:
            ServiceError: the picture is larger than the limits, or the model failed.
        """
        picture = RawPicture(image_HW3.tobytes(), size_of(image_HW3))
        deadline_s = time.monotonic() + _TIMEOUT_S
        async with self._segmenter.segment(
            self._model, picture, _labelled, deadline_s=deadline_s, tiles=self._tiles, lane=self._lane
        ) as labelled:
            return labelled


def _labelled(segmentation: Segmentation) -> LabelledPicture:
    timings_ms = {
        name.removesuffix("_s"): round(1e3 * seconds, 3)
        for name, seconds in asdict(segmentation.timings).items()
    }
    return LabelledPicture(segmentation.label_map, segmentation.inference_size, timings_ms)
