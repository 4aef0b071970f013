"""The one thread that owns a device: it runs engines and turns their raw output into labels.

Axes: N images in a batch, K channels of the head, H height, W width; h w = H/stride W/stride.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import structlog

from model import decode
from model.errors import ModelOutputError
from model.labels import UInt8Array
from model.manifest import ModelManifest
from model.preprocess import PreparedImage
from service.core.batching import DEFAULT_MAX_WAITING, Item, WaitingRoom
from service.core.engine import Float32Array, InferenceEngine, usable_cores
from service.core.errors import DrainingError, InternalError, ModelOutputInvalidError, ServiceError

_log = structlog.get_logger()


@dataclass(frozen=True, eq=False)
class Task:
    """One picture for one model.

    Attributes:
        engine: runs the network.
        manifest: how its raw output becomes labels.
        image: the prepared picture.
    """

    engine: InferenceEngine
    manifest: ModelManifest
    image: PreparedImage


@dataclass(frozen=True, eq=False)
class Answer:
    """What became of one picture.

    Attributes:
        labels_HW: class ids at the picture's original size, uint8.
        queue_s: time from ``submit`` to the engine, in seconds.
        infer_s: time in the engine, in seconds.
        post_s: time from raw output to labels, in seconds.
    """

    labels_HW: UInt8Array
    queue_s: float
    infer_s: float
    post_s: float


class InferenceWorker:
    """Answers tasks one after the other, in a thread of its own.

    A task that fails fails alone. Cancelled and expired tasks never reach the engine.

    Args:
        max_waiting: tasks that may wait; more are refused.
        decode_threads: threads that share the rows of one decoding; None = all cores this process may use.
    """

    def __init__(self, *, max_waiting: int = DEFAULT_MAX_WAITING, decode_threads: int | None = None) -> None:
        self._room: WaitingRoom[Task, Answer] = WaitingRoom(max_waiting)
        self._changed = threading.Condition()
        self._closing = False
        self._decode_pool = ThreadPoolExecutor(decode_threads or usable_cores(), thread_name_prefix="decode")
        self._thread = threading.Thread(target=self._run, name="inference", daemon=True)
        self._thread.start()

    def submit(self, task: Task, *, deadline_s: float) -> Future[Answer]:
        """Queue one picture.

        Args:
            task: what to run on what.
            deadline_s: when nobody waits for the answer any more, on the clock of ``time.monotonic``.

        Returns:
            The answer to come; cancelling it withdraws the task unless the engine already has it.

        Raises:
            QueueFullError: too many wait, or they alone outlast the deadline.
            DrainingError: the worker is about to stop.
        """
        item: Item[Task, Answer] = Item(task, task.image.padded.pixels, time.monotonic(), deadline_s)
        with self._changed:
            if self._closing:
                raise DrainingError("the service is about to stop")
            self._room.admit(item)
            self._changed.notify()
        item.future.add_done_callback(self._withdraw)
        return item.future

    def close(self) -> None:
        """Answer everything that waits, then stop."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()
        self._decode_pool.shutdown()

    def _withdraw(self, future: Future[Answer]) -> None:
        if future.cancelled():
            with self._changed:
                self._room.withdraw(future)

    def _run(self) -> None:
        while (item := self._next()) is not None:
            self._settle(item)
            del item  # or its pixels would live until the next one comes

    def _next(self) -> Item[Task, Answer] | None:
        with self._changed:
            while True:
                item = self._room.take(now_s=time.monotonic())
                if item is not None or self._closing:
                    return item
                self._changed.wait()

    def _settle(self, item: Item[Task, Answer]) -> None:
        # Failures are made here and not raised below: a traceback would keep the pixels alive.
        failure: ServiceError
        try:
            answer = self._answer(item)
        except ModelOutputError as error:
            failure = ModelOutputInvalidError(str(error))
        except Exception:  # noqa: BLE001 - the outermost edge of the thread: the next task must run
            _log.exception("inference failed")
            failure = InternalError("inference failed")
        else:
            with self._changed:
                self._room.learn(pixels=item.pixels, duration_s=answer.infer_s + answer.post_s)
            item.future.set_result(answer)
            return
        item.future.set_exception(failure)

    def _answer(self, item: Item[Task, Answer]) -> Answer:
        task = item.work
        begun_s = time.monotonic()
        raw_NKhw = task.engine.infer(task.image.pixels_HW3[np.newaxis])
        inferred_s = time.monotonic()
        labels_HW = self._labels(raw_NKhw[0], task)
        decoded_s = time.monotonic()
        return Answer(labels_HW, begun_s - item.admitted_s, inferred_s - begun_s, decoded_s - inferred_s)

    def _labels(self, raw_Khw: Float32Array, task: Task) -> UInt8Array:
        return decode.labels(
            raw_Khw,
            upsample=task.manifest.upsample,
            stride=task.manifest.stride,
            padded=task.image.padded,
            content=task.image.content,
            original=task.image.original,
            executor=self._decode_pool,
        )
