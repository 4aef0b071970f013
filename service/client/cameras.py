"""Cameras and films for ``ReconnectingStream``: read in a thread, numbered, encoded as JPEG.

This module also exports the classes below it, for programs that read or write films themselves.

Axes: H height, W width, 3 = red green blue.
"""

from __future__ import annotations

import asyncio
import io
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from types import TracebackType
from typing import Self

from PIL import Image

from service.client.answers import Frame, FramePolicy
from service.client.backoff import ReconnectBackoff
from service.client.errors import SourceError
from service.client.film_writer import FilmWriter
from service.client.video_source import (
    DEFAULT_OPTIONS,
    CameraFrame,
    CameraOptions,
    UInt8Array,
    VideoSource,
    source_frames,
    source_name,
)

__all__ = [
    "CameraFeed",
    "CameraFrame",
    "CameraOptions",
    "FilmWriter",
    "VideoSource",
    "camera_frames",
    "source_frames",
    "source_name",
]

_JPEG_QUALITY = 90
_FRAMES_AHEAD = 2
"""Pictures that are read before they are asked for."""

OnLost = Callable[[str, float], object]
"""Called when a camera is lost: why, as a sentence, and the seconds until it is opened again."""


def camera_frames(
    camera: VideoSource,
    *,
    pause: Callable[[float], object],
    on_lost: OnLost | None = None,
    backoff: ReconnectBackoff | None = None,
) -> Iterator[CameraFrame]:
    """Yield the pictures of a camera without end. A camera that is lost is opened again.

    Args:
        camera: just opened.
        pause: waits that many seconds. A true result ends the reading.
        on_lost: called each time the camera is lost, before the wait.
        backoff: how long to wait before the next attempt.

    Raises:
        SourceError: the camera is lost before its first picture.
    """
    backoff = backoff or ReconnectBackoff()
    started_s: float | None = None
    is_lost = False
    while True:
        reason = f"{camera}: the stream has ended"
        try:
            if is_lost:
                camera.reopen()
            for frame in camera.frames():
                started_s = frame.captured_s if started_s is None else started_s
                backoff.reset()
                yield CameraFrame(frame.image_HW3, frame.captured_s - started_s, frame.captured_s)
        except SourceError as error:
            if started_s is None:
                raise
            reason = str(error)
        is_lost = True
        delay_s = backoff.next_s()
        if on_lost is not None:
            on_lost(reason, delay_s)
        if pause(delay_s):
            return


