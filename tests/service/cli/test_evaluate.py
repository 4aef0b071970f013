from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from fakes import write_pooling_artifact
from PIL import Image
from typer.testing import CliRunner, Result

from model.evaluation import network_passes
from model.evaluation.protocols import PROTOCOLS
from service.cli.evaluate import evaluate, parse_compared
from service.cli.predict import predict

Run = Callable[..., Result]

ROOT = Path(__file__).parents[3]

DATASET = """
name = "halves"
[splits]
val = "val.csv"
[[classes]]
name = "dark"
color = [0, 0, 0]
[[classes]]
name = "bright"
color = [255, 255, 255]
"""

SHOWS_ALL_CLASSES = 8
"""A seed whose model finds dark and bright in pictures of random colours."""

app = typer.Typer()
app.command("evaluate")(evaluate)
app.command("predict")(predict)


@pytest.fixture(scope="module", autouse=True)
def _kernels_are_compiled_before_commands_choose_a_folder() -> None:
    network_passes.warm_up()


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("registry")
    (folder / "models" / "pooling").mkdir(parents=True)
    write_pooling_artifact(folder / "models" / "pooling" / "1", seed=SHOWS_ALL_CLASSES)
    return folder


@pytest.fixture
def run(environment: dict[str, str]) -> Run:
    def run(*arguments: object) -> Result:
        return CliRunner().invoke(app, [str(argument) for argument in arguments], env=environment)

    return run


@pytest.fixture
def dataset(tmp_path: Path, run: Run) -> Path:
    """Return a data set whose truth is what the model says of its pictures of several sizes."""
    folder = tmp_path / "data"
    folder.mkdir()
    random = np.random.default_rng(0)
    names = [f"{index}.png" for index in range(5)]
    for index, name in enumerate(names):
        grid_HW3 = random.integers(0, 256, (3, 4, 3), np.uint8)
        size = (70 + 10 * index, 40 + index)
        Image.fromarray(grid_HW3).resize(size, Image.Resampling.BICUBIC).save(folder / name)
    assert run("predict", folder, "--out", folder / "truth", "--precision", "f32").exit_code == 0
    (folder / "val.csv").write_text("".join(f"{name},truth/{name}\n" for name in names))
    (folder / "halves.toml").write_text(DATASET)
    return folder / "halves.toml"


def report(result: Result, path: Path) -> Any:
    assert result.exit_code == 0, result.output
    return json.loads(path.read_text())


def test_a_model_agrees_with_itself_and_the_report_says_about_what(
    run: Run, dataset: Path, tmp_path: Path
) -> None:
    file = tmp_path / "scores" / "report.json"
    result = run(
        *("evaluate", "--dataset", dataset, "--protocol", "ss-old", "--precision", "f32", "--json", file)
    )
    document = report(result, file)
    assert document["scores"]["miou"] == 1.0
    assert document["scores"]["miou_interval"] == [1.0, 1.0]
    assert document["scores"]["classes_averaged"] == 2
    assert (document["model"], document["engine"], document["precision"]) == ("pooling@1", "openvino", "f32")
    assert (document["protocol"], document["dataset"], document["split"]) == ("ss-old", "halves", "val")
    assert len(document["data_fingerprint"]) == len(document["weights"]) == 64
    assert document["images"] == 5
    assert [entry["name"] for entry in document["per_image"]] == [f"{index}.png" for index in range(5)]
    assert document["timing"]["pictures_per_s"] > 0
    assert "pooling@1 (openvino f32 on cpu), halves val, protocol ss-old" in result.stdout
    assert "mIoU                    100.00   100.00 to 100.00" in result.stdout


def test_wrong_pixels_cost_what_they_are(run: Run, dataset: Path, tmp_path: Path) -> None:
    path = dataset.parent / "truth" / "0.png"
    with Image.open(path) as image:
        ids_HW = np.array(image)
    ids_HW[:4] = 1 - ids_HW[:4]
    Image.fromarray(ids_HW).save(path)
    file = tmp_path / "report.json"
    arguments = ("--dataset", dataset, "--protocol", "ss-old", "--precision", "f32", "--json", file)
    document = report(run("evaluate", *arguments), file)
    total = document["scores"]["pixels"]
    assert document["scores"]["pixel_accuracy"] == pytest.approx(1 - 4 * 70 / total)
    assert document["per_image"][0]["miou"] < 1
    assert {entry["miou"] for entry in document["per_image"][1:]} == {1.0}


