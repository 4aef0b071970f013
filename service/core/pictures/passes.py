"""How a picture passes the network: once, reduced if it is too large, or tile by tile at full resolution.

Axes: N tiles, K channels of the head, H height, W width, 3 = red green blue; h w = H/stride W/stride.
"""

from __future__ import annotations

import dataclasses
import time
from concurrent.futures import Future
from fractions import Fraction
from functools import partial
from typing import Protocol, cast

import numpy as np

from model.errors import ModelOutputError
from model.evaluation import network_passes, protocols
from model.labels import UInt8Array
from model.pictures.preprocess import ImageSize, PreparedImage
from service.core.errors import ModelOutputInvalidError
from service.core.models.loaded_model import LoadedModel, raw_shape
from service.core.scheduling.dispatcher import Answer, Reservation, Scores
from service.core.scheduling.scheduler import Lane
from service.spans import stage_done

DeviceResult = Answer | Scores
"""What the device returns for one pass."""

_RGB_BYTES = 3
_SCORE_BYTES = 4

FULL_DETAIL = protocols.find_protocol("slide")
"""Tiles of 1024x1024 pixels that overlap by a third."""


def tile_protocol(tile: int, overlap: float | None) -> protocols.Protocol:
    """Return the evaluation protocol ``slide`` with tiles of another size.

    Args:
        tile: side of a tile in pixels, a multiple of 32.
        overlap: share of a tile that the next one covers as well, 0..1; None = a third, as in evaluations.

    Raises:
        ProtocolError: ``tile`` is not a multiple of 32.
    """
    slide = FULL_DETAIL.with_crop(tile)
    return slide if overlap is None else dataclasses.replace(slide, advance=1 - Fraction(str(overlap)))


class Passes(Protocol):
    """The passes of one picture through the network. Methods other than ``withdraw`` run in a thread.

    Attributes:
        inference_size: size of what the network sees of the picture; smaller than it where it is reduced.
        network_bytes: memory beside the picture and its answer, in bytes.
    """

    inference_size: ImageSize
    network_bytes: int

    def reserve(self, *, deadline_s: float, lane: Lane, source: str | None) -> None:
        """Reserve places in the queue for all passes, or for none; raises as ``LoadedModel.reserve``."""
        ...

    def prepare(self, image_HW3: UInt8Array) -> None:
        """Prepare the first pass."""
        ...

    def submit_next(self, last: DeviceResult | None) -> Future[DeviceResult]:
        """Queue the next pass.

        Args:
            last: result of the pass before; None = this is the first one.
        """
        ...

    @property
    def is_complete(self) -> bool:
        """Whether the last pass is submitted."""
        ...

    def answer(self, last: DeviceResult) -> Answer:
        """Return the labels of the picture; called once.

        Args:
            last: result of the last pass.

        Raises:
            ModelOutputInvalidError: the scores are not finite or of a wrong shape.
        """
        ...

    def withdraw(self) -> None:
        """Cancel the passes that the device has not begun; from any thread."""
        ...


class WholePass:
    """One pass of the whole picture, which is area-reduced if it is too large; the device makes the labels.

    Args:
        model: answers the picture.
        size: of the picture.
        max_infer_pixels: larger pictures are reduced.
        confidence: whether the confidence of each label is wanted.
    """

    def __init__(
        self, model: LoadedModel, size: ImageSize, *, max_infer_pixels: int, confidence: bool
    ) -> None:
        self.inference_size = size.reduced_to(max_infer_pixels)
        self.network_bytes = _RGB_BYTES * self.inference_size.padded().pixels
        self._model = model
        self._max_infer_pixels = max_infer_pixels
        self._confidence = confidence
        self._place: Reservation | None = None
        self._prepared: PreparedImage | None = None
        self._labels: Future[Answer] | None = None

    def reserve(self, *, deadline_s: float, lane: Lane, source: str | None) -> None:
        """Reserve a place in the queue."""
        padded = self.inference_size.padded()
        self._place = self._model.reserve(padded, deadline_s=deadline_s, lane=lane, source=source)

    def prepare(self, image_HW3: UInt8Array) -> None:
        """Reduce and pad the picture."""
        spec = dataclasses.replace(self._model.manifest.preprocess, max_infer_pixels=self._max_infer_pixels)
        canvas = partial(self._model.canvas, confidence=self._confidence)
        prepared = spec.prepare(image_HW3, canvas=canvas)
        self._prepared = dataclasses.replace(prepared, confidence=self._confidence)

    def submit_next(self, last: DeviceResult | None) -> Future[DeviceResult]:
        """Queue the picture."""
        assert last is None
        assert self._prepared is not None
        assert self._place is not None
        self._labels = self._model.submit(self._prepared, self._place)
        return cast("Future[DeviceResult]", self._labels)

    @property
    def is_complete(self) -> bool:
        """Whether the picture is submitted."""
        return self._labels is not None

    def answer(self, last: DeviceResult) -> Answer:
        """Return the labels."""
        assert isinstance(last, Answer)
        return last

    def withdraw(self) -> None:
        """Cancel the picture unless the device has begun it."""
        if self._place is not None:
            self._place.future.cancel()
        if self._labels is not None:
            self._labels.cancel()


