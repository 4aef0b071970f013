"""Films, cameras and network streams as pictures, read by PyAV.

Axes: H height, W width, 3 = red green blue.
"""

from __future__ import annotations

import re
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import av
import av.error
import numpy as np
import numpy.typing as npt

from service.client.errors import SourceError

UInt8Array = npt.NDArray[np.uint8]

DEFAULT_TIMEOUT_S = 8.0
"""Longest silence of a network source: the loss of a camera is told within 10 seconds."""

DEFAULT_FPS = 25
"""Pictures per second of a film without time stamps."""

_USB_FOLDERS = ("/dev/video", "/dev/v4l/")
_MANIFESTS = frozenset({"hls", "dash", "sdp"})
"""Formats whose file only names the streams: its size says nothing about their length."""

_CREDENTIALS = re.compile(r"(?<=://)[^/]*@")


@dataclass(frozen=True, eq=False)
class CameraFrame:
    """One picture of a source.

    Attributes:
        image_HW3: upright uint8 RGB.
        position_s: seconds since the first picture of the source.
        captured_s: when the picture was read, in seconds since 1970.
    """

    image_HW3: UInt8Array
    position_s: float
    captured_s: float


@dataclass(frozen=True)
class CameraOptions:
    """How a camera is opened.

    Args:
        size: size of a USB camera's pictures as WIDTHxHEIGHT; None = the camera's default.
        fps: pictures per second of a USB camera; None = the camera's default.
        pixel_format: pixel format or codec of a USB camera, for example ``yuyv422`` or ``mjpeg``;
            None = the camera's default.
        timeout_s: longest silence of a network source in seconds, while it is opened and between two
            pictures. Films on disk and USB cameras have no time-out.
    """

    size: str | None = None
    fps: float | None = None
    pixel_format: str | None = None
    timeout_s: float = DEFAULT_TIMEOUT_S

    def usb_options(self) -> dict[str, str]:
        """Return the options of FFmpeg's ``v4l2`` input that are set."""
        options = {
            "video_size": self.size,
            "framerate": None if self.fps is None else f"{self.fps:g}",
            "pixel_format": self.pixel_format,
        }
        return {name: value for name, value in options.items() if value is not None}


DEFAULT_OPTIONS = CameraOptions()


class VideoSource:
    """An open film, camera or network stream.

    Args:
        source: path of a film; URL such as ``rtsp://...``; number or path below ``/dev`` of a USB camera.
        options: how a camera is opened.

    Attributes:
        source: as given.
        options: as given.
        is_live: the source has no end of its own, by what its demuxer says: a USB camera, or a stream without
            a length. A URL of a film is not live.
        damaged_packets: packets so far that could not be decoded. Their pictures are missing.

    Raises:
        SourceError: the source cannot be opened or has no pictures, or options for USB cameras are given for
            another source.
    """

    def __init__(self, source: str, options: CameraOptions = DEFAULT_OPTIONS) -> None:
        self.source = source
        self.options = options
        self.damaged_packets = 0
        self._device = _usb_device(source)
        self._name = self._device or source_name(source)
        if self._device is None and options.usb_options():
            raise SourceError(f"{self._name}: size, rate and pixel format are options of USB cameras only")
        self._container: Any = None
        self.reopen()
        self.is_live = self._device is not None or _has_no_end(self._container, source)

    def reopen(self) -> None:
        """Open the source from its beginning, for example after a camera is lost.

        Raises:
            SourceError: the source cannot be opened or has no pictures.
        """
        self.close()
        self._waiting_since_s = time.monotonic()
        with self._errors_named():
            self._container = _opened(self.source, self._device, self.options)
        self._stream: Any = self._container.streams.best("video")
        if self._stream is None or self._stream.codec_context is None:
            self.close()
            what = "no pictures" if self._stream is None else "pictures of a format that cannot be decoded"
            raise SourceError(f"{self._name}: the source has {what}")

    def frames(self) -> Iterator[CameraFrame]:
        """Yield the pictures up to the end of the source. A damaged packet only costs its own pictures.

        Raises:
            SourceError: the source breaks off, or no picture of it can be decoded.
        """
        first_s: float | None = None
        with self._errors_named():
            for number, frame in enumerate(self._decoded()):
                shown_s = float(frame.time) if frame.time is not None else number / DEFAULT_FPS
                first_s = shown_s if first_s is None else first_s
                yield CameraFrame(_upright(frame), shown_s - first_s, time.time())
        if first_s is None:
            raise SourceError(
                f"{self._name}: no picture can be decoded; {self.damaged_packets} packets are damaged"
            )

    def close(self) -> None:
        """Close the file, the device or the connection."""
        if self._container is not None:
            self._container.close()

    def __str__(self) -> str:
        """Return the source without user name and password."""
        return self._name

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _decoded(self) -> Iterator[Any]:
        packets = self._container.demux(self._stream)
        while (packet := self._next_packet(packets)) is not None:
            try:
                frames = packet.decode()
            except av.error.FFmpegError as error:
                if isinstance(error, MemoryError):
                    raise
                self.damaged_packets += 1
                continue
            yield from frames

    def _next_packet(self, packets: Iterator[Any]) -> Any:
        self._waiting_since_s = time.monotonic()
        return next(packets, None)

    @contextmanager
    def _errors_named(self) -> Iterator[None]:
        try:
            yield
        except (av.error.FFmpegError, OSError) as error:
            # FFmpeg gives a time-out another number in each protocol: EXIT, EIO, INVALIDDATA.
            waited_s = time.monotonic() - self._waiting_since_s
            if waited_s >= self.options.timeout_s and "://" in self.source:
                reason: object = f"no data came for {self.options.timeout_s:g} seconds"
            else:
                reason = getattr(error, "strerror", None) or error
            raise SourceError(f"{self._name}: {reason}") from error


