from __future__ import annotations

import io
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from training.errors import CheckpointError
from training.run.progress import (
    BOARD_FOLDER,
    LOG_FILE,
    LossMeter,
    RateMeter,
    RunLog,
    open_tensorboard,
)


def test_the_pace_is_that_of_the_steps_since_the_restart() -> None:
    pace = RateMeter(8)
    assert (pace.step_s, pace.images_per_s) == (0, 0)
    pace.count(1)
    pace.count(100)
    pace.restart()
    pace.count(0.5)
    pace.count(1.5)
    assert (pace.step_s, pace.images_per_s) == (1, 8)
    pace.restart()
    assert (pace.step_s, pace.images_per_s) == (1, 8)  # as long as nothing newer is known


def test_the_first_step_of_all_counts_until_there_is_another() -> None:
    pace = RateMeter(8)
    pace.count(100)
    assert (pace.step_s, pace.is_settled) == (100, False)
    pace.count(2)
    assert (pace.step_s, pace.is_settled) == (2, True)
    pace.count(4)
    assert pace.step_s == 3


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


def test_a_line_that_a_death_tore_apart_spoils_no_other(tmp_path: Path) -> None:
    path = tmp_path / LOG_FILE
    path.write_text('{"event": "start"}\n{"event": "st')
    log = RunLog(tmp_path, stream=io.StringIO())
    log.write("resume", "")
    log.write("step", "")
    lines = path.read_text().splitlines()
    assert [json.loads(lines[number])["event"] for number in (0, 2, 3)] == ["start", "resume", "step"]


def test_the_other_processes_of_a_run_say_nothing(tmp_path: Path) -> None:
    stream = io.StringIO()
    log = RunLog(tmp_path, silent=True, stream=stream)
    log.write("step", "step 1")
    log.say("step 1")
    assert stream.getvalue() == ""
    assert not (tmp_path / LOG_FILE).exists()


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    (tmp_path / LOG_FILE).mkdir()
    with pytest.raises(CheckpointError, match=LOG_FILE):
        RunLog(tmp_path).write("step", "step 1")


def test_losses_are_averaged_since_the_last_look() -> None:
    meter = LossMeter(torch.device("cpu"))
    meter.add(0, torch.tensor(1.0))
    meter.add(1, torch.tensor(3.0))
    assert meter.mean() == 2
    meter.add(2, torch.tensor(5.0))
    assert meter.mean() == 5
    assert meter.first_bad_step() is None


def test_the_first_loss_that_is_no_number_is_remembered() -> None:
    meter = LossMeter(torch.device("cpu"))
    for step, loss in enumerate((1.0, math.inf, 2.0, math.nan)):
        meter.add(step, torch.tensor(loss))
    assert meter.first_bad_step() == 1


def test_waiting_for_pictures_is_a_share_of_the_steps() -> None:
    pace = RateMeter(8)
    pace.count(9.0, waited_s=9.0)
    pace.count(1.0, waited_s=0.25)
    pace.count(1.0, waited_s=0.0)
    assert pace.waited_share == 0.125


def test_a_board_draws_numbers_by_event_and_name(tmp_path: Path) -> None:
    board = open_tensorboard(tmp_path)
    assert board is not None
    log = RunLog(tmp_path, board=board, stream=io.StringIO())
    log.write("validation", "step 3", step=3, miou=0.5, iou={"sky": 0.25, "car": None})
    board.add_picture("samples", np.zeros((4, 6, 3), np.uint8), 3)
    log.close()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # noqa: PLC0415

    written = EventAccumulator(str(tmp_path / BOARD_FOLDER)).Reload()
    assert set(written.Tags()["scalars"]) == {"validation/miou", "validation/iou/sky"}
    (point,) = written.Scalars("validation/iou/sky")
    assert (point.step, point.value) == (3, 0.25)
    assert written.Tags()["images"] == ["samples"]


def test_steps_that_a_killed_run_takes_again_are_drawn_once(tmp_path: Path) -> None:
    board = open_tensorboard(tmp_path)
    assert board is not None
    for step in (1, 2, 3):
        board.add("step", {"step": step, "loss": 1.0})
    board.forget_after(2)
    board.add("step", {"step": 3, "loss": 0.5})
    board.close()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # noqa: PLC0415

    points = EventAccumulator(str(tmp_path / BOARD_FOLDER)).Reload().Scalars("step/loss")
    assert [(point.step, point.value) for point in points] == [(1, 1.0), (2, 1.0), (3, 0.5)]


def test_without_tensorboard_there_is_no_board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert open_tensorboard(tmp_path) is None
