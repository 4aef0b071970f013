"""Races of engines and their choice, with engines whose durations a script states."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
from fakes import FAKE_MANIFEST, write_pooling_artifact

from model.artifacts.artifact import Artifact
from model.errors import GoldenMismatchError
from model.pictures.preprocess import ImageSize
from service.core.device.engine import (
    EngineChoice,
    EngineInfo,
    EngineOptions,
    EngineTuning,
    EngineUnavailableError,
    ImageBatch,
    Precision,
)
from service.engines import choice
from service.engines.choice import choose

ORIGINAL = Artifact(Path("original"), FAKE_MANIFEST)
INT8 = Artifact(Path("int8"), dataclasses.replace(FAKE_MANIFEST, precision="int8"))
OPTIONS = EngineOptions("cpu", "auto", Path("nowhere"), max_batch=2)
SIZE = ImageSize(32, 64)


@dataclasses.dataclass
class Processor:
    """How long engines take here.

    Attributes:
        picture_s: of each precision, on the default number of threads.
        speedup: of each other number of threads.
        pair_speedup: of two streams.
        threads: the default number.
        cores: that may be used.
        wrong: precisions that miss the golden sample.
    """

    picture_s: dict[Precision, float]
    speedup: dict[int | None, float] = dataclasses.field(default_factory=dict)
    pair_speedup: float = 1.0
    threads: int = 2
    cores: int = 2
    wrong: tuple[Precision, ...] = ()
    now_s: float = 0.0
    runs: int = 0
    open: int = 0
    artifacts: dict[Precision, str] = dataclasses.field(default_factory=dict)

    def engine(self, artifact: Artifact, options: EngineOptions, precision: Precision) -> ScriptedEngine:
        if precision in self.wrong:
            raise GoldenMismatchError("wrong")
        self.open += 1
        self.artifacts[precision] = artifact.folder.name
        return ScriptedEngine(self, options, precision)


class ScriptedEngine:
    def __init__(self, processor: Processor, options: EngineOptions, precision: Precision) -> None:
        self.info = EngineInfo("openvino", "cpu", precision)
        self.threads = options.threads or processor.threads
        self._processor = processor
        self._options = options

    def infer(self, images_NHW3: ImageBatch) -> None:
        processor = self._processor
        seconds = len(images_NHW3) * processor.picture_s[self.info.precision]
        seconds /= processor.speedup.get(self._options.threads, 1.0)
        if len(images_NHW3) == self._options.streams == 2:
            seconds /= processor.pair_speedup
        processor.now_s += seconds
        processor.runs += 1

    def close(self) -> None:
        self._processor.open -= 1


Choose = Callable[..., EngineTuning]


@pytest.fixture
def choose_on(monkeypatch: pytest.MonkeyPatch) -> Choose:
    def choose_on(processor: Processor, *artifacts: Artifact, **changes: int) -> EngineTuning:
        native = tuple(processor.picture_s)
        monkeypatch.setattr(choice, "OpenVinoEngine", processor.engine)
        monkeypatch.setattr(choice, "precisions", lambda _: native)
        monkeypatch.setattr(choice, "usable_cores", lambda: processor.cores)
        options = dataclasses.replace(OPTIONS, **changes)
        tuning = choose(artifacts or (ORIGINAL, INT8), options, size=SIZE, clock=lambda: processor.now_s)
        assert processor.open == 0
        return tuning

    return choose_on


def test_the_fastest_precision_is_chosen_and_all_are_told(choose_on: Choose) -> None:
    processor = Processor({"bf16": 0.15, "f32": 0.227, "f16": 0.3, "int8": 0.128})
    tuning = choose_on(processor)
    assert tuning == EngineTuning(
        "int8",
        streams=1,
        threads=None,
        choice=(
            EngineChoice("int8", 1, 2, 128.0),
            EngineChoice("bf16", 1, 2, 150.0),
            EngineChoice("f32", 1, 2, 227.0),
            EngineChoice("f16", 1, 2, 300.0),
        ),
    )
    assert processor.artifacts == {"f32": "original", "bf16": "original", "f16": "original", "int8": "int8"}


def test_the_more_exact_precision_is_chosen_unless_another_is_faster_by_more_than_five_percent(
    choose_on: Choose,
) -> None:
    assert choose_on(Processor({"f32": 0.104, "bf16": 0.1, "int8": 0.1})).precision == "f32"
    assert choose_on(Processor({"f32": 0.106, "bf16": 0.104, "int8": 0.1})).precision == "int8"


def test_a_precision_that_misses_the_golden_sample_has_no_part(choose_on: Choose) -> None:
    tuning = choose_on(Processor({"f32": 0.2, "bf16": 0.05, "int8": 0.1}, wrong=("bf16",)))
    assert [one.precision for one in tuning.choice] == ["int8", "f32"]


def test_a_version_alone_is_raced_in_its_own_precisions(choose_on: Choose) -> None:
    times: dict[Precision, float] = {"f32": 0.2, "bf16": 0.1, "int8": 0.05}
    assert choose_on(Processor(times), ORIGINAL).precision == "bf16"
    assert choose_on(Processor(times), INT8).choice == (EngineChoice("int8", 1, 2, 50.0),)


def test_a_model_that_misses_its_golden_sample_in_every_precision_is_refused(choose_on: Choose) -> None:
    with pytest.raises(EngineUnavailableError, match="golden sample"):
        choose_on(Processor({"f32": 0.2, "int8": 0.1}, wrong=("f32", "int8")))


@pytest.mark.parametrize(
    ("speedup", "threads", "told"),
    [
        ({}, 4, 4),  # equally fast: the fewer threads leave cores to the rest of the service
        ({None: 1.8, 16: 1.85}, None, 8),
        ({None: 1.8, 16: 2.2}, 16, 16),
    ],
)
def test_more_threads_are_taken_where_they_pay(
    choose_on: Choose, speedup: dict[int | None, float], threads: int | None, told: int
) -> None:
    tuning = choose_on(Processor({"f32": 0.2}, speedup, threads=8, cores=16), ORIGINAL)
    assert tuning.threads == threads
    assert tuning.choice[0].threads == told
    assert sorted(one.threads for one in tuning.choice) == [4, 8, 16]


def test_the_times_of_all_races_are_on_the_scale_of_the_first(choose_on: Choose) -> None:
    class SlowsDown(Processor):
        def engine(self, *arguments: object) -> ScriptedEngine:
            if self.runs:  # the first race is over
                self.picture_s = {"f32": 0.8}
            return super().engine(*arguments)  # type: ignore[arg-type]

    tuning = choose_on(SlowsDown({"f32": 0.2}, {None: 1.0, 4: 2.0}, threads=2, cores=4), ORIGINAL)
    assert [(one.threads, one.latency_ms) for one in tuning.choice] == [(4, 100.0), (2, 200.0)]


@pytest.mark.parametrize(("pair_speedup", "streams"), [(1.04, 1), (1.07, 2)])
def test_two_streams_are_taken_where_a_pair_is_faster_by_more_than_five_percent(
    choose_on: Choose, pair_speedup: float, streams: int
) -> None:
    tuning = choose_on(Processor({"f32": 0.2}, pair_speedup=pair_speedup), ORIGINAL)
    assert tuning.streams == tuning.choice[0].streams == streams
    assert tuning.choice[0].latency_ms == 200.0  # of a picture alone


def test_one_thread_or_one_picture_at_a_time_has_one_stream(choose_on: Choose) -> None:
    assert choose_on(Processor({"f32": 0.2}, pair_speedup=2.0, threads=1, cores=1), ORIGINAL).streams == 1
    assert choose_on(Processor({"f32": 0.2}, pair_speedup=2.0), ORIGINAL, max_batch=1).streams == 1


def test_threads_and_streams_that_the_options_name_are_not_raced(choose_on: Choose) -> None:
    processor = Processor({"f32": 0.2}, {4: 0.5}, pair_speedup=0.5, threads=8, cores=16)
    tuning = choose_on(processor, ORIGINAL, threads=4, streams=2)
    assert (tuning.streams, tuning.threads) == (2, None)
    assert tuning.choice == (EngineChoice("f32", 2, 4, 400.0),)


def test_all_measurements_together_take_at_most_fifteen_seconds(choose_on: Choose) -> None:
    processor = Processor({"f32": 0.100, "bf16": 0.100, "f16": 0.100, "int8": 0.100}, threads=8, cores=16)
    flicker = iter(range(10**6))
    engine = processor.engine

    def build(artifact: Artifact, options: EngineOptions, precision: Precision) -> ScriptedEngine:
        built = engine(artifact, options, precision)
        infer = built.infer

        def flickering(images_NHW3: ImageBatch) -> None:
            infer(images_NHW3)
            processor.now_s += 0.05 * (next(flicker) % 3)

        built.infer = flickering  # type: ignore[method-assign]
        return built

    processor.engine = build  # type: ignore[method-assign]
    choose_on(processor)
    first_runs = 4 + 3 + 2
    assert processor.now_s <= 15.0 + first_runs * 0.4


def test_a_real_model_is_raced_in_all_precisions_of_this_processor(tmp_path: Path) -> None:
    artifact = write_pooling_artifact(tmp_path / "artifact")
    options = EngineOptions("cpu", "auto", tmp_path / "cache", max_batch=2)
    tuning = choose([artifact], options, size=SIZE)
    native = set(choice.precisions("cpu")) - {"int8"}
    assert {one.precision for one in tuning.choice} == native
    assert tuning.precision == tuning.choice[0].precision
    assert all(one.latency_ms >= 0 and one.threads >= 1 for one in tuning.choice)
