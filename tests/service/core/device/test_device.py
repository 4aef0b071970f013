"""Axes: N images in a batch, K classes, H height, W width, h w = H/8 W/8."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fakes import FAKE_MANIFEST, FakeEngine, red_scores

from model.artifacts.artifact import Artifact
from model.artifacts.manifest import ModelVersion
from model.decoding import decode
from model.errors import GoldenMismatchError
from model.evaluation import network_passes
from model.pictures.preprocess import ImageSize
from service.core.device.batch_job import Outcome
from service.core.device.device import Device
from service.core.device.engine import (
    DeviceLostError,
    DeviceMemoryError,
    EngineOptions,
    EngineTuning,
    Float32Array,
    ImageBatch,
)

CITY = ModelVersion("city", 1)
ARTIFACT = Artifact(Path("nowhere"), FAKE_MANIFEST)
IMAGES_NHW3 = np.full((2, 32, 64, 3), 85, np.uint8)


class Builder:
    """Builds what it was told to."""

    def __init__(self) -> None:
        self.engines = [FakeEngine()]
        self.options: list[EngineOptions] = []
        self.built = 0

    def __call__(self, _artifact: Artifact, options: EngineOptions) -> FakeEngine:
        self.options.append(options)
        self.built += 1
        return self.engines[self.built - 1]


@pytest.fixture
def builder() -> Builder:
    return Builder()


@pytest.fixture
def device(builder: Builder, shared_cache: Path) -> Iterator[Device]:
    device = Device(builder, EngineOptions("cpu", "auto", shared_cache), decode_threads=1)
    yield device
    device.close()


@pytest.mark.parametrize("compiles_for_service", [True, False])
def test_a_worker_compiles_the_kernels_of_the_service_and_a_command_only_its_own(
    builder: Builder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, compiles_for_service: bool
) -> None:
    compiled: list[tuple[str, Path]] = []
    for name, module in (("all", network_passes), ("decoding", decode)):
        monkeypatch.setattr(module, "warm_up", lambda folder, name=name: compiled.append((name, folder)))
    options = EngineOptions("cpu", "auto", tmp_path)
    device = Device(builder, options, compiles_for_service=compiles_for_service)
    device.load(CITY, ARTIFACT)
    device.close()
    assert compiled == [("all" if compiles_for_service else "decoding", tmp_path / "numba")]


def scored(device: Device, *, within_s: float = 60) -> tuple[Outcome, Float32Array]:
    out_NKhw = np.zeros((2, 4, 4, 8), np.float32)
    report = device.score(CITY, IMAGES_NHW3, out_NKhw, time.monotonic() + within_s)
    return report.outcomes[0], out_NKhw


def test_a_new_engine_runs_once_at_each_size_that_pictures_have(device: Device, builder: Builder) -> None:
    device.load(CITY, ARTIFACT, [ImageSize(32, 64), ImageSize(96, 32)])
    assert builder.engines[0].seen == [(1, 32, 64, 3), (1, 96, 32, 3)]


def test_a_version_is_built_with_what_its_tuning_says_and_the_options_for_the_rest(
    device: Device, builder: Builder, shared_cache: Path
) -> None:
    device.load(CITY, ARTIFACT, (), EngineTuning("bf16", threads=3))
    assert builder.options == [EngineOptions("cpu", "bf16", shared_cache, threads=3)]


def test_an_engine_that_fails_at_a_size_in_use_is_not_loaded(device: Device, builder: Builder) -> None:
    def refuse(_: ImageBatch) -> Float32Array:
        raise GoldenMismatchError("not at this size")

    builder.engines[0] = FakeEngine(answer=refuse)
    with pytest.raises(GoldenMismatchError):
        device.load(CITY, ARTIFACT, [ImageSize(32, 32)])
    assert builder.engines[0].closed


@pytest.mark.parametrize("labels", [False, True])
def test_the_decoder_is_compiled_only_for_engines_that_leave_decoding_to_it(
    device: Device, builder: Builder, monkeypatch: pytest.MonkeyPatch, *, labels: bool
) -> None:
    warmed = list[object]()
    monkeypatch.setattr(decode, "warm_up", warmed.append)
    if labels:
        builder.engines[0].begin = lambda _: list  # type: ignore[attr-defined]
    device.load(CITY, ARTIFACT)
    assert len(warmed) == (not labels)


def test_unloading_frees_the_engine(device: Device, builder: Builder) -> None:
    device.load(CITY, ARTIFACT)
    device.unload(CITY)
    assert builder.engines[0].closed


def test_scores_are_kept_as_they_are(device: Device) -> None:
    device.load(CITY, ARTIFACT)
    outcome, raw_NKhw = scored(device)
    assert outcome is Outcome.ANSWERED
    np.testing.assert_array_equal(raw_NKhw, red_scores(IMAGES_NHW3))


def test_scores_that_are_no_longer_needed_are_not_computed(device: Device, builder: Builder) -> None:
    device.load(CITY, ARTIFACT)
    assert scored(device, within_s=-1)[0] is Outcome.EXPIRED
    assert builder.engines[0].seen == []


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (DeviceMemoryError("full"), Outcome.NO_MEMORY),
        (MemoryError(), Outcome.NO_MEMORY),
        (RuntimeError("no"), Outcome.FAILED),
    ],
)
def test_scoring_that_fails_says_how(
    device: Device, builder: Builder, error: Exception, outcome: Outcome
) -> None:
    def fail(_: ImageBatch) -> Float32Array:
        raise error

    builder.engines[0] = FakeEngine(answer=fail)
    device.load(CITY, ARTIFACT)
    assert scored(device)[0] is outcome


def test_scores_of_another_shape_are_invalid(device: Device, builder: Builder) -> None:
    builder.engines[0] = FakeEngine(answer=lambda images: red_scores(images)[..., :-1])
    device.load(CITY, ARTIFACT)
    assert scored(device)[0] is Outcome.INVALID


def test_a_lost_device_is_not_hidden(device: Device, builder: Builder) -> None:
    def lose(_: ImageBatch) -> Float32Array:
        raise DeviceLostError("CUDA error")

    builder.engines[0] = FakeEngine(answer=lose)
    device.load(CITY, ARTIFACT)
    with pytest.raises(DeviceLostError):
        scored(device)
