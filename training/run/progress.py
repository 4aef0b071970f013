"""Reports of a running training: lines and bars, ``log.jsonl``, curves in TensorBoard."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor

from model.labels import UInt8Array
from model.progress import ProgressDisplay
from training.errors import CheckpointError
from training.run.record import LOG_FILE

BOARD_FOLDER = "tensorboard"
_NONE_YET = -1


class RateMeter:
    """Measures the rate of the steps since its last restart; the time between steps does not count.

    The very first step counts only until there is a second one: it compiles, and fills caches.

    Args:
        batch_size: crops a step.
    """

    def __init__(self, batch_size: int) -> None:
        self._batch_size = batch_size
        self._counted = 0
        self._step_s = 0.0
        self.restart()

    def restart(self) -> None:
        """Begin a new mean; until it has a step, the mean before it counts."""
        self._steps = 0
        self._spent_s = 0.0
        self._waited_s = 0.0

    def count(self, step_s: float, *, waited_s: float = 0.0) -> None:
        """Add one step.

        Args:
            step_s: its duration in seconds.
            waited_s: seconds of these in which it waited for pictures.
        """
        if self._counted == 1:
            self.restart()
        self._counted += 1
        self._steps += 1
        self._spent_s += step_s
        self._waited_s += waited_s
        self._step_s = self._spent_s / self._steps

    @property
    def is_settled(self) -> bool:
        """Whether there was a step after the very first one."""
        return self._counted > 1

    @property
    def step_s(self) -> float:
        """Mean duration of a step in seconds; 0 before the first."""
        return self._step_s

    @property
    def images_per_s(self) -> float:
        """Crops a second; 0 before the first step."""
        return self._batch_size / self.step_s if self.step_s else 0.0

    @property
    def waited_share(self) -> float:
        """Share of the time in which steps waited for pictures, 0..1; 0 before the first."""
        return self._waited_s / self._spent_s if self._spent_s else 0.0


class LossMeter:
    """Adds up losses on their device; the host waits for a GPU only in ``mean`` and ``first_bad_step``.

    Args:
        device: of the losses.
    """

    def __init__(self, device: torch.device) -> None:
        self._sum = torch.zeros((), device=device)
        self._count = 0
        self._first_bad = torch.full((), _NONE_YET, dtype=torch.int64, device=device)

    def add(self, step: int, loss: Tensor) -> None:
        """Add the loss of a step: a scalar on the device."""
        self._sum += loss
        self._count += 1
        is_first = ~loss.isfinite() & (self._first_bad == _NONE_YET)
        self._first_bad = torch.where(is_first, step, self._first_bad)

    def mean(self) -> float:
        """Return the mean since the last call; 0 when there was none. Waits for the device."""
        mean = self._sum.item() / max(1, self._count)
        self._sum, self._count = torch.zeros_like(self._sum), 0
        return mean

    def first_bad_step(self) -> int | None:
        """Return the first step whose loss was NaN or infinite, or None. Waits for the device."""
        found = int(self._first_bad.item())
        return None if found == _NONE_YET else found


class TensorBoardWriter:
    """Curves and pictures for TensorBoard.

    Args:
        folder: of its event files.

    Raises:
        ImportError: TensorBoard is not installed.
    """

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 - an extra

        self._open = SummaryWriter
        self._folder = folder
        self._writer: Any = SummaryWriter(folder)

    def add(self, event: str, values: dict[str, Any]) -> None:
        """Draw the numbers of an event over its step; a dict of numbers is one curve a key."""
        step = values.get("step")
        for name, value in values.items():
            inner = value.items() if isinstance(value, dict) else [("", value)]
            for key, number in inner:
                if isinstance(number, int | float) and step is not None and name != "step":
                    self._writer.add_scalar("/".join(filter(None, (event, name, key))), number, step)

    def forget_after(self, step: int) -> None:
        """Remove the points of later steps, which a resumed run draws again."""
        self._writer.close()
        self._writer = self._open(self._folder, purge_step=step + 1)

    def add_picture(self, name: str, image_HW3: UInt8Array, step: int) -> None:
        """Show a picture of a step."""
        self._writer.add_image(name, image_HW3, step, dataformats="HWC")

    def close(self) -> None:
        """Write the buffered events."""
        self._writer.close()


def open_tensorboard(folder: Path) -> TensorBoardWriter | None:
    """Return a board in ``folder``; None where TensorBoard is not installed."""
    try:
        return TensorBoardWriter(folder / BOARD_FOLDER)
    except ImportError:
        return None


class RunLog:
    """Appends events to ``log.jsonl``, shows them on stderr and draws them on a board.

    Args:
        folder: of the run; must exist.
        silent: do nothing: another process of the run writes and shows everything.
        board: where curves are drawn; None = nowhere.
        stream: instead of stderr.

    Attributes:
        display: shows lines and the progress of tasks.
    """

    def __init__(
        self,
        folder: Path,
        *,
        silent: bool = False,
        board: TensorBoardWriter | None = None,
        stream: TextIO | None = None,
    ) -> None:
        self._path = folder / LOG_FILE
        self._silent = silent
        self.board = board
        self.display = ProgressDisplay(stream, silent=silent)
        self._is_new = True

    def write(self, event: str, line: str, **values: Any) -> None:
        """Record an event, and say it.

        Args:
            event: a fixed word, to filter ``log.jsonl`` by.
            line: the text for people.
            values: plain JSON values.

        Raises:
            CheckpointError: the file system refused.
        """
        self.record(event, **values)
        self.say(line)

    def record(self, event: str, **values: Any) -> None:
        """Record an event, and say nothing.

        Args:
            event: a fixed word, to filter ``log.jsonl`` by.
            values: plain JSON values.

        Raises:
            CheckpointError: the file system refused.
        """
        if self._silent:
            return
        record = {"event": event, "time_s": round(time.time(), 3), **values}
        try:
            is_torn = self._is_new and _ends_amid_a_line(self._path)
            with self._path.open("a", encoding="utf-8") as file:
                file.write("\n" * is_torn + json.dumps(record) + "\n")
            self._is_new = False
        except OSError as error:
            raise CheckpointError(f"cannot write {self._path}: {error}") from error
        if self.board is not None:
            self.board.add(event, values)

    def say(self, line: str) -> None:
        """Write a line for people that is no event."""
        self.display.say(line)

    def close(self) -> None:
        """Close the board."""
        if self.board is not None:
            self.board.close()


def _ends_amid_a_line(path: Path) -> bool:
    """Return whether the last line is incomplete: its process died while it wrote."""
    if not path.exists() or not path.stat().st_size:
        return False
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read() != b"\n"
