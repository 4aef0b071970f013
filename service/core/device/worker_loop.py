"""The worker's side of a connection: receives messages, runs batches in shared memory, sends replies.

Axes: N images in a batch, K channels of the head, H height, W width, 3 = red green blue; h w = H/stride
W/stride.
"""

from __future__ import annotations

import select
import socket
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from queue import SimpleQueue

import structlog

from model.artifacts.artifact import read_artifact
from model.artifacts.manifest import ModelVersion
from model.labels import UInt8Array
from model.pictures.preprocess import PreparedImage
from service.core.device.batch_job import BatchReport, answer_shape
from service.core.device.device import Device
from service.core.device.ipc import (
    LOAD_ERRORS,
    MAX_MESSAGE_BYTES,
    DoneMessage,
    ForgetMessage,
    HelloMessage,
    IpcError,
    IpcMessage,
    LabelMessage,
    LoadMessage,
    PictureEntry,
    PixelType,
    ReplyMessage,
    ScoreMessage,
    UnloadMessage,
    decode_message,
    encode_message,
)
from service.core.device.labeling import LabelingWork, Pending
from service.core.device.slots import AnyArray, SlotMap, next_array_offset
from service.core.device.worker_connection import ExecutionRecord
from service.core.memory import release_free_memory

_log = structlog.get_logger()

_SENDING_TIMEOUT_S = 1.0

_ANCILLARY_BYTES = socket.CMSG_SPACE(253 * 4)
"""Buffer for as many descriptors as the kernel allows in one packet (SCM_MAX_FD)."""


