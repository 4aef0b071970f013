"""Puts batches into memory that the worker process sees, and sends it messages about them.

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
    """The slots of all batches, and the descriptors that each worker still needs.

    Args:
        clock: seconds; decides which slots have been idle for long.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._slots = SlotPool()

    def canvas(self, padded: ImageSize, original: ImageSize, *, confidence: bool = False) -> UInt8Array:
        """Return memory for a prepared picture, uint8 HW3, in a slot that also holds its labels; thread-safe.

        Raises:
            BusyError: the system has no memory.
        """
        shape = (padded.height, padded.width, 3)
        return self._lease(math.prod(shape), (1 + confidence) * original.pixels).array(shape)

    def send_batch(
        self, worker: WorkerConnection, token: int, version: int, batch: BatchJob
    ) -> Sequence[BatchOutput]:
        """Send a batch to a worker.

        Args:
            worker: receives the batch.
            token: number of the batch.
            version: number of the engine in the worker.
            batch: pictures in a ``canvas`` are not copied.

        Returns:
            The arrays into which the worker writes the results.

        Raises:
            BusyError: the system has no memory for a copy.
        """
        if isinstance(batch, ScoreBatchJob):
            return self._send_scoring(worker, token, version, batch)
        return self._send_labeling(worker, token, version, batch)

    def release_idle_slots(self, worker: WorkerConnection) -> None:
        """Give back slots that were not used for a while, here and in the worker."""
        forgotten = worker.known_slots.intersection(self._slots.trim(now_s=self._clock()))
        worker.known_slots -= forgotten
        if forgotten:
            worker.send(ForgetMessage(tuple(forgotten)))

    def retire_slots(self) -> None:
        """Use new slots for the next worker: the descriptors of slots that the last one had are closed."""
        self._slots.retire()

    def close(self) -> None:
        """Give back all slots that are not in use."""
        self._slots.close()

    def _send_labeling(
        self, worker: WorkerConnection, token: int, version: int, batch: LabelBatchJob
    ) -> Sequence[BatchOutput]:
        leases = [self._slot_of(picture, worker) for picture in batch.pictures]
        entries = [
            PictureEntry(lease.slot.number, deadline_s, p.padded, p.content, p.original, p.confidence)
            for lease, deadline_s, p in zip(leases, batch.deadlines_s, batch.pictures, strict=True)
        ]
        labels = [
            lease.array(answer_shape(p), offset=next_array_offset(p.pixels_HW3.nbytes))
            for lease, p in zip(leases, batch.pictures, strict=True)
        ]
        _send(worker, LabelMessage(token, version, tuple(entries)), leases)
        return cast("list[BatchOutput]", labels)

    def _send_scoring(
        self, worker: WorkerConnection, token: int, version: int, batch: ScoreBatchJob
    ) -> Sequence[BatchOutput]:
        images_NHW3, shape = batch.images_NHW3, batch.raw_shape
        lease = self._filled(images_NHW3, 4 * math.prod(shape))
        count, height, width = images_NHW3.shape[:3]
        pixels: PixelType = "uint8" if images_NHW3.dtype == np.uint8 else "float32"
        message = ScoreMessage(
            token, version, lease.slot.number, batch.deadline_s, pixels, (count, height, width), shape
        )
        _send(worker, message, [lease])
        return [lease.array(shape, np.float32, next_array_offset(images_NHW3.nbytes))]

    def _slot_of(self, picture: PreparedImage, worker: WorkerConnection) -> SlotLease:
        """Return the slot of a picture; a copy if the worker cannot see it or it holds labels already."""
        lease = self._slots.lease_of(picture.pixels_HW3)
        answer_bytes = math.prod(answer_shape(picture))
        needed = next_array_offset(picture.pixels_HW3.nbytes) + answer_bytes
        if lease is None or not _is_usable(lease, worker) or lease.slot.capacity < needed:
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


def _is_usable(lease: SlotLease, worker: WorkerConnection) -> bool:
    """Return whether a worker sees a slot, or can be given it, and the slot holds no labels yet."""
    is_known = lease.slot.number in worker.known_slots
    return not lease.slot.holds_answer and (is_known or lease.slot.descriptor is not None)


def _send(worker: WorkerConnection, message: IpcMessage, leases: Sequence[SlotLease]) -> None:
    slots = {lease.slot.number: lease.slot for lease in leases}
    new = [slot for number, slot in slots.items() if number not in worker.known_slots]
    worker.known_slots.update(slot.number for slot in new)
    worker.send(message, [slot.descriptor for slot in new if slot.descriptor is not None])
    for slot in new:
        slot.close_descriptor()
