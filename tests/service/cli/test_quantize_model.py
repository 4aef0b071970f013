from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import write_pooling_artifact
from PIL import Image
from typer.testing import CliRunner, Result

from model.artifacts.artifact import read_artifact
from model.artifacts.manifest import ModelVersion
from model.artifacts.registry import ModelRegistry
from service.cli import models

Run = Callable[..., Result]
POOLING_1, POOLING_2 = ModelVersion("pooling", 1), ModelVersion("pooling", 2)

pytest.importorskip("nncf", reason="nncf is not installed: pip install 'bisenet-service[quantize]'")


@pytest.fixture
def own_registry(tmp_path: Path) -> ModelRegistry:
    registry = ModelRegistry(tmp_path / "registry")
    registry.publish(write_pooling_artifact(tmp_path / "artifact").folder, "pooling")
    return registry


@pytest.fixture
def run(own_registry: ModelRegistry, tmp_path: Path, cache_folder: Path) -> Run:
    """Return what runs ``bisenet models quantize`` on a registry that holds ``pooling@1``."""
    assert own_registry.versions("pooling") == [POOLING_1]
    environment = {
        "BISENET_REGISTRY": str(tmp_path / "registry"),
        "BISENET_MODELS__CACHE_FOLDER": str(cache_folder),
    }

    def run(*arguments: object) -> Result:
        return CliRunner().invoke(models.app, ["quantize", *map(str, arguments)], env=environment)

    return run


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Return the TOML of a data set of noise with two classes, four pictures to learn from and two others."""
    return write_dataset(tmp_path / "noise", ["dark", "bright"])


def write_dataset(folder: Path, classes: list[str]) -> Path:
    folder.mkdir()
    for index in range(6):
        random = np.random.default_rng(index)
        Image.fromarray(random.integers(0, 256, (40, 72, 3), np.uint8)).save(folder / f"{index}.png")
        Image.fromarray(random.integers(0, 2, (40, 72), np.uint8)).save(folder / f"{index}-ids.png")
    for split, indices in (("train", range(4)), ("val", range(4, 6))):
        lines = [f"{index}.png,{index}-ids.png\n" for index in indices]
        (folder / f"{split}.csv").write_text("".join(lines))
    tables = [f'[[classes]]\nname = "{name}"\ncolor = [{k}, 0, 0]\n' for k, name in enumerate(classes)]
    head = 'name = "noise"\n[splits]\ntrain = "train.csv"\nval = "val.csv"\n'
    (folder / "noise.toml").write_text(head + "".join(tables))
    return folder / "noise.toml"


def answer(result: Result) -> Any:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_an_int8_version_is_published_and_says_what_it_scores(
    run: Run, dataset: Path, own_registry: ModelRegistry
) -> None:
    report = answer(run("pooling", "--dataset", dataset, "--max-miou-loss", 50, "--json"))
    assert (report["made"], report["derived_from"]) == ("pooling@2", "pooling@1")
    assert report["int8"]["engine"] == "openvino int8"
    assert report["loss"] == pytest.approx(report["original"]["miou"] - report["int8"]["miou"], abs=0.01)
    manifest = own_registry.open(POOLING_2).manifest
    assert (manifest.precision, manifest.derived_from) == ("int8", "pooling@1")
    assert manifest.provenance["validation"]["int8"] == report["int8"]
    assert manifest.provenance["quantization"]["split"] == "train"


def test_the_name_means_the_original_when_it_is_quantised_again(run: Run, dataset: Path) -> None:
    arguments = ("pooling", "--dataset", dataset, "--max-miou-loss", 50, "--json")
    made = [answer(run(*arguments)) for _ in range(2)]
    assert [one["made"] for one in made] == ["pooling@2", "pooling@3"]
    assert made[1]["derived_from"] == "pooling@1"


def test_an_artifact_can_be_written_without_being_published(
    run: Run, dataset: Path, own_registry: ModelRegistry, tmp_path: Path
) -> None:
    arguments = ("pooling", "--dataset", dataset, "--max-miou-loss", 50, "--out")
    assert run(*arguments, tmp_path / "out").exit_code == 0
    read_artifact(tmp_path / "out").verify()
    assert own_registry.versions("pooling") == [POOLING_1]
    again = run(*arguments, tmp_path / "out")
    assert again.exit_code == 1
    assert "File exists" in again.stderr


def test_a_data_set_of_other_classes_is_refused_at_once(run: Run, tmp_path: Path) -> None:
    result = run("--dataset", write_dataset(tmp_path / "other", ["a", "b", "c"]), "pooling")
    assert result.exit_code == 1
    assert result.stderr == "error: pooling@1 has 2 classes, noise has 3\n"


def test_without_nncf_it_says_what_installs_it(
    run: Run, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "nncf", None)
    result = run("pooling", "--dataset", dataset)
    assert result.exit_code == 1
    assert "pip install 'bisenet-service[quantize]'" in result.stderr


@pytest.mark.parametrize("arguments", [[], ["--dataset", "camvid", "--max-miou-loss", "-1"]])
def test_bad_usage_exits_with_2(run: Run, arguments: list[str]) -> None:
    assert run("pooling", *arguments).exit_code == 2
