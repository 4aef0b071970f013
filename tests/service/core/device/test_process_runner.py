"""Real worker processes that are killed, hang, crash and talk nonsense."""

from __future__ import annotations

import dataclasses
import itertools
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import structlog
from fakes import PATIENCE_S, seal
from worker_site import SIZE, VERSION, WorkerSite, open_worker_site, pooling_artifacts, spelled, wait_until

from model.artifacts.artifact import Artifact
from model.artifacts.manifest import ModelVersion
from model.errors import GoldenMismatchError
from model.pictures.preprocess import ImageSize, PreparedImage
from service.core.device.engine import EngineUnavailableError
from service.core.device.restart_policy import RestartPolicy
from service.core.device.worker_connection import WorkerConnection
from service.core.errors import (
    BusyError,
    ModelOutputInvalidError,
    NoWorkerError,
    UndecodableImageError,
)
from service.telemetry import LogOptions, configure_logging

TESTS = Path(__file__).parents[3]


@pytest.fixture(scope="module", autouse=True)
def _quiet() -> Iterator[None]:
    configure_logging(LogOptions("error"))
    yield
    structlog.reset_defaults()


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> list[Artifact]:
    return pooling_artifacts(tmp_path_factory.mktemp("artifacts"), 2)


@pytest.fixture(scope="module")
def site(artifacts: list[Artifact], shared_cache: Path) -> Iterator[WorkerSite]:
    """Return a host whose worker is killed now and then."""
    policy = RestartPolicy(stable_s=0.0, first_delay_s=0.0)
    faults = "fault_engine:slow:1+segv:marked"
    with open_worker_site(faults, artifacts, shared_cache, policy=policy) as site:
        yield site


@pytest.fixture(autouse=True)
def _whole(request: pytest.FixtureRequest) -> None:
    """Begin each test with a worker."""
    if "site" in request.fixturenames:
        site = request.getfixturevalue("site")
        site.wait_until_ready(1)


def fate(future: Future[object]) -> type[BaseException] | None:
    error = future.exception(PATIENCE_S)
    return None if error is None else type(error)


def test_pictures_come_back_as_their_own_labels(site: WorkerSite, artifacts: list[Artifact]) -> None:
    codes = [3**k for k in range(40)]
    futures = [site.submit(site.picture(code)) for code in codes]
    assert [spelled(f.result(PATIENCE_S).labels_HW, artifacts[0]) for f in futures] == codes


def test_each_version_answers_for_itself(site: WorkerSite) -> None:
    second = ModelVersion("pooling", 2)
    futures = [site.submit(site.picture(7), version) for version in (VERSION, second, VERSION)]
    labels = [future.result(PATIENCE_S).labels_HW for future in futures]
    assert (labels[0] == labels[2]).all()
    assert (labels[0] != labels[1]).all()


def test_a_picture_from_elsewhere_is_copied_and_answered_alike(site: WorkerSite) -> None:
    inside = site.picture(12345)
    outside = PreparedImage(inside.pixels_HW3.copy(), SIZE, SIZE)
    np.testing.assert_array_equal(site.labels(inside), site.labels(outside))


def test_one_picture_for_two_versions_has_two_answers(site: WorkerSite) -> None:
    image = site.picture(99)
    futures = [site.submit(image, ModelVersion("pooling", number)) for number in (1, 2)]
    first, second = (future.result(PATIENCE_S).labels_HW for future in futures)
    assert (first != second).all()


def test_labels_may_be_larger_than_what_the_network_saw(site: WorkerSite) -> None:
    original = ImageSize(700, 900)
    canvas = site.dispatcher.canvas(SIZE, original)
    canvas[...] = 255
    labels_HW = site.labels(PreparedImage(canvas, SIZE, original))
    assert labels_HW.shape == (700, 900)
    assert np.unique(labels_HW).size == 1


