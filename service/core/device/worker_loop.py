"""What a worker process does all day: hears frames, runs jobs in shared memory, and answers with frames.

Axes: N images in a batch, K channels of the head, H height, W width, 3 = red green blue; h w = H/stride
W/stride.
"""

from __future__ import annotations

import socket
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue

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
from service.core.device.worker_connection import BatchJobMark
from service.core.memory import release_free_memory

_log = structlog.get_logger()

_LAST_WORDS_S = 1.0

_ANCILLARY_BYTES = socket.CMSG_SPACE(253 * 4)
"""Room for as many descriptors as the kernel lets one packet carry (SCM_MAX_FD)."""


_Task = Callable[[], object]


class WorkerLoop:
    """Serves one connection until its other end is closed.

    Jobs run one after the other in the calling thread, and nothing comes between them: what has come is read
    by a second thread, so that the next job lies ready when the device is done with the last one; a third one
    sends, for who wakes the service may lose the processor to it; models are loaded by a fourth.

    Args:
        link: packets with frames.
        mark: tells what was begun, and what of it has ended, also after the death of this process.
        device: what runs the jobs.
    """

    def __init__(self, link: socket.socket, mark: BatchJobMark, device: Device) -> None:
        self._link = link
        self._mark = mark
        self._device = device
        self._slots = SlotMap()
        self._versions: dict[int, ModelVersion] = {}
        self._tasks: SimpleQueue[_Task | None] = SimpleQueue()
        self._begun: deque[tuple[int, Pending]] = deque()
        self._unsent: deque[bytes] = deque()
        self._may_send = threading.Lock()
        self._is_unsent: SimpleQueue[bool] = SimpleQueue()
        self._descriptors: deque[int] = deque()
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="load")

    def serve(self) -> None:
        """Answer until the other end is closed.

        Raises:
            FrameError: something else than frames came.
            OSError: nothing can be sent, though the other end is there.
            DeviceLostError: the device is lost to this process.
        """
        speaking = threading.Thread(target=self._speak, name="speak", daemon=True)
        speaking.start()
        threading.Thread(target=self._listen, name="listen", daemon=True).start()
        self._send(HelloMessage())
        try:
            while (task := self._next_task()) is not None:
                task()
                del task  # or its memory would be held until the next one comes
        except (BrokenPipeError, ConnectionResetError):
            pass
        finally:
            self._is_unsent.put(False)
            speaking.join(_LAST_WORDS_S)
            with suppress(OSError):  # closed by the other end, or already
                self._link.shutdown(socket.SHUT_RDWR)  # to close it ends nothing while a thread listens

    def close(self) -> None:
        """End what is being loaded."""
        self._loader.shutdown()

    def _next_task(self) -> _Task | None:
        """Return what has come, and when nothing has, to finish what was begun first; None at the end."""
        try:
            return self._tasks.get(block=not self._begun)
        except Empty:
            return self._finish_one

    def _finish_one(self) -> None:
        token, pending = self._begun.popleft()
        words = encode_message(DoneMessage(token, pending()))
        self._mark.end(token, words)  # before the next job is begun: that may kill this process
        self._unsent.append(words)
        if self._begun or not self._tasks.empty():
            self._is_unsent.put(True)
        else:  # nothing would be kept waiting, and to wake another thread takes time, too
            self._send_all()

    def _send(self, frame: IpcMessage) -> None:
        self._unsent.append(encode_message(frame))
        self._is_unsent.put(True)

    def _send_all(self) -> None:
        """Send what is unsent, in its order, whichever thread was to do it."""
        with self._may_send:
            while self._unsent:
                self._link.sendall(self._unsent.popleft())

    # --- the thread that speaks

    def _speak(self) -> None:
        try:
            while self._is_unsent.get():
                self._send_all()
        except (BrokenPipeError, ConnectionResetError):
            pass  # there is nobody any more, which the listening thread hears
        except OSError as error:
            self._tasks.put(partial(_fail, error))

    # --- the thread that listens

    def _listen(self) -> None:
        try:
            while data := self._receive():
                self._obey(decode_message(data))
        except ConnectionResetError:
            pass
        except Exception as error:  # noqa: BLE001 - the edge of the thread: ``serve`` raises it
            self._tasks.put(partial(_fail, error))
        self._tasks.put(None)

    def _receive(self) -> bytes:
        """Return the next frame; nothing at the end."""
        data, ancillary, _, _ = self._link.recvmsg(MAX_MESSAGE_BYTES, _ANCILLARY_BYTES)
        for level, kind, content in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                self._descriptors.extend(memoryview(content).cast("i"))
        return data

    def _obey(self, frame: IpcMessage) -> None:
        match frame:
            case LabelMessage():
                self._tasks.put(partial(self._begin_labelling, frame.token, self._work(frame)))
            case ScoreMessage():
                self._tasks.put(partial(self._begin_scoring, frame.token, self._scoring(frame)))
            case LoadMessage():
                # Behind the unloading that came before it: that may be of the version with this name.
                self._tasks.put(partial(self._loader.submit, self._load, frame))
            case UnloadMessage():
                self._tasks.put(partial(self._unload, frame))
            case ForgetMessage():
                for slot in frame.slots:
                    self._slots.forget(slot)
            case _:
                raise IpcError(f"the service does not say {frame}")

    def _work(self, frame: LabelMessage) -> LabelingWork:
        self._map([entry.slot for entry in frame.pictures])
        pictures = [self._picture(entry) for entry in frame.pictures]
        return LabelingWork(
            self._version(frame.version),
            pictures,
            [self._answer(*item) for item in zip(frame.pictures, pictures, strict=True)],
            [entry.deadline_s for entry in frame.pictures],
        )

    def _scoring(self, frame: ScoreMessage) -> Pending:
        self._map([frame.slot])
        version = self._version(frame.version)
        images_NHW3 = self._array(frame.slot, (*frame.batch, 3), frame.pixels)
        raw_NKhw = self._array(frame.slot, frame.raw, "float32", next_array_offset(images_NHW3.nbytes))

        def pending() -> BatchReport:
            self._mark.begin(frame.token)
            return self._device.score(version, images_NHW3, raw_NKhw, frame.deadline_s)

        return pending

    def _version(self, key: int) -> ModelVersion:
        if key not in self._versions:
            raise IpcError(f"no model has the number {key}")
        return self._versions[key]

    def _map(self, numbers: Sequence[int]) -> None:
        """Take the descriptors of slots that are new, in the order in which the frame names them."""
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

    # --- the calling thread

    def _begin_labelling(self, token: int, work: LabelingWork) -> None:
        self._begun.append((token, self._device.begin(work, began=partial(self._mark.begin, token))))

    def _begin_scoring(self, token: int, pending: Pending) -> None:
        self._begun.append((token, pending))

    def _unload(self, frame: UnloadMessage) -> None:
        self._device.unload(self._versions.pop(frame.version))
        self._send(ReplyMessage(frame.request))

    # --- the thread that loads

    def _load(self, frame: LoadMessage) -> None:
        try:
            version = ModelVersion.parse(frame.name)
            info = self._device.load(version, read_artifact(Path(frame.folder)), frame.sizes, frame.tuning)
        except Exception as error:  # noqa: BLE001 - the edge of the thread: whatever a library raises
            if type(error).__name__ not in LOAD_ERRORS:
                _log.exception("model cannot be loaded", model=frame.name)
            message = str(error) or type(error).__name__
            self._send(ReplyMessage(frame.request, error=type(error).__name__, reason=message))
        else:
            release_free_memory()  # of the compiler: 60 MB
            self._versions[frame.version] = version
            self._send(ReplyMessage(frame.request, info))


def _fail(error: Exception) -> None:
    raise error
