from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from fakes import FakeEngine, write_pooling_artifact
from fault_engine import FaultEngine
from fault_engine import build as build_faulty
from hypothesis import given, settings
from hypothesis import strategies as st
from job_site import MODEL, write_dataset
from PIL import Image

from model.artifacts.artifact import Artifact
from model.artifacts.evaluation_records import EvaluationStore
from model.artifacts.manifest import ModelVersion
from model.artifacts.registry import ModelRegistry
from model.decoding import decode
from model.errors import StorageError
from model.evaluation.metrics import ConfusionMatrix, confusion_matrix
from model.evaluation.network_passes import segment
from model.evaluation.protocols import find_protocol
from service.core.device.device import Device
from service.core.device.engine import EngineInfo, EngineOptions, InferenceEngine, Precision
from service.core.device.in_process import InProcessRunner
from service.core.errors import (
    DeadlineExceededError,
    ModelNotFoundError,
    NoWorkerError,
    QueueFullError,
    ServiceError,
    VersionNotFoundError,
)
from service.core.jobs.evaluation_job import EvaluationRequest
from service.core.jobs.evaluation_steps import Datasets, EvaluationSteps
from service.core.jobs.job import JobError, JobHeldUpError, JobInterruptedError, JobPlan, JsonObject
from service.core.jobs.job_models import JobModels
from service.core.models.loaded_model import LoadedModel
from service.core.models.model_host import ModelHost
from service.core.scheduling.dispatcher import Dispatcher

IMAGES = 12
ENVIRONMENT: JsonObject = {"processor": "made up", "versions": {"numpy": "1"}}
POOL_1, POOL_2 = ModelVersion(MODEL, 1), ModelVersion(MODEL, 2)
OTHER = ModelVersion("other", 1)
REQUEST = EvaluationRequest(POOL_1, "noise", "val", "ss")


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> ModelRegistry:
    folder = tmp_path_factory.mktemp("registry")
    registry = ModelRegistry(folder / "registry")
    for seed, name in ((1, MODEL), (2, MODEL), (3, OTHER.name)):
        registry.publish(write_pooling_artifact(folder / str(seed), seed=seed).folder, name)
    return registry


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "noise", IMAGES)


@pytest.fixture
def host(registry: ModelRegistry, tmp_path: Path) -> Iterator[ModelHost]:
    decode.warm_up()
    options = EngineOptions("cpu", "f32", tmp_path / "cache", arguments="slow:0")
    host = ModelHost(Dispatcher(InProcessRunner(Device(build_faulty, options))))
    host.load(POOL_1, registry.open(POOL_1))
    yield host
    host.close()


@pytest.fixture
def open_work(host: ModelHost, registry: ModelRegistry) -> Iterator[Callable[[Path], EvaluationSteps]]:
    with ThreadPoolExecutor(2) as pool:
        yield lambda file: steps_on(lambda: nullcontext(host), registry, Datasets({"noise": file}), pool)


@pytest.fixture
def work(open_work: Callable[[Path], EvaluationSteps], dataset: Path) -> EvaluationSteps:
    return open_work(dataset)


def steps_on(
    open_host: Callable[[], AbstractContextManager[ModelHost]],
    registry: ModelRegistry,
    datasets: Datasets,
    pool: ThreadPoolExecutor,
) -> EvaluationSteps:
    models = JobModels(open_host, registry, environment=ENVIRONMENT)
    return EvaluationSteps(models, registry, datasets, pool)


def ours() -> None:
    """Say that the job was not cancelled."""


def matrix_of(counts: list[JsonObject]) -> ConfusionMatrix:
    total = np.zeros(4, np.int64)
    for image in (image for part in counts for image in part["images"]):
        total[image["cells"]] += image["pixels"]
    return ConfusionMatrix(total.reshape(2, 2))


@pytest.mark.parametrize("protocol", ["ss", "msf", "slide"])
def test_a_job_counts_what_the_protocol_says(
    work: EvaluationSteps, registry: ModelRegistry, dataset: Path, tmp_path: Path, protocol: str
) -> None:
    request = replace(REQUEST, protocol=protocol)
    plan = work.plan_job(request)
    counted = matrix_of([work.process_images(request, plan, range(IMAGES))])

    artifact = registry.open(POOL_1)
    engine = build_faulty(artifact, EngineOptions("cpu", "f32", tmp_path, arguments="slow:0"))
    expected = ConfusionMatrix.zeros(2)
    for index in range(IMAGES):
        image_HW3 = np.asarray(Image.open(dataset.parent / f"{index}.png"))
        truth_HW = np.asarray(Image.open(dataset.parent / f"{index}-ids.png"))
        guess_HW = segment(image_HW3, find_protocol(protocol), engine.infer, artifact.manifest)
        expected += confusion_matrix(truth_HW, guess_HW, num_classes=2)
    assert (counted.counts_KK == expected.counts_KK).all()
    assert counted.pixels == IMAGES * 32 * 64


