"""A service with evaluation jobs, as a process: a made-up model and data set, and who administrates it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2
import numpy as np
from fakes import PATIENCE_S, write_pooling_artifact
from fault_engine import MARK_RGB
from live_service import BISENET, Server, serving_environment, started
from PIL import Image

from model.artifacts.manifest import ModelVersion
from model.artifacts.registry import ModelRegistry
from service.core.jobs.evaluation_job import EvaluationJob, EvaluationRequest, EvaluationResult
from service.core.jobs.job import JobState

MODEL = "pool"
EVALUATIONS = "/admin/v1/evaluations"


def write_dataset(root: Path, images: int, *, marked: int | None = None, seed: int = 0) -> Path:
    """Write pictures of noise with labels of noise; returns the data-set file.

    Args:
        root: a new folder.
        images: how many.
        marked: the picture that makes a fault ``:marked`` happen.
        seed: of the noise.
    """
    random = np.random.default_rng(seed)
    root.mkdir()
    lines = []
    for index in range(images):
        image_HW3 = random.integers(0, 256, (32, 64, 3), np.uint8)
        if index == marked:
            image_HW3[0, 0] = MARK_RGB
        Image.fromarray(image_HW3).save(root / f"{index}.png")
        Image.fromarray(random.integers(0, 2, (32, 64), np.uint8)).save(root / f"{index}-ids.png")
        lines.append(f"{index}.png,{index}-ids.png\n")
    (root / "val.csv").write_text("".join(lines))
    (root / "noise.toml").write_text(
        'name = "noise"\nroot = "."\n[splits]\nval = "val.csv"\n'
        '[[classes]]\nname = "dark"\ncolor = [0, 0, 0]\n'
        '[[classes]]\nname = "bright"\ncolor = [255, 255, 255]\n'
    )
    return root / "noise.toml"


def job_environment(folder: Path, dataset: Path, *, engine: str, mode: str = "embedded") -> dict[str, str]:
    """Return the surroundings of a service that has one model, one data set, and its own state folder."""
    registry = folder / "registry"
    if not registry.exists():
        ModelRegistry(registry).publish(write_pooling_artifact(folder / "artifact").folder, MODEL)
    return serving_environment(registry, folder / "cache", folder / "home", MODEL) | {
        "BISENET_JOBS__MODE": mode,
        "BISENET_DATASETS__NOISE": str(dataset),
        "BISENET_MODELS__ENGINE": engine,
    }


@dataclass(frozen=True)
class JobSite:
    """A running service and who administrates it."""

    server: Server
    admin: httpx2.Client
    token_file: Path

    def submit(self, **changes: object) -> str:
        """Queue a job; returns its id."""
        body = {"model": MODEL, "dataset": "noise"} | changes
        response = self.admin.post(EVALUATIONS, json=body)
        assert response.status_code == 202, response.text
        return str(response.json()["id"])

    def get(self, job_id: str) -> EvaluationJob:
        """Return a job as the interface tells it."""
        plain = self.admin.get(f"{EVALUATIONS}/{job_id}").raise_for_status().json()
        result = plain["result"]
        if result is not None:
            result = EvaluationResult.from_json(
                {key: value for key, value in result.items() if key != "report"}
            )
        version = ModelVersion.parse(plain["model"])
        request = EvaluationRequest(version, plain["dataset"], plain["split"], plain["protocol"])
        state = JobState(plain["state"])
        return EvaluationJob(job_id, request, state, plain["done"], plain["total"], plain["error"], result)

    def kill(self) -> None:
        """End the service without a chance to do anything."""
        self.server.process.kill()
        self.server.process.wait(PATIENCE_S)


@contextmanager
def started_site(environment: Mapping[str, str], log: Path) -> Iterator[JobSite]:
    """Start a service with jobs."""
    with started(environment, log) as server:
        lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
        said = next(line for line in lines if line["event"] == "listening")
        token_file = Path(said["token"])
        headers = {"Authorization": f"Bearer {token_file.read_text().strip()}"}
        with httpx2.Client(base_url=said["admin_url"], headers=headers, timeout=PATIENCE_S) as admin:
            yield JobSite(server, admin, token_file)


@contextmanager
def external(environment: Mapping[str, str], log: Path) -> Iterator[subprocess.Popen[str]]:
    """Start ``bisenet worker``."""
    with (
        log.open("a") as stderr,
        subprocess.Popen(
            [*BISENET, "worker"], stdout=subprocess.PIPE, stderr=stderr, text=True, env=dict(environment)
        ) as process,
    ):
        try:
            assert process.stdout is not None
            assert process.stdout.readline().startswith("Ready: "), log.read_text()
            yield process
        finally:
            process.kill()