@pytest.mark.parametrize("has_room", [True, False])
def test_the_confidence_comes_back_beside_the_labels(site: WorkerSite, *, has_room: bool) -> None:
    original = ImageSize(700, 900)
    canvas = site.dispatcher.canvas(SIZE, original, confidence=has_room)
    canvas[...] = 255
    image = PreparedImage(canvas, SIZE, original)
    answer = site.submit(dataclasses.replace(image, confidence=True)).result(PATIENCE_S)
    assert answer.confidence_HW is not None
    assert np.array_equal(answer.labels_HW, site.labels(image))
    assert answer.confidence_HW.shape == (700, 900)
    assert answer.confidence_HW.min() > 255 // 2  # of two classes, the likelier one
    assert site.submit(image).result(PATIENCE_S).confidence_HW is None


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_raw_scores_come_back_as_the_engine_returned_them(
    site: WorkerSite, artifacts: list[Artifact], dtype: type[np.generic]
) -> None:
    images_NHW3 = np.stack([site.picture(code).pixels_HW3 for code in (5, 0)]).astype(dtype)
    deadline_s = time.monotonic() + PATIENCE_S
    scores = site.host.find().infer(images_NHW3, deadline_s=deadline_s).result(PATIENCE_S)
    assert scores.raw_NKhw.shape == (2, 2, 8, 8)
    assert scores.infer_s > 0
    labels_Nhw = scores.raw_NKhw.argmax(axis=1)
    assert [spelled(np.kron(ids, np.ones((8, 8))), artifacts[0]) for ids in labels_Nhw] == [5, 0]


def test_a_worker_that_is_killed_loses_what_it_had_begun_and_nothing_else(
    site: WorkerSite, artifacts: list[Artifact]
) -> None:
    workers = len(site.workers)
    futures = [site.submit(site.picture(code)) for code in range(200)]
    futures[10].result(PATIENCE_S)
    site.kill()
    fates = [fate(future) for future in futures]
    assert fates.count(NoWorkerError) <= 1
    assert set(fates) <= {None, NoWorkerError}
    for code, future in enumerate(futures):
        if fates[code] is None:
            assert spelled(future.result().labels_HW, artifacts[0]) == code
    assert len(site.workers) == workers + 1


def test_an_idle_worker_that_dies_is_replaced(site: WorkerSite) -> None:
    workers = len(site.workers)
    site.kill()
    site.wait_until_ready(workers + 1)
    assert site.labels(site.picture(1)).shape == (64, 64)


def test_a_picture_that_kills_the_worker_at_once_takes_no_other_along(
    site: WorkerSite, artifacts: list[Artifact]
) -> None:
    """The answer to the one before may not be on its way yet when the process is gone."""
    for code in range(10):
        good = site.submit(site.picture(code))
        deadly = site.submit(site.picture(1000 + code, marked=True))
        assert spelled(good.result(PATIENCE_S).labels_HW, artifacts[0]) == code
        assert fate(deadly) is NoWorkerError


def test_a_picture_that_kills_two_workers_is_not_tried_a_third_time(site: WorkerSite) -> None:
    workers = len(site.workers)
    fates = [fate(site.submit(site.picture(4711, marked=True))) for _ in range(2)]
    assert fates == [NoWorkerError, NoWorkerError]
    with pytest.raises(UndecodableImageError):
        site.submit(site.picture(4711, marked=True))
    site.wait_until_ready(workers + 2)
    assert site.labels(site.picture(4712)).shape == (64, 64)
    assert len(site.workers) == workers + 2


@pytest.mark.parametrize("kind", ["garbage", "silence"])
def test_what_does_not_speak_like_a_worker_is_replaced(site: WorkerSite, kind: str) -> None:
    workers = len(site.workers)
    environment = {**os.environ, "PYTHONPATH": str(TESTS)}
    impostor = WorkerConnection("nonsense_worker", [kind], environment)
    site.before.append(lambda: impostor)
    site.kill()
    if kind == "silence":
        wait_until(lambda: site.workers[-1] is impostor)
        site.let_hang_until_killed(impostor)
    site.wait_until_ready(workers + 2)
    assert impostor.is_killed
    assert site.labels(site.picture(1)).shape == (64, 64)


