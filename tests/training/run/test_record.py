from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from training.errors import RunNotFoundError
from training.run.record import Best, Curve, RunRecord, Sample, curves, read_events

START = {"event": "start", "config": {"schedule": {"steps": 100, "batch_size": 8}}}


def record(*events: dict[str, Any]) -> RunRecord:
    return RunRecord("run", events)


def test_a_step_that_was_taken_again_counts_once() -> None:
    events = [
        {"event": "step", "step": 20, "loss": 9.0},
        {"event": "step", "step": 40, "loss": 5.0},
        {"event": "resume", "step": 20},
        {"event": "step", "step": 40, "loss": 4.0},
        {"event": "validation", "step": 40, "miou": None},
    ]
    assert curves(events) == [Curve("loss", ((20, 9.0), (40, 4.0)))]


def test_a_line_that_was_never_finished_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(json.dumps({"event": "step", "step": 1}) + '\n{"event": "st')
    assert read_events(path) == [{"event": "step", "step": 1}]


def test_a_folder_without_a_log_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunNotFoundError, match=rf"{tmp_path} holds no run: log.jsonl cannot be read"):
        RunRecord.read(tmp_path)


def test_the_losses_of_training_and_validation_are_curves_of_their_own() -> None:
    run = record(
        {"event": "step", "step": 20, "loss": 3.0},
        {"event": "validation", "step": 20, "loss": 0.5, "miou": 0.25},
    )
    assert run.curves["loss"].points == ((20, 3.0),)
    assert run.curves["validation loss"].points == ((20, 0.5),)


def test_each_class_has_a_curve_in_the_order_of_the_classes_without_gaps_as_zeros() -> None:
    run = record(
        {"event": "validation", "step": 10, "iou": {"sky": 0.5, "car": None}},
        {"event": "validation", "step": 20, "iou": {"sky": 0.75, "car": 0.25}},
    )
    assert run.class_curves == [Curve("sky", ((10, 0.5), (20, 0.75))), Curve("car", ((20, 0.25),))]


def test_the_time_between_two_parts_of_a_run_is_not_its_duration() -> None:
    run = record(
        {"event": "start", "time_s": 1000.0},
        {"event": "step", "time_s": 1060.0, "step": 20},
        {"event": "start", "time_s": 9000.0},
        {"event": "step", "time_s": 9030.0, "step": 40},
    )
    assert run.duration_s == 90.0
    assert run.started is not None
    assert run.started.timestamp() == 1000.0


def test_the_number_of_steps_is_what_was_chosen_last() -> None:
    budget = {"event": "budget", "total_steps": 60, "step_s": 1.0}
    assert record().total_steps is None
    assert record(START).total_steps == 100
    assert record(START, budget).total_steps == 60
    assert record(START, budget, {"event": "early_stop", "step": 40}).total_steps == 40


def test_the_time_that_is_left_follows_from_the_last_measured_rate() -> None:
    assert record(START).remaining_s is None
    assert record(START, {"event": "step", "step": 60, "images_per_s": 4.0}).remaining_s == 80.0


def test_a_run_is_finished_when_its_last_start_wrote_an_artifact() -> None:
    artifact = {"event": "artifact"}
    assert not record(START).is_finished
    assert record(START, artifact).is_finished
    assert not record(START, artifact, START).is_finished


def test_the_best_validation_is_the_one_with_the_highest_score() -> None:
    run = record(
        {"event": "validation", "step": 10, "miou": 0.5, "iou": {"sky": 0.5}},
        {"event": "validation", "step": 20, "miou": 0.4, "iou": {"sky": 0.4}},
        {"event": "validation", "step": 30, "miou": None, "iou": {"sky": None}},
    )
    assert run.best == Best(10, 0.5, {"sky": 0.5})
    assert record(START).best is None


def test_samples_are_those_of_the_last_validation() -> None:
    one = {"name": "val/a.png", "miou": 0.5, "files": {"truth": "sample-0-truth.png"}}
    run = record(
        {"event": "samples", "step": 10, "pictures": [{**one, "miou": 0.1}]},
        {"event": "samples", "step": 20, "pictures": [one]},
    )
    assert run.samples == (20, (Sample("val/a.png", 0.5, {"truth": "sample-0-truth.png"}),))


def test_a_log_of_an_older_version_says_less() -> None:
    run = record(START, {"event": "validation", "step": 10, "miou": 0.5, "iou": {"sky": 0.5}})
    assert (run.hardware, run.picture_counts, run.classes, run.crops) == ("", {}, {}, ())
    assert run.samples == (0, ())
    assert "validation loss" not in run.curves
