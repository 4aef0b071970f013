"""Log lines that no request waits for: a reader that stops reading, or is gone, stops no request."""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from queue import Full, Queue

_MAX_LINES = 10_000
_LAST_LINES_S = 1.0


class UnblockedStream:
    """A text stream that a thread writes to a file descriptor.

    If the reader takes nothing, lines wait. If too many wait, new lines are dropped, and a line with their
    number follows as soon as there is room.

    Args:
        descriptor: stays open.
        max_lines: most lines that wait.
    """

    def __init__(self, descriptor: int, *, max_lines: int = _MAX_LINES) -> None:
        self._descriptor = descriptor
        self._lines: Queue[str | None] = Queue(max_lines)
        self._dropped = 0
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def write(self, text: str) -> None:
        """Queue a line; returns at once."""
        try:
            self._lines.put_nowait(text)
        except Full:
            self._dropped += 1

    def flush(self) -> None:
        """Do nothing: the thread writes the lines."""

    def close(self) -> None:
        """Write the waiting lines that the reader takes within a second."""
        self._closed.set()
        with suppress(Full):  # then it does not wait for one
            self._lines.put_nowait(None)
        self._thread.join(_LAST_LINES_S)

    def _run(self) -> None:
        while (text := self._next()) is not None:
            try:
                _write_all(self._descriptor, text.encode())
            except OSError:  # the reader is gone for good
                continue

    def _next(self) -> str | None:
        if self._closed.is_set() and self._lines.empty():
            return None
        if (text := self._lines.get()) is None:
            return None
        dropped, self._dropped = self._dropped, 0
        return text if not dropped else f'{text}{{"event": "log lines dropped", "count": {dropped}}}\n'


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]