def test_however_a_job_is_cut_its_result_is_the_same(work: EvaluationSteps) -> None:
    plan = work.plan_job(REQUEST)
    counts = [work.process_images(REQUEST, plan, range(IMAGES))]
    whole = work.finish_job("whole", REQUEST, plan, counts, confirm=ours)

    @settings(max_examples=5)
    @given(st.sets(st.integers(1, IMAGES - 1)))
    def check(cuts: set[int]) -> None:
        edges = [0, *sorted(cuts), IMAGES]
        parts = [work.process_images(REQUEST, plan, range(a, b)) for a, b in pairwise(edges)]
        through_the_database = json.loads(json.dumps(parts))
        assert work.finish_job("parts", REQUEST, plan, through_the_database, confirm=ours) == whole

    check()


def test_the_report_lies_beside_the_model_and_says_where_it_comes_from(
    work: EvaluationSteps, registry: ModelRegistry
) -> None:
    plan = work.plan_job(REQUEST)
    counts = [work.process_images(REQUEST, plan, range(IMAGES))]
    result = work.finish_job("beside", REQUEST, plan, counts, confirm=ours)
    (stored,) = [one for one in registry.evaluations.of_model(MODEL) if one.job == "beside"]
    assert (stored.version, stored.dataset, stored.split, stored.protocol) == (POOL_1, "noise", "val", "ss")
    assert (stored.miou, stored.digest, stored.images) == (result.miou, result.digest, IMAGES)
    assert re.fullmatch(r".*\.\d{3}\+00:00", stored.finished_at)  # the newest of two is told within a second
    assert result.miou == matrix_of(counts).miou
    assert list(result.per_class) == ["dark", "bright"]
    page = registry.evaluations.page(MODEL, "beside")
    assert page is not None
    assert page.count(b"<img") == 4 * 6  # the worst six: picture, truth, prediction, difference


def test_a_job_that_is_cancelled_while_its_report_is_made_stores_none(
    work: EvaluationSteps, registry: ModelRegistry
) -> None:
    class CancelledError(BaseException):
        pass

    def cancelled() -> None:
        raise CancelledError

    plan = work.plan_job(REQUEST)
    counts = [work.process_images(REQUEST, plan, range(IMAGES))]
    with pytest.raises(CancelledError):
        work.finish_job("cancelled", REQUEST, plan, counts, confirm=cancelled)
    assert registry.evaluations.page(MODEL, "cancelled") is None


def test_a_picture_that_is_missing_or_counted_twice_is_noticed(work: EvaluationSteps) -> None:
    plan = work.plan_job(REQUEST)
    counts = [work.process_images(REQUEST, plan, range(IMAGES - 1))]
    with pytest.raises(JobError, match="are missing"):
        work.finish_job("less", REQUEST, plan, counts, confirm=ours)
    with pytest.raises(JobError, match="twice"):
        work.finish_job(
            "more",
            REQUEST,
            plan,
            [*counts, work.process_images(REQUEST, plan, range(IMAGES - 2, IMAGES))],
            confirm=ours,
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dataset": "letters"}, "no data set 'letters' is configured"),
        ({"dataset": "../noise"}, "no data set '../noise' is configured"),
        ({"split": "train"}, "noise has no split 'train', only val"),
        ({"protocol": "guess"}, "no protocol is called 'guess'"),
        ({"version": ModelVersion(MODEL, 9)}, "no version pool@9"),
        ({"version": ModelVersion("nobody", 1)}, "no version nobody@1"),
    ],
)
def test_what_is_not_there_is_named(work: EvaluationSteps, change: dict[str, object], message: str) -> None:
    with pytest.raises(JobError) as failure:
        work.plan_job(replace(REQUEST, **change))  # type: ignore[arg-type]
    assert str(failure.value).startswith(message)


def test_a_model_of_other_classes_is_refused(
    open_work: Callable[[Path], EvaluationSteps], dataset: Path
) -> None:
    other = dataset.with_name("other.toml")
    other.write_text(dataset.read_text().replace("dark", "black"))
    with pytest.raises(JobError, match="class 0 of pool@1 is 'dark', of noise 'black'"):
        open_work(other).plan_job(REQUEST)


