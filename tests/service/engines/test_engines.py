"""What every engine promises. Axes: N images in a batch, K channels of the head, h w = H/8 W/8."""

from __future__ import annotations

import dataclasses
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import structlog
from fakes import seal

from model.artifacts.artifact import GOLDEN_TOLERANCE, Artifact, pack_golden
from model.artifacts.manifest import GOLDEN_FILE, GRAPH_WEIGHTS_FILE, WEIGHTS_FILE
from model.errors import DigestMismatchError, GoldenMismatchError
from model.labels import UInt8Array
from service.core.device.engine import AUTO_DEVICE, EngineOptions, EngineUnavailableError, InferenceEngine
from service.engines import (
    ENGINES,
    NO_GPU,
    engine_builder,
    engine_precisions,
    resolve_device,
    tell_missing_gpu,
)

CPU_ENGINES = ("openvino", "torch")
NATIVE = [(name, precision) for name in CPU_ENGINES for precision in engine_precisions(name, "cpu")]
WEIGHTS_OF = {"openvino": GRAPH_WEIGHTS_FILE, "torch": WEIGHTS_FILE}

Build = Callable[..., InferenceEngine]


@pytest.fixture(scope="session")
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session", params=NATIVE, ids="-".join)
def engine(request: pytest.FixtureRequest, cache_folder: Path) -> Iterator[InferenceEngine]:
    name, precision = request.param
    options = EngineOptions("cpu", precision, cache_folder, threads=1)
    artifact = request.getfixturevalue("tiny_int8_artifact" if precision == "int8" else "tiny_artifact")
    engine = engine_builder(name, "cpu")(artifact, options)
    yield engine
    engine.close()


@pytest.fixture(scope="session")
def reference(tiny_artifact: Artifact, cache_folder: Path) -> InferenceEngine:
    return engine_builder("torch", "cpu")(tiny_artifact, EngineOptions("cpu", "f32", cache_folder, threads=1))


def images(count: int, height: int, width: int, seed: int = 0) -> UInt8Array:
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), np.uint8)


