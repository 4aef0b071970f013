"""Where the process stands between its start and its end."""

from __future__ import annotations


class Readiness:
    """Read at each probe and each answer; written by whoever runs the process.

    Attributes:
        started: every model that was asked for has been loaded.
        draining: it is about to stop; no new work should come, and connections end with their answer.
    """

    def __init__(self) -> None:
        self.started = False
        self.draining = False
