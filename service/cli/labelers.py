"""How ``bisenet predict`` labels a picture: all of it at once, or tile by tile.

Axes: H height, W width, 3 = red green blue.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from typing import Protocol

from model.artifacts.manifest import ModelManifest, ModelVersion
from model.errors import ModelOutputError
from model.evaluation import network_passes, protocols
from model.labels import LabelMap, UInt8Array
from model.pictures.preprocess import size_of
from model.quotas import usable_cores
from service.assembly import engine_options
from service.cli.local import choose_model, open_segmenter
from service.core.device.engine import DeviceMemoryError, EngineInfo, InferenceEngine, private_folder
from service.core.errors import InternalError, ModelOutputInvalidError
from service.core.pictures.whole_picture import LabelledPicture, WholePictureLabeler
from service.engines import engine_builder
from service.settings import Settings


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
    if tiles is None:
        with open_segmenter(settings) as (segmenter, model):
            yield WholePictureLabeler(segmenter, model)
        return
    chosen = choose_model(settings)
    options = engine_options(settings).tuned(chosen.tuning)
    network_passes.warm_up(private_folder(options.cache_folder / "numba"))
    engine = engine_builder(settings.models.engine, options.device)(chosen.artifact, options)
    try:
        with ThreadPoolExecutor(usable_cores(), "tiles") as executor:
            yield TileLabeler(chosen.version, chosen.artifact.manifest, engine, tiles, executor)
    finally:
        engine.close()


def tile_protocol(tile: int, overlap: float | None) -> protocols.Protocol:
    """Return the evaluation protocol ``slide`` with tiles of another size.

    Args:
        tile: side of a tile in pixels, a multiple of 32.
        overlap: share of a tile that the next one covers as well, 0..1; None = a third, as in evaluations.

    Raises:
        ProtocolError: ``tile`` is not a multiple of 32.
    """
    slide = protocols.find_protocol("slide").with_crop(tile)
    return slide if overlap is None else replace(slide, advance=1 - Fraction(str(overlap)))


class TileLabeler:
    """Labels pictures tile by tile at full detail: scores of overlapping tiles are summed.

    Args:
        version: of the model.
        manifest: of the model.
        engine: runs the network.
        tiles: ``tile_protocol``.
        executor: its threads share the sums of a picture.
    """

    def __init__(
        self,
        version: ModelVersion,
        manifest: ModelManifest,
        engine: InferenceEngine,
        tiles: protocols.Protocol,
        executor: Executor,
    ) -> None:
        self.version = version
        self.engine = engine.info
        self._manifest = manifest
        self._infer = engine.infer
        self._tiles = tiles
        self._executor = executor
        self._engine_is_free = threading.Lock()

    async def label(self, image_HW3: UInt8Array) -> LabelledPicture:
        """Label one picture.

        Args:
            image_HW3: upright uint8 RGB of any size.

        Raises:
            ServiceError: the scores of the model are not finite, or a tile does not fit into the memory of
                the device.
        """
        return await asyncio.to_thread(self._label, image_HW3)

    def _label(self, image_HW3: UInt8Array) -> LabelledPicture:
        plan = protocols.make_plan(self._tiles, size_of(image_HW3))
        with self._engine_is_free:
            started_s = time.monotonic()
            try:
                scores = network_passes.score(
                    image_HW3, plan, self._infer, self._manifest, executor=self._executor
                )
            except DeviceMemoryError as error:
                raise InternalError(
                    "a tile does not fit into the memory of the device: choose a smaller --tile"
                ) from error
        inferred_s = time.monotonic()
        try:
            ids_HW = network_passes.label(scores, self._manifest, executor=self._executor)
        except ModelOutputError as error:
            raise ModelOutputInvalidError(str(error)) from error
        timings_ms = {
            "infer": round(1e3 * (inferred_s - started_s), 3),
            "post": round(1e3 * (time.monotonic() - inferred_s), 3),
        }
        return LabelledPicture(LabelMap(ids_HW, self._manifest.palette), plan.size, timings_ms)
