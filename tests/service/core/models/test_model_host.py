from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from fakes import FAKE_MANIFEST, PATIENCE_S, FakeEngine

from model.artifacts.artifact import Artifact
from model.artifacts.manifest import ModelVersion
from model.errors import GoldenMismatchError
from model.evaluation import network_passes
from model.pictures.preprocess import PreparedImage, size_of
from service.core.device.device import Device
from service.core.device.engine import EngineChoice, EngineOptions, EngineTuning, Precision
from service.core.device.in_process import InProcessRunner
from service.core.errors import (
    ConflictError,
    DrainingError,
    LoadingError,
    ModelNotFoundError,
    VersionNotFoundError,
)
from service.core.models.loaded_model import LoadedModel
from service.core.models.model_host import ModelHost
from service.core.scheduling.dispatcher import Answer, Dispatcher

ARTIFACT = Artifact(Path("nowhere"), FAKE_MANIFEST)
CITY_1, CITY_2, ROAD_1 = ModelVersion("city", 1), ModelVersion("city", 2), ModelVersion("road", 1)


@pytest.fixture(scope="module", autouse=True)
def _kernels() -> None:
    network_passes.warm_up()


class Builder:
    """Builds fake engines and keeps them."""

    def __init__(self) -> None:
        self.built: list[FakeEngine] = []
        self.options: list[EngineOptions] = []
        self.error: Exception | None = None

    def __call__(self, artifact: Artifact, options: EngineOptions) -> FakeEngine:
        assert artifact is ARTIFACT
        assert options.device == "cpu"
        if self.error:
            raise self.error
        self.options.append(options)
        self.built.append(FakeEngine())
        return self.built[-1]


@pytest.fixture
def builder() -> Builder:
    return Builder()


@pytest.fixture
def host(builder: Builder, tmp_path: Path) -> Iterator[ModelHost]:
    device = Device(builder, EngineOptions("cpu", "auto", tmp_path / "cache"))
    host = ModelHost(Dispatcher(InProcessRunner(device)))
    yield host
    host.close()


def submit(model: LoadedModel, image: PreparedImage) -> Future[Answer]:
    deadline_s = time.monotonic() + PATIENCE_S
    return model.submit(image, model.reserve(image.padded, deadline_s=deadline_s))


def picture(value: int) -> PreparedImage:
    pixels_HW3 = np.full((32, 32, 3), value, np.uint8)
    return PreparedImage(pixels_HW3, size_of(pixels_HW3), size_of(pixels_HW3))


def test_an_empty_host_is_loading(host: ModelHost) -> None:
    assert not host.ready
    assert host.models == ()
    with pytest.raises(LoadingError):
        host.find()


def test_a_loaded_model_is_served_and_answers(host: ModelHost, builder: Builder) -> None:
    served = host.load(CITY_1, ARTIFACT)
    assert host.ready
    assert served.engine == builder.built[0].info
    assert served.manifest is FAKE_MANIFEST
    future = submit(served, picture(255))
    assert (future.result(PATIENCE_S).labels_HW == 3).all()


TUNING = EngineTuning("int8", streams=1, threads=3, choice=(EngineChoice("int8", 1, 3, 128.0),))


@pytest.fixture
def tuned_host(builder: Builder, tmp_path: Path) -> Iterator[ModelHost]:
    device = Device(builder, EngineOptions("cpu", "auto", tmp_path / "cache"))
    host = ModelHost(
        Dispatcher(InProcessRunner(device)),
        tuning_of=lambda version, _: TUNING if version == CITY_1 else EngineTuning(),
    )
    yield host
    host.close()


def test_each_version_is_built_as_was_chosen_for_it_and_says_what_was_measured(
    tuned_host: ModelHost, builder: Builder
) -> None:
    assert tuned_host.load(CITY_1, ARTIFACT).choice == TUNING.choice
    assert tuned_host.load(CITY_2, ARTIFACT).choice == ()
    built = [(options.precision, options.streams, options.threads) for options in builder.options]
    assert built == [("int8", 1, 3), ("auto", None, None)]


@pytest.mark.parametrize(("precision", "threads"), [("bf16", None), ("int8", 3)])
def test_a_borrower_says_the_precision(
    tuned_host: ModelHost, builder: Builder, precision: Precision, threads: int | None
) -> None:
    tuned_host.borrow(CITY_1, ARTIFACT, precision=precision)
    assert (builder.options[0].precision, builder.options[0].threads) == (precision, threads)


def test_each_version_is_answered_by_its_own_engine(host: ModelHost, builder: Builder) -> None:
    for version in (CITY_1, CITY_2):
        host.load(version, ARTIFACT)
    submit(host.find("city", 2), picture(0)).result(PATIENCE_S)
    assert [len(engine.seen) for engine in builder.built] == [0, 1]


def test_the_first_expected_model_is_the_default_whatever_loads_first(host: ModelHost) -> None:
    for version in (ROAD_1, CITY_2, CITY_1):
        host.expect(version)
    for version in (CITY_1, CITY_2, ROAD_1):
        host.load(version, ARTIFACT)
    assert host.find().version == ROAD_1
    assert host.find("city").version == CITY_2
    assert host.find("city", 1).version == CITY_1
    assert [served.version for served in host.models] == [ROAD_1, CITY_2, CITY_1]


