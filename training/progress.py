"""What a run says while it runs: a line for people, JSON lines for machines."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

LOG_FILE = "log.jsonl"


class PaceMeter:
    """Measures the rate of the steps since it was last restarted; what happens between them does not count.

    Args:
        batch_size: crops a step.
    """

    def __init__(self, batch_size: int) -> None:
        self._batch_size = batch_size
        self.restart()

    def restart(self) -> None:
        """Forget the steps so far."""
        self._steps = 0
        self._spent_s = 0.0

    def count(self, step_s: float) -> None:
        """Add one step that took ``step_s`` seconds."""
        self._steps += 1
        self._spent_s += step_s

    @property
    def step_s(self) -> float:
        """Mean duration of a step in seconds; 0 before the first."""
        return self._spent_s / max(1, self._steps)

    @property
    def images_per_s(self) -> float:
        """Crops learned from, a second; 0 before the first step."""
        return self._batch_size / self.step_s if self.step_s else 0.0


class RunLog:
    """Appends events to ``log.jsonl`` and shows them on stderr.

    Args:
        folder: of the run; must exist.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / LOG_FILE

    def write(self, event: str, line: str, **values: Any) -> None:
        """Record an event.

        Args:
            event: a fixed word: what ``log.jsonl`` is filtered by.
            line: the same for people.
            values: plain JSON values.
        """
        record = {"event": event, "time_s": round(time.time(), 3), **values}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        sys.stderr.write(line + "\n")
        sys.stderr.flush()


def duration(seconds: float) -> str:
    """Write a duration as ``h:mm:ss``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
