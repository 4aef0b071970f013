"""``EvaluatedPictures`` after a job that ran by hand."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from fakes import FakeJobs, write_pooling_artifact
from fault_engine import build as build_faulty
from job_site import MODEL, write_dataset
from PIL import Image

from model.artifacts.manifest import ModelVersion
from model.artifacts.registry import ModelRegistry
from model.decoding import decode
from service.core.device.device import Device
from service.core.device.engine import EngineOptions
from service.core.device.in_process import InProcessRunner
from service.core.errors import ConflictError, NotFoundError
from service.core.jobs.evaluated_pictures import EvaluatedPictures
from service.core.jobs.evaluation_job import EvaluationRequest, EvaluationResult
from service.core.jobs.evaluation_steps import Datasets, EvaluationSteps
from service.core.jobs.job import JobState, JsonObject
from service.core.jobs.job_models import JobModels
from service.core.jobs.submission import EvaluationSubmission
from service.core.models.model_host import ModelHost
from service.core.scheduling.dispatcher import Dispatcher

IMAGES = 4
POOL_1 = ModelVersion(MODEL, 1)


@dataclass(frozen=True)
class Evaluated:
    """A job that has ended, its data set, and the host of its model."""

    pictures: EvaluatedPictures
    jobs: FakeJobs[EvaluationRequest, EvaluationResult]
    registry: ModelRegistry
    host: ModelHost
    folder: Path
    job_id: str

    def elsewhere(self, file: Path) -> EvaluatedPictures:
        """Return pictures of the same job with another data-set file."""
        return EvaluatedPictures(
            EvaluationSubmission(self.jobs, self.registry, {"noise"}), Datasets({"noise": file}), self.host
        )


@contextmanager
def open_host(registry: ModelRegistry, cache: Path) -> Iterator[ModelHost]:
    decode.warm_up()
    options = EngineOptions("cpu", "f32", cache, arguments="slow:0")
    host = ModelHost(Dispatcher(InProcessRunner(Device(build_faulty, options))))
    host.load(POOL_1, registry.open(POOL_1))
    yield host
    host.close()


@pytest.fixture
def evaluated(tmp_path: Path) -> Iterator[Evaluated]:
    registry = ModelRegistry(tmp_path / "registry")
    registry.publish(write_pooling_artifact(tmp_path / "artifact", seed=1).folder, MODEL)
    file = write_dataset(tmp_path / "noise", IMAGES)
    jobs: FakeJobs[EvaluationRequest, EvaluationResult] = FakeJobs()
    datasets = Datasets({"noise": file})
    with open_host(registry, tmp_path / "cache") as host, ThreadPoolExecutor(2) as pool:
        submission = EvaluationSubmission(jobs, registry, {"noise"})
        job = submission.submit_evaluation(model=MODEL, dataset="noise", split="val", protocol="ss")
        environment: JsonObject = {"processor": "made up", "versions": {}}
        models = JobModels(lambda: nullcontext(host), registry, environment=environment)
        work = EvaluationSteps(models, registry, datasets, pool)
        plan = work.plan_job(job.request)
        counts = [work.process_images(job.request, plan, range(IMAGES))]
        result = work.finish_job(job.id, job.request, plan, counts, confirm=lambda: None)
        jobs.move(job.id, state=JobState.SUCCEEDED, done=IMAGES, total=IMAGES, result=result)
        pictures = EvaluatedPictures(submission, datasets, host)
        yield Evaluated(pictures, jobs, registry, host, file.parent, job.id)


def test_a_picture_comes_with_its_truth_and_the_answer_that_was_counted(evaluated: Evaluated) -> None:
    picture = evaluated.pictures.show(evaluated.job_id, 2)
    assert picture.shown.name == "2.png"
    assert (picture.shown.image_HW3 == np.asarray(Image.open(evaluated.folder / "2.png"))).all()
    assert (picture.shown.truth_HW == np.asarray(Image.open(evaluated.folder / "2-ids.png"))).all()
    assert picture.is_as_counted
    assert picture.engine == "fault f32"


def test_the_report_tells_which_pictures_fill_a_cell_of_the_matrix(evaluated: Evaluated) -> None:
    report = json.loads(evaluated.registry.evaluations.document(MODEL, evaluated.job_id) or b"")
    entry = report["per_image"][1]
    shown = evaluated.pictures.show(evaluated.job_id, 1).shown
    found = int(((shown.truth_HW == 0) & (shown.guess_HW == 1)).sum())
    assert dict(zip(entry["cells"], entry["pixels"], strict=True)).get(1, 0) == found


def test_labels_that_were_changed_since_are_told(evaluated: Evaluated) -> None:
    Image.fromarray(np.ones((32, 64), np.uint8)).save(evaluated.folder / "0-ids.png")
    assert not evaluated.pictures.show(evaluated.job_id, 0).is_as_counted


def test_a_picture_that_was_not_scored_is_not_found(evaluated: Evaluated) -> None:
    with pytest.raises(NotFoundError, match="no picture 4"):
        evaluated.pictures.show(evaluated.job_id, IMAGES)


def test_a_list_that_was_changed_since_is_refused(evaluated: Evaluated) -> None:
    for lines in ("1.png,1-ids.png\n0.png,0-ids.png\n", ""):
        (evaluated.folder / "val.csv").write_text(lines or "3.png,3-ids.png\n")
        with pytest.raises(ConflictError, match=r"list of noise val has changed"):
            evaluated.pictures.show(evaluated.job_id, 1)


def test_a_file_that_is_gone_is_named_without_its_folder(evaluated: Evaluated) -> None:
    (evaluated.folder / "1.png").unlink()
    with pytest.raises(ConflictError, match=r"1\.png") as caught:
        evaluated.pictures.show(evaluated.job_id, 1)
    assert str(evaluated.folder) not in str(caught.value)


def test_a_version_that_is_not_loaded_is_named(evaluated: Evaluated, tmp_path: Path) -> None:
    artifact = write_pooling_artifact(tmp_path / "second", seed=2)
    second = evaluated.registry.publish(artifact.folder, MODEL)
    evaluated.host.load(second, evaluated.registry.open(second))
    evaluated.host.serve(second)
    evaluated.host.unload(POOL_1)
    with pytest.raises(ConflictError, match=f"{MODEL}@1 is not loaded here: load it"):
        evaluated.pictures.show(evaluated.job_id, 0)


def test_a_data_set_that_is_on_another_machine_is_not_found(evaluated: Evaluated, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="cannot be read here") as caught:
        evaluated.elsewhere(tmp_path / "nowhere.toml").show(evaluated.job_id, 0)
    assert str(tmp_path) not in str(caught.value)
