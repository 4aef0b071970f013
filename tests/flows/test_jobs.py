"""Evaluation jobs as users run them: through the admin frontend, and through deaths of what runs them."""

from __future__ import annotations

import json
import random
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import pytest
from fakes import PATIENCE_S
from job_site import EVALUATIONS, MODEL, JobSite, external, job_environment, started_site, write_dataset
from job_worker import finished, when
from live_service import BISENET, workers_of

from service.core.jobs.evaluation_job import EvaluationJob
from service.core.jobs.job import JobState

SLOW = "fault_engine:slow:1"


def run(environment: Mapping[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*BISENET, *arguments],
        capture_output=True,
        text=True,
        env=dict(environment),
        timeout=4 * PATIENCE_S,
        check=False,
    )


class _Jobs:
    """Looks jobs up for ``finished`` and ``when``."""

    def __init__(self, site: JobSite) -> None:
        self.get_job = site.get


def ended(site: JobSite, job_id: str) -> EvaluationJob:
    return finished(_Jobs(site), site.get(job_id))


def test_a_service_that_is_killed_in_the_middle_of_a_job_goes_on_with_it(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "noise", 20, marked=12)
    hanging = job_environment(tmp_path, dataset, engine="fault_engine:hang:marked")
    with started_site(hanging, tmp_path / "log") as site:
        job_id = site.submit()
        when(_Jobs(site), site.get(job_id), lambda seen: seen.done == 8)  # and the second step hangs
        assert nicenesses_of_workers(site) == [0, 19]
        refused = run(hanging, "serve", "--http-port", "0")
        site.kill()
    assert refused.returncode == 3
    assert "another process runs the jobs of" in refused.stderr

    with started_site(hanging | {"BISENET_MODELS__ENGINE": SLOW}, tmp_path / "log") as site:
        resumed = ended(site, job_id)
        undisturbed = ended(site, site.submit())
        check_that_it_is_shown(site, job_id, hanging)
        assert site.server.stop() == 0
    assert resumed.state is JobState.SUCCEEDED
    assert resumed.result is not None
    assert resumed.result == undisturbed.result
    assert resumed.result.images == 20


def nicenesses_of_workers(site: JobSite) -> list[int]:
    """Return how far each process with a model gives way to others."""
    stats = (Path(f"/proc/{pid}/stat").read_text() for pid in workers_of(site.server))
    return sorted(int(stat.rsplit(")", 1)[1].split()[16]) for stat in stats)


def check_that_it_is_shown(site: JobSite, job_id: str, environment: Mapping[str, str]) -> None:
    """See that a score reaches readers: report, event stream, models, metrics, command line, promotion."""
    result = site.get(job_id).result
    assert result is not None
    page = site.admin.get(f"{EVALUATIONS}/{job_id}/report")
    assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert f"{MODEL}@1 on noise val" in page.text
    (event,) = site.admin.get(f"{EVALUATIONS}/{job_id}/events").text.split("\n\n")[:-1]
    assert event.startswith("event: evaluation\ndata: {")

    def shown() -> bool:
        models = site.server.client.get("/v1/models").json()["models"]
        return bool(models[0]["evaluations"])

    given_up_s = time.monotonic() + PATIENCE_S
    while not shown():
        assert time.monotonic() < given_up_s
        time.sleep(0.1)
    (score,) = site.server.client.get("/v1/models").json()["models"][0]["evaluations"]
    assert (score["dataset"], score["protocol"], score["miou"]) == ("noise", "ss", result.miou)
    metrics = site.admin.get("/metrics").text
    assert f'bisenet_eval_miou{{dataset="noise",model="{MODEL}",protocol="ss",version="1"}}' in metrics
    assert 'bisenet_eval_jobs{state="succeeded"}' in metrics

    address = ["--server", str(site.admin.base_url), "--token-file", str(site.token_file)]
    listed = run(environment, "jobs", "list", *address, "--json")
    assert job_id in {job["id"] for job in json.loads(listed.stdout)}
    for minimum, exit_code in (("0.9", 1), ("0.01", 0)):
        need = f"dataset=noise,protocol=ss,min={minimum}"
        assert (
            run(environment, "models", "promote", f"{MODEL}@1", "--require-miou", need).returncode
            == exit_code
        )


@pytest.mark.parametrize("mode", ["embedded", "external"])
def test_jobs_keep_their_kernels_in_the_cache_folder(tmp_path: Path, mode: str) -> None:
    dataset, elsewhere = write_dataset(tmp_path / "noise", 2), tmp_path / "elsewhere"
    environment = job_environment(tmp_path, dataset, engine=SLOW, mode=mode)
    environment |= {"NUMBA_CACHE_DIR": str(elsewhere)}  # where kernels go unless they are told another place
    worker = external(environment, tmp_path / "worker-log") if mode == "external" else nullcontext()
    with worker, started_site(environment, tmp_path / "log") as site:
        assert ended(site, site.submit()).state is JobState.SUCCEEDED
    assert not elsewhere.exists()


@pytest.mark.guarantee("G9")
@pytest.mark.soak
@pytest.mark.parametrize("victim", ["service", "worker"])
def test_twenty_deaths_at_random_points_change_nothing(tmp_path: Path, victim: str) -> None:
    """Every second death waits for progress: who dies at the same pictures again and again is to blame."""
    chance = random.Random(victim)
    mode = "embedded" if victim == "service" else "external"
    dataset = write_dataset(tmp_path / "noise", 200)
    environment = job_environment(tmp_path, dataset, engine="fault_engine:slow:40", mode=mode)
    with victims(victim, environment, tmp_path / "log") as start:
        job_ids: list[str] = []
        for death in range(20):
            with start() as (site, process):
                if not job_ids or site.get(job_ids[-1]).state.is_final:
                    job_ids.append(site.submit())
                if death % 2:
                    wait_for_progress(site, job_ids[-1])
                time.sleep(chance.uniform(0.0, 0.8))
                process.kill()
                process.wait(PATIENCE_S)
        with start() as (site, _):
            results = [ended(site, job_id).result for job_id in [*job_ids, site.submit()]]
    assert all(result is not None and result == results[0] for result in results)
    assert results[0] is not None
    assert results[0].images == 200


Start = Callable[[], AbstractContextManager[tuple[JobSite, subprocess.Popen[str]]]]


@contextmanager
def victims(kind: str, environment: Mapping[str, str], log: Path) -> Iterator[Start]:
    """Yield a function that starts a process to kill, and the jobs to ask meanwhile."""

    @contextmanager
    def service() -> Iterator[tuple[JobSite, subprocess.Popen[str]]]:
        with started_site(environment, log) as site:
            yield site, site.server.process

    if kind == "service":
        yield service
        return
    with started_site(environment, log) as site:

        @contextmanager
        def worker() -> Iterator[tuple[JobSite, subprocess.Popen[str]]]:
            with external(environment, log) as process:
                yield site, process

        yield worker


def wait_for_progress(site: JobSite, job_id: str) -> None:
    before = site.get(job_id)
    when(_Jobs(site), before, lambda seen: seen.done > before.done or seen.state.is_final)
