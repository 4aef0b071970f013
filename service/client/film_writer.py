"""Films, written by PyAV.

Axes: H height, W width, 3 = red green blue.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.error
import numpy as np

from service.client.errors import SourceError
from service.client.video_source import DEFAULT_FPS, UInt8Array

_TICKS_PER_S = 90_000
"""Holds the time stamps of 24, 25, 29.97, 30 and 60 pictures per second exactly."""

_LEAST_STEP = 90
"""One millisecond: Matroska knows no shorter time between two pictures."""


class FilmWriter:
    """Writes pictures as an H.264 film. All get the size of the first one.

    Args:
        path: where the film goes; its suffix decides the container. The file is created with the first
            picture.

    Raises:
        SourceError: no film can be written there.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with self._errors_named():
            _check_writable(path)
            # With "file:" a colon in the name does not look like the end of a protocol.
            self._container: Any = av.open(f"file:{path}", "w")
        self._stream: Any = None
        self._last_ticks = -_LEAST_STEP

    def write(self, image_HW3: UInt8Array, position_s: float) -> None:
        """Append a picture.

        Args:
            image_HW3: uint8 RGB. An odd last row or column is left out.
            position_s: when the picture is shown, in seconds since the beginning of the film; at least
                1 ms after the picture before it.

        Raises:
            SourceError: the film cannot be written.
        """
        with self._errors_named():
            if self._stream is None:
                self._begin(image_HW3)
            frame = av.VideoFrame.from_ndarray(_even(image_HW3), format="rgb24")
            self._last_ticks = max(self._last_ticks + _LEAST_STEP, round(_TICKS_PER_S * position_s))
            frame.pts, frame.time_base = self._last_ticks, Fraction(1, _TICKS_PER_S)
            self._container.mux(self._stream.encode(frame))

    def close(self) -> None:
        """Finish the film.

        Raises:
            SourceError: the film cannot be written.
        """
        with self._errors_named():
            try:
                if self._stream is not None:
                    self._container.mux(self._stream.encode())
            finally:
                self._container.close()

    @contextmanager
    def _errors_named(self) -> Iterator[None]:
        try:
            yield
        except (av.error.FFmpegError, OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise SourceError(f"{self._path}: cannot be written: {reason}") from error

    def _begin(self, image_HW3: UInt8Array) -> None:
        height, width = _even(image_HW3).shape[:2]
        self._stream = self._container.add_stream("libx264", rate=DEFAULT_FPS)
        self._stream.width, self._stream.height = width, height
        self._stream.pix_fmt = "yuv420p"
        self._stream.codec_context.time_base = Fraction(1, _TICKS_PER_S)


def _check_writable(path: Path) -> None:
    """Raise the error of opening a file for writing, without changing the file."""
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "is a folder")
    if not path.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, f"there is no folder {path.parent}")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise PermissionError(errno.EACCES, "permission denied")


def _even(image_HW3: UInt8Array) -> UInt8Array:
    """Leave out an odd last row and column: 4:2:0 stores colours for pairs."""
    height, width = image_HW3.shape[:2]
    return np.ascontiguousarray(image_HW3[: height & ~1, : width & ~1])
