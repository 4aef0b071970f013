"""Pictures of cameras and films, read by PyAV in a thread, and films written by it.

Axes: H height, W width, 3 = red green blue.
"""

from __future__ import annotations

import asyncio
import errno
import io
import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import av
import av.error
import numpy as np
import numpy.typing as npt
from PIL import Image

from service.client.answers import Frame, FramePolicy
from service.client.backoff import ReconnectBackoff
from service.client.errors import SourceError

UInt8Array = npt.NDArray[np.uint8]

_JPEG_QUALITY = 90
_RTSP_TIMEOUT_S = 10.0
_AHEAD = 2
"""Pictures that are read before somebody asks for them."""

_MILLISECONDS = Fraction(1, 1000)
_DEFAULT_FPS = 25


OnLost = Callable[[str, float], object]
"""Told that a camera broke off: why, for people, and after how many seconds it is opened again."""


@dataclass(frozen=True, eq=False)
class CameraFrame:
    """One picture of a source.

    Attributes:
        image_HW3: uint8 RGB.
        position_s: since the first picture, which is not where a film's own clock begins.
        captured_s: when it was read, in seconds since 1970.
    """

    image_HW3: UInt8Array
    position_s: float
    captured_s: float


def is_camera(source: str) -> bool:
    """Return whether a source goes on by itself: a number of a video device, or a URL."""
    return source.isdigit() or "://" in source


def source_frames(source: str) -> Iterator[CameraFrame]:
    """Read a source from its beginning to its end.

    Args:
        source: a film's path, the number of a video device, or a URL such as ``rtsp://...``.

    Raises:
        SourceError: it cannot be opened, or breaks off.
    """
    try:
        with _opened(source) as container:
            if not container.streams.video:
                raise SourceError(f"{source}: there is no picture in it")
            first_s: float | None = None
            for number, frame in enumerate(container.decode(video=0)):
                shown_s = float(frame.time) if frame.time is not None else number / _DEFAULT_FPS
                first_s = shown_s if first_s is None else first_s
                yield CameraFrame(frame.to_ndarray(format="rgb24"), shown_s - first_s, time.time())
    except (av.error.FFmpegError, OSError) as error:
        raise SourceError(f"{source}: {getattr(error, 'strerror', None) or error}") from error


def _opened(source: str) -> Any:
    if source.isdigit():
        return av.open(f"/dev/video{source}", format="v4l2")
    if source.startswith("rtsp://"):
        # Over UDP half of a picture may be missing, and nobody would notice.
        return av.open(source, options={"rtsp_transport": "tcp"}, timeout=_RTSP_TIMEOUT_S)
    return av.open(source, metadata_errors="replace")  # nobody reads a film's title


def camera_frames(
    source: str,
    *,
    pause: Callable[[float], object],
    on_lost: OnLost | None = None,
    backoff: ReconnectBackoff | None = None,
) -> Iterator[CameraFrame]:
    """Read a camera for ever: when it breaks off, it is opened again.

    Args:
        source: as for ``source_frames``.
        pause: waits so many seconds; true = stop reading.
        on_lost: called each time it broke off, before the wait.
        backoff: how long to wait before the next attempt.

    Raises:
        SourceError: it cannot be opened the first time.
    """
    backoff = backoff or ReconnectBackoff()
    started_s: float | None = None
    while True:
        reason = f"{source}: no more pictures come"
        try:
            for shot in source_frames(source):
                started_s = shot.captured_s if started_s is None else started_s
                backoff.reset()
                yield CameraFrame(shot.image_HW3, shot.captured_s - started_s, shot.captured_s)
        except SourceError as error:
            if started_s is None:
                raise
            reason = str(error)
        delay_s = backoff.next_s()
        if on_lost is not None:
            on_lost(reason, delay_s)
        if pause(delay_s):
            return