@pytest.mark.parametrize("protocol", ["ssc", "msf", "mscf", "slide"])
def test_every_protocol_runs(run: Run, dataset: Path, tmp_path: Path, protocol: str) -> None:
    file = tmp_path / "report.json"
    crop = [] if protocol == "msf" else ["--crop", "64"]
    arguments = ("--dataset", dataset, "--protocol", protocol, *crop, "--json", file)
    document = report(run("evaluate", *arguments), file)
    assert document["scores"]["miou"] > 0.7
    assert document["protocol"].startswith(protocol)


def test_the_help_explains_every_protocol(run: Run) -> None:
    said = " ".join(run("evaluate", "--help").stdout.split())
    assert all(f"{name}:" in said or f"{name}," in said for name in PROTOCOLS)
    assert "mIoU over 14 of 19 classes" in said


def test_a_class_that_occurs_nowhere_is_named_and_counts_as_zero_if_that_is_asked_for(
    run: Run, dataset: Path, tmp_path: Path
) -> None:
    truth = dataset.parent / "truth"
    for path in truth.iterdir():  # nothing is labelled but what the model finds dark
        with Image.open(path) as image:
            ids_HW = np.array(image)
        Image.fromarray(np.where(ids_HW == 0, ids_HW, np.uint8(255))).save(path)
    file = tmp_path / "report.json"
    arguments = ("--dataset", dataset, "--protocol", "ss-old", "--precision", "f32", "--json", file)
    result = run("evaluate", *arguments)
    assert report(result, file)["scores"]["miou"] == 1.0
    assert "mIoU over 1 of 2 classes" in result.stdout
    assert "in the predictions, left out of the mean: bright" in result.stdout
    result = run("evaluate", *arguments, "--count-absent-as-zero", "--report", tmp_path)
    document = report(result, file)
    dark = document["matrix"][0][0]
    assert document["scores"]["miou"] == dark / (dark + 1) / 2
    assert (document["scores"]["classes_averaged"], document["absent_as_zero"]) == (2, True)
    assert "in the predictions, counted as 0: bright" in result.stdout
    assert "2 of 2 classes (absent ones count as 0)" in (tmp_path / "index.html").read_text()