@pytest.mark.parametrize("pin", ["engine", "device", "weights", "environment", "list", "labelling"])
def test_a_worker_that_is_another_one_does_not_go_on_with_a_job(work: EvaluationSteps, pin: str) -> None:
    plan = work.plan_job(REQUEST)
    other = replace(plan, pins=plan.pins | {pin: "other"})
    with pytest.raises(JobError, match=f"the job began with another {pin} than this worker has"):
        work.process_images(REQUEST, other, range(1))


def test_labels_that_come_to_mean_something_else_are_not_mixed(
    open_work: Callable[[Path], EvaluationSteps], tmp_path: Path
) -> None:
    file = write_dataset(tmp_path / "data", IMAGES)
    plan = open_work(file).plan_job(REQUEST)
    for change in ("ignore_id = 7\n", "label_map = { 0 = 1, 1 = 0 }\n"):
        other = file.with_name("other.toml")
        other.write_text(change + file.read_text())
        with pytest.raises(JobError, match="the job began with another labelling"):
            open_work(other).process_images(REQUEST, plan, range(1))


def test_a_worker_that_had_opened_an_older_list_opens_it_again(
    open_work: Callable[[Path], EvaluationSteps], tmp_path: Path
) -> None:
    file = write_dataset(tmp_path / "data", IMAGES)
    old = open_work(file)
    old.plan_job(REQUEST)
    lines = (file.parent / "val.csv").read_text().splitlines(keepends=True)
    (file.parent / "val.csv").write_text("".join(lines[:3]))
    plan = open_work(file).plan_job(REQUEST)
    assert len(old.process_images(REQUEST, plan, range(3))["images"]) == 3


def test_files_that_are_changed_while_a_job_runs_fail_it(
    open_work: Callable[[Path], EvaluationSteps], registry: ModelRegistry, tmp_path: Path
) -> None:
    file = write_dataset(tmp_path / "data", IMAGES)
    work = open_work(file)
    plan = work.plan_job(REQUEST)
    counts = [work.process_images(REQUEST, plan, range(IMAGES))]
    (file.parent / "3-ids.png").write_bytes((file.parent / "4-ids.png").read_bytes())
    with pytest.raises(JobError, match="files of noise val were changed: submit the job again"):
        work.finish_job("changed", REQUEST, plan, counts, confirm=ours)
    assert registry.evaluations.page(MODEL, "changed") is None


def test_where_a_worker_has_the_data_set_is_no_other_list(
    open_work: Callable[[Path], EvaluationSteps], work: EvaluationSteps, tmp_path: Path
) -> None:
    elsewhere = write_dataset(tmp_path / "elsewhere", IMAGES)
    plan = work.plan_job(REQUEST)
    assert open_work(elsewhere).process_images(REQUEST, plan, range(1)) == work.process_images(
        REQUEST, plan, range(1)
    )


def test_which_of_several_gpus_a_worker_has_is_no_other_device(
    registry: ModelRegistry, dataset: Path, tmp_path: Path
) -> None:
    def work_on(device: str, pool: ThreadPoolExecutor, stack: ExitStack) -> EvaluationSteps:
        options = EngineOptions(device, "f32", tmp_path / device, arguments="slow:0")
        host = ModelHost(Dispatcher(InProcessRunner(Device(build_faulty, options))))
        stack.callback(host.close)
        return steps_on(lambda: nullcontext(host), registry, Datasets({"noise": dataset}), pool)

    with ThreadPoolExecutor(2) as pool, ExitStack() as stack:
        first, second, cpu = (work_on(device, pool, stack) for device in ("cuda:0", "cuda:1", "cpu"))
        plan = first.plan_job(REQUEST)
        assert second.process_images(REQUEST, plan, range(1)) == first.process_images(REQUEST, plan, range(1))
        with pytest.raises(JobError, match="another device"):
            cpu.process_images(REQUEST, plan, range(1))


class PrecisionBuilder:
    """Builds engines of any precision and keeps it."""

    def __init__(self) -> None:
        self.precisions: list[str] = []

    def __call__(self, artifact: Artifact, options: EngineOptions) -> InferenceEngine:
        assert options.precision != "int8"
        precision: Precision = "bf16" if options.precision == "auto" else options.precision
        self.precisions.append(precision)
        return FaultEngine(artifact.manifest, (), EngineInfo("fault", "cpu", precision))


