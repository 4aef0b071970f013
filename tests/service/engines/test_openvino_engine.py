from __future__ import annotations

import dataclasses
import gc
import hashlib
import os
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import POOLING_MANIFEST, _save_pooling_graph, seal, write_pooling_artifact
from signal_stack import signal_stack

from model.artifacts.artifact import Artifact, pack_golden
from model.artifacts.manifest import GOLDEN_FILE, GRAPH_FILE
from model.errors import DigestMismatchError, GoldenMismatchError
from service.core.device.engine import (
    EngineOptions,
    EngineUnavailableError,
    Float32Array,
    ImageBatch,
    Precision,
    PrecisionChoice,
)
from service.engines.openvino import (
    OpenVinoEngine,
    _default_threads,
    _floating_point,
    _run,
    _wanted_precisions,
    build,
    precisions,
)

REPOSITORY = Path(__file__).parents[3]


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    return write_pooling_artifact(tmp_path / "artifact")


@pytest.fixture
def options(tmp_path: Path) -> EngineOptions:
    return EngineOptions("cpu", "f32", tmp_path / "cache", threads=1)


def blobs(options: EngineOptions) -> list[Path]:
    return sorted((options.cache_folder / "openvino").iterdir())


def test_a_compiled_graph_is_kept_and_loaded_without_the_artifacts_graph(
    artifact: Artifact, options: EngineOptions
) -> None:
    build(artifact, options).close()
    artifact.path(GRAPH_FILE).unlink()
    build(artifact, options).close()
    assert len(blobs(options)) == 1


@pytest.mark.parametrize("content", [b"", b"garbage", hashlib.sha256(b"garbage").digest() + b"garbage"])
def test_a_corrupt_or_foreign_compiled_graph_is_made_anew(
    artifact: Artifact, options: EngineOptions, content: bytes
) -> None:
    build(artifact, options).close()
    (blob,) = blobs(options)
    compiled = blob.read_bytes()
    blob.write_bytes(content)
    build(artifact, options).close()
    assert blob.read_bytes() == compiled


def test_other_weights_are_another_compiled_graph(
    artifact: Artifact, options: EngineOptions, tmp_path: Path
) -> None:
    build(artifact, options).close()
    build(write_pooling_artifact(tmp_path / "other", seed=1), options).close()
    assert len(blobs(options)) == 2


def test_a_graph_for_float_pixels_is_compiled_when_it_is_first_needed(
    artifact: Artifact, options: EngineOptions
) -> None:
    engine = build(artifact, options)
    assert len(blobs(options)) == 1
    engine.infer(np.zeros((1, 32, 32, 3), np.float32))
    engine.infer(np.ones((1, 32, 32, 3), np.float32))
    assert len(blobs(options)) == 2


def test_a_graph_for_float_pixels_is_compiled_though_the_version_was_deleted(
    artifact: Artifact, options: EngineOptions
) -> None:
    engine = build(artifact, options)
    shutil.rmtree(artifact.folder)
    assert engine.infer(np.zeros((1, 32, 32, 3), np.float32)).shape == (1, 2, 4, 4)
    engine.close()


def test_a_quota_of_the_container_bounds_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.engines.openvino.usable_cores", lambda: len(os.sched_getaffinity(0)))
    assert _default_threads() == 0
    monkeypatch.setattr("service.engines.openvino.usable_cores", lambda: 999)
    assert _default_threads() == 999


def test_a_graph_that_is_not_the_manifests_is_refused(artifact: Artifact, options: EngineOptions) -> None:
    path = artifact.path(GRAPH_FILE)
    path.write_text(path.read_text() + "\n")
    with pytest.raises(DigestMismatchError):
        build(artifact, options)


def test_it_computes_in_the_precision_and_with_the_threads_that_were_asked_for(
    artifact: Artifact, options: EngineOptions
) -> None:
    engine = OpenVinoEngine(artifact, options, "f32")
    compiled = engine._requests["uint8"].get_compiled_model()
    assert compiled.get_property("INFERENCE_PRECISION_HINT").to_string() == "f32"
    assert compiled.get_property("INFERENCE_NUM_THREADS") == engine.threads == 1


