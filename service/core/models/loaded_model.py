"""One loaded version of a model, as its users need it.

Axes: N images in a batch, K channels of the head, H height, W width, 3 = red green blue; h w = H/stride
W/stride.
"""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass, field

from model.artifacts.manifest import ModelManifest, ModelVersion
from model.labels import UInt8Array
from model.pictures.preprocess import ImageSize, PreparedImage
from service.core.device.engine import EngineChoice, EngineInfo, ImageBatch
from service.core.scheduling.dispatcher import Answer, Dispatcher, Reservation, Scores
from service.core.scheduling.scheduler import Lane


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """One loaded and proved version; stays loaded while ``ModelHost.hold`` holds it.

    Attributes:
        version: its name and number.
        manifest: of its artifact.
        engine: that runs it.
        dispatcher: queues its pictures.
        choice: timings from which the engine was chosen, the chosen one first; empty if there are none.
    """

    version: ModelVersion
    manifest: ModelManifest
    engine: EngineInfo
    dispatcher: Dispatcher = field(repr=False)
    choice: tuple[EngineChoice, ...] = ()

    def refuse_early(self, *, deadline_s: float, source: str | None = None) -> None:
        """Refuse an interactive picture before it is received, if the queue has no place for it.

        Args:
            deadline_s: time after which the answer is no longer needed (``time.monotonic``, seconds).
            source: the client; None = unknown.

        Raises:
            QueueFullError: too many pictures wait, or they alone outlast the deadline.
            RateLimitedError: too many pictures of this source wait.
        """
        self.dispatcher.check_capacity(self.version, deadline_s=deadline_s, source=source)

    def reserve(
        self,
        padded: ImageSize,
        *,
        deadline_s: float,
        lane: Lane = Lane.INTERACTIVE,
        source: str | None = None,
    ) -> Reservation:
        """Reserve a place in the queue, before the picture is read.

        Args:
            padded: size of the prepared picture.
            deadline_s: time after which the labels are no longer needed (``time.monotonic``, seconds).
            lane: how urgent the picture is.
            source: the client or stream; sources of a lane take turns. None = unknown.

        Returns:
            The argument of ``submit``; cancel its future if nothing is submitted.

        Raises:
            VersionNotFoundError: the version is not loaded any more.
            QueueFullError: too many pictures wait, or they alone outlast the deadline.
            RateLimitedError: too many pictures of this source wait.
            DeadlineExceededError: the deadline has passed.
            NoWorkerError: workers die as soon as they are started.
            DrainingError: the service is about to stop.
        """
        return self.dispatcher.reserve_picture(
            self.version, padded, deadline_s=deadline_s, lane=lane, source=source
        )

    def reserve_tiles(
        self,
        padded: ImageSize,
        count: int,
        *,
        deadline_s: float,
        lane: Lane = Lane.INTERACTIVE,
        source: str | None = None,
    ) -> list[Reservation]:
        """Reserve places in the queue for all tiles of a picture, before it is read, or for none of them.

        Args:
            padded: size of each prepared tile.
            count: number of tiles.
            deadline_s: time after which the labels are no longer needed (``time.monotonic``, seconds).
            lane: how urgent the picture is.
            source: the client or stream; sources of a lane take turns. None = unknown.

        Returns:
            The arguments of ``submit_tile``; cancel their futures if nothing is submitted.

        Raises:
            TooManyPixelsError: the queue never has so many places.
            ServiceError: an error of ``reserve``.
        """
        return self.dispatcher.reserve_tiles(
            self.version, padded, count, deadline_s=deadline_s, lane=lane, source=source
        )

    def expected_wait_s(self) -> float:
        """Return the expected time until everything that runs and waits is done, in seconds."""
        return self.dispatcher.expected_wait_s()

    def canvas(self, padded: ImageSize, original: ImageSize, *, confidence: bool = False) -> UInt8Array:
        """Return memory in which to prepare a picture, without another copy on its way to the worker.

        Args:
            padded: size of the prepared picture.
            original: size of the picture and of its labels.
            confidence: whether the confidence of each label will be needed.

        Returns:
            uint8 HW3 of the padded size.
        """
        return self.dispatcher.canvas(padded, original, confidence=confidence)

    def submit(self, image: PreparedImage, reservation: Reservation) -> Future[Answer]:
        """Queue one picture.

        Args:
            image: prepared as the manifest says, best in a ``canvas``.
            reservation: its place in the queue.

        Returns:
            Future of the labels. Cancelling it withdraws the picture unless the engine already has it.

        Raises:
            UndecodableImageError: two workers died of this picture.
        """
        return self.dispatcher.submit_picture(reservation, image)

    def submit_tile(self, tile: PreparedImage, reservation: Reservation) -> Future[Scores]:
        """Queue one tile of a picture.

        Args:
            tile: prepared as the manifest says, of the reserved size.
            reservation: its place in the queue.

        Returns:
            Future of the raw scores. Cancelling it withdraws the tile unless the engine already has it.

        Raises:
            UndecodableImageError: two workers died of this tile.
        """
        shape = 1, *raw_shape(self.manifest, tile.padded)
        return self.dispatcher.submit_tile(reservation, tile, shape)

    def infer(self, images_NHW3: ImageBatch, *, deadline_s: float, lane: Lane = Lane.BULK) -> Future[Scores]:
        """Queue one batch and return its raw scores, for evaluation.

        Args:
            images_NHW3: RGB, uint8 or float32 of 0..255, both sides multiples of 32.
            deadline_s: time after which the scores are no longer needed (``time.monotonic``, seconds).
            lane: how urgent the batch is.

        Returns:
            Future of the raw scores.

        Raises:
            ServiceError: an error of ``reserve``.
        """
        count, height, width = images_NHW3.shape[:3]
        shape = count, *raw_shape(self.manifest, ImageSize(height, width))
        return self.dispatcher.submit_scoring(
            self.version, images_NHW3, shape, deadline_s=deadline_s, lane=lane
        )


def raw_shape(manifest: ModelManifest, padded: ImageSize) -> tuple[int, int, int]:
    """Return the shape of raw_Khw, the head's raw output for a prepared picture."""
    sub_pixels = manifest.stride**2 if manifest.upsample == "pixel_shuffle" else 1
    height, width = padded.height // manifest.stride, padded.width // manifest.stride
    return manifest.palette.num_classes * sub_pixels, height, width
