"""The masks of a bulk prediction, in however many steps and whatever is in the way."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from fakes import FakeEngine, write_pooling_artifact
from fault_engine import MARK_RGB, cell_classes
from fault_engine import build as build_faulty
from PIL import Image

from model.artifacts.artifact import Artifact
from model.artifacts.manifest import ModelVersion
from model.artifacts.registry import ModelRegistry
from model.decoding import decode
from model.labels import UInt8Array
from model.pictures.image import ImageLimits
from service.core.device.device import Device
from service.core.device.engine import EngineOptions, InferenceEngine
from service.core.device.in_process import InProcessRunner
from service.core.errors import QueueFullError
from service.core.jobs.job import JobError, JobHeldUpError, JobInterruptedError, JobPlan, JsonObject
from service.core.jobs.job_models import JobModels
from service.core.jobs.picture_stores import MaskTarget, PictureStores
from service.core.jobs.prediction_job import PredictionOutput, PredictionRequest, PredictionResult
from service.core.jobs.prediction_steps import PredictionSteps
from service.core.models.loaded_model import LoadedModel
from service.core.models.model_host import ModelHost
from service.core.pictures.segmenter import SegmenterLimits
from service.core.scheduling.dispatcher import Dispatcher

POOL = ModelVersion("pool", 1)
REQUEST = PredictionRequest(POOL, "camera", "masks", "labels", "pool")
ENVIRONMENT: JsonObject = {"processor": "made up", "versions": {"numpy": "1"}}
LIMITS = SegmenterLimits()
PICTURES = 9

Build = Callable[[Artifact, EngineOptions], InferenceEngine]
OpenSteps = Callable[..., PredictionSteps]


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> ModelRegistry:
    folder = tmp_path_factory.mktemp("registry")
    registry = ModelRegistry(folder / "registry")
    registry.publish(write_pooling_artifact(folder / "1", seed=1).folder, "pool")
    return registry


@pytest.fixture
def open_steps(registry: ModelRegistry, tmp_path: Path) -> Iterator[OpenSteps]:
    decode.warm_up()
    hosts: list[ModelHost] = []
    with ThreadPoolExecutor(2) as pool:

        def open_steps(build: Build = build_faulty, limits: SegmenterLimits = LIMITS) -> PredictionSteps:
            options = EngineOptions("cpu", "f32", tmp_path / "cache", arguments="slow:0")
            host = ModelHost(Dispatcher(InProcessRunner(Device(build, options))))
            hosts.append(host)
            models = JobModels(lambda: nullcontext(host), registry, environment=ENVIRONMENT)
            stores = PictureStores({"camera": str(tmp_path / "in")}, {"masks": str(tmp_path / "out")})
            return PredictionSteps(models, stores, pool, limits)

        yield open_steps
        for host in hosts:
            host.close()


@pytest.fixture
def steps(open_steps: OpenSteps) -> PredictionSteps:
    return open_steps()


@pytest.fixture
def pictures(tmp_path: Path) -> dict[str, UInt8Array]:
    """Write pictures of noise; return them by name."""
    random = np.random.default_rng(0)
    written = {}
    for index in range(PICTURES):
        name = f"cam{index % 2}/{index}.png"
        written[name] = random.integers(0, 256, (32 + 8 * (index % 3), 64, 3), np.uint8)
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(written[name]).save(tmp_path / "in" / name)
    return written


def ours() -> None:
    """Say that the job was not cancelled."""


def in_steps(
    steps: PredictionSteps, request: PredictionRequest, plan: JobPlan, size: int = 4
) -> list[JsonObject]:
    """Process all pictures of a plan, a few in each step, as they come back from the database."""
    starts = range(0, plan.images, size)
    parts = [range(start, min(start + size, plan.images)) for start in starts]
    outcomes = [steps.process_images(request, plan, part) for part in parts]
    through_the_database: list[JsonObject] = json.loads(json.dumps(outcomes))
    return through_the_database


def run(
    steps: PredictionSteps, request: PredictionRequest = REQUEST, *, job: str = "0", size: int = 4
) -> PredictionResult:
    plan = steps.plan_job(request)
    return steps.finish_job(job, request, plan, in_steps(steps, request, plan, size), confirm=ours)


def files(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def masks(folder: Path) -> dict[str, bytes]:
    return {name: data for name, data in files(folder).items() if name.endswith(".png")}


def manifest_of(folder: Path, result: PredictionResult) -> dict[str, Any]:
    data = (folder / result.manifest).read_bytes()
    assert hashlib.sha256(data).hexdigest() == result.digest
    document: dict[str, Any] = json.loads(data)
    return document


def test_every_picture_gets_the_mask_of_its_labels_and_the_manifest_its_digest(
    steps: PredictionSteps, registry: ModelRegistry, pictures: dict[str, UInt8Array], tmp_path: Path
) -> None:
    result = run(steps)
    written = files(tmp_path / "out")
    assert written.keys() == {*pictures, "manifest-0.json"}  # without the list, and nothing half written
    manifest = registry.open(POOL).manifest
    for name, image_HW3 in pictures.items():
        ids_HW = np.asarray(Image.open(io.BytesIO(written[name])))
        assert ids_HW.shape == image_HW3.shape[:2]
        middles_hw = image_HW3[4::8, 4::8, 0]
        assert (ids_HW[4::8, 4::8] == cell_classes(middles_hw, manifest)).mean() > 0.9
    told = manifest_of(tmp_path / "out", result)
    assert {one["mask"]: one["sha256"] for one in told["written"]} == {
        name: hashlib.sha256(written[name]).hexdigest() for name in pictures
    }
    assert (told["model"], told["precision"], told["output"]) == ("pool@1", "f32", "labels")
    assert (result.written, result.kept, result.failed, result.failures) == (PICTURES, 0, 0, ())


@pytest.mark.parametrize("output", get_args(PredictionOutput))
def test_however_a_job_is_cut_and_repeated_its_files_are_the_same(
    open_steps: OpenSteps, pictures: dict[str, UInt8Array], tmp_path: Path, output: PredictionOutput
) -> None:
    request = replace(REQUEST, output=output)
    run(open_steps(), request, size=PICTURES)
    undisturbed = files(tmp_path / "out")
    assert masks(tmp_path / "out").keys() == pictures.keys()
    (tmp_path / "out").rename(tmp_path / "undisturbed")

    killed = open_steps()
    plan = killed.plan_job(request)
    killed.process_images(request, plan, range(3))  # and dies before that is stored
    resumed = open_steps()
    outcomes = in_steps(resumed, request, plan, size=2)
    results = [resumed.finish_job("0", request, plan, outcomes, confirm=ours) for _ in range(2)]
    assert results[0] == results[1]  # the worker died before the end of the job was stored
    assert files(tmp_path / "out") == undisturbed


def test_bad_pictures_are_listed_by_name_and_stop_nothing(
    steps: PredictionSteps, pictures: dict[str, UInt8Array], tmp_path: Path
) -> None:
    folder = tmp_path / "in"
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff and no more")
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.png").write_bytes(b"this is text")
    (folder / "lost.png").symlink_to("nowhere.png")
    (folder / "notes.txt").write_text("none of them")
    Image.fromarray(pictures["cam0/0.png"]).save(folder / "cam0" / "0.bmp")  # whose mask would be 0.png, too
    result = run(steps)
    assert {(one.picture, one.code) for one in result.failures} == {
        ("broken.jpg", "undecodable_image"),
        ("empty.png", "empty_body"),
        ("text.png", "unsupported_media"),
        ("lost.png", "not_found"),
        ("cam0/0.png", "conflict"),
    }
    assert (result.written, result.failed, result.not_taken) == (PICTURES, 5, {".txt": 1})
    assert len(masks(tmp_path / "out")) == PICTURES
    told = manifest_of(tmp_path / "out", result)
    assert [one["picture"] for one in told["failed"]] == sorted(one.picture for one in result.failures)
    assert str(tmp_path) not in json.dumps(told)


def test_of_many_failures_the_result_has_the_first_and_the_manifest_all(
    steps: PredictionSteps, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    for index in range(30):
        (tmp_path / "in" / f"{index:02}.jpg").write_bytes(b"text")
    result = run(steps)
    assert (result.written, result.failed) == (0, 30)
    assert [one.picture for one in result.failures] == [f"{index:02}.jpg" for index in range(20)]
    assert len(manifest_of(tmp_path / "out", result)["failed"]) == 30


def test_masks_that_are_there_before_the_job_are_kept_and_told(
    steps: PredictionSteps, pictures: dict[str, UInt8Array], tmp_path: Path
) -> None:
    (tmp_path / "out" / "cam0").mkdir(parents=True)
    (tmp_path / "out" / "cam0" / "0.png").write_bytes(b"of another program")
    (tmp_path / "out" / "readme.txt").write_text("as well")
    plan = steps.plan_job(REQUEST)
    assert plan.images == PICTURES - 1
    result = steps.finish_job("0", REQUEST, plan, in_steps(steps, REQUEST, plan), confirm=ours)
    assert (result.written, result.kept) == (PICTURES - 1, 1)
    assert manifest_of(tmp_path / "out", result)["kept"] == ["cam0/0.png"]
    assert files(tmp_path / "out")["cam0/0.png"] == b"of another program"
    again = run(steps, job="1")
    assert (again.written, again.kept) == (0, PICTURES)
    assert files(tmp_path / "out").keys() == {*pictures, "readme.txt", "manifest-0.json", "manifest-1.json"}


def test_a_source_without_pictures_is_refused_with_what_it_has(
    steps: PredictionSteps, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    with pytest.raises(JobError, match=r"^no pictures in source 'camera'; there are no files at all$"):
        steps.plan_job(REQUEST)
    (tmp_path / "in" / "notes.txt").write_text("notes")
    with pytest.raises(JobError, match=r"^no pictures in source 'camera'; not taken: 1 \.txt$"):
        steps.plan_job(REQUEST)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"source": "nobody"}, "no source 'nobody' is configured"),
        ({"target": "../masks"}, r"no target '\.\./masks' is configured"),
        ({"version": ModelVersion("pool", 9)}, "no version pool@9"),
    ],
)
def test_what_is_not_there_is_named(steps: PredictionSteps, change: dict[str, Any], message: str) -> None:
    with pytest.raises(JobError, match=message):
        steps.plan_job(replace(REQUEST, **change))


def test_a_source_that_is_not_on_this_machine_is_named(steps: PredictionSteps) -> None:
    with pytest.raises(JobError, match="source 'camera' is no folder"):
        steps.plan_job(REQUEST)


@pytest.mark.usefixtures("pictures")
def test_a_worker_that_is_another_one_does_not_go_on_with_a_job(
    steps: PredictionSteps, open_steps: OpenSteps
) -> None:
    plan = steps.plan_job(REQUEST)
    for pin in ("engine", "device", "weights", "environment"):
        with pytest.raises(JobError, match=f"the job began with another {pin} than this worker has"):
            steps.process_images(REQUEST, replace(plan, pins=plan.pins | {pin: "other"}), range(1))
    other = open_steps(limits=SegmenterLimits(ImageLimits(max_pixels=1000)))
    with pytest.raises(JobError, match="another limits"):
        other.process_images(REQUEST, plan, range(1))


def test_pictures_that_come_and_go_while_a_job_runs_do_not_mix_it_up(
    open_steps: OpenSteps, pictures: dict[str, UInt8Array], tmp_path: Path
) -> None:
    plan = open_steps().plan_job(REQUEST)
    Image.new("RGB", (64, 32)).save(tmp_path / "in" / "0-new.png")
    (tmp_path / "in" / "cam1" / "3.png").unlink()
    steps = open_steps()
    result = steps.finish_job("0", REQUEST, plan, in_steps(steps, REQUEST, plan), confirm=ours)
    assert masks(tmp_path / "out").keys() == pictures.keys() - {"cam1/3.png"}
    assert [(one.picture, one.code) for one in result.failures] == [("cam1/3.png", "not_found")]


@pytest.mark.usefixtures("pictures")
def test_a_list_that_somebody_changed_fails_the_job(open_steps: OpenSteps, tmp_path: Path) -> None:
    plan = open_steps().plan_job(REQUEST)
    (path,) = (tmp_path / "out").glob("pictures-*.json")
    path.write_text("{}")
    with pytest.raises(JobError, match="in the target was changed"):
        open_steps().process_images(REQUEST, plan, range(1))


@pytest.mark.usefixtures("pictures")
def test_a_full_disk_holds_the_job_up_until_there_is_room(
    steps: PredictionSteps, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = steps.plan_job(REQUEST)

    def refuse(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as full:
        full.setattr(os, "fsync", refuse)
        with pytest.raises(JobHeldUpError, match="target 'masks' does not answer, or has no space"):
            steps.process_images(REQUEST, plan, range(4))
    assert masks(tmp_path / "out") == {}
    result = steps.finish_job("0", REQUEST, plan, in_steps(steps, REQUEST, plan), confirm=ours)
    assert result.written == PICTURES


@pytest.mark.usefixtures("pictures")
def test_a_busy_device_holds_the_job_up(steps: PredictionSteps, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise QueueFullError("too many wait")

    plan = steps.plan_job(REQUEST)
    monkeypatch.setattr(LoadedModel, "reserve", refuse)
    with pytest.raises(JobHeldUpError, match="too many wait"):
        steps.process_images(REQUEST, plan, range(1))


def test_scores_that_are_none_are_a_failure_of_their_picture(
    open_steps: OpenSteps, pictures: dict[str, UInt8Array], tmp_path: Path
) -> None:
    pictures["cam0/0.png"][0, 0] = MARK_RGB
    Image.fromarray(pictures["cam0/0.png"]).save(tmp_path / "in" / "cam0" / "0.png")

    def build(artifact: Artifact, options: EngineOptions) -> InferenceEngine:
        engine = build_faulty(artifact, options)

        def answer(images_NHW3: Any) -> Any:
            is_marked = (images_NHW3[:, 0, 0] == MARK_RGB).all()
            return engine.infer(images_NHW3) * (np.float32(np.nan) if is_marked else np.float32(1))

        return FakeEngine(answer=answer)

    result = run(open_steps(build), size=1)
    assert [(one.picture, one.code) for one in result.failures] == [("cam0/0.png", "model_output_invalid")]
    assert result.written == PICTURES - 1


@pytest.mark.usefixtures("pictures")
def test_a_job_that_is_stopped_is_given_up_before_the_next_picture(
    steps: PredictionSteps, tmp_path: Path
) -> None:
    plan = steps.plan_job(REQUEST)
    steps.stop()
    with pytest.raises(JobInterruptedError):
        steps.process_images(REQUEST, plan, range(4))
    assert masks(tmp_path / "out") == {}


@pytest.mark.usefixtures("pictures")
def test_a_job_that_is_cancelled_writes_no_manifest(steps: PredictionSteps, tmp_path: Path) -> None:
    class CancelledError(BaseException):
        pass

    def cancelled() -> None:
        raise CancelledError

    plan = steps.plan_job(replace(REQUEST, output="coco"))
    outcomes = in_steps(steps, replace(REQUEST, output="coco"), plan)
    with pytest.raises(CancelledError):
        steps.finish_job("0", replace(REQUEST, output="coco"), plan, outcomes, confirm=cancelled)
    assert not list((tmp_path / "out").glob("[mp]a*-0.json"))


@pytest.mark.usefixtures("pictures")
def test_a_picture_that_is_missing_or_there_twice_is_noticed(steps: PredictionSteps) -> None:
    plan = steps.plan_job(REQUEST)
    first = steps.process_images(REQUEST, plan, range(4))
    for outcomes in ([first], [first, first, steps.process_images(REQUEST, plan, range(4, PICTURES))]):
        with pytest.raises(JobError, match="missing or there twice"):
            steps.finish_job("0", REQUEST, plan, outcomes, confirm=ours)


def test_coco_segments_are_those_of_the_labels(
    steps: PredictionSteps, pictures: dict[str, UInt8Array], tmp_path: Path
) -> None:
    run(steps, job="labels")
    labels = {name: np.asarray(Image.open(tmp_path / "out" / name)) for name in pictures}
    (tmp_path / "out").rename(tmp_path / "labels")
    run(steps, replace(REQUEST, output="coco"))
    document = json.loads((tmp_path / "out" / "panoptic-0.json").read_bytes())
    images = {one["id"]: one for one in document["images"]}
    assert [one["name"] for one in document["categories"]] == ["dark", "bright"]
    assert {one["file_name"] for one in document["images"]} == pictures.keys()
    for annotation in document["annotations"]:
        ids_HW = labels[images[annotation["image_id"]]["file_name"]]
        segments_HW3 = np.asarray(Image.open(tmp_path / "out" / annotation["file_name"])).astype(int)
        numbers_HW = segments_HW3 @ (1, 256, 65536)
        assert (numbers_HW == ids_HW + 1).all()
        areas = {one["category_id"]: one["area"] for one in annotation["segments_info"]}
        assert areas == {int(k) + 1: int((ids_HW == k).sum()) for k in np.unique(ids_HW)}


@pytest.mark.usefixtures("pictures")
def test_a_step_is_a_few_seconds_of_work(steps: PredictionSteps, tmp_path: Path) -> None:
    assert steps.plan_job(REQUEST).images_per_step == 64
    (tmp_path / "in" / "0-broken.jpg").write_bytes(b"text")
    Image.new("RGB", (2048, 2048)).save(tmp_path / "in" / "1-large.png")
    assert steps.plan_job(REQUEST).images_per_step == 4


@pytest.mark.usefixtures("pictures")
def test_a_target_that_fails_is_not_read_for_its_manifest_only(
    steps: PredictionSteps, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = steps.plan_job(REQUEST)
    outcomes = in_steps(steps, REQUEST, plan)

    def refuse(*_: object) -> None:
        raise JobHeldUpError("target 'masks' does not answer, or has no space")

    with monkeypatch.context() as away:
        away.setattr(MaskTarget, "write", refuse)
        with pytest.raises(JobHeldUpError):
            steps.finish_job("0", REQUEST, plan, outcomes, confirm=ours)
    assert steps.finish_job("0", REQUEST, plan, outcomes, confirm=ours).written == PICTURES