@pytest.fixture
def other_precisions(
    registry: ModelRegistry, dataset: Path, tmp_path: Path
) -> Iterator[tuple[EvaluationSteps, ModelHost, PrecisionBuilder]]:
    build = PrecisionBuilder()
    options = EngineOptions("cpu", "auto", tmp_path / "cache")
    host = ModelHost(Dispatcher(InProcessRunner(Device(build, options))))
    with ThreadPoolExecutor(2) as pool:
        datasets = Datasets({"noise": dataset})
        work = steps_on(lambda: nullcontext(host), registry, datasets, pool)
        yield work, host, build
    host.close()


def test_every_worker_computes_in_the_precision_of_the_request(
    other_precisions: tuple[EvaluationSteps, ModelHost, PrecisionBuilder],
) -> None:
    work, _, build = other_precisions
    request = replace(REQUEST, precision="f16")
    plan = work.plan_job(request)
    work.process_images(request, plan, range(1))
    assert (plan.pins["precision"], build.precisions) == ("f16", ["f16"])


def test_of_a_request_without_precision_all_workers_take_that_of_the_first(
    other_precisions: tuple[EvaluationSteps, ModelHost, PrecisionBuilder], work: EvaluationSteps
) -> None:
    another_worker, _, build = other_precisions
    plan = work.plan_job(REQUEST)
    assert plan.pins["precision"] == "f32"
    another_worker.process_images(REQUEST, plan, range(1))
    assert build.precisions == ["f32"]


def test_two_jobs_on_one_version_have_each_its_own_precision(
    other_precisions: tuple[EvaluationSteps, ModelHost, PrecisionBuilder],
) -> None:
    work, _, build = other_precisions
    work.plan_job(replace(REQUEST, precision="f16"))
    work.plan_job(replace(REQUEST, precision="f32"))
    assert build.precisions == ["f16", "f32"]


def test_a_version_that_is_served_in_another_precision_fails_the_job(
    other_precisions: tuple[EvaluationSteps, ModelHost, PrecisionBuilder], registry: ModelRegistry
) -> None:
    work, host, _ = other_precisions
    host.load(POOL_1, registry.open(POOL_1))
    with pytest.raises(JobError, match=f"needs {POOL_1} in f32, and this worker serves it in bf16"):
        work.plan_job(replace(REQUEST, precision="f32"))


def test_a_step_is_a_few_seconds_of_work(work: EvaluationSteps) -> None:
    assert work.plan_job(REQUEST).images_per_step == 8
    assert work.plan_job(replace(REQUEST, protocol="mscf")).images_per_step == 1


def test_a_version_that_is_not_served_is_borrowed_for_the_job(work: EvaluationSteps, host: ModelHost) -> None:
    request = replace(REQUEST, version=POOL_2)
    plan = work.plan_job(request)
    assert host.has(POOL_2)
    assert [served.version for served in host.models] == [POOL_1]  # the served models do not change
    with pytest.raises(VersionNotFoundError):
        host.find(MODEL, 2)
    counts = [work.process_images(request, plan, range(IMAGES))]
    work.finish_job("borrowed", request, plan, counts, confirm=ours)
    work.release_idle()
    assert not host.has(POOL_2)
    assert host.find(MODEL).version == POOL_1


def test_a_version_that_comes_to_be_served_meanwhile_is_not_taken_away(
    work: EvaluationSteps, host: ModelHost, registry: ModelRegistry
) -> None:
    work.plan_job(replace(REQUEST, version=POOL_2))
    host.load(POOL_2, registry.open(POOL_2))
    work.release_idle()
    assert host.find(MODEL, 2).version == POOL_2


def test_a_model_that_only_a_job_wanted_has_no_name_afterwards(
    work: EvaluationSteps, host: ModelHost
) -> None:
    work.plan_job(replace(REQUEST, version=OTHER))
    with pytest.raises(ModelNotFoundError):
        host.find(OTHER.name)
    work.release_idle()
    assert not host.has(OTHER)


def test_a_version_that_somebody_unloads_between_two_steps_is_loaded_again(
    work: EvaluationSteps, host: ModelHost
) -> None:
    request = replace(REQUEST, version=POOL_2)
    plan = work.plan_job(request)
    host.unload(POOL_2)
    assert work.process_images(request, plan, range(1))["images"]


@contextmanager
def noted(host: ModelHost, notes: list[str]) -> Iterator[ModelHost]:
    notes.append("opened")
    yield host
    notes.append("closed")


