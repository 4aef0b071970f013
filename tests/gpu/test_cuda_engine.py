"""The engines of a GPU; all are skipped without one. Axes: as in ``service.engines.cuda``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from model import decode
from model.artifact import GOLDEN_TOLERANCE, Artifact
from model.errors import ModelOutputError
from model.labels import UInt8Array
from model.preprocess import ImageSize, PreparedImage
from service.core.engine import EngineInfo, EngineOptions, Precision
from service.engines import engine_builder

if not torch.cuda.is_available():
    pytest.skip("no NVIDIA GPU", allow_module_level=True)

from service.engines.cuda import CudaEngine

DEVICE = "cuda:0"
SIZE = ImageSize(64, 96)


def build(artifact: Artifact, folder: Path, precision: Precision, **options: object) -> CudaEngine:
    built = EngineOptions(DEVICE, precision, folder, **options)
    engine = engine_builder("torch", DEVICE)(artifact, built)
    assert isinstance(engine, CudaEngine)
    return engine


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


def labels_of(artifact: Artifact, engine: CudaEngine, picture: PreparedImage) -> UInt8Array:
    return decode.labels(
        engine.infer(picture.pixels_HW3[np.newaxis])[0],
        upsample=artifact.manifest.upsample,
        stride=artifact.manifest.stride,
        padded=picture.padded,
        content=picture.content,
        original=picture.original,
    )


@pytest.mark.parametrize("precision", ["f32", "bf16", "f16"])
def test_it_agrees_with_the_reference_however_often_a_size_comes(
    tiny_artifact: Artifact, tmp_path: Path, precision: Precision
) -> None:
    images_NHW3 = np.random.default_rng(0).integers(0, 256, (3, 64, 96, 3), np.uint8)
    reference = engine_builder("torch", "cpu")(tiny_artifact, EngineOptions("cpu", "f32", tmp_path))
    wanted = reference.infer(images_NHW3)
    engine = build(tiny_artifact, tmp_path, precision)
    allowed = GOLDEN_TOLERANCE[precision] * np.ptp(wanted)
    for _ in range(5):  # eager twice, then recorded
        assert np.sqrt(np.mean((engine.infer(images_NHW3) - wanted) ** 2)) <= allowed


def test_a_recorded_size_takes_every_batch_it_was_recorded_for(
    tiny_artifact: Artifact, tmp_path: Path
) -> None:
    engine = build(tiny_artifact, tmp_path, "f32")
    for count in (4, 4, 4, 3, 4):
        batch = pictures(count, seed=count)
        for picture, labels_HW in zip(batch, engine.begin(batch)(), strict=True):
            assert isinstance(labels_HW, np.ndarray)
            assert (labels_HW != labels_of(tiny_artifact, engine, picture)).mean() < 1e-3


def test_two_batches_under_way_do_not_mix(tiny_artifact: Artifact, tmp_path: Path) -> None:
    engine = build(tiny_artifact, tmp_path, "f16")
    batches = [pictures(2, seed) for seed in range(6)]
    alone = [engine.begin(batch)() for batch in batches]
    pending = engine.begin(batches[0])
    for index in range(1, len(batches)):
        following = engine.begin(batches[index])
        for got, wanted in zip(pending(), alone[index - 1], strict=True):
            assert np.array_equal(got, wanted)
        pending = following
    for got, wanted in zip(pending(), alone[-1], strict=True):
        assert np.array_equal(got, wanted)


def test_a_picture_without_scores_fails_alone(tiny_artifact: Artifact) -> None:
    def program(images_NHW3: torch.Tensor) -> torch.Tensor:
        raw_NKhw = torch.zeros(len(images_NHW3), 4, SIZE.height // 8, SIZE.width // 8, device=DEVICE)
        raw_NKhw[1] = torch.nan
        return raw_NKhw

    engine = CudaEngine(program, tiny_artifact.manifest, EngineInfo("torch", DEVICE, "f32"))
    first, second, third = engine.begin(pictures(3))()
    assert isinstance(first, np.ndarray)
    assert isinstance(second, ModelOutputError)
    assert isinstance(third, np.ndarray)


@pytest.mark.soak
def test_a_prepared_size_gives_what_others_give(tiny_artifact: Artifact, tmp_path: Path) -> None:
    prepared = build(tiny_artifact, tmp_path, "f32", sizes=(SIZE,), max_batch=2)
    plain = build(tiny_artifact, tmp_path, "f32")
    images_NHW3 = np.stack([picture.pixels_HW3 for picture in pictures(2)])
    wanted = plain.infer(images_NHW3)
    assert np.abs(prepared.infer(images_NHW3) - wanted).max() <= 1e-3 * np.ptp(wanted)


@pytest.mark.soak
def test_tensorrt_agrees_with_torch(tiny_artifact: Artifact, tmp_path: Path) -> None:
    pytest.importorskip("torch_tensorrt", exc_type=Exception)
    options = EngineOptions(DEVICE, "f16", tmp_path, sizes=(SIZE,), max_batch=4)
    engine = engine_builder("tensorrt", DEVICE)(tiny_artifact, options)
    images_NHW3 = np.stack([picture.pixels_HW3 for picture in pictures(3)])
    wanted = build(tiny_artifact, tmp_path, "f32").infer(images_NHW3)
    allowed = GOLDEN_TOLERANCE["f16"] * np.ptp(wanted)
    assert np.sqrt(np.mean((engine.infer(images_NHW3) - wanted) ** 2)) <= allowed