@pytest.mark.parametrize(
    ("threads", "quota", "pinned"), [(None, None, True), (2, None, False), (None, 1, False)]
)
def test_only_an_engine_that_may_use_all_cores_is_pinned_to_them(
    artifact: Artifact,
    options: EngineOptions,
    monkeypatch: pytest.MonkeyPatch,
    threads: int | None,
    quota: int | None,
    *,
    pinned: bool,
) -> None:
    cores = len(os.sched_getaffinity(0))
    monkeypatch.setattr("service.engines.openvino.usable_cores", lambda: quota or cores)
    if quota == cores:
        pytest.skip("a machine of one core has no smaller quota")
    engine = OpenVinoEngine(artifact, dataclasses.replace(options, threads=threads), "f32")
    compiled = engine._requests["uint8"].get_compiled_model()
    assert compiled.get_property("ENABLE_CPU_PINNING") is pinned
    engine.close()


def test_one_thread_runs_the_graph_for_all_callers(
    artifact: Artifact, options: EngineOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Two threads, of which one ends before the graph is freed, have crashed OpenVINO.
    threads: list[int] = []

    def watched_run(request: Any, images_NHW3: ImageBatch) -> Float32Array:
        threads.append(threading.get_ident())
        return _run(request, images_NHW3)

    monkeypatch.setattr("service.engines.openvino._run", watched_run)
    engine = build(artifact, options)
    images_NHW3 = np.zeros((1, 32, 32, 3), np.uint8)
    engine.infer(images_NHW3)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(engine.infer, images_NHW3.astype(np.float32)).result()
    engine.close()
    assert len(threads) == 4  # of which two for the golden sample
    assert len(set(threads)) == 1


@pytest.mark.parametrize("count", [2, 3, 5])
def test_pictures_of_a_batch_run_side_by_side_and_each_has_its_own_scores(
    artifact: Artifact, options: EngineOptions, count: int
) -> None:
    engine = OpenVinoEngine(artifact, dataclasses.replace(options, threads=2, max_batch=2), "f32")
    images_NHW3 = np.random.default_rng(count).integers(0, 256, (count, 64, 96, 3), np.uint8)
    assert len(engine._side_by_side) == 2
    raw_NKhw = engine.infer(images_NHW3)
    alone_NKhw = np.concatenate([engine.infer(image_HW3[np.newaxis]) for image_HW3 in images_NHW3])
    np.testing.assert_allclose(raw_NKhw, alone_NKhw, atol=1e-5)
    assert raw_NKhw.flags.owndata
    engine.close()


@pytest.mark.parametrize(
    "change",
    [
        {"threads": 1, "max_batch": 2},
        {"threads": 2, "max_batch": 1},
        {"threads": 2, "max_batch": 2, "streams": 1},
    ],
)
def test_with_one_thread_one_picture_or_one_stream_there_is_one_graph(
    artifact: Artifact, options: EngineOptions, change: dict[str, int]
) -> None:
    engine = build(artifact, dataclasses.replace(options, **change))
    assert isinstance(engine, OpenVinoEngine)
    assert not engine._side_by_side
    assert len(blobs(options)) == 1
    engine.close()


def test_engines_come_and_go_and_leave_the_callers_stack_for_signals_alone(
    artifact: Artifact, options: EngineOptions
) -> None:
    with ThreadPoolExecutor(1) as caller:
        engines = [caller.submit(build, artifact, options).result() for _ in range(3)]
        caller.submit(engines.pop(0).close).result()
        engines.pop().close()
        caller.submit(engines.pop().close).result()
        gc.collect()
        assert caller.submit(signal_stack).result() == (0, 0)


def test_an_engine_that_was_refused_leaves_no_thread(artifact: Artifact, options: EngineOptions) -> None:
    path = artifact.path(GRAPH_FILE)
    path.write_text(path.read_text() + "\n")
    before = threading.active_count()
    with pytest.raises(DigestMismatchError):
        build(artifact, options)
    assert threading.active_count() == before


INT8_MANIFEST = dataclasses.replace(POOLING_MANIFEST, precision="int8", derived_from="pooling@1")


def test_auto_is_bf16_where_the_processor_has_it_and_f32_elsewhere() -> None:
    assert _wanted_precisions("auto", ("bf16", "f32", "f16"), POOLING_MANIFEST) == ("bf16", "f32")
    assert _wanted_precisions("auto", ("f32", "f16"), POOLING_MANIFEST) == ("f32",)


def test_a_precision_is_asked_for_by_name_or_refused() -> None:
    assert _wanted_precisions("f16", ("f32", "f16"), POOLING_MANIFEST) == ("f16",)
    with pytest.raises(EngineUnavailableError, match="f32, not in bf16"):
        _wanted_precisions("bf16", ("f32",), POOLING_MANIFEST)


@pytest.mark.parametrize("choice", ["auto", "int8"])
def test_an_int8_version_computes_in_int8(choice: PrecisionChoice) -> None:
    assert _wanted_precisions(choice, ("f32",), INT8_MANIFEST) == ("int8",)


@pytest.mark.parametrize("choice", ["f32", "bf16", "f16"])
def test_an_int8_version_cannot_compute_in_anything_else(choice: PrecisionChoice) -> None:
    with pytest.raises(EngineUnavailableError, match=f"cannot compute in {choice}; pooling@1 can"):
        _wanted_precisions(choice, ("bf16", "f32", "f16"), INT8_MANIFEST)


def test_a_version_that_is_not_int8_cannot_compute_in_it() -> None:
    with pytest.raises(EngineUnavailableError, match="bisenet models quantize"):
        _wanted_precisions("int8", ("f32", "int8"), POOLING_MANIFEST)


@pytest.mark.parametrize(("native", "rest"), [(("bf16", "f32", "int8"), "bf16"), (("f32", "int8"), "f32")])
def test_what_is_not_int8_runs_in_bf16_where_the_processor_has_it(
    native: tuple[Precision, ...], rest: Precision
) -> None:
    assert _floating_point("int8", native) == rest
    assert _floating_point("f32", native) == "f32"


def test_auto_is_the_processors_fastest_where_that_reproduces_the_golden_sample(
    artifact: Artifact, options: EngineOptions
) -> None:
    auto = EngineOptions("cpu", "auto", options.cache_folder)
    assert build(artifact, auto).info.precision == precisions("cpu")[0]


@pytest.mark.skipif("bf16" not in precisions("cpu"), reason="this processor has no bf16")
def test_auto_takes_f32_where_bf16_misses_the_golden_sample(
    artifact: Artifact, options: EngineOptions
) -> None:
    # Scores are small differences of large values, which bf16 rounds away.
    weights_K3 = np.float32([[1, -1, 0], [0, 1, -1]])
    image_HW3 = np.random.default_rng(0).integers(200, 202, (128, 160, 3), np.uint8)
    cells_hw3 = image_HW3.reshape(16, 8, 20, 8, 3).mean((1, 3))
    raw_Khw = np.einsum("kc,hwc->khw", weights_K3, cells_hw3).astype(np.float32)
    artifact.path(GOLDEN_FILE).write_bytes(pack_golden(image_HW3, raw_Khw))
    _save_pooling_graph(artifact.path(GRAPH_FILE), weights_K3)
    delicate = seal(artifact.folder, artifact.manifest)
    auto = EngineOptions("cpu", "auto", options.cache_folder)
    assert build(delicate, auto).info.precision == "f32"
    with pytest.raises(GoldenMismatchError):
        build(delicate, EngineOptions("cpu", "bf16", options.cache_folder))


def test_nothing_is_reported_to_anybody_the_home_stays_empty_and_torch_is_not_needed(
    artifact: Artifact, options: EngineOptions, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    program = f"""
import sys
from pathlib import Path
from model.artifacts.artifact import read_artifact
from service.core.device.engine import EngineOptions
from service.engines import engine_builder

def refuse(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "os.fork", "subprocess.Popen"):
        print(event, arguments)
        raise SystemExit(event)

sys.addaudithook(refuse)
options = EngineOptions("cpu", "f32", Path({str(options.cache_folder)!r}))
engine_builder("auto", "cpu")(read_artifact(Path({str(artifact.folder)!r})), options).close()
assert "torch" not in sys.modules
"""
    environment = {**os.environ, "HOME": str(home), "PYTHONPATH": str(REPOSITORY)}
    environment.pop("CI", None)  # its telemetry is off there
    run = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False
    )
    assert (run.returncode, run.stdout) == (0, ""), run.stderr
    assert list(home.iterdir()) == []