def test_the_host_is_there_as_long_as_jobs_need_it(
    host: ModelHost, registry: ModelRegistry, dataset: Path
) -> None:
    notes: list[str] = []
    with ThreadPoolExecutor(1) as pool:
        datasets = Datasets({"noise": dataset})
        models = JobModels(lambda: noted(host, notes), registry, environment=ENVIRONMENT)
        work = EvaluationSteps(models, registry, datasets, pool)
        assert not notes
        work.plan_job(REQUEST)
        work.plan_job(replace(REQUEST, version=POOL_2))
        assert notes == ["opened"]
        work.release_idle()
        assert notes == ["opened", "closed"]
        work.plan_job(REQUEST)
        models.close()
        assert notes == ["opened", "closed"] * 2


def test_a_step_that_does_not_end_holds_no_stop_up(host: ModelHost, registry: ModelRegistry) -> None:
    models = JobModels(lambda: nullcontext(host), registry, environment=ENVIRONMENT)
    with models.loaded(POOL_1, None):
        models.close(timeout_s=0.01)
        assert host.has(POOL_1)


def test_a_job_that_is_stopped_is_given_up_before_the_next_picture(work: EvaluationSteps) -> None:
    plan = work.plan_job(REQUEST)
    work.stop()
    with pytest.raises(JobInterruptedError):
        work.process_images(REQUEST, plan, range(IMAGES))


def test_a_host_that_closes_interrupts_the_job(work: EvaluationSteps, host: ModelHost) -> None:
    plan = work.plan_job(REQUEST)
    host.close()
    with pytest.raises(JobInterruptedError):
        work.process_images(REQUEST, plan, range(IMAGES))


# What can be wrong with the files of a pair: 12 ways.


def _rgb(size: tuple[int, int]) -> Image.Image:
    return Image.new("RGB", size, (9, 8, 7))


def _jpeg(size: tuple[int, int]) -> bytes:
    stream = io.BytesIO()
    _gray(size).save(stream, "JPEG")
    return stream.getvalue()


def _gray(size: tuple[int, int], value: int = 0, mode: str = "L") -> Image.Image:
    return Image.new(mode, size, value)


def _spoil(name: str, make: Callable[[], Image.Image]) -> Callable[[Path], None]:
    return lambda root: make().save(root / name)