class CameraFeed:
    """Numbers the pictures of a source and encodes them as JPEG, for ``ReconnectingStream``.

    With ``latest`` a picture that nobody took is replaced by the next one, and a film plays at its own speed;
    with ``block`` the source waits.

    Args:
        source: see ``source_frames``.
        policy: as above.
        seconds: how much of it to read; None = all. While a camera is lost, time goes on.
        on_lost: called in the event loop each time a camera broke off.

    Attributes:
        skipped: pictures that were replaced before they were numbered.
    """

    def __init__(
        self,
        source: str,
        policy: FramePolicy,
        *,
        seconds: float | None = None,
        on_lost: OnLost | None = None,
    ) -> None:
        self.skipped = 0
        self._source = source
        self._policy = policy
        self._seconds = math.inf if seconds is None else seconds
        self._on_lost = on_lost
        self._first_s: float | None = None
        self._shots: dict[int, CameraFrame] = {}
        self._seq = 0
        self._queue: asyncio.Queue[CameraFrame | SourceError | None] = asyncio.Queue()
        self._pending: CameraFrame | SourceError | None = None
        self._room = threading.Semaphore(_AHEAD)
        self._closing = threading.Event()
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._read, name="camera", daemon=True)

    async def next(self) -> Frame | None:
        """Return the next picture; see ``FrameFeed``.

        Raises:
            SourceError: the source cannot be read.
        """
        if self._pending is None:
            self._pending = await self._queue.get()
            self._room.release()
        shot = self._pending
        if shot is None:
            self._queue.put_nowait(None)  # for who asks again
            return None
        if isinstance(shot, SourceError):
            raise shot
        data = await asyncio.to_thread(_jpeg, shot.image_HW3)
        self._pending = None
        self._seq += 1
        self._shots[self._seq] = shot
        return Frame(self._seq, data, shot.captured_s)

    def shot(self, seq: int) -> CameraFrame:
        """Return the picture of a frame."""
        return self._shots[seq]

    def forget(self, seq: int) -> None:
        """Let the pictures go up to this frame: it is answered, and so are those before it."""
        self._shots = {later: shot for later, shot in self._shots.items() if later > seq}

    async def __aenter__(self) -> Self:
        self._thread.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        self._room.release()

    def _read(self) -> None:
        end: SourceError | None = None
        try:
            for shot in self._paced():
                self._first_s = shot.captured_s if self._first_s is None else self._first_s
                if shot.position_s >= self._seconds:
                    break
                if self._policy == "block":
                    self._room.acquire()
                if self._closing.is_set():
                    break
                self._hand_over(shot)
        except SourceError as error:
            end = error
        except Exception as error:  # noqa: BLE001 - the outermost edge of a thread: somebody waits for its end
            end = SourceError(f"{self._source}: {error}")
        finally:
            self._hand_over(end)

    def _paced(self) -> Iterator[CameraFrame]:
        if is_camera(self._source):
            yield from camera_frames(self._source, pause=self._pause, on_lost=self._tell)
            return
        started_s = time.monotonic()
        for shot in source_frames(self._source):
            if self._policy == "latest":
                self._closing.wait(max(0.0, started_s + shot.position_s - time.monotonic()))
            yield CameraFrame(shot.image_HW3, shot.position_s, time.time())

    def _pause(self, delay_s: float) -> bool:
        """Wait before a camera is opened again; true = nobody wants its pictures any more."""
        assert self._first_s is not None  # a camera that never came is not opened again
        left_s = max(0.0, self._first_s + self._seconds - time.time())
        return self._closing.wait(min(delay_s, left_s)) or delay_s >= left_s

    def _tell(self, reason: str, delay_s: float) -> None:
        if self._on_lost is not None:
            self._call(self._on_lost, reason, delay_s)

    def _hand_over(self, item: CameraFrame | SourceError | None) -> None:
        self._call(self._put, item)

    def _call(self, function: Callable[..., object], *arguments: object) -> None:
        with suppress(RuntimeError):  # the loop is closed, nobody waits
            self._loop.call_soon_threadsafe(function, *arguments)

    def _put(self, item: CameraFrame | SourceError | None) -> None:
        if self._policy == "latest" and isinstance(item, CameraFrame):
            while not self._queue.empty():
                self._queue.get_nowait()
                self.skipped += 1
        self._queue.put_nowait(item)


class FilmWriter:
    """Writes pictures as an H.264 film; all have the size of the first.

    Args:
        path: where; its suffix decides the container. The file itself is opened with the first picture.

    Raises:
        SourceError: it cannot be written there.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with self._told():
            _check_writable(path)
            self._container: Any = av.open(str(path), "w")
        self._stream: Any = None
        self._last_ms = -1

    def write(self, image_HW3: UInt8Array, position_s: float) -> None:
        """Append a picture, to be shown from ``position_s`` on, but never before the one before it.

        Raises:
            SourceError: it cannot be written.
        """
        with self._told():
            if self._stream is None:
                self._begin(image_HW3)
            frame = av.VideoFrame.from_ndarray(_even(image_HW3), format="rgb24")
            self._last_ms = max(self._last_ms + 1, round(1e3 * position_s))
            frame.pts, frame.time_base = self._last_ms, _MILLISECONDS
            self._container.mux(self._stream.encode(frame))

    def close(self) -> None:
        """Finish the film; raises as ``write``."""
        with self._told():
            try:
                if self._stream is not None:
                    self._container.mux(self._stream.encode())
            finally:
                self._container.close()

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except (av.error.FFmpegError, OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise SourceError(f"{self._path}: cannot be written: {reason}") from error

    def _begin(self, image_HW3: UInt8Array) -> None:
        height, width = _even(image_HW3).shape[:2]
        self._stream = self._container.add_stream("libx264", rate=_DEFAULT_FPS)
        self._stream.width, self._stream.height = width, height
        self._stream.pix_fmt = "yuv420p"
        self._stream.codec_context.time_base = _MILLISECONDS


def _check_writable(path: Path) -> None:
    """Raise what opening the file for writing would, and leave it as it is."""
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "is a folder")
    if not path.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, f"there is no folder {path.parent}")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise PermissionError(errno.EACCES, "permission denied")


def _even(image_HW3: UInt8Array) -> UInt8Array:
    """Cut the last row or column of odd sizes: 4:2:0 has none of these."""
    height, width = image_HW3.shape[:2]
    return np.ascontiguousarray(image_HW3[: height & ~1, : width & ~1])


def _jpeg(image_HW3: UInt8Array) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image_HW3).save(stream, "JPEG", quality=_JPEG_QUALITY)
    return stream.getvalue()