class TestEveryEngine:
    def test_says_what_it_is(self, engine: InferenceEngine) -> None:
        assert (engine.info.engine, engine.info.precision) in NATIVE
        assert engine.info.device == "cpu"

    @pytest.mark.parametrize("shape", [(1, 32, 32), (2, 32, 96), (1, 160, 64)])
    def test_agrees_with_the_reference_at_any_padded_size(
        self, engine: InferenceEngine, reference: InferenceEngine, shape: tuple[int, int, int]
    ) -> None:
        count, height, width = shape
        images_NHW3 = images(count, height, width)
        raw_NKhw = engine.infer(images_NHW3)
        assert raw_NKhw.shape == (count, 4, height // 8, width // 8)
        assert raw_NKhw.dtype == np.float32
        assert raw_NKhw.flags.c_contiguous
        expected_NKhw = reference.infer(images_NHW3)
        rms = float(np.sqrt(np.mean((raw_NKhw - expected_NKhw) ** 2)))
        assert rms <= GOLDEN_TOLERANCE[engine.info.precision] * np.ptp(expected_NKhw)

    def test_reads_float_pixels_as_it_reads_bytes(self, engine: InferenceEngine) -> None:
        images_NHW3 = images(2, 64, 32)
        from_bytes = engine.infer(images_NHW3)
        np.testing.assert_array_equal(engine.infer(images_NHW3.astype(np.float32)), from_bytes)

    def test_reads_pixels_that_it_may_not_write(self, engine: InferenceEngine) -> None:
        images_NHW3 = images(1, 64, 32)
        expected = engine.infer(images_NHW3)
        images_NHW3.setflags(write=False)
        np.testing.assert_array_equal(engine.infer(images_NHW3), expected)

    def test_answers_a_batch_as_it_answers_each_picture(self, engine: InferenceEngine) -> None:
        images_NHW3 = images(3, 64, 32)
        together = engine.infer(images_NHW3)
        alone = np.concatenate([engine.infer(images_NHW3[n : n + 1]) for n in range(3)])
        tolerance = 1e-5 if engine.info.precision == "f32" else 1e-2
        np.testing.assert_allclose(together, alone, rtol=0, atol=tolerance * float(np.ptp(alone)))

    def test_gives_the_same_answer_twice(self, engine: InferenceEngine) -> None:
        images_NHW3 = images(1, 64, 32)
        np.testing.assert_array_equal(engine.infer(images_NHW3), engine.infer(images_NHW3))

    def test_leaves_an_answer_to_its_caller(self, engine: InferenceEngine) -> None:
        first = engine.infer(images(1, 32, 32, seed=1))
        kept = first.copy()
        engine.infer(images(1, 32, 32, seed=2))
        np.testing.assert_array_equal(first, kept)


@pytest.fixture(params=CPU_ENGINES)
def build(request: pytest.FixtureRequest, cache_folder: Path) -> Build:
    """Build the engine under test of an artifact, in f32 unless said otherwise."""

    def build(artifact: Artifact, **changes: str) -> InferenceEngine:
        options = EngineOptions("cpu", "f32", cache_folder, threads=1)
        return engine_builder(request.param, "cpu")(artifact, dataclasses.replace(options, **changes))

    build.engine = request.param  # type: ignore[attr-defined]
    return build


def copy_of(artifact: Artifact, folder: Path) -> Artifact:
    shutil.copytree(artifact.folder, folder, dirs_exist_ok=True)
    return Artifact(folder, artifact.manifest)


def test_an_engine_that_computes_something_else_is_refused(
    build: Build, tiny_artifact: Artifact, tmp_path: Path
) -> None:
    other = copy_of(tiny_artifact, tmp_path)
    golden = other.golden()
    shifted_Khw = golden.raw_Khw + 0.01 * np.ptp(golden.raw_Khw)
    other.path(GOLDEN_FILE).write_bytes(pack_golden(golden.image_HW3, shifted_Khw))
    with pytest.raises(GoldenMismatchError):
        build(seal(tmp_path, tiny_artifact.manifest))


def test_weights_that_are_not_those_of_the_manifest_are_refused(
    build: Build, tiny_artifact: Artifact, tmp_path: Path
) -> None:
    other = copy_of(tiny_artifact, tmp_path)
    path = other.path(WEIGHTS_OF[build.engine])  # type: ignore[attr-defined]
    path.write_bytes(path.read_bytes()[:-4] + b"\0\0\0\0")
    with pytest.raises(DigestMismatchError):
        build(other, cache_folder=tmp_path / "empty")


@pytest.mark.parametrize(("precision", "reason"), [("f16", "not in f16"), ("int8", "not.* int8")])
def test_a_precision_that_device_or_model_lacks_is_refused_and_not_replaced(
    build: Build, tiny_artifact: Artifact, precision: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Processors with AMX or AVX-512 FP16 compute in f16.
    monkeypatch.setattr("service.engines.openvino._CAPABILITIES", {"FP32": "f32"})
    with pytest.raises(EngineUnavailableError, match=reason):
        build(tiny_artifact, precision=precision)


def test_an_int8_version_runs_in_int8_or_not_at_all(
    build: Build, tiny_artifact: Artifact, tmp_path: Path
) -> None:
    other = copy_of(tiny_artifact, tmp_path)
    int8 = seal(
        other.folder, dataclasses.replace(tiny_artifact.manifest, precision="int8", derived_from="tiny@1")
    )
    with pytest.raises(EngineUnavailableError, match="tiny@1"):
        build(int8)


def test_a_device_that_is_not_there_is_refused_and_not_replaced(
    build: Build, tiny_artifact: Artifact
) -> None:
    with pytest.raises(EngineUnavailableError, match="cuda:9"):
        build(tiny_artifact, device="cuda:9")


def test_the_choice_of_an_engine_is_kept() -> None:
    assert {name: engine_builder(name, "cpu").__module__ for name in ENGINES} == dict(ENGINES)


def test_without_a_gpu_auto_is_openvino_and_says_why(tiny_artifact: Artifact, cache_folder: Path) -> None:
    options = EngineOptions("cpu", "f32", cache_folder, threads=1)
    engine = engine_builder("auto", "cpu")(tiny_artifact, options)
    assert (engine.info.engine, engine.info.device) == ("openvino", "cpu")
    assert engine.info.refused == f"tensorrt: {NO_GPU}; torch: {NO_GPU}"
    engine.close()


def test_auto_falls_back_from_a_gpu_that_no_engine_can_use_and_says_why(
    tiny_artifact: Artifact, cache_folder: Path
) -> None:
    options = EngineOptions(AUTO_DEVICE, "f32", cache_folder, threads=1)
    engine = engine_builder("auto", AUTO_DEVICE)(tiny_artifact, options)
    assert (engine.info.engine, engine.info.device) == ("openvino", "cpu")
    reasons = engine.info.refused.split("; torch: ")
    assert reasons[0].startswith("tensorrt: tensorrt needs an NVIDIA GPU")
    assert reasons[1] == "torch finds no NVIDIA GPU for cuda:0"
    engine.close()


def test_a_gpu_that_was_asked_for_is_not_replaced_by_the_cpu(
    tiny_artifact: Artifact, cache_folder: Path
) -> None:
    options = EngineOptions("cuda:0", "auto", cache_folder)
    with pytest.raises(EngineUnavailableError, match="torch finds no NVIDIA GPU"):
        engine_builder("auto", "cuda:0")(tiny_artifact, options)


def test_tensorrt_asked_for_by_name_is_not_replaced(tiny_artifact: Artifact, cache_folder: Path) -> None:
    device = resolve_device("auto", "tensorrt")
    with pytest.raises(EngineUnavailableError, match="needs an NVIDIA GPU"):
        engine_builder("tensorrt", device)(tiny_artifact, EngineOptions(device, "auto", cache_folder))


@pytest.mark.parametrize(
    ("engine", "without_gpu", "with_gpu"),
    [
        ("auto", "cpu", AUTO_DEVICE),
        ("torch", "cpu", "cuda:0"),
        ("tensorrt", "cuda:0", "cuda:0"),
        ("openvino", "cpu", "cpu"),
        ("fault_engine:slow:1", "cpu", "cpu"),
    ],
)
def test_an_engine_takes_a_gpu_if_there_is_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, engine: str, without_gpu: str, with_gpu: str
) -> None:
    for driver, device in ((tmp_path / "none", without_gpu), (tmp_path, with_gpu)):
        monkeypatch.setattr("service.engines._DRIVER_FILES", (str(driver),))
        assert resolve_device("auto", engine) == device
        assert resolve_device("cuda:1", engine) == "cuda:1"


def test_an_unknown_engine_is_named_by_the_error() -> None:
    with pytest.raises(
        EngineUnavailableError, match=r"no engine 'tensorflow': choose openvino, tensorrt, torch"
    ):
        engine_builder("tensorflow", "cpu")


def test_a_module_of_ones_own_is_an_engine_and_gets_the_text_behind_its_name(
    tiny_artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_engine.py").write_text("def build(artifact, options):\n    return artifact, options\n")
    monkeypatch.syspath_prepend(tmp_path)
    options = EngineOptions("cpu", "auto", tmp_path)
    for choice, arguments in (("my_engine", ""), ("my_engine:a:b", "a:b")):
        built: object = engine_builder(choice, "cpu")(tiny_artifact, options)
        assert built == (tiny_artifact, dataclasses.replace(options, arguments=arguments))


@pytest.mark.parametrize("name", ["openvino:1", "", ".", "no.such_module", "my engine"])
def test_what_is_neither_an_engine_nor_a_module_is_refused(name: str) -> None:
    with pytest.raises(EngineUnavailableError, match="there is no engine"):
        engine_builder(name, "cpu")


def test_a_module_that_builds_nothing_is_no_engine() -> None:
    with pytest.raises(EngineUnavailableError, match="json is no engine: it has no function build"):
        engine_builder("json", "cpu")


@pytest.mark.parametrize("name", ENGINES)
def test_a_library_that_is_not_installed_is_named_by_the_error(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, ENGINES[name], raising=False)
    monkeypatch.setitem(sys.modules, ENGINES[name], None)
    with pytest.raises(EngineUnavailableError, match=f"^{name} is not installed"):
        engine_builder(name, "cpu")


@pytest.mark.parametrize(
    ("device", "has_gpu", "told"), [("auto", False, True), ("auto", True, False), ("cpu", False, False)]
)
def test_the_log_says_why_no_gpu_is_used_where_one_would_have_been(
    monkeypatch: pytest.MonkeyPatch, *, device: str, has_gpu: bool, told: bool
) -> None:
    monkeypatch.setattr("service.engines.has_gpu", lambda: has_gpu)
    with structlog.testing.capture_logs() as lines:
        tell_missing_gpu(device)
    assert [line["event"] for line in lines] == ["GPU is not used"] * told
