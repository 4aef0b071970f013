from __future__ import annotations

import json
from pathlib import Path

from training.run.report import Curve, curves, read_events


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