def test_a_worker_that_cannot_be_started_is_tried_again(site: WorkerSite) -> None:
    def fail() -> WorkerConnection:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    workers = len(site.workers)
    site.before.append(fail)
    site.kill()
    site.wait_until_ready(workers + 1)
    assert site.before == []


def test_a_link_that_is_cut_costs_what_was_on_it(site: WorkerSite) -> None:
    workers = len(site.workers)
    site.workers[-1]._socket.shutdown(socket.SHUT_RDWR)
    site.wait_until_ready(workers + 1)
    assert site.labels(site.picture(1)).shape == (64, 64)


def test_nonsense_from_the_service_ends_the_worker(site: WorkerSite) -> None:
    workers = len(site.workers)
    site.workers[-1]._socket.send(b"\x00garbage")
    site.wait_until_ready(workers + 1)
    assert site.workers[workers - 1]._process.returncode == 65


def test_versions_are_exchanged_under_load_without_an_error(
    artifacts: list[Artifact], shared_cache: Path
) -> None:
    versions = [ModelVersion("pooling", number) for number in range(1, 6)]
    of_version = dict(zip(versions, itertools.cycle(artifacts), strict=False))
    done = threading.Event()

    def ask(site: WorkerSite, first_code: int) -> set[ModelVersion]:
        seen = set()
        for code in itertools.count(first_code, 4):
            with site.host.hold("pooling") as served:
                labels_HW = site.labels(site.picture(code), served.version)
            assert spelled(labels_HW, of_version[served.version]) == code
            seen.add(served.version)
            if done.is_set():
                return seen
        raise AssertionError

    with (
        open_worker_site("fault_engine:slow:1", artifacts[:1], shared_cache) as site,
        ThreadPoolExecutor(4) as pool,
    ):
        asking = [pool.submit(ask, site, first) for first in range(4)]
        for version in versions[1:]:
            site.host.load(version, of_version[version])
            previous = site.host.serve(version)
            assert previous is not None
            site.host.unload(previous)
        done.set()
        seen = [future.result(PATIENCE_S) for future in asking]
        assert [served.version for served in site.host.models] == [versions[-1]]
        assert len(site.workers) == 1
    assert set().union(*seen) == set(versions)


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ("oom_once", None),
        ("oom_always", BusyError),
        ("nan", ModelOutputInvalidError),
        ("wrong_shape", ModelOutputInvalidError),
    ],
)
def test_what_goes_wrong_inside_an_engine_costs_its_picture_only(
    artifacts: list[Artifact], shared_cache: Path, fault: str, expected: type[Exception] | None
) -> None:
    with open_worker_site(f"fault_engine:{fault}:marked", artifacts[:1], shared_cache) as site:
        futures = [site.submit(site.picture(code, marked=code == 1)) for code in range(3)]
        assert [fate(future) for future in futures] == [None, expected, None]
        assert len(site.workers) == 1


def test_a_lost_device_ends_the_worker_with_its_own_exit_code(
    artifacts: list[Artifact], shared_cache: Path
) -> None:
    with open_worker_site("fault_engine:sticky:marked", artifacts[:1], shared_cache) as site:
        assert fate(site.submit(site.picture(1, marked=True))) is NoWorkerError
        site.wait_until_ready(2)
        assert site.workers[0]._process.returncode == 70


def test_a_worker_that_hangs_is_killed_and_what_it_had_not_begun_is_answered(
    artifacts: list[Artifact], shared_cache: Path
) -> None:
    with open_worker_site("fault_engine:hang:marked", artifacts[:1], shared_cache) as site:
        futures = [site.submit(site.picture(code, marked=code == 0)) for code in range(4)]
        wait_until(lambda: site.workers[0].has_started(0))
        site.let_hang_until_killed(site.workers[0])
        assert [fate(future) for future in futures] == [NoWorkerError, None, None, None]
        assert site.workers[0].is_killed