def test_what_is_not_served_is_named_by_the_error(host: ModelHost) -> None:
    host.load(CITY_1, ARTIFACT)
    with pytest.raises(ModelNotFoundError, match="village"):
        host.find("village")
    with pytest.raises(VersionNotFoundError, match="7"):
        host.find("city", 7)


def test_an_expected_model_is_loading_and_keeps_the_host_from_being_ready(host: ModelHost) -> None:
    host.expect(CITY_1)
    host.expect(ROAD_1)
    host.load(CITY_1, ARTIFACT)
    assert not host.ready
    assert host.find("city").version == CITY_1
    with pytest.raises(LoadingError, match="road@1"):
        host.find("road")


def test_a_model_that_does_not_prove_itself_is_not_served(host: ModelHost, builder: Builder) -> None:
    builder.error = GoldenMismatchError("other scores")
    with pytest.raises(GoldenMismatchError):
        host.load(CITY_1, ARTIFACT)
    assert host.models == ()


def test_closing_frees_every_engine_and_refuses_pictures(host: ModelHost, builder: Builder) -> None:
    model = host.load(CITY_1, ARTIFACT)
    host.load(ROAD_1, ARTIFACT)
    host.close()
    assert all(engine.closed for engine in builder.built)
    with pytest.raises(DrainingError):
        submit(model, picture(0))


def test_a_bare_name_means_the_first_version_until_another_one_is_served(host: ModelHost) -> None:
    host.load(CITY_1, ARTIFACT)
    host.load(CITY_2, ARTIFACT)
    assert host.find("city").version == CITY_1
    assert host.find("city", 2).version == CITY_2
    assert host.serve(CITY_2) == CITY_1
    assert host.find("city").version == host.find().version == CITY_2
    assert [served.version for served in host.models] == [CITY_2, CITY_1]
    assert host.serve(CITY_2) is None
    assert host.serve(CITY_1) == CITY_2


def test_a_version_that_is_not_loaded_cannot_be_served(host: ModelHost) -> None:
    host.load(CITY_1, ARTIFACT)
    with pytest.raises(VersionNotFoundError, match="city@2"):
        host.serve(CITY_2)


def test_loading_beside_what_is_served_leaves_the_service_ready(host: ModelHost, builder: Builder) -> None:
    host.load(CITY_1, ARTIFACT)
    builder.error = GoldenMismatchError("other scores")
    with pytest.raises(GoldenMismatchError):
        host.load(CITY_2, ARTIFACT)
    assert host.ready
    assert host.find("city").version == CITY_1
    with pytest.raises(VersionNotFoundError):
        host.find("city", 2)


def test_a_version_is_loaded_once_however_many_ask_for_it(host: ModelHost, builder: Builder) -> None:
    with ThreadPoolExecutor(4) as pool:
        served = list(pool.map(lambda _: host.load(CITY_1, ARTIFACT), range(4)))
    assert all(one is served[0] for one in served)
    assert len(builder.built) == 1


def test_a_new_version_is_run_at_the_sizes_in_use_before_it_is_served(
    host: ModelHost, builder: Builder
) -> None:
    model = host.load(CITY_1, ARTIFACT)
    for width in range(1, 12):
        pixels_HW3 = np.zeros((32, 32 * width, 3), np.uint8)
        image = PreparedImage(pixels_HW3, size_of(pixels_HW3), size_of(pixels_HW3))
        submit(model, image).result(PATIENCE_S)
    host.load(CITY_2, ARTIFACT)
    assert [shape[2] // 32 for shape in builder.built[1].seen] == [4, 5, 6, 7, 8, 9, 10, 11]


def test_what_a_bare_name_means_cannot_be_unloaded(host: ModelHost) -> None:
    host.load(CITY_1, ARTIFACT)
    with pytest.raises(ConflictError, match="city@1"):
        host.unload(CITY_1)
    with pytest.raises(VersionNotFoundError):
        host.unload(CITY_2)


def test_an_old_version_leaves_after_its_last_holder(host: ModelHost, builder: Builder) -> None:
    host.load(CITY_1, ARTIFACT)
    host.load(CITY_2, ARTIFACT)
    with host.hold("city") as held:
        host.serve(CITY_2)
        leaving = threading.Thread(target=host.unload, args=(CITY_1,))
        leaving.start()
        assert not builder.built[0].closed
        future = submit(held, picture(255))
        assert (future.result(PATIENCE_S).labels_HW == 3).all()
        assert host.find("city", 1) is held
    leaving.join(PATIENCE_S)
    assert builder.built[0].closed
    with pytest.raises(VersionNotFoundError):
        host.find("city", 1)
    assert host.ready


def test_who_holds_an_old_version_for_too_long_is_told_that_it_is_gone(host: ModelHost) -> None:
    host.load(CITY_1, ARTIFACT)
    host.load(CITY_2, ARTIFACT)
    host.serve(CITY_2)
    with host.hold("city", 1) as held:
        host.unload(CITY_1, drain_s=0.0)
        with pytest.raises(VersionNotFoundError):
            submit(held, picture(0))


def test_raw_scores_have_the_shape_that_the_manifest_says(host: ModelHost) -> None:
    model = host.load(CITY_1, ARTIFACT)
    images_NHW3 = np.full((3, 32, 64, 3), 170, np.float32)
    future = model.infer(images_NHW3, deadline_s=time.monotonic() + PATIENCE_S)
    raw_NKhw = future.result(PATIENCE_S).raw_NKhw
    assert raw_NKhw.shape == (3, 4, 4, 8)
    assert (raw_NKhw.argmax(1) == 2).all()
