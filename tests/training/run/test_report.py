from __future__ import annotations

import json
import re
from html import unescape
from pathlib import Path

import pytest
from run_folders import CONFIG, MARKUP, append, finish, start, steps, write_running

from training.run.record import SAMPLE_FOLDER, RunRecord
from training.run.report import inlined, render_run, write_interim


@pytest.fixture
def running(tmp_path: Path) -> Path:
    write_running(tmp_path / "street")
    return tmp_path / "street"


def live(folder: Path) -> str:
    return render_run(RunRecord.read(folder), lambda name: f"{SAMPLE_FOLDER}/{name}", refresh_ms=1000)


def headings(page: str) -> list[str]:
    return re.findall(r"<h2>(.*?)</h2>", page)


def titles(page: str) -> list[str]:
    return re.findall(r'data-title="(.*?)"', page)


def fact(page: str, name: str) -> str:
    (found,) = re.findall(rf"<dt>{name}</dt><dd>(.*?)</dd>", page)
    return unescape(str(found))


def test_a_finished_run_shows_scores_pictures_and_last_of_all_its_configuration(running: Path) -> None:
    page = finish(running).read_text()
    assert headings(page) == [
        "Curves",
        "Classes",
        "Confusion",
        "Worst pictures",
        "Best pictures",
        "Samples",
        "Augmented crops",
        "Configuration",
    ]
    assert fact(page, "state") == "finished after 400 steps; the published weights are those of step 400"
    assert '<details id="settings"><summary>Every setting of the run</summary>' in page


def test_the_report_says_when_on_what_and_from_how_many_pictures(running: Path) -> None:
    page = live(running)
    assert fact(page, "started") == "2026-11-30 00:53:20 UTC"
    assert fact(page, "duration") == "0:03:20"
    assert fact(page, "hardware") == "a processor, 2 cores"
    assert fact(page, "pictures") == "200 for training, 40 for validation"
    assert fact(page, "state") == (
        "step 200 of 400, about 0:03:20 left; last entry of the log 2026-11-30 00:56:40 UTC"
    )


def test_losses_scores_and_classes_have_a_curve_each(running: Path) -> None:
    assert titles(live(running)) == [
        "Validation mIoU",
        "IoU of each class",
        "Training loss",
        "Validation loss",
        "Learning rate",
        "Crops per second",
        "Time that steps wait for pictures",
    ]


def test_samples_have_names_scores_truth_and_a_legend(running: Path) -> None:
    page = live(running)
    assert '<h3>val/0.png <span class="hint">mIoU 50.00 %</span></h3>' in page
    row = page[page.index("val/0.png") : page.index("val/1.png")]
    shown = ["picture", "truth", "prediction", "difference"]
    assert re.findall(r"<figcaption>(.*?)</figcaption>", row) == shown
    assert 'src="samples/sample-0-step-00000200-prediction.png"' in page
    assert "sky</li>" in page
    assert "not labelled</li>" in page


def test_pictures_of_a_live_page_lie_on_its_server_and_those_of_a_report_in_it(running: Path) -> None:
    of_server = re.findall(r'<img src="(.*?)"', live(running))
    assert all((running / source).is_file() for source in of_server)
    of_report = re.findall(r'<img src="(.*?)"', write_interim(running).read_text())
    assert len(of_report) == len(of_server) == 2 * 4 + 1
    assert all(source.startswith("data:image/") for source in of_report)


def test_a_sample_whose_file_is_gone_is_left_out(running: Path) -> None:
    for file in (running / SAMPLE_FOLDER).glob("sample-0-*"):
        file.unlink()
    page = render_run(RunRecord.read(running), inlined(running / SAMPLE_FOLDER))
    assert "<h3>val/1.png " in page
    assert "<h3>val/0.png " not in page


def test_a_stopped_run_says_how_it_goes_on(running: Path) -> None:
    page = write_interim(running).read_text()
    assert fact(page, "state") == "stopped at step 200 of 400; the same command with --resume goes on"
    assert "<main>" in page


def test_a_run_without_a_step_says_what_comes(tmp_path: Path) -> None:
    append(tmp_path, start())
    page = live(tmp_path)
    assert "There was no validation yet." in page
    assert "The first values come after 20 steps." in page


def test_a_run_without_a_log_reads_its_data_set() -> None:
    page = render_run(RunRecord("street", ()), lambda name: name, refresh_ms=1000)
    assert fact(page, "state") == "the run reads its data set"


def test_settings_are_nested_and_each_key_is_whole(running: Path) -> None:
    page = live(running)
    names = re.findall(r"<dt>(.*?)</dt>", page[page.index('id="settings"') :])
    assert set(CONFIG["optimizer"]) < set(names)
    assert "<h3>rare</h3>" in page
    style = page[: page.index("</style>")]
    assert ".figures dt { color: var(--quiet); white-space: nowrap; }" in style


def test_a_class_whose_name_is_markup_stays_text(running: Path) -> None:
    for page in (live(running), finish(running).read_text()):
        assert MARKUP in unescape(page)
        assert "<img src=x" not in page


def test_the_numbers_of_all_curves_are_in_the_document(running: Path) -> None:
    finish(running)
    document = json.loads((running / "report/report.json").read_text())
    assert document["name"] == "street"
    assert [step for step, _ in document["curves"]["validation loss"]] == [100, 200, 300, 400]


def test_a_log_of_an_older_version_has_a_page(tmp_path: Path) -> None:
    old = {key: value for key, value in start().items() if key in {"event", "time_s", "config"}}
    append(tmp_path, old, *steps(20, 100))
    page = live(tmp_path)
    assert fact(page, "hardware") == fact(page, "pictures") == "not recorded"
    assert headings(page) == ["Curves", "Configuration"]