class CameraFeed:
    """Numbers the pictures of a source and encodes them as JPEG, for ``ReconnectingStream``.

    With ``latest``, a new picture replaces one that was not taken yet, and a film plays at its own speed.
    With ``block``, the source waits until its pictures are taken.

    Args:
        source: path of a film; URL such as ``rtsp://...``; number or path below ``/dev`` of a USB camera.
        policy: None = ``latest`` for a live source, ``block`` for a film.
        seconds: how much of the source is read; None = all. The time in which a camera is lost counts.
        on_lost: called in the event loop each time a camera is lost.
        options: how a camera is opened.

    Attributes:
        policy: as given, or once the context is entered the one that fits the source.
        skipped: pictures that were replaced before they had a number.
    """

    def __init__(
        self,
        source: str,
        policy: FramePolicy | None = None,
        *,
        seconds: float | None = None,
        on_lost: OnLost | None = None,
        options: CameraOptions = DEFAULT_OPTIONS,
    ) -> None:
        self.policy: FramePolicy = policy or "block"
        self.skipped = 0
        self._source = source
        self._options = options
        self._is_policy_given = policy is not None
        self._seconds = math.inf if seconds is None else seconds
        self._on_lost = on_lost
        self._opened: VideoSource | None = None
        self._first_s: float | None = None
        self._taken: dict[int, CameraFrame] = {}
        self._seq = 0
        self._queue: asyncio.Queue[CameraFrame | SourceError | None] = asyncio.Queue()
        self._pending: CameraFrame | SourceError | None = None
        self._free_places = threading.Semaphore(_FRAMES_AHEAD)
        self._closing = threading.Event()
        self._has_tried_to_open = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._read, name="camera", daemon=True)

    @property
    def damaged_packets(self) -> int:
        """How many packets of the source could not be decoded so far. Their pictures are missing."""
        return 0 if self._opened is None else self._opened.damaged_packets

    async def next(self) -> Frame | None:
        """Return the next picture; None at the end of the source. A cancelled call takes no picture.

        Raises:
            SourceError: the source cannot be read.
        """
        if self._pending is None:
            self._pending = await self._queue.get()
            self._free_places.release()
        frame = self._pending
        if frame is None:
            self._queue.put_nowait(None)  # the next call ends as well
            return None
        if isinstance(frame, SourceError):
            raise frame
        data = await asyncio.to_thread(_jpeg, frame.image_HW3)
        self._pending = None
        self._seq += 1
        self._taken[self._seq] = frame
        return Frame(self._seq, data, frame.captured_s)

    def picture(self, seq: int) -> CameraFrame:
        """Return the picture of a frame that ``next`` returned and ``forget`` did not free."""
        return self._taken[seq]

    def forget(self, seq: int) -> None:
        """Free the pictures up to this frame: all of them are answered."""
        self._taken = {later: frame for later, frame in self._taken.items() if later > seq}

    async def __aenter__(self) -> Self:
        """Open the source.

        Raises:
            SourceError: the source cannot be opened.
        """
        self._thread.start()
        try:
            await self._has_tried_to_open.wait()
            if self._opened is None:
                await self.next()
        except BaseException:
            self._closing.set()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        self._free_places.release()

    def _read(self) -> None:
        end: SourceError | None = None
        try:
            with VideoSource(self._source, self._options) as opened:
                self._opened = opened
                if not self._is_policy_given:
                    self.policy = "latest" if opened.is_live else "block"
                self._call(self._has_tried_to_open.set)
                self._read_frames(opened)
        except SourceError as error:
            end = error
        except Exception as error:  # noqa: BLE001 - the thread ends here, and `next` must not wait for ever
            end = SourceError(f"{source_name(self._source)}: {error}")
        finally:
            self._call(self._has_tried_to_open.set)
            self._call(self._put, end)

    def _read_frames(self, opened: VideoSource) -> None:
        if opened.is_live:
            frames = camera_frames(opened, pause=self._pause, on_lost=self._tell_loss)
        else:
            frames = self._film_frames(opened)
        for frame in frames:
            self._first_s = frame.captured_s if self._first_s is None else self._first_s
            if frame.position_s >= self._seconds:
                return
            if self.policy == "block":
                self._free_places.acquire()
            if self._closing.is_set():
                return
            self._call(self._put, frame)

    def _film_frames(self, film: VideoSource) -> Iterator[CameraFrame]:
        started_s = time.monotonic()
        for frame in film.frames():
            if self.policy == "latest":
                self._closing.wait(max(0.0, started_s + frame.position_s - time.monotonic()))
            yield CameraFrame(frame.image_HW3, frame.position_s, time.time())

    def _pause(self, delay_s: float) -> bool:
        """Wait before a camera is opened again; true = no more pictures are wanted."""
        assert self._first_s is not None  # a camera without a first picture is not opened again
        left_s = max(0.0, self._first_s + self._seconds - time.time())
        return self._closing.wait(min(delay_s, left_s)) or delay_s >= left_s

    def _tell_loss(self, reason: str, delay_s: float) -> None:
        if self._on_lost is not None:
            self._call(self._on_lost, reason, delay_s)

    def _call(self, function: Callable[..., object], *arguments: object) -> None:
        """Call a function in the event loop, unless the loop is closed."""
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(function, *arguments)

    def _put(self, item: CameraFrame | SourceError | None) -> None:
        if self.policy == "latest" and isinstance(item, CameraFrame):
            while not self._queue.empty():
                self._queue.get_nowait()
                self.skipped += 1
        self._queue.put_nowait(item)


def _jpeg(image_HW3: UInt8Array) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image_HW3).save(stream, "JPEG", quality=_JPEG_QUALITY)
    return stream.getvalue()
