"""Progress of long work: bars on a terminal, elsewhere a plain line every few seconds."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, TaskID
from rich.progress import Task as RichTask
from rich.text import Text

QUIET_S = 4.0
"""Time without a line after which one is written, without a terminal, in seconds."""

_LOOK_S = 0.5
_REFRESHES_PER_S = 5


class Task:
    """One piece of long work.

    Args:
        name: for example ``validation``.
        total: number of its parts; None = unknown.
        note: returns further information; None = the time that is left, or that has passed.
        clock: returns seconds.
        on_change: called after each change.
    """

    def __init__(
        self,
        name: str,
        total: int | None,
        note: Callable[[], str] | None,
        *,
        clock: Callable[[], float],
        on_change: Callable[[], None],
    ) -> None:
        self.name = name
        self.total = total
        self.done = 0
        self._note = note
        self._clock = clock
        self._started_s = clock()
        self._on_change = on_change

    def advance(self, count: int = 1) -> None:
        """Count parts as done."""
        self.move_to(self.done + count)

    def move_to(self, done: int, total: int | None = None) -> None:
        """Set the number of parts that are done, and a new total if given."""
        self.done = done
        self.total = self.total if total is None else total
        self._on_change()

    def line(self) -> str:
        """Return the progress as one line."""
        parts = "" if self.total is None else f" {self.done}/{self.total}"
        return f"{self.name}{parts}  {self.note()}"

    def note(self) -> str:
        """Return the note, or the time that is left, or that has passed."""
        if self._note is not None:
            return self._note()
        passed_s = self._clock() - self._started_s
        if self.total is None or not self.done:
            return f"for {duration(passed_s)}"
        return f"{duration(passed_s / self.done * (self.total - self.done))} left"


class ProgressDisplay:
    """Shows tasks on a stream. Safe to use from several threads.

    Args:
        stream: None = stderr.
        silent: show nothing.
        clock: returns seconds.
    """

    def __init__(
        self,
        stream: TextIO | None = None,
        *,
        silent: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._silent = silent
        self._clock = clock
        self._said_s = clock()
        self._tasks: list[Task] = []
        self._lock = threading.Lock()
        self._bars: _Bars | None = None
        self._idle = threading.Event()
        self._idle.set()

    def say(self, line: str) -> None:
        """Write a line, above the bars."""
        if self._silent:
            return
        if self._bars is not None:
            self._bars.print(line)
            return
        with self._lock:
            self._said_s = self._clock()
            self._stream.write(line + "\n")
            self._stream.flush()

    @contextmanager
    def task(
        self, name: str, total: int | None = None, note: Callable[[], str] | None = None
    ) -> Iterator[Task]:
        """Show a task until the context is left; tasks may be nested.

        Args:
            name: for example ``validation``.
            total: number of its parts; None = unknown.
            note: returns further information; None = the time that is left, or that has passed.
        """
        task = Task(name, total, note, clock=self._clock, on_change=self._refresh)
        self._begin(task)
        try:
            yield task
        finally:
            self._end(task)

    def look(self) -> None:
        """Write the line of the innermost task if no line was written for a while; not on terminals."""
        if self._tasks and self._clock() - self._said_s >= QUIET_S:
            self.say(self._tasks[-1].line())

    def _begin(self, task: Task) -> None:
        is_first = not self._tasks
        self._tasks.append(task)
        if self._silent:
            return
        console = Console(file=self._stream)
        if self._stream.isatty() and not console.is_dumb_terminal:
            self._bars = self._bars or _Bars(console)
            self._bars.add(task)
        elif is_first:
            self._idle = threading.Event()
            threading.Thread(target=self._watch, args=(self._idle,), name="progress", daemon=True).start()

    def _end(self, task: Task) -> None:
        self._tasks.remove(task)
        if self._bars is not None:
            self._bars.remove(task)
            if not self._tasks:
                self._bars.stop()
                self._bars = None
        if not self._tasks:
            self._idle.set()

    def _refresh(self) -> None:
        if self._bars is not None:
            self._bars.refresh()

    def _watch(self, idle: threading.Event) -> None:
        while not idle.wait(_LOOK_S):
            self.look()


class _Bars:
    """Rich's bars, one a task."""

    def __init__(self, console: Console) -> None:
        columns = (SpinnerColumn(), "{task.description}", BarColumn(), _Note())
        self._progress = Progress(
            *columns, console=console, transient=True, refresh_per_second=_REFRESHES_PER_S
        )
        self._ids: dict[Task, TaskID] = {}
        self._progress.start()

    def add(self, task: Task) -> None:
        self._ids[task] = self._progress.add_task(task.name, total=task.total, of=task)

    def remove(self, task: Task) -> None:
        self._progress.refresh()
        self._progress.remove_task(self._ids.pop(task))

    def refresh(self) -> None:
        for task, number in self._ids.items():
            self._progress.update(number, completed=task.done, total=task.total)

    def print(self, line: str) -> None:
        self._progress.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def stop(self) -> None:
        self._progress.stop()


class _Note(ProgressColumn):
    """Parts done, and the note of a task."""

    def render(self, task: RichTask) -> Text:
        """Return the text of the column."""
        of: Task = task.fields["of"]
        parts = "" if of.total is None else f"{of.done}/{of.total}  "
        return Text(parts + of.note())


def duration(seconds: float) -> str:
    """Write a duration as ``h:mm:ss``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
