from __future__ import annotations

import re
from pathlib import Path

import pytest
from run_folders import CONFIG, append, start, steps

from training.errors import RunNotFoundError
from training.run.run_comparison import read_runs, render_comparison


def write(folder: Path, *, last: int = 200, lr: float = 0.001) -> Path:
    append(folder, start(optimizer={**CONFIG["optimizer"], "lr": lr}), *steps(20, last))
    return folder


def rows(page: str, label: str) -> list[list[str]]:
    (found,) = re.findall(rf'aria-label="{label}"><table>(.*?)</table>', page, re.DOTALL)
    lines = re.findall(r"<tr>(.*?)</tr>", found)
    return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", line) for line in lines]


def test_each_run_has_a_line_in_each_chart(tmp_path: Path) -> None:
    runs = [write(tmp_path / "short"), write(tmp_path / "long", last=400)]
    page = render_comparison(read_runs(runs))
    loss = page[page.index('id="chart-training-loss"') : page.index('id="chart-validation-loss"')]
    assert re.findall(r'<span class="name">(.*?)</span>', loss) == ["short", "long"]


def test_only_what_was_set_differently_is_listed(tmp_path: Path) -> None:
    page = render_comparison(read_runs([write(tmp_path / "a"), write(tmp_path / "b", lr=0.002)]))
    assert rows(page, "Settings that differ") == [["", "a", "b"], ["optimizer.lr", "0.001", "0.002"]]


def test_equal_settings_are_told(tmp_path: Path) -> None:
    page = render_comparison(read_runs([write(tmp_path / "a"), write(tmp_path / "b")]))
    assert "The configurations are equal." in page


def test_the_best_scores_are_told_against_the_first_run(tmp_path: Path) -> None:
    page = render_comparison(read_runs([write(tmp_path / "a"), write(tmp_path / "b", last=400)]))
    heads, miou, sky, *_ = rows(page, "Best validation of each class")
    assert heads == ["class", "a", "b", "change"]
    assert miou == ["mIoU", "40.00 %", "73.33 %", "+33.33"]
    assert sky == ["sky", "20.00 %", "40.00 %", "+20.00"]


def test_a_run_without_a_validation_has_no_score(tmp_path: Path) -> None:
    page = render_comparison(read_runs([write(tmp_path / "a"), write(tmp_path / "b", last=40)]))
    assert rows(page, "Best validation of each class")[1] == ["mIoU", "40.00 %", "none", ""]


def test_runs_of_one_name_are_told_apart_by_their_paths(tmp_path: Path) -> None:
    records = read_runs([write(tmp_path / "one/run"), write(tmp_path / "two/run")])
    assert [record.name for record in records] == ["one/run", "two/run"]


def test_one_run_is_no_comparison(tmp_path: Path) -> None:
    run = write(tmp_path / "a")
    with pytest.raises(RunNotFoundError, match="at least two different runs"):
        read_runs([run, tmp_path / "b/../a"])


def test_scores_of_pictures_that_a_run_learned_from_are_told_as_such(tmp_path: Path) -> None:
    honest, other = write(tmp_path / "honest"), tmp_path / "other"
    append(other, start(data={"dataset": "d", "train_splits": ["train", "val"], "val_split": "val"}))
    cells = {name: values for name, *values in rows(render_comparison(read_runs([honest, other])), "Runs")}
    assert cells["scores"] == ["", "of pictures that the run learned from: they say nothing about other ones"]
