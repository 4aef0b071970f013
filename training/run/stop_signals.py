"""Signals that end a run in good order."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopRequest:
    """Turns SIGTERM and SIGINT into a question that the loop asks between two steps.

    Attributes:
        requested: whether one of them has come.
    """

    def __init__(self) -> None:
        self.requested = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Listen while the block runs, then give the signals back. In the main thread only."""
        signals = (signal.SIGTERM, signal.SIGINT)
        previous = [signal.signal(number, self._on_signal) for number in signals]
        try:
            yield
        finally:
            for number, handler in zip(signals, previous, strict=True):
                signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - what signal.signal calls
        self.requested = True
