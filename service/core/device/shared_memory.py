"""Jobs in memory that a worker process sees as well: laid out here, and sent as frames of some hundred bytes.

Axes: N images in a batch, K channels of the head, H height, W width, 3 = red green blue; h w = H/stride
W/stride.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import cast

import numpy as np

from model.labels import UInt8Array
from model.pictures.preprocess import ImageSize, PreparedImage
from service.core.device.batch_job import BatchJob, BatchOutput, LabelBatchJob, ScoreBatchJob, answer_shape
from service.core.device.ipc import (
    ForgetMessage,
    IpcMessage,
    LabelMessage,
    PictureEntry,
    PixelType,
    ScoreMessage,
)
from service.core.device.slots import AnyArray, SlotLease, SlotPool, next_array_offset
from service.core.device.worker_connection import WorkerConnection
from service.core.errors import BusyError


class SharedMemory:
    """Finds each job its slots, and gives each worker the descriptors that it has not got yet.

    Args:
        clock: seconds; for slots that nobody uses any more.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._slots = SlotPool()

    def canvas(self, padded: ImageSize, original: ImageSize, *, confidence: bool = False) -> UInt8Array:
        """Return memory for a prepared picture, uint8 HW3, with room for its labels behind it; thread-safe.

        Raises:
            BusyError: the system has none.
        """
        shape = (padded.height, padded.width, 3)
        return self._lease(math.prod(shape), (1 + confidence) * original.pixels).array(shape)

    def send(self, life: WorkerConnection, token: int, version: int, job: BatchJob) -> Sequence[BatchOutput]:
        """Send a job to a worker.

        Args:
            life: the worker.
            token: of the job.
            version: number by which the worker knows the version.
            job: pictures in a ``canvas`` are not copied.

        Returns:
            The arrays in which the answers will be.

        Raises:
            BusyError: the system has no memory for what has to be copied.
        """
        if isinstance(job, ScoreBatchJob):
            return self._send_scoring(life, token, version, job)
        return self._send_labelling(life, token, version, job)

    def tidy(self, life: WorkerConnection) -> None:
        """Give back what was not used for a while, on both sides."""
        forgotten = life.known_slots.intersection(self._slots.trim(now_s=self._clock()))
        life.known_slots -= forgotten
        if forgotten:
            life.send(ForgetMessage(tuple(forgotten)))

    def retire(self) -> None:
        """Use other memory for the next worker: descriptors that the last one had are closed."""
        self._slots.retire()

    def close(self) -> None:
        """Give back what is not in use."""
        self._slots.close()

    def _send_labelling(
        self, life: WorkerConnection, token: int, version: int, job: LabelBatchJob
    ) -> Sequence[BatchOutput]:
        leases = [self._slot_of(picture, life) for picture in job.pictures]
        entries = [
            PictureEntry(lease.slot.number, deadline_s, p.padded, p.content, p.original, p.confidence)
            for lease, deadline_s, p in zip(leases, job.deadlines_s, job.pictures, strict=True)
        ]
        labels = [
            lease.array(answer_shape(p), offset=next_array_offset(p.pixels_HW3.nbytes))
            for lease, p in zip(leases, job.pictures, strict=True)
        ]
        _send(life, LabelMessage(token, version, tuple(entries)), leases)
        return cast("list[BatchOutput]", labels)

    def _send_scoring(
        self, life: WorkerConnection, token: int, version: int, job: ScoreBatchJob
    ) -> Sequence[BatchOutput]:
        lease = self._filled(job.images_NHW3, 4 * math.prod(job.raw_shape))
        count, height, width = job.images_NHW3.shape[:3]
        pixels: PixelType = "uint8" if job.images_NHW3.dtype == np.uint8 else "float32"
        batch = count, height, width
        frame = ScoreMessage(token, version, lease.slot.number, job.deadline_s, pixels, batch, job.raw_shape)
        _send(life, frame, [lease])
        return [lease.array(job.raw_shape, np.float32, next_array_offset(job.images_NHW3.nbytes))]

    def _slot_of(self, picture: PreparedImage, life: WorkerConnection) -> SlotLease:
        """Return where a picture lies; one that the worker cannot see, or was labelled before, is copied."""
        lease = self._slots.lease_of(picture.pixels_HW3)
        answer_bytes = math.prod(answer_shape(picture))
        needed = next_array_offset(picture.pixels_HW3.nbytes) + answer_bytes
        if lease is None or not _is_fresh(lease, life) or lease.slot.capacity < needed:
            lease = self._filled(picture.pixels_HW3, answer_bytes)
        lease.slot.holds_answer = True
        return lease

    def _filled(self, images: AnyArray, answer_bytes: int) -> SlotLease:
        lease = self._lease(images.nbytes, answer_bytes)
        lease.array(images.shape, images.dtype)[...] = images
        return lease

    def _lease(self, first_bytes: int, second_bytes: int) -> SlotLease:
        try:
            return self._slots.lease(next_array_offset(first_bytes) + second_bytes, now_s=self._clock())
        except OSError as error:
            raise BusyError(f"no shared memory for a picture: {error.strerror}") from error


def _is_fresh(lease: SlotLease, life: WorkerConnection) -> bool:
    """Return whether a worker can be given a slot, and nobody's labels lie in it."""
    is_known = lease.slot.number in life.known_slots
    return not lease.slot.holds_answer and (is_known or lease.slot.descriptor is not None)


def _send(life: WorkerConnection, frame: IpcMessage, leases: Sequence[SlotLease]) -> None:
    slots = {lease.slot.number: lease.slot for lease in leases}
    new = [slot for number, slot in slots.items() if number not in life.known_slots]
    life.known_slots.update(slot.number for slot in new)
    life.send(frame, [slot.descriptor for slot in new if slot.descriptor is not None])
    for slot in new:
        slot.close_descriptor()