def test_a_model_that_ends_the_worker_as_it_is_loaded_is_not_loaded_into_the_next_one(
    artifacts: list[Artifact], shared_cache: Path
) -> None:
    site = WorkerSite("fault_engine:exit_at_load", shared_cache)
    try:
        with pytest.raises(NoWorkerError):
            site.host.load(VERSION, artifacts[0])
        site.wait_until_ready(2)
        assert not site.host.ready
    finally:
        site.host.close()


def test_a_crash_loop_is_told_at_once_and_ends_when_its_cause_is_gone(
    artifacts: list[Artifact], shared_cache: Path
) -> None:
    policy = RestartPolicy(first_delay_s=0.2, stable_s=60)
    with open_worker_site("fault_engine:slow:1", artifacts[:1], shared_cache, policy=policy) as site:
        site.kill()
        site.wait_until_ready(2)
        waiting = site.submit(site.picture(1))
        waiting.result(PATIENCE_S)
        site.kill()
        refused = wait_for_refusal(site)
        assert refused.retry_after_s >= 1
        assert not site.host.ready
        site.wait_until_ready(3)
        assert site.labels(site.picture(1)).shape == (64, 64)


def wait_for_refusal(site: WorkerSite) -> NoWorkerError:
    given_up_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < given_up_s:
        try:
            site.submit(site.picture(1)).exception(PATIENCE_S)
        except NoWorkerError as error:
            return error
    pytest.fail("everything was accepted")


def test_an_engine_that_cannot_be_built_is_told_by_its_own_name(
    artifacts: list[Artifact], shared_cache: Path
) -> None:
    site = WorkerSite("no-such-engine", shared_cache)
    try:
        with pytest.raises(EngineUnavailableError, match="no-such-engine"):
            site.host.load(VERSION, artifacts[0])
    finally:
        site.host.close()


def test_a_model_that_does_not_prove_itself_leaves_the_others_alone(
    artifacts: list[Artifact], shared_cache: Path, tmp_path: Path
) -> None:
    other = pooling_artifacts(tmp_path, 2)[1]
    for name in ("graph.xml", "graph.bin"):
        target = other.folder / "openvino" / name
        target.write_bytes((artifacts[0].folder / "openvino" / name).read_bytes())
    broken = seal(other.folder, dataclasses.replace(other.manifest, files={}))
    with open_worker_site("openvino", artifacts[:1], shared_cache) as site:
        with pytest.raises(GoldenMismatchError):
            site.host.load(ModelVersion("pooling", 2), broken)
        assert [served.version for served in site.host.models] == [VERSION]
        assert site.labels(site.picture(1)).shape == (64, 64)
        assert len(site.workers) == 1


ORPHAN = """
import os, sys, time
sys.path[:0] = sys.argv[1:3]
from pathlib import Path
from model.artifacts.artifact import read_artifact
from worker_site import VERSION, WorkerSite
site = WorkerSite("fault_engine:hang:marked", Path(sys.argv[3]))
site.host.load(VERSION, read_artifact(Path(sys.argv[4])))
if sys.argv[5] == "busy":
    future = site.submit(site.picture(1, marked=True))
    while not site.workers[0].has_started(0):
        time.sleep(0.01)
print(site.runner.pid, flush=True)
os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize("state", ["idle", "busy"])
def test_a_worker_does_not_outlive_a_service_that_is_killed(
    artifacts: list[Artifact], shared_cache: Path, state: str
) -> None:
    paths = (TESTS, TESTS.parent, shared_cache, artifacts[0].folder)
    done = subprocess.run(
        [sys.executable, "-c", ORPHAN, *map(str, paths), state],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    pid = int(done.stdout.splitlines()[-1])  # log lines come before
    wait_until(lambda: not is_alive(pid))


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"  # the process that adopts orphans may not reap them
