"""The state of the process: started, draining."""

from __future__ import annotations


class Readiness:
    """Two flags that the composition root sets; probes and answers read them.

    Attributes:
        started: every model of the settings was loaded.
        draining: the process is about to stop; no new work should come, and each answer ends its connection.
    """

    def __init__(self) -> None:
        self.started = False
        self.draining = False
