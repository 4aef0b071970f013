"""The engines of a GPU; all are skipped without one. Axes: as in ``service.engines.cuda``."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model.artifacts.artifact import GOLDEN_TOLERANCE, Artifact
from model.artifacts.manifest import ModelManifest
from model.decoding import decode
from model.errors import ModelOutputError
from model.labels import UInt8Array
from model.networks.segmentation_network import ARCHITECTURES, SegmentationNetwork
from model.pictures.preprocess import ImageSize, PreparedImage
from service.core.device.engine import DeviceMemoryError, EngineInfo, EngineOptions, Precision
from service.engines import engine_builder
from service.engines.cuda_graphs import GraphedNetwork
from service.engines.torch import TorchEngine, on_gpu, recorded_engine

if not torch.cuda.is_available():
    pytest.skip("no NVIDIA GPU", allow_module_level=True)

from service.engines.cuda import CudaEngine

Build = Callable[..., CudaEngine]
every_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES, indirect=True)
DEVICE = "cuda:0"
SIZE = ImageSize(64, 96)


@pytest.fixture
def build(network: SegmentationNetwork, manifest: ModelManifest, tmp_path: Path) -> Build:
    def build(precision: Precision, **options: Any) -> CudaEngine:
        info = EngineInfo("torch", DEVICE, precision)
        return recorded_engine(
            on_gpu(copy.deepcopy(network), info),
            manifest,
            EngineOptions(DEVICE, precision, tmp_path, **options),
            info,
        )

    return build


def pictures(count: int, seed: int = 0) -> list[PreparedImage]:
    """Return pictures of one padded size, each of another original size."""
    generator = np.random.default_rng(seed)
    return [
        PreparedImage(
            generator.integers(0, 256, (SIZE.height, SIZE.width, 3), np.uint8),
            ImageSize(SIZE.height - n, SIZE.width - n),
            ImageSize(2 * (SIZE.height - n), 2 * (SIZE.width - n)),
        )
        for n in range(count)
    ]


def begun(engine: CudaEngine, batch: list[PreparedImage]) -> Callable[[], list[UInt8Array]]:
    """Begin a batch; the result fetches its labels."""
    labels = [np.empty(picture.original.shape, np.uint8) for picture in batch]
    fetch = engine.begin(batch, labels)

    def fetched() -> list[UInt8Array]:
        assert fetch() == [None] * len(batch)
        return labels

    return fetched


def labels_of(manifest: ModelManifest, engine: CudaEngine, picture: PreparedImage) -> UInt8Array:
    return decode.labels(
        engine.infer(picture.pixels_HW3[np.newaxis])[0],
        upsample=manifest.upsample,
        stride=manifest.stride,
        padded=picture.padded,
        content=picture.content,
        original=picture.original,
    )


@every_architecture
@pytest.mark.parametrize("precision", ["f32", "bf16", "f16"])
def test_it_agrees_with_the_reference_however_often_a_size_comes(
    build: Build, network: SegmentationNetwork, precision: Precision
) -> None:
    images_NHW3 = np.random.default_rng(0).integers(0, 256, (3, 64, 96, 3), np.uint8)
    wanted = TorchEngine(network, EngineInfo("torch", "cpu", "f32")).infer(images_NHW3)
    engine = build(precision)
    allowed = GOLDEN_TOLERANCE[precision] * np.ptp(wanted)
    for _ in range(5):  # eager twice, then recorded
        assert np.sqrt(np.mean((engine.infer(images_NHW3) - wanted) ** 2)) <= allowed


@every_architecture
def test_a_recorded_size_takes_every_batch_it_was_recorded_for(build: Build, manifest: ModelManifest) -> None:
    engine = build("f32")
    for count in (4, 4, 4, 3, 4):
        batch = pictures(count, seed=count)
        for picture, labels_HW in zip(batch, begun(engine, batch)(), strict=True):
            assert (labels_HW != labels_of(manifest, engine, picture)).mean() < 1e-3


@every_architecture
def test_batches_under_way_do_not_mix(build: Build) -> None:
    engine = build("f32")
    batches = [pictures(2, seed) for seed in range(6)]
    alone = [begun(engine, batch)() for batch in batches]
    for order in ((0, 1, 2, 3, 4, 5), (5, 0, 4, 1, 3, 2)):
        under_way = [begun(engine, batch) for batch in batches]
        for index in order:
            for got, wanted in zip(under_way[index](), alone[index], strict=True):
                assert (got != wanted).mean() < 1e-2  # eager or recorded: not to the last bit


def test_a_picture_without_scores_fails_alone(manifest: ModelManifest) -> None:
    def program(images_NHW3: torch.Tensor) -> torch.Tensor:
        raw_NKhw = torch.zeros(len(images_NHW3), 4, SIZE.height // 8, SIZE.width // 8, device=DEVICE)
        raw_NKhw[1] = torch.nan
        return raw_NKhw

    engine = CudaEngine(program, manifest, EngineInfo("torch", DEVICE, "f32"))
    batch = pictures(3)
    first, second, third = engine.begin(batch, [np.empty(one.original.shape, np.uint8) for one in batch])()
    assert first is None
    assert isinstance(second, ModelOutputError)
    assert third is None


def test_a_thread_that_loads_disturbs_none_that_serves(build: Build) -> None:
    engine = build("f32")
    wanted = begun(engine, pictures(2))()
    failed: list[Exception] = []
    done = threading.Event()

    def load() -> None:
        try:
            for batch in (4, 2, 1):
                one = build("f32")
                for _ in range(4):  # recorded when it comes for the third time
                    one.infer(np.zeros((batch, 128, 160, 3), np.uint8))
        except Exception as error:  # noqa: BLE001 - told by the test
            failed.append(error)
        finally:
            done.set()

    thread = threading.Thread(target=load)
    thread.start()
    count = 0
    while not done.is_set() or count < 8:
        # New sizes make this thread allocate, pinned memory too, while the other one records.
        engine.infer(np.zeros((1, 64 + 32 * (count % 20), 96, 3), np.uint8))
        for got, label_map in zip(begun(engine, pictures(2))(), wanted, strict=True):
            assert (got != label_map).mean() < 1e-2
        count += 1
    thread.join()
    assert not failed


def test_a_batch_without_memory_is_refused_and_the_next_one_is_not(build: Build) -> None:
    engine = build("f32")
    (wanted,) = begun(engine, pictures(1))()
    torch.cuda.empty_cache()
    room = torch.cuda.memory_reserved() + 256e6
    torch.cuda.set_per_process_memory_fraction(room / torch.cuda.get_device_properties(DEVICE).total_memory)
    try:
        for _ in range(5):  # the third is to be recorded, and does not fit, either
            with pytest.raises(DeviceMemoryError):
                engine.infer(np.zeros((8, 2048, 2048, 3), np.uint8))
        (got,) = begun(engine, pictures(1))()
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert (got != wanted).mean() < 1e-2


def test_a_prepared_network_keeps_no_activations(network: SegmentationNetwork) -> None:
    info, size = EngineInfo("torch", DEVICE, "f16"), ImageSize(512, 1024)
    graphed = GraphedNetwork(on_gpu(copy.deepcopy(network), info), torch.device(DEVICE))
    before = torch.cuda.memory_allocated()
    graphed.prepare(size, 4)
    # Pictures, scores and workspaces; all activations of a picture of this size are 170 MB, by their shapes.
    assert torch.cuda.memory_allocated() - before < 300e6


@every_architecture
@pytest.mark.soak
def test_a_prepared_size_gives_what_others_give(build: Build) -> None:
    prepared, plain = build("f32", sizes=(SIZE,), max_batch=2), build("f32")
    images_NHW3 = np.stack([picture.pixels_HW3 for picture in pictures(2)])
    wanted = plain.infer(images_NHW3)
    assert np.abs(prepared.infer(images_NHW3) - wanted).max() <= 1e-3 * np.ptp(wanted)


@every_architecture
@pytest.mark.soak
def test_an_artifact_becomes_an_engine(tiny_artifact: Artifact, tmp_path: Path) -> None:
    options = EngineOptions(DEVICE, "f16", tmp_path, sizes=(SIZE,), max_batch=4)
    assert engine_builder("torch", DEVICE)(tiny_artifact, options).info.precision == "f16"


@every_architecture
@pytest.mark.soak
def test_tensorrt_agrees_with_torch(tiny_artifact: Artifact, build: Build, tmp_path: Path) -> None:
    pytest.importorskip("torch_tensorrt", exc_type=Exception)
    options = EngineOptions(DEVICE, "f16", tmp_path, sizes=(SIZE,), max_batch=4)
    engine = engine_builder("tensorrt", DEVICE)(tiny_artifact, options)
    images_NHW3 = np.stack([picture.pixels_HW3 for picture in pictures(3)])
    wanted = build("f32").infer(images_NHW3)
    allowed = GOLDEN_TOLERANCE["f16"] * np.ptp(wanted)
    assert np.sqrt(np.mean((engine.infer(images_NHW3) - wanted) ** 2)) <= allowed
