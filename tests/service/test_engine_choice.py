"""Which version and engine a name means: measured once, kept, and pinned by the settings."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from fakes import write_pooling_artifact

from model.artifacts.artifact import Artifact
from model.artifacts.manifest import ModelVersion
from model.artifacts.registry import ModelRegistry
from model.errors import ModelNotFoundError
from service import engine_choice
from service.core.device.engine import EngineChoice, EngineOptions, EngineTuning, Precision
from service.engine_choice import EngineChooser, RaceError, described
from service.settings import LogSettings, load_settings
from service.telemetry import LogOptions
from service.worker_config import RaceConfig

POOL_1, POOL_2 = ModelVersion("pool", 1), ModelVersion("pool", 2)
MEASURED = (EngineChoice("int8", 2, 2, 128.2), EngineChoice("f32", 1, 2, 227.4))


class Races:
    """Stands in for the process that times engines; counts how often it is asked."""

    def __init__(self, winner: Precision = "int8") -> None:
        self.tuning = EngineTuning(winner, 2, None, MEASURED)
        self.raced: list[list[str]] = []
        self.budgets_s: list[float] = []
        self.error: Exception | None = None

    def __call__(self, artifacts: Sequence[Artifact], options: EngineOptions, budget_s: float) -> bytes:
        assert options.device == "cpu"
        self.raced.append([artifact.manifest.precision for artifact in artifacts])
        self.budgets_s.append(budget_s)
        if self.error is not None:
            raise self.error
        return json.dumps(dataclasses.asdict(self.tuning)).encode()


@pytest.fixture
def races() -> Races:
    return Races()


@pytest.fixture
def registry(tmp_path: Path) -> ModelRegistry:
    """Return a registry with a model, its int8 version, and a model that has none."""
    registry = ModelRegistry(tmp_path / "registry")
    registry.publish(write_pooling_artifact(tmp_path / "first").folder, "pool")
    int8 = write_pooling_artifact(tmp_path / "int8", precision="int8", derived_from="pool@1")
    registry.publish(int8.folder, "pool")
    registry.publish(write_pooling_artifact(tmp_path / "lone", seed=1).folder, "lone")
    return registry


class Site:
    """Makes choosers of one machine."""

    def __init__(self, registry: ModelRegistry, cache: Path, races: Races) -> None:
        self.registry = registry
        self.cache = cache
        self.races = races
        self.announced: list[str] = []

    def chooser(self, **models: object) -> EngineChooser:
        chosen: Mapping[str, Any] = {"device": "cpu", "cache_folder": self.cache} | models
        settings = load_settings(flags={"models": chosen}, environment={"HOME": "/"})
        return EngineChooser(settings, self.registry, announce=self.announced.append, run_race=self.races)

    def tuning(self, chooser: EngineChooser, version: ModelVersion) -> EngineTuning:
        return chooser.tuning(version, self.registry.open(version).manifest)


@pytest.fixture
def site(registry: ModelRegistry, tmp_path: Path, races: Races) -> Site:
    return Site(registry, tmp_path / "cache", races)


@pytest.mark.parametrize(("winner", "version"), [("int8", POOL_2), ("bf16", POOL_1)])
def test_a_name_means_the_version_that_won(
    site: Site, races: Races, winner: Precision, version: ModelVersion
) -> None:
    races.tuning = EngineTuning(winner, 2, 3, MEASURED)
    chooser = site.chooser()
    assert chooser.version("pool") == version
    assert site.tuning(chooser, version) == races.tuning
    assert races.raced == [["f32", "int8"]]


def test_a_choice_is_made_once_and_kept(site: Site, races: Races) -> None:
    assert site.chooser().version("pool") == POOL_2
    later = site.chooser()
    assert later.version("pool") == POOL_2
    assert site.tuning(later, POOL_2) == races.tuning
    assert len(races.raced) == 1


@pytest.mark.parametrize(
    "other",
    [
        {"processor": "another"},
        {"cores": 96},
        {"vector_flags": ("avx2",)},
        {"versions": {"openvino": "2030.1"}},
    ],
)
def test_another_machine_or_library_is_another_choice(
    site: Site, races: Races, monkeypatch: pytest.MonkeyPatch, other: dict[str, Any]
) -> None:
    site.chooser().version("pool")
    machine = dataclasses.replace(engine_choice.this_machine(), **other)
    monkeypatch.setattr(engine_choice, "this_machine", lambda: machine)
    site.chooser().version("pool")
    assert len(races.raced) == 2


def test_other_versions_or_other_threads_are_another_choice(
    site: Site, registry: ModelRegistry, races: Races, tmp_path: Path
) -> None:
    site.chooser().version("pool")
    site.chooser(threads=1).version("pool")
    assert len(races.raced) == 2
    again = write_pooling_artifact(tmp_path / "again", precision="int8", derived_from="pool@1", seed=5)
    registry.publish(again.folder, "pool")
    assert site.chooser().version("pool") == ModelVersion("pool", 3)
    assert len(races.raced) == 3


@pytest.mark.parametrize("content", [b"", b"garbage"])
def test_a_choice_that_cannot_be_read_is_made_again(site: Site, races: Races, content: bytes) -> None:
    site.chooser().version("pool")
    (kept,) = (site.cache / "choices").iterdir()
    kept.write_bytes(content)
    site.chooser().version("pool")
    assert len(races.raced) == 2


def test_a_choice_of_another_program_version_is_made_again(site: Site, races: Races) -> None:
    answer = json.dumps({"precision": "f4", "streams": 1})
    chooser = site.chooser()
    chooser.version("pool")
    (kept,) = (site.cache / "choices").iterdir()
    assert chooser._cache is not None
    chooser._cache.store(kept.stem, answer.encode())
    assert site.chooser().version("pool") == POOL_2
    assert len(races.raced) == 2


@pytest.mark.parametrize(
    ("models", "version"),
    [
        ({"precision": "f32"}, POOL_1),
        ({"precision": "int8"}, POOL_2),
        ({"engine": "torch"}, POOL_1),
        ({"device": "cuda:0"}, POOL_1),
        ({"engine": "fault_engine:slow:1"}, POOL_1),
    ],
)
def test_where_the_settings_decide_nothing_is_timed(
    site: Site, races: Races, models: dict[str, object], version: ModelVersion
) -> None:
    chooser = site.chooser(**models)
    assert chooser.version("pool") == version
    assert site.tuning(chooser, version) == EngineTuning()
    assert (races.raced, site.cache.exists()) == ([], False)


def test_a_version_that_is_named_by_its_number_is_never_replaced(site: Site, races: Races) -> None:
    races.tuning = EngineTuning("bf16", 1)
    assert site.chooser().version("pool@1") == POOL_1
    assert site.chooser().version("pool@2") == POOL_2
    assert races.raced == [["f32"], ["int8"]]


def test_a_race_that_fails_leaves_the_original_version_and_keeps_nothing(site: Site, races: Races) -> None:
    races.error = RaceError("the process ended with -11")
    chooser = site.chooser()
    assert chooser.version("pool") == POOL_1
    assert site.tuning(chooser, POOL_1) == EngineTuning()
    races.error = None
    assert site.chooser().version("pool") == POOL_2


def test_people_are_told_before_and_after_a_race_only(site: Site) -> None:
    site.chooser().version("pool")
    assert len(site.announced) == 2
    assert site.announced[1] == "pool: int8 128 ms, f32 227 ms at 512x1024"
    site.chooser().version("pool")
    assert len(site.announced) == 2


def test_a_version_that_is_loaded_later_is_not_timed_but_an_earlier_choice_is_used(
    site: Site, races: Races
) -> None:
    lone = ModelVersion("lone", 1)
    assert site.tuning(site.chooser(), lone) == EngineTuning()
    site.chooser().version("lone")
    assert site.tuning(site.chooser(), lone) == races.tuning
    assert len(races.raced) == 1


def test_what_is_known_of_a_model_is_what_was_chosen_here(site: Site, races: Races) -> None:
    chooser = site.chooser()
    assert chooser.known("pool") == (POOL_1, None)
    chooser.version("pool")
    assert chooser.known("pool") == (POOL_2, "int8")
    assert chooser.known("pool@1") == (POOL_1, None)
    assert len(races.raced) == 1


@pytest.mark.parametrize(("precision", "version"), [("f32", POOL_1), ("int8", POOL_2)])
def test_a_precision_of_the_settings_is_known_without_any_race(
    site: Site, precision: Precision, version: ModelVersion
) -> None:
    assert site.chooser(precision=precision).known("pool") == (version, precision)


def test_a_model_that_is_not_there_is_named(site: Site) -> None:
    with pytest.raises(ModelNotFoundError, match="village"):
        site.chooser().version("village")


def test_without_measurements_there_is_nothing_to_describe() -> None:
    assert described(EngineTuning()) == ""


def test_each_precision_is_described_once_by_its_best_time() -> None:
    choice = (*MEASURED, EngineChoice("int8", 1, 1, 250.0))
    assert described(EngineTuning(choice=choice)) == "int8 128 ms, f32 227 ms at 512x1024"


def test_the_engines_of_a_model_are_timed_in_a_process_of_their_own(
    registry: ModelRegistry, tmp_path: Path
) -> None:
    models = {"device": "cpu", "cache_folder": tmp_path / "cache"}
    settings = load_settings(flags={"models": models}, environment={"HOME": "/"})
    chooser = EngineChooser(settings, registry)
    version = chooser.version("pool", budget_s=0.1)
    tuning = chooser.tuning(version, registry.open(version).manifest)
    assert {"int8", "f32"} <= {one.precision for one in tuning.choice}
    assert version == (POOL_2 if tuning.precision == "int8" else POOL_1)


@pytest.mark.parametrize("damage", ["golden", "folder"])
def test_a_process_that_cannot_time_says_why_and_fails(
    registry: ModelRegistry, tmp_path: Path, damage: str
) -> None:
    artifact = registry.open(POOL_1)
    folder = artifact.folder if damage == "golden" else tmp_path / "nothing"
    if damage == "golden":
        artifact.path("golden.npz").write_bytes(b"")
    options = EngineOptions("cpu", "auto", tmp_path / "cache")
    config = RaceConfig((folder,), options, 0.1, LogOptions(format="json"))
    command = [sys.executable, "-m", "service.race_process", config.to_json()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert json.loads(done.stderr)["event"] == "engines cannot be timed"
    with pytest.raises(RaceError, match="ended with 1"):
        engine_choice._race_process(LogSettings(), [Artifact(folder, artifact.manifest)], options, 0.1)
