"""How ``bisenet predict`` labels a picture: all of it at once, or tile by tile.

Axes: H height, W width, 3 = red green blue.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from model.artifacts.manifest import ModelVersion
from model.evaluation import protocols
from model.labels import UInt8Array
from service.cli.local import open_segmenter
from service.core.device.engine import EngineInfo
from service.core.errors import BusyError
from service.core.pictures.picture_labeler import LabelledPicture, PictureLabeler
from service.settings import Settings

_MAX_TILES = 1 << 30


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
        labeler = PictureLabeler(segmenter, model, tiles=tiles)
        yield labeler if tiles is None else TileLabeler(labeler)


class TileLabeler:
    """Labels pictures tile by tile; tells what helps where a tile is too large for the device.

    Args:
        labeler: labels them.
    """

    def __init__(self, labeler: PictureLabeler) -> None:
        self.version = labeler.version
        self.engine = labeler.engine
        self._labeler = labeler

    async def label(self, image_HW3: UInt8Array) -> LabelledPicture:
        """Label one picture.

        Args:
            image_HW3: upright uint8 RGB of any size.

        Raises:
            ServiceError: the picture is larger than the limits, or the model failed.
        """
        try:
            return await self._labeler.label(image_HW3)
        except BusyError as error:
            raise BusyError(f"{error}: choose a smaller --tile") from error
