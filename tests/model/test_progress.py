from __future__ import annotations

import io
import re
import threading
from collections.abc import Callable

import pytest

from model.progress import QUIET_S, ProgressDisplay, duration


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00:00"), (59.6, "0:01:00"), (3725, "1:02:05"), (360_000, "100:00:00")]
)
def test_durations_read_as_clocks_do(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_where_there_is_no_terminal_silence_ends_after_a_few_seconds(clock: Clock) -> None:
    stream = io.StringIO()
    display = ProgressDisplay(stream, clock=clock)
    with display.task("validation", 10) as task:
        task.advance(4)
        display.look()
        assert stream.getvalue() == ""
        clock.now_s += QUIET_S
        display.look()
        assert stream.getvalue() == "validation 4/10  0:00:06 left\n"
        clock.now_s += QUIET_S - 1
        display.say("something else")
        clock.now_s += QUIET_S - 1
        display.look()
        assert stream.getvalue().endswith("something else\n")


def test_the_innermost_task_speaks_and_one_without_an_end_says_how_long_it_runs(clock: Clock) -> None:
    stream = io.StringIO()
    display = ProgressDisplay(stream, clock=clock)
    with display.task("training", 100, note=lambda: "lr 0.1") as outer:
        with display.task("export"):
            clock.now_s += 65
            display.look()
        outer.move_to(7, total=50)
        clock.now_s += QUIET_S
        display.look()
    clock.now_s += 60
    display.look()
    assert stream.getvalue() == "export  for 0:01:05\ntraining 7/50  lr 0.1\n"


def test_a_thread_of_its_own_looks_while_a_task_runs_and_ends_with_it(clock: Clock) -> None:
    written = threading.Event()

    class Stream(io.StringIO):
        def write(self, text: str) -> int:
            written.set()
            return super().write(text)

    display = ProgressDisplay(Stream(), clock=clock)
    with display.task("export"):
        clock.now_s += QUIET_S
        assert written.wait(30)
        (watching,) = [one for one in threading.enumerate() if one.name == "progress"]
    watching.join(30)
    assert not watching.is_alive()


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_a_silent_display_shows_nothing(stream: Callable[[], io.StringIO], clock: Clock) -> None:
    target = stream()
    display = ProgressDisplay(target, silent=True, clock=clock)
    with display.task("export"):
        clock.now_s += 60
        display.look()
        display.say("line")
    assert target.getvalue() == ""


def test_a_terminal_shows_bars_with_parts_and_notes_and_lines_above_them(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    display = ProgressDisplay(stream, clock=clock)
    with display.task("training", 100, note=lambda: "lr 0.1") as task:
        task.move_to(7)
        display.say("a [line] with brackets")
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())
    assert "a [line] with brackets\n" in shown
    assert "training" in shown
    assert "7/100  lr 0.1" in shown
    display.say("after the bars")
    assert stream.getvalue().endswith("after the bars\n")
