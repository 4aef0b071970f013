from __future__ import annotations

import json
from pathlib import Path

import pytest

from training.progress import LOG_FILE, PaceMeter, RunLog, duration


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00:00"), (59.6, "0:01:00"), (3725, "1:02:05"), (360_000, "100:00:00")]
)
def test_durations_read_as_clocks_do(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_the_pace_is_that_of_the_steps_since_the_restart() -> None:
    pace = PaceMeter(8)
    assert (pace.step_s, pace.images_per_s) == (0, 0)
    pace.count(100)
    pace.restart()
    pace.count(0.5)
    pace.count(1.5)
    assert (pace.step_s, pace.images_per_s) == (1, 8)


def test_events_are_json_lines_in_the_file_and_text_for_people(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for step in (1, 2):  # a resumed run appends
        RunLog(tmp_path).write("step", f"step {step}", step=step, loss=0.5)
    events = [json.loads(line) for line in (tmp_path / LOG_FILE).read_text().splitlines()]
    assert [(event["event"], event["step"], event["loss"]) for event in events] == [
        ("step", 1, 0.5),
        ("step", 2, 0.5),
    ]
    assert capsys.readouterr().err == "step 1\nstep 2\n"