class WorkerLoop:
    """Serves one connection until its other end is closed.

    The calling thread receives messages and runs batches, one after the other; while it runs one, the next
    one waits in the socket. A second thread sends, because a thread that wakes the service may lose its core
    to it. A third one loads models.

    Args:
        connection: socket of packets, one message each.
        record: outlives this process.
        device: runs the batches.
    """

    def __init__(self, connection: socket.socket, record: ExecutionRecord, device: Device) -> None:
        self._connection = connection
        self._record = record
        self._device = device
        self._slots = SlotMap()
        self._versions: dict[int, ModelVersion] = {}
        self._messages = select.poll()
        self._messages.register(connection, select.POLLIN)
        self._started: deque[tuple[int, Pending]] = deque()
        self._unsent: deque[bytes] = deque()
        self._sending = threading.Lock()
        self._sending_error: OSError | None = None
        self._is_unsent: SimpleQueue[bool] = SimpleQueue()
        self._descriptors: deque[int] = deque()
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="load")

    def serve(self) -> None:
        """Run batches until the other end of the connection is closed.

        Raises:
            IpcError: the service sent bytes that are no message, or a message out of place.
            OSError: nothing can be sent although the other end is open.
            DeviceLostError: this process can no longer use the device.
        """
        sender = threading.Thread(target=self._send_loop, name="send", daemon=True)
        sender.start()
        self._send(HelloMessage())
        try:
            while self._take_turn():
                pass
        except (BrokenPipeError, ConnectionResetError):
            pass
        finally:
            self._is_unsent.put(False)
            sender.join(_SENDING_TIMEOUT_S)
        if self._sending_error is not None:
            raise self._sending_error

    def close(self) -> None:
        """Wait for models that are being loaded."""
        self._loader.shutdown()

    def _take_turn(self) -> bool:
        """Handle the next message, or end the oldest batch if there is none; False = the service ended."""
        if self._started and not self._has_message():
            self._finish_batch()
            return True
        data = self._receive()
        if data:
            self._handle(decode_message(data))
        return bool(data)

    def _has_message(self) -> bool:
        return bool(self._messages.poll(0))

    def _finish_batch(self) -> None:
        token, pending = self._started.popleft()
        reply = encode_message(DoneMessage(token, pending()))
        self._record.record_reply(token, reply)  # before the next batch starts, which may kill this process
        self._unsent.append(reply)
        if self._started or self._has_message():
            self._is_unsent.put(True)
        else:  # no batch waits, and to wake the sending thread takes time
            self._send_all()

    def _send(self, message: IpcMessage) -> None:
        self._unsent.append(encode_message(message))
        self._is_unsent.put(True)

    def _send_all(self) -> None:
        """Send all unsent messages in their order; called by two threads."""
        with self._sending:
            while self._unsent:
                self._connection.sendall(self._unsent.popleft())

    def _receive(self) -> bytes:
        """Return the bytes of the next message; empty at the end."""
        data, ancillary, _, _ = self._connection.recvmsg(MAX_MESSAGE_BYTES, _ANCILLARY_BYTES)
        for level, kind, content in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                self._descriptors.extend(memoryview(content).cast("i"))
        return data

    def _handle(self, message: IpcMessage) -> None:
        match message:
            case LabelMessage():
                on_start = partial(self._record.record_start, message.token)
                pending = self._device.start_labeling(self._labeling_work(message), on_start=on_start)
                self._started.append((message.token, pending))
            case ScoreMessage():
                self._started.append((message.token, self._scoring_work(message)))
            case LoadMessage():
                self._loader.submit(self._load, message)
            case UnloadMessage():
                self._device.unload(self._versions.pop(message.version))
                self._send(ReplyMessage(message.request))
            case ForgetMessage():
                for slot in message.slots:
                    self._slots.forget(slot)
            case _:
                raise IpcError(f"the service does not send {message}")

    def _labeling_work(self, message: LabelMessage) -> LabelingWork:
        self._map_slots([entry.slot for entry in message.pictures])
        pictures = [self._picture(entry) for entry in message.pictures]
        return LabelingWork(
            self._version(message.version),
            pictures,
            [self._answer(*item) for item in zip(message.pictures, pictures, strict=True)],
            [entry.deadline_s for entry in message.pictures],
        )

    def _scoring_work(self, message: ScoreMessage) -> Pending:
        self._map_slots([message.slot])
        version = self._version(message.version)
        images_NHW3 = self._array(message.slot, (*message.batch, 3), message.pixels)
        raw_NKhw = self._array(message.slot, message.raw, "float32", next_array_offset(images_NHW3.nbytes))

        def pending() -> BatchReport:
            self._record.record_start(message.token)
            return self._device.score(version, images_NHW3, raw_NKhw, message.deadline_s)

        return pending

    def _version(self, number: int) -> ModelVersion:
        if number not in self._versions:
            raise IpcError(f"no model has the number {number}")
        return self._versions[number]

    def _map_slots(self, numbers: Sequence[int]) -> None:
        """Map new slots; their descriptors came with the message, in the order in which it names them."""
        for number in numbers:
            if number not in self._slots:
                if not self._descriptors:
                    raise IpcError(f"slot {number} came without its memory")
                self._slots.add(number, self._descriptors.popleft())

    def _picture(self, entry: PictureEntry) -> PreparedImage:
        pixels_HW3 = self._array(entry.slot, (*entry.padded.shape, 3), "uint8")
        return PreparedImage(pixels_HW3, entry.content, entry.original, entry.confidence)

    def _answer(self, entry: PictureEntry, picture: PreparedImage) -> UInt8Array:
        offset = next_array_offset(picture.pixels_HW3.nbytes)
        return self._array(entry.slot, answer_shape(picture), "uint8", offset)

    def _array(self, slot: int, shape: tuple[int, ...], dtype: PixelType, offset: int = 0) -> AnyArray:
        try:
            return self._slots.array(slot, shape, dtype, offset)
        except (TypeError, ValueError) as error:
            raise IpcError(f"{shape} does not fit into slot {slot}") from error

    # --- the sending thread

    def _send_loop(self) -> None:
        try:
            while self._is_unsent.get():
                self._send_all()
        except (BrokenPipeError, ConnectionResetError):
            pass  # the other end is closed, which the calling thread receives
        except OSError as error:
            self._sending_error = error
            with suppress(OSError):  # closed already
                self._connection.shutdown(socket.SHUT_RDWR)  # wakes the calling thread

    # --- the loading thread

    def _load(self, message: LoadMessage) -> None:
        try:
            version = ModelVersion.parse(message.name)
            artifact = read_artifact(Path(message.folder))
            engine = self._device.load(version, artifact, message.sizes, message.tuning)
        except Exception as error:  # noqa: BLE001 - the edge of the thread: whatever a library raises
            name = type(error).__name__
            if name not in LOAD_ERRORS:
                _log.exception("model cannot be loaded", model=message.name)
            self._send(ReplyMessage(message.request, error=name, reason=str(error) or name))
        else:
            release_free_memory()  # 60 MB of the compiler
            self._versions[message.version] = version
            self._send(ReplyMessage(message.request, engine))