def test_pictures_are_resized_first_where_that_is_asked_for(run: Run, dataset: Path, tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    arguments = ("--dataset", dataset, "--protocol", "ssc", "--crop", 64, "--short-side", 100)
    document = report(run("evaluate", *arguments, "--json", file), file)
    assert document["protocol"] == "ssc (chips of 64, short side 100)"
    assert document["scores"]["miou"] > 0.7


def test_the_page_shows_the_worst_pictures(run: Run, dataset: Path, tmp_path: Path) -> None:
    result = run("evaluate", "--dataset", dataset, "--report", tmp_path / "page")
    assert result.exit_code == 0, result.output
    page = (tmp_path / "page" / "index.html").read_text()
    assert page.count("<img") == 4 * 5
    assert "pooling@1 on halves val" in page


def test_precisions_are_compared_on_the_same_pictures(run: Run, dataset: Path, tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    arguments = ("--dataset", dataset, "--precision", "f32", "--json", file, "--report", tmp_path)
    result = run("evaluate", *arguments, "--compare", "engine=openvino,precision=f32")
    document = report(result, file)
    assert document["first"]["matrix"] == document["second"]["matrix"]
    assert document["differences"][0]["name"] == "mIoU"
    assert {entry["change"] for entry in document["differences"]} == {0.0}
    assert "compared with pooling@1 (openvino f32 on cpu)" in result.stdout
    assert "Compared with pooling@1" in (tmp_path / "index.html").read_text()


def test_what_is_compared_is_a_model_or_pairs_of_key_and_value() -> None:
    assert parse_compared("city@4") == {"model": "city@4"}
    assert parse_compared("engine=torch, precision=f32") == {"engine": "torch", "precision": "f32"}
    for wrong in ("speed=fast", "engine=", "engine=torch,f32"):
        with pytest.raises(typer.BadParameter, match="KEY=VALUE"):
            parse_compared(wrong)


@pytest.fixture
def broken(dataset: Path) -> Path:
    """Return the data set with a label that is cut off and one that is not there."""
    truth = dataset.parent / "truth"
    (truth / "1.png").write_bytes((truth / "1.png").read_bytes()[:60])
    (truth / "3.png").unlink()
    return dataset


def test_a_broken_file_fails_the_evaluation_and_is_named(run: Run, broken: Path, tmp_path: Path) -> None:
    result = run("evaluate", "--dataset", broken, "--json", tmp_path / "report.json")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    assert "truth/3.png: No such file" in result.stderr
    (broken.parent / "val.csv").write_text("0.png,truth/0.png\n1.png,truth/1.png\n")
    result = run("evaluate", "--dataset", broken, "--json", tmp_path / "report.json")
    assert result.exit_code == 1
    assert "truth/1.png" in result.stderr
    assert "val.csv:2" in result.stderr
    assert not (tmp_path / "report.json").exists()


def test_broken_pairs_are_left_out_and_counted_when_that_is_asked_for(
    run: Run, broken: Path, tmp_path: Path
) -> None:
    file = tmp_path / "report.json"
    arguments = ("--dataset", broken, "--protocol", "ss-old", "--precision", "f32", "--json", file)
    result = run("evaluate", *arguments, "--skip-broken", "--report", tmp_path)
    document = report(result, file)
    assert document["images"] == 3
    assert [entry["name"] for entry in document["skipped"]] == ["1.png", "3.png"]
    assert document["scores"]["miou"] == 1.0
    assert document["data_fingerprint"] is None
    assert "3 pictures, 2 broken ones left out" in result.stdout
    assert "2 broken pairs were left out" in (tmp_path / "index.html").read_text()


def test_a_model_of_other_classes_is_refused(run: Run, dataset: Path) -> None:
    dataset.write_text(DATASET.replace('"bright"', '"light"'))
    result = run("evaluate", "--dataset", dataset)
    assert result.exit_code == 1
    assert "class 1 of pooling@1 is 'bright', of halves 'light'" in result.stderr
    dataset.write_text(DATASET + '[[classes]]\nname = "gray"\ncolor = [1, 1, 1]\n')
    result = run("evaluate", "--dataset", dataset)
    assert result.exit_code == 1
    assert "pooling@1 has 2 classes, halves has 3" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        (["--protocol", "msfc"], 2, "msfc"),
        (["--protocol", "ss", "--crop", "512"], 2, "cuts no chips"),
        (["--protocol", "ssc", "--crop", "500"], 2, "multiple of 32"),
        (["--compare", "speed=fast"], 2, "speed=fast"),
        (["--model", "village"], 1, "village"),
        (["--split", "test"], 1, "test"),
        (["--engine", "tensorflow"], 2, "engine"),
        (["--compare", "village"], 1, "village"),
    ],
)
def test_what_cannot_be_evaluated_is_named(
    run: Run, dataset: Path, arguments: list[str], exit_code: int, message: str
) -> None:
    result = run("evaluate", "--dataset", dataset, *arguments)
    assert result.exit_code == exit_code
    assert message in result.stderr


def test_a_report_that_cannot_be_written_is_an_error(run: Run, dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = run("evaluate", "--dataset", dataset, "--json", tmp_path / "file" / "report.json")
    assert result.exit_code == 1
    assert "cannot be written" in result.stderr


@pytest.mark.soak  # compiles everything anew
def test_the_command_needs_no_torch(dataset: Path, environment: dict[str, str]) -> None:
    program = (
        "import sys; sys.modules['torch'] = None\n"
        "import bisenet\n"
        f"sys.argv = ['bisenet', 'evaluate', '--dataset', {str(dataset)!r}]\n"
        "bisenet.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=os.environ | environment,
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "pooling@1" in done.stdout