def _write(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def spoil(root: Path) -> None:
        (root / name).write_bytes(change((root / name).read_bytes()))

    return spoil


BROKEN = {
    "labels of another size": (_spoil("3-ids.png", lambda: _gray((64, 31))), "3-ids.png"),
    "labels turned by a quarter": (_spoil("3-ids.png", lambda: _gray((32, 64))), "3-ids.png"),
    "colours instead of ids": (_spoil("3-ids.png", lambda: _rgb((64, 32))), "3-ids.png"),
    "an id that is no class": (_spoil("3-ids.png", lambda: _gray((64, 32), 2)), "3-ids.png"),
    "16-bit labels": (_spoil("3-ids.png", lambda: _gray((64, 32), 257, "I;16")), "3-ids.png"),
    "jpeg labels": (_write("3-ids.png", lambda _: _jpeg((64, 32))), "3-ids.png"),
    "transparent labels": (_spoil("3-ids.png", lambda: Image.new("LA", (64, 32), (1, 0))), "3-ids.png"),
    "truncated labels": (_write("3-ids.png", lambda data: data[: len(data) // 2]), "3-ids.png"),
    "no labels": (lambda root: (root / "3-ids.png").unlink(), "3-ids.png"),
    "empty labels": (_write("3-ids.png", lambda _: b""), "3-ids.png"),
    "a truncated picture": (_write("3.png", lambda data: data[:200]), "3.png"),
    "no picture": (lambda root: (root / "3.png").unlink(), "3.png"),
}


def test_there_are_twelve_ways_to_be_broken() -> None:
    assert len(BROKEN) == 12


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_pair_fails_the_job_by_name_or_is_left_out_and_counted(
    open_work: Callable[[Path], EvaluationSteps], tmp_path: Path, kind: str
) -> None:
    spoil, culprit = BROKEN[kind]
    file = write_dataset(tmp_path / "data", IMAGES)
    whole = open_work(file)
    plan = whole.plan_job(REQUEST)
    counts = whole.process_images(REQUEST, plan, range(IMAGES))
    spoil(file.parent)

    work = open_work(file)
    with pytest.raises(JobError) as failure:
        work.process_images(REQUEST, work.plan_job(REQUEST), range(IMAGES))
    assert culprit in str(failure.value)
    assert str(tmp_path) not in str(failure.value)

    request = replace(REQUEST, skip_broken=True)
    plan = work.plan_job(request)
    some = work.process_images(request, plan, range(IMAGES))
    assert [image["index"] for image in some["skipped"]] == [3]
    assert str(tmp_path) not in some["skipped"][0]["reason"]
    assert some["images"] == [image for image in counts["images"] if image["index"] != 3]
    result = work.finish_job(kind.replace(" ", "-"), request, plan, [some], confirm=ours)
    assert (result.images, result.skipped) == (IMAGES - 1, ("3.png",))


def test_a_list_that_leads_out_of_the_data_set_is_refused_without_telling_where_it_is(
    open_work: Callable[[Path], EvaluationSteps], tmp_path: Path
) -> None:
    file = write_dataset(tmp_path / "data", 1)
    (file.parent / "val.csv").write_text("../secret.png,0-ids.png\n")
    (tmp_path / "secret.png").write_bytes((file.parent / "0.png").read_bytes())
    with pytest.raises(JobError) as failure:
        open_work(file).plan_job(REQUEST)
    assert str(failure.value) == "val.csv:1: ../secret.png: does not lie in the folder 'data'"


WITHOUT_PICTURES = (
    'name = "noise"\n[splits]\nval = { images = "*.jpg", labels = "*-ids.png" }\n'
    '[[classes]]\nname = "dark"\ncolor = [0, 0, 0]\n'
)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "noise.toml: cannot be read: [Errno 2] No such file or directory: 'noise.toml'"),
        ("name", "noise.toml: not TOML: "),
        ('name = "noise"\nroot = 3\n', "noise.toml: root must be a string, not 3"),
        (WITHOUT_PICTURES, "no picture matches *.jpg: data holds 2 .png (0-ids.png, 0.png)"),
    ],
)
def test_what_is_wrong_with_a_data_set_is_told_without_where_it_is(
    open_work: Callable[[Path], EvaluationSteps], tmp_path: Path, content: str | None, message: str
) -> None:
    file = write_dataset(tmp_path / "data", 1)
    if content is None:
        file.unlink()
    else:
        file.write_text(content)
    with pytest.raises(JobError) as failure:
        open_work(file).plan_job(REQUEST)
    assert str(failure.value).startswith(message)
    assert str(tmp_path) not in str(failure.value)


@pytest.mark.parametrize(
    "failure",
    [
        QueueFullError("too many wait"),
        NoWorkerError("no worker could be started"),
        DeadlineExceededError("too late"),
    ],
)
def test_what_passes_by_itself_holds_the_job_up(
    work: EvaluationSteps, monkeypatch: pytest.MonkeyPatch, failure: ServiceError
) -> None:
    plan = work.plan_job(REQUEST)

    def refuse(*_: object, **__: object) -> None:
        raise failure

    monkeypatch.setattr(LoadedModel, "infer", refuse)
    with pytest.raises(JobHeldUpError, match=str(failure)):
        work.process_images(REQUEST, plan, range(1))


def test_a_registry_that_fails_holds_the_job_up_and_is_not_shown(
    work: EvaluationSteps, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise StorageError("/secret/folder/x: No space left on device")

    plan = work.plan_job(REQUEST)
    counts = [work.process_images(REQUEST, plan, range(IMAGES))]
    monkeypatch.setattr(EvaluationStore, "add", refuse)
    with pytest.raises(JobHeldUpError) as failure:
        work.finish_job("held-up", REQUEST, plan, counts, confirm=ours)
    assert "secret" not in str(failure.value)


def test_a_model_that_produces_no_scores_fails_the_job(
    registry: ModelRegistry, dataset: Path, tmp_path: Path
) -> None:
    def build(_artifact: object, _options: object) -> InferenceEngine:
        return FakeEngine(answer=lambda images: np.full((len(images), 2, 4, 8), np.nan, np.float32))

    host = ModelHost(Dispatcher(InProcessRunner(Device(build, EngineOptions("cpu", "f32", tmp_path)))))
    host.load(POOL_1, registry.open(POOL_1))
    with ThreadPoolExecutor(2) as pool:
        work = steps_on(lambda: nullcontext(host), registry, Datasets({"noise": dataset}), pool)
        plan: JobPlan = work.plan_job(REQUEST)
        with pytest.raises(JobError, match="finite"):
            work.process_images(REQUEST, plan, range(IMAGES))
    host.close()
