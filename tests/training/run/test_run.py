from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from model.artifacts.artifact import Artifact, read_artifact
from model.datasets.dataset import LabeledImages
from model.errors import ArtifactError, DatasetError
from training.config import TrainingConfig, load_config
from training.distributed import Ranks
from training.errors import CheckpointError, ConfigError, ResumeError
from training.optimisation.distillation import DistillConfig
from training.run.checkpoint import CheckpointFolder
from training.run.progress import LOG_FILE, RunLog
from training.run.record import RunRecord
from training.run.run import RunOptions, _Start, choose_device, train

ROOT = Path(__file__).parents[3]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, config: TrainingConfig) -> Path:
    """Return the folder of a finished run."""
    out = tmp_path_factory.mktemp("run")
    assert train(config, RunOptions(out, command="bisenet train run.toml"))
    return out


def test_a_finished_run_is_an_artifact_that_says_where_it_comes_from(finished: Path) -> None:
    artifact = read_artifact(finished / "artifact")
    artifact.verify()
    manifest = artifact.manifest
    assert (manifest.architecture, manifest.generation) == ("bisenetv2", "v2-g4")
    assert manifest.parameters == {"head_channels": 8}
    assert manifest.palette.names == ("red", "green", "blue")
    assert manifest.precision == "f16"
    provenance = manifest.provenance
    assert provenance["command"] == "bisenet train run.toml"
    assert provenance["config"]["seed"] == 3
    best = CheckpointFolder(finished / "checkpoints").load("best")
    assert best is not None
    assert provenance["steps"] == best["position"]["best_step"]
    assert provenance["started_from"] == "random weights"
    assert len(provenance["data_fingerprint"]) == 64
    assert provenance["validation"]["split"] == "val"
    assert set(provenance["validation"]["iou"]) == {"red", "green", "blue"}


def test_the_log_tells_the_whole_run(finished: Path) -> None:
    events = [json.loads(line)["event"] for line in (finished / LOG_FILE).read_text().splitlines()]
    validation = ["validation", "samples"]
    assert events[:8] == ["start", "crops", *validation, "step", *validation, "artifact"]


def test_a_folder_that_holds_a_run_is_not_overwritten(finished: Path, config: TrainingConfig) -> None:
    with pytest.raises(ResumeError, match="holds a run"):
        train(config, RunOptions(finished))


def test_a_finished_run_that_is_resumed_publishes_the_same_weights_again(
    finished: Path, config: TrainingConfig
) -> None:
    before = read_artifact(finished / "artifact").manifest
    assert train(config, RunOptions(finished, resume=True))
    after = read_artifact(finished / "artifact").manifest
    assert after.digest == before.digest


def broken_line(folder: Path) -> None:
    (folder / "train.csv").write_text("train0.png,train0_ids.png\ntrain1.png\n")


def unreadable_picture(folder: Path) -> None:
    (folder / "train1.png").write_bytes(b"\x89PNG\r\n\x1a\n, torn")


def label_of_another_size(folder: Path) -> None:
    shutil.copy(folder / "train0_ids.png", folder / "train1_ids.png")


def id_out_of_range(folder: Path) -> None:
    with Image.open(folder / "val1_ids.png") as label:
        Image.fromarray(np.full_like(np.asarray(label), 3)).save(folder / "val1_ids.png")