class TilePasses:
    """Passes of the tiles of a picture at full resolution, one after the other; their scores are summed.

    Args:
        model: answers the picture.
        size: of the picture.
        tiles: ``tile_protocol``.
    """

    def __init__(self, model: LoadedModel, size: ImageSize, tiles: protocols.Protocol) -> None:
        self._plan = protocols.make_plan(tiles, size)
        self._chips = self._plan.passes[0].chips
        self._padded = self._chips[0].size.padded()
        self._raw_shape = raw_shape(model.manifest, self._padded)
        self.inference_size = size
        scores = len(self._chips) * int(np.prod(self._raw_shape))
        self.network_bytes = _SCORE_BYTES * scores + _RGB_BYTES * self._padded.pixels
        self._model = model
        self._places: list[Reservation] = []
        self._image_HW3: UInt8Array | None = None
        self._raw_NKhw = np.empty((0, *self._raw_shape), np.float32)
        self._num_submitted = 0
        self._began_s = self._infer_s = 0.0

    def reserve(self, *, deadline_s: float, lane: Lane, source: str | None) -> None:
        """Reserve a place in the queue for each tile, or none."""
        self._places = self._model.reserve_tiles(
            self._padded, len(self._chips), deadline_s=deadline_s, lane=lane, source=source
        )

    def prepare(self, image_HW3: UInt8Array) -> None:
        """Prepare to cut the picture; a tile is cut when its turn comes."""
        self._raw_NKhw = np.empty((len(self._chips), *self._raw_shape), np.float32)
        self._image_HW3 = image_HW3
        self._began_s = time.monotonic()

    def submit_next(self, last: DeviceResult | None) -> Future[DeviceResult]:
        """Queue the next tile."""
        if last is not None:
            self._keep(last)
        number = self._num_submitted
        self._num_submitted += 1
        return cast("Future[DeviceResult]", self._model.submit_tile(self._tile(number), self._places[number]))

    @property
    def is_complete(self) -> bool:
        """Whether the last tile is submitted."""
        return self._num_submitted == len(self._chips)

    def answer(self, last: DeviceResult) -> Answer:
        """Sum the scores of the tiles and return the class with the highest sum in each pixel.

        Raises:
            ModelOutputInvalidError: the scores are not finite.
        """
        self._keep(last)
        began_s = time.monotonic()
        queue_s = max(0.0, began_s - self._began_s - self._infer_s)
        scores = network_passes.PlanScores(self._plan, (self._raw_NKhw,))
        try:
            labels_HW = network_passes.label(scores, self._model.manifest)
        except ModelOutputError as error:
            raise ModelOutputInvalidError(str(error)) from error
        ended_s = time.monotonic()
        stage_done("post", began_s, ended_s)
        return Answer(labels_HW, queue_s, self._infer_s, ended_s - began_s)

    def withdraw(self) -> None:
        """Cancel the tiles that the device has not begun."""
        for place in self._places:
            place.future.cancel()

    def _tile(self, number: int) -> PreparedImage:
        assert self._image_HW3 is not None
        chip = self._chips[number]
        tile_HW3 = network_passes.chip_view(self._image_HW3, chip, self._model.manifest.preprocess)
        return PreparedImage(np.ascontiguousarray(tile_HW3, np.uint8), chip.size, chip.size)

    def _keep(self, result: DeviceResult) -> None:
        """Copy the scores of the last tile out of the memory that the worker sees, which is reused."""
        assert isinstance(result, Scores)
        self._raw_NKhw[self._num_submitted - 1] = result.raw_NKhw[0]
        self._infer_s += result.infer_s