def source_name(source: str) -> str:
    """Return a source without the user name and password of a URL, for messages."""
    return _CREDENTIALS.sub("", source)


def source_frames(source: str, options: CameraOptions = DEFAULT_OPTIONS) -> Iterator[CameraFrame]:
    """Yield the pictures of a source from its beginning to its end.

    Args:
        source: path of a film; URL such as ``rtsp://...``; number or path below ``/dev`` of a USB camera.
        options: how a camera is opened.

    Raises:
        SourceError: the source cannot be opened, breaks off, or no picture of it can be decoded.
    """
    with VideoSource(source, options) as opened:
        yield from opened.frames()


def _usb_device(source: str) -> str | None:
    """Return the device file of a USB camera; None for every other source."""
    if source.isascii() and source.isdecimal():
        return f"/dev/video{source}"
    if source.startswith(_USB_FOLDERS) or Path(source).is_char_device():
        return source
    return None


def _opened(source: str, device: str | None, options: CameraOptions) -> Any:
    if device is not None:
        return av.open(device, format="v4l2", options=options.usb_options())
    if Path(source).exists():
        # With "file:" a colon in the name of a film does not look like the end of a protocol.
        return av.open(f"file:{source}", metadata_errors="replace")
    scheme, separator, rest = source.partition("://")
    scheme = scheme.lower()  # FFmpeg knows no protocol RTSP
    # Over UDP a picture may lack a part without an error.
    transport = {"rtsp_transport": "tcp"} if scheme in ("rtsp", "rtsps") else {}
    return av.open(
        scheme + separator + rest if separator else source,
        options=transport,
        timeout=options.timeout_s,  # each for connecting, for the first packets, and for every read
        metadata_errors="replace",
    )


def _has_no_end(container: Any, source: str) -> bool:
    """Return whether a demuxer knows neither duration nor size. A local pipe ends all the same."""
    if container.duration:
        return False
    is_manifest = not _MANIFESTS.isdisjoint(container.format.name.split(","))
    return is_manifest or (container.size <= 0 and "://" in source)


def _upright(frame: Any) -> UInt8Array:
    """Return the pixels of a frame as its display matrix wants them shown, uint8 RGB."""
    image_HW3: UInt8Array = frame.to_ndarray(format="rgb24")
    try:
        matrix = struct.unpack("=9i", frame.side_data["DISPLAYMATRIX"])
    except KeyError:
        return image_HW3
    except ValueError:
        # PyAV 18.1 knows no name for the EXIF block that FFmpeg 8 attaches to MJPEG frames.
        return np.ascontiguousarray(np.rot90(image_HW3, round(frame.rotation / 90)))
    # FFmpeg's display.h: x' = a x + c y, y' = b x + d y; of other angles the nearest quarter turn is taken.
    a, b, _, c, d, *_ = matrix
    if abs(b) + abs(c) > abs(a) + abs(d):
        image_HW3 = image_HW3.swapaxes(0, 1)
        a, d = c, b
    return np.ascontiguousarray(image_HW3[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])