def empty_split(folder: Path) -> None:
    (folder / "train.csv").write_text("")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (broken_line, r"train\.csv:2: not an image,label pair: 'train1\.png'"),
        (unreadable_picture, r"train\.csv:2: .*train1\.png: "),
        (label_of_another_size, r"train\.csv:2: .*train1_ids\.png: labels are 48x80, their picture is 64x80"),
        (id_out_of_range, r"val\.csv:2: .*val1_ids\.png: ids \[3\] are outside \[0, 3\)"),
        (empty_split, r"train\.csv: no image,label pair"),
    ],
)
def test_no_run_starts_on_bad_data_and_the_message_names_file_and_line(
    config: TrainingConfig, dataset_file: Path, tmp_path: Path, spoil: Callable[[Path], None], message: str
) -> None:
    folder = tmp_path / "data"
    shutil.copytree(dataset_file.parent, folder)
    spoil(folder)
    moved = dataclasses.replace(config.data, dataset=str(folder / "blocks.toml"))
    with pytest.raises(DatasetError, match=message):
        train(dataclasses.replace(config, data=moved), RunOptions(tmp_path / "run"))
    assert CheckpointFolder(tmp_path / "run/checkpoints").is_empty


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tpu9", "'tpu9' is no device"),
        ("meta", "'meta' is neither cpu nor cuda"),
        ("cuda:99", r"'cuda:99': this process wants GPU 99 of \d+"),
    ],
)
def test_a_device_that_is_none_is_refused(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        choose_device(name)


def test_a_run_states_its_first_weights_after_every_resumption(
    finished: Path, config: TrainingConfig, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    with pytest.raises(ResumeError, match="the run began with random weights, not with camvid"):
        train(config, RunOptions(run, resume=True, finetune_from="camvid"))
    folder = CheckpointFolder(run / "checkpoints")
    last = folder.load("last")
    assert last is not None
    folder.save("last", 4, {**last, "started_from": "other@3"})
    assert train(config, RunOptions(run, resume=True))
    assert read_artifact(run / "artifact").manifest.provenance["started_from"] == "other@3"


def test_a_run_learns_from_a_teacher_and_is_not_resumed_with_another_one(
    finished: Path, config: TrainingConfig, tmp_path: Path
) -> None:
    teacher = tmp_path / "teacher"
    shutil.copytree(finished / "artifact", teacher)
    taught = dataclasses.replace(config, distill=DistillConfig(str(teacher)))
    assert train(taught, RunOptions(tmp_path / "run"))
    artifact = read_artifact(tmp_path / "run" / "artifact")
    assert artifact.manifest.provenance["config"]["distill"]["teacher"] == str(teacher)
    assert artifact.manifest.files != read_artifact(finished / "artifact").manifest.files
    shutil.rmtree(teacher)
    shutil.copytree(artifact.folder, teacher)
    with pytest.raises(ResumeError, match=r"weights of distill\.teacher: "):
        train(taught, RunOptions(tmp_path / "run", resume=True))


class Elsewhere(Ranks):
    """The first of two processes; the other one found no checkpoint."""

    def texts(self, own: str, device: torch.device) -> list[str]:  # noqa: ARG002 - as its parent has it
        return [own, ""]


def test_processes_that_find_different_checkpoints_do_not_train_together(
    finished: Path, config: TrainingConfig
) -> None:
    options, folder = RunOptions(finished, resume=True), CheckpointFolder(finished / "checkpoints")
    start = _Start(config, options, folder, Elsewhere(0, 2, 0, 2), RunLog(finished, silent=True))
    with pytest.raises(ResumeError, match=r"do not find the same last checkpoint .*must share that folder"):
        start._check_all_found_the_same(torch.device("cpu"))


def test_samples_that_cannot_be_written_do_not_end_a_run(
    config: TrainingConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "samples").write_text("no folder")
    assert train(config, RunOptions(tmp_path))
    assert f"cannot write {tmp_path}/samples/step-00000003.png" in capsys.readouterr().err
    assert CheckpointFolder(tmp_path / "checkpoints").load("best") is not None


def test_a_machine_without_openvino_trains_and_another_one_publishes(
    config: TrainingConfig,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "openvino", None)
        with pytest.raises(ArtifactError, match="artifact is not written: openvino is not installed here"):
            train(config, RunOptions(tmp_path))
    assert "this run will end with its last checkpoint: openvino" in capsys.readouterr().err
    assert train(config, RunOptions(tmp_path, resume=True))
    read_artifact(tmp_path / "artifact").verify()


def test_a_report_that_cannot_be_written_is_named(
    finished: Path, config: TrainingConfig, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    shutil.rmtree(run / "report")
    (run / "report").write_text("no folder")
    with pytest.raises(CheckpointError, match=r"cannot write .*report"):
        train(config, RunOptions(run, resume=True))


def test_the_fingerprint_of_a_report_is_the_splits_own(finished: Path, config: TrainingConfig) -> None:
    report = json.loads((finished / "report/report.json").read_text())["evaluation"]
    assert report["data_fingerprint"] == LabeledImages(config.data.spec(), "val").fingerprint
    assert report["weights"] == read_artifact(finished / "artifact").manifest.digest


def test_the_report_shows_curves_scores_and_pictures(finished: Path) -> None:
    report = json.loads((finished / "report/report.json").read_text())
    best = CheckpointFolder(finished / "checkpoints").load("best")
    assert best is not None
    assert report["evaluation"]["scores"]["miou"] == pytest.approx(best["position"]["best_miou"])
    assert [step for step, _ in report["curves"]["mIoU"]] == [3, 4]
    assert report["provenance"] == read_artifact(finished / "artifact").manifest.provenance
    assert set(report["evaluation"]["versions"]) == {"python", "torch", "numpy"}
    index = (finished / "report/index.html").read_text()
    for title in ("Worst pictures", "Best pictures", "Samples", "Augmented crops", "Configuration"):
        assert f"<h2>{title}</h2>" in index
    assert 'data-title="Validation loss"' in index
    assert "data fingerprint" in index
    assert index.count("<img") == 3 * 2 * 4 + 2 * 2  # three sections of both pictures, and two crops
    assert "<svg" in (finished / "report/evaluation.html").read_text()


def test_the_log_says_on_what_and_from_what_a_run_learned(finished: Path) -> None:
    record = RunRecord.read(finished)
    assert record.picture_counts == {"training": 5, "validation": 2}
    assert record.hardware.endswith(" cores")
    assert list(record.classes) == ["red", "green", "blue"]
    assert [step for step, _ in record.curves["validation loss"].points] == [3, 4]
    step, samples = record.samples
    assert (step, [one.name for one in samples]) == (4, ["val0.png", "val1.png"])
    assert len(record.crops) == 2


def test_samples_are_drawn_at_every_validation_and_crops_once(finished: Path) -> None:
    names = {path.name for path in (finished / "samples").iterdir()}
    assert {"step-00000003.png", "step-00000004.png"} < names
    files = [
        one.files.values() for one in (*RunRecord.read(finished).samples[1], *RunRecord.read(finished).crops)
    ]
    assert {name for group in files for name in group} < names


def test_what_was_best_is_published_even_if_it_was_not_last(
    finished: Path, config: TrainingConfig, tmp_path: Path
) -> None:
    shutil.copytree(finished, tmp_path / "run")
    folder = CheckpointFolder(tmp_path / "run/checkpoints")
    last, best = folder.load("last"), folder.load("best")
    assert last is not None
    assert best is not None
    worse = 1 if best["position"]["best_step"] == 4 else 4
    for value in last["average"].values():  # whatever became of it later
        if value.is_floating_point():
            value.mul_(1 + worse)
    folder.save("last", 4, last)
    assert train(config, RunOptions(tmp_path / "run", resume=True))
    before, after = (read_artifact(run / "artifact").manifest for run in (finished, tmp_path / "run"))
    assert after.files["model.safetensors"] == before.files["model.safetensors"]


@pytest.mark.soak
def test_scores_of_learned_pictures_choose_nothing(config: TrainingConfig, tmp_path: Path) -> None:
    learned = dataclasses.replace(
        config, data=dataclasses.replace(config.data, train_splits=("train", "val"))
    )
    assert train(learned, RunOptions(tmp_path))
    assert read_artifact(tmp_path / "artifact").manifest.provenance["steps"] == 4


@pytest.mark.soak
def test_a_run_may_begin_with_a_published_model_and_says_what_fitted(
    config: TrainingConfig,
    tiny_artifact: Artifact,
    tiny_registry: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    still = dataclasses.replace(
        config,
        optimizer=dataclasses.replace(config.optimizer, lr=1e-9),
        schedule=dataclasses.replace(config.schedule, steps=1),
    )
    assert train(still, RunOptions(tmp_path, finetune_from="tiny@1", registry=str(tiny_registry)))
    said = capsys.readouterr().err
    assert "weights of tiny@1:" in said
    assert "re-initialised  head.conv_out.1.weight: (4, 16, 1, 1) in the file, (3, 8, 1, 1) here" in said
    artifact = read_artifact(tmp_path / "artifact")
    assert artifact.manifest.mean == (0.25, 0.5, 0.75)  # the weights' own, not the data's
    assert artifact.manifest.provenance["started_from"] == "tiny@1"
    begun, ended = (load_file(one.path("model.safetensors")) for one in (tiny_artifact, artifact))
    kernel = "detail.S1.0.conv.weight"
    torch.testing.assert_close(ended[kernel], begun[kernel], atol=1e-3, rtol=1e-2)
    assert train(still, RunOptions(tmp_path, resume=True))
    assert read_artifact(tmp_path / "artifact").manifest.files == artifact.manifest.files


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(3))
def test_a_run_killed_at_any_moment_ends_with_the_weights_of_one_that_was_not(
    config_file: Path, config: TrainingConfig, tmp_path: Path, seed: int
) -> None:
    overrides = ["schedule.steps=12", "schedule.save_every=1", "schedule.validate_every=4"]
    assert train(load_config(str(config_file), overrides), RunOptions(tmp_path / "straight"))
    arguments = [word for override in overrides for word in ("--set", override)]
    command = [sys.executable, "-m", "training", "train", str(config_file), *arguments]
    command += ["--out", str(tmp_path / "killed"), "--resume"]
    random = np.random.default_rng(seed)
    code, kills = -signal.SIGKILL, 0
    while code == -signal.SIGKILL:
        with subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, stderr=subprocess.DEVNULL) as process:
            if kills < 4:
                _kill_after(process, tmp_path / "killed", writes=int(random.integers(1, 5)))
            kills += 1
            code = process.wait()
    assert code == 0
    states = [
        CheckpointFolder(tmp_path / name / "checkpoints").load("last") for name in ("straight", "killed")
    ]
    straight, killed = (state or {} for state in states)
    for part in ("network", "average"):
        assert all(torch.equal(straight[part][key], value) for key, value in killed[part].items())
    assert config.seed == 3
    one, other = (read_artifact(tmp_path / name / "artifact").manifest for name in ("straight", "killed"))
    assert one.files == other.files


def _kill_after(process: subprocess.Popen[bytes], run: Path, *, writes: int) -> None:
    """Kill a run while it saves, after its folder of checkpoints changed so many times."""
    folder = run / "checkpoints"
    seen, before = 0, None
    while process.poll() is None and seen < writes:
        now = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else None
        seen += now != before
        before = now
    process.kill()


def test_training_needs_nothing_of_the_service() -> None:
    missing = ("numba", "obstore", "openvino", "structlog", "tensorboard", "typer")
    program = f"import sys; sys.modules.update(dict.fromkeys({missing!r})); import training.run"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)
