"""How ``bisenet predict`` labels a picture: all of it at once, or tile by tile.

Axes: H height, W width, 3 = red green blue.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Protocol

from model.artifacts.manifest import ModelVersion
from model.evaluation import protocols
from model.labels import LabelMap, UInt8Array
from model.pictures.preprocess import ImageSize, size_of
from service.cli.local import open_segmenter
from service.core.device.engine import EngineInfo
from service.core.errors import BusyError
from service.core.models.loaded_model import LoadedModel
from service.core.pictures.picture import RawPicture
from service.core.pictures.segmenter import Segmentation, Segmenter
from service.settings import Settings

_TIMEOUT_S = 3600.0
"""Longer than any picture takes: nothing but this command's own pictures waits for the engine."""

_MAX_TILES = 1 << 30


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


class Labeler(Protocol):
    """A model that is loaded and labels pictures.

    Attributes:
        version: of the model.
        engine: that runs the network.
    """

    version: ModelVersion
    engine: EngineInfo

    async def label(self, image_HW3: UInt8Array) -> LabelledPicture:
        """Label one picture.

        Args:
            image_HW3: upright uint8 RGB of any size.

        Raises:
            ServiceError: the picture is larger than the limits, or the model failed.
        """
        ...


@contextmanager
def open_labeler(settings: Settings, tiles: protocols.Protocol | None) -> Iterator[Labeler]:
    """Load the first model of the settings.

    Args:
        settings: model, engine and limits.
        tiles: ``tile_protocol``; None = each picture is labelled at once.

    Raises:
        ModelError: the model does not exist or must not be used.
        EngineUnavailableError: this machine cannot run the engine.
    """
    if tiles is not None:  # no other client needs a place in the queue of this process
        limits = settings.limits.model_copy(update={"max_waiting": _MAX_TILES})
        settings = settings.model_copy(update={"limits": limits})
    with open_segmenter(settings) as (segmenter, model):
        yield PictureLabeler(segmenter, model, tiles)


class PictureLabeler:
    """Labels pictures as the service does: at once, where a large one is reduced first, or tile by tile.

    Args:
        segmenter: labels the pictures.
        model: the loaded model.
        tiles: ``tile_protocol``; None = each picture is labelled at once.
    """

    def __init__(
        self, segmenter: Segmenter, model: LoadedModel, tiles: protocols.Protocol | None = None
    ) -> None:
        self.version = model.version
        self.engine = model.engine
        self._segmenter = segmenter
        self._model = model
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
        try:
            async with self._segmenter.segment(
                self._model, picture, _labelled, deadline_s=deadline_s, tiles=self._tiles
            ) as labelled:
                return labelled
        except BusyError as error:
            if self._tiles is None:
                raise
            raise BusyError(f"{error}: choose a smaller --tile") from error


def _labelled(segmentation: Segmentation) -> LabelledPicture:
    timings_ms = {
        name.removesuffix("_s"): round(1e3 * seconds, 3)
        for name, seconds in asdict(segmentation.timings).items()
    }
    return LabelledPicture(segmentation.label_map, segmentation.inference_size, timings_ms)
