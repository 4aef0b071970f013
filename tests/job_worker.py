"""A worker of made-up evaluation jobs, in this process or as a program of its own that can be killed.

Picture i counts as {"cells": [i % 7], "pixels": [i]}: what a job adds up to is known without running it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from model.artifacts.manifest import ModelVersion
from service.core.jobs.evaluation_job import (
    EVALUATIONS,
    EvaluationJob,
    EvaluationJobs,
    EvaluationRequest,
    EvaluationResult,
)
from service.core.jobs.job import JobError, JobInterruptedError, JobKind, JobPlan, JsonObject
from service.durable_jobs.client import DurableJobs, open_client
from service.durable_jobs.database import JobsDatabase
from service.durable_jobs.worker import WorkerOptions, run_jobs
from service.telemetry import LogOptions, configure_logging

PATIENCE_S = 30.0
NUM_CLASSES = 7
POLL_S = 0.05
WATCH_S = 0.2
REQUEST = EvaluationRequest(ModelVersion("fake", 3), "numbers", "val", "ss")


@dataclass
class FakeWork:
    """Counts pictures that do not exist.

    Args:
        images: of the split.
        on_image: called before each picture is counted; may raise, or not return.
        journal: every picture that is counted is written here, one a line.
        on_report: called before the report would be stored.
    """

    images: int = 20
    on_image: Callable[[int], None] = lambda _image: None
    journal: Path | None = None
    on_report: Callable[[], None] = lambda: None
    stopped: threading.Event = field(default_factory=threading.Event)
    stored: list[str] = field(default_factory=list)
    releases: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    @property
    def kind(self) -> JobKind[EvaluationRequest, EvaluationResult]:
        return EVALUATIONS

    def plan_job(self, request: EvaluationRequest) -> JobPlan:
        if request.dataset != "numbers":
            raise JobError(f"no data set {request.dataset!r}")
        return JobPlan(self.images, 2, {"engine": "fake"})

    def process_images(self, request: EvaluationRequest, plan: JobPlan, images: range) -> JsonObject:
        del request, plan
        return {"images": [self._count(image) for image in images]}

    def _count(self, image: int) -> JsonObject:
        if self.stopped.is_set():
            raise JobInterruptedError
        self.on_image(image)
        if self.journal is not None:
            with self.journal.open("a") as file:
                file.write(f"{image}\n")
        return {"cell": image % NUM_CLASSES, "pixels": image}

    def finish_job(
        self,
        job_id: str,
        request: EvaluationRequest,
        plan: JobPlan,
        outcomes: list[JsonObject],
        *,
        confirm: Callable[[], None],
    ) -> EvaluationResult:
        del request
        self.on_report()
        confirm()
        self.stored.append(job_id)
        return result_of([image for part in outcomes for image in part["images"]], plan.images)

    def release_idle(self) -> None:
        self.releases.release()

    def stop(self) -> None:
        self.stopped.set()


def result_of(counted: list[JsonObject], images: int) -> EvaluationResult:
    """Return what a job over such counts must result in."""
    sums = [sum(one["pixels"] for one in counted if one["cell"] == k) for k in range(NUM_CLASSES)]
    return EvaluationResult(
        miou=0.5,
        per_class={str(k): float(value) for k, value in enumerate(sums)},
        images=len(counted),
        skipped=(),
        digest=json.dumps([images, sums]),
    )


def expected_result(images: int) -> EvaluationResult:
    """Return the result of an undisturbed job."""
    return result_of([{"cell": i % NUM_CLASSES, "pixels": i} for i in range(images)], images)


@contextmanager
def open_jobs(database: JobsDatabase) -> Iterator[EvaluationJobs]:
    """Yield the jobs of a database, as a frontend sees them."""
    database.prepare()
    with open_client(database) as client:
        yield DurableJobs(client, EVALUATIONS)


@contextmanager
def running(
    database: JobsDatabase, work: FakeWork, executor_id: str = "worker", **changes: Any
) -> Iterator[None]:
    """Run jobs in this process as long as the context lasts."""
    options = WorkerOptions(executor_id, {"fake": 1}, grace_s=PATIENCE_S, poll_s=POLL_S, watch_s=WATCH_S)
    options = replace(options, **changes)
    with database.owned():
        database.prepare()
        with run_jobs(database, [work], options):
            yield


def finished(jobs: EvaluationJobs, job: EvaluationJob) -> EvaluationJob:
    """Return a job when it has ended."""
    return when(jobs, job, lambda seen: seen.state.is_final)


def when(
    jobs: EvaluationJobs, job: EvaluationJob, condition: Callable[[EvaluationJob], bool]
) -> EvaluationJob:
    """Return a job as soon as it is as it should be; nothing announces that across processes."""
    given_up_s = time.monotonic() + 4 * PATIENCE_S
    while not condition(seen := jobs.get_job(job.id)):
        assert time.monotonic() < given_up_s, f"not in time: {seen}"
        time.sleep(POLL_S)
    return seen


class WorkerProcess:
    """A worker as a process of its own.

    Args:
        database: whose jobs it runs.
        journal: where it writes which pictures it has counted.
        executor_id: its name.
        images: of its data set.
        image_s: how long a picture takes, in seconds.
        dies_at: at which picture it kills itself; None = at none.
    """

    def __init__(
        self,
        database: JobsDatabase,
        journal: Path,
        *,
        executor_id: str = "worker",
        images: int = 20,
        image_s: float = 0.0,
        dies_at: int | None = None,
    ) -> None:
        arguments = {
            "url": database.url,
            "folder": database.folder and str(database.folder),
            "journal": str(journal),
            "executor_id": executor_id,
            "images": images,
            "image_s": image_s,
            "dies_at": dies_at,
        }
        self._process = subprocess.Popen(
            [sys.executable, __file__, json.dumps(arguments)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        )

    def wait_until_ready(self) -> WorkerProcess:
        """Return when it takes jobs."""
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"
        return self

    def pause(self) -> None:
        """Let it do nothing, and its sessions live."""
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """End the pause."""
        self._process.send_signal(signal.SIGCONT)

    def stop(self) -> int:
        """Stop it as operators do; returns its exit code."""
        self._process.terminate()
        return self.died()

    def kill(self) -> None:
        """End it without a chance to do anything, and wait until it is gone."""
        self._process.kill()
        self.died()

    def died(self) -> int:
        """Return its exit code when it has ended."""
        with self._process:  # which closes the pipe
            return self._process.wait(4 * PATIENCE_S)


def main() -> None:
    """Run jobs until SIGTERM."""
    told = json.loads(sys.argv[1])
    configure_logging(LogOptions(level="warning"))

    def on_image(image: int) -> None:
        time.sleep(told["image_s"])  # what a network would take
        if image == told["dies_at"]:
            os.kill(os.getpid(), signal.SIGKILL)

    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    database = JobsDatabase(told["url"], told["folder"] and Path(told["folder"]))
    work = FakeWork(told["images"], on_image, Path(told["journal"]))
    with running(database, work, told["executor_id"]):
        print("ready", flush=True)  # noqa: T201 - who started this program waits for it
        stopped.wait()


if __name__ == "__main__":
    main()
