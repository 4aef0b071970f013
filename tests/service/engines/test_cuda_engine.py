"""What can be said of the engine of a GPU without one. Axes: as in ``service.engines.cuda``."""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from fake_cuda import FakeCuda
from fakes import FAKE_MANIFEST, red_scores
from tiny_model import tiny_manifest, tiny_network
from torch import Tensor

from model.artifacts.manifest import ModelVersion
from model.decoding.confidence import confidence
from model.errors import GoldenMismatchError, ModelOutputError
from model.labels import UInt8Array
from model.pictures.preprocess import ImageSize, PreparedImage
from service.core.device.batch_job import Outcome, answer_shape
from service.core.device.engine import DeviceMemoryError, EngineInfo, EngineOptions
from service.core.device.labeling import LabelingAttempts, LabelingWork, Pending, labeler_of
from service.engines.torch import on_gpu, recorded_engine

SIZE = ImageSize(32, 32)
POISON = 111


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return FakeCuda().install(monkeypatch)


def engine_of(cuda: ModuleType, program: Callable[[Tensor], Tensor]) -> Any:
    return cuda.CudaEngine(program, FAKE_MANIFEST, EngineInfo("torch", "cpu", "f32"))


def scores(images_NHW3: Tensor) -> Tensor:
    return torch.from_numpy(red_scores(images_NHW3.numpy()))


def pictures(*classes: int) -> list[PreparedImage]:
    return [PreparedImage(np.full((32, 32, 3), 85 * k, np.uint8), SIZE, SIZE) for k in classes]


def begun(labeler: Any, work: LabelingWork) -> Pending:
    return LabelingAttempts(labeler, work, lambda: None).start()


def work_of(*classes: int) -> LabelingWork:
    labels = [np.full((32, 32), 99, np.uint8) for _ in classes]
    return LabelingWork(ModelVersion("fake", 1), pictures(*classes), labels, [float("inf")] * len(classes))


def ids(labels: Sequence[UInt8Array]) -> list[int]:
    return [int(labels_HW[0, 0]) for labels_HW in labels]


def begun_of(engine: Any, *classes: int) -> Callable[[], list[int]]:
    """Begin a batch; the result fetches the class of each picture."""
    work = work_of(*classes)
    fetch = engine.begin(work.pictures, work.labels)

    def fetched() -> list[int]:
        assert fetch() == [None] * len(classes)
        return ids(work.labels)

    return fetched


def test_a_picture_that_asks_for_it_gets_the_confidence_behind_its_labels(cuda: ModuleType) -> None:
    plain, asked = pictures(1, 2)
    asked = dataclasses.replace(asked, confidence=True)
    answers = [np.empty(answer_shape(picture), np.uint8) for picture in (plain, asked)]
    assert engine_of(cuda, scores).begin([plain, asked], answers)() == [None, None]
    raw_Khw = red_scores(asked.pixels_HW3[np.newaxis])[0]
    geometry: Any = {"upsample": "bilinear", "stride": 8, "padded": SIZE, "content": SIZE, "original": SIZE}
    assert (answers[0] == 1).all()
    assert (answers[1][0] == 2).all()
    assert np.array_equal(answers[1][1], confidence(raw_Khw, answers[1][0], **geometry))


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("full"), RuntimeError("cannot stand it")])
def test_a_batch_that_is_tried_again_in_parts_leaves_the_next_one_its_labels(
    cuda: ModuleType, error: Exception
) -> None:
    failures = [error]

    def program(images_NHW3: Tensor) -> Tensor:
        if failures:
            raise failures.pop()
        return scores(images_NHW3)

    with ThreadPoolExecutor(1) as decoders:
        labeler = labeler_of(engine_of(cuda, program), FAKE_MANIFEST, decoders)
        first, second = work_of(0, 1), work_of(2, 3)
        pending = [begun(labeler, first), begun(labeler, second)]
        assert [wait().outcomes for wait in pending] == [(Outcome.ANSWERED,) * 2] * 2
    assert ids([*first.labels, *second.labels]) == [0, 1, 2, 3]


def test_batches_are_fetched_in_any_order(cuda: ModuleType) -> None:
    engine = engine_of(cuda, scores)
    under_way = [begun_of(engine, k, 3 - k) for k in range(4)]
    for k in (2, 0, 3, 1):
        assert under_way[k]() == [k, 3 - k]


def test_a_batch_that_was_fetched_leaves_its_memory_to_the_next(
    cuda: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = list[int]()
    monkeypatch.setattr(cuda, "_pinned", lambda size: sizes.append(size) or torch.empty(size).byte())
    engine = engine_of(cuda, scores)
    begun_of(engine, 0, 1)()
    before = len(sizes)
    assert begun_of(engine, 2, 3)() == [2, 3]
    assert len(sizes) == before


def test_a_picture_without_scores_is_told_apart(cuda: ModuleType) -> None:
    def program(images_NHW3: Tensor) -> Tensor:
        raw_NKhw = scores(images_NHW3)
        raw_NKhw[1] = torch.nan
        return raw_NKhw

    work = work_of(1, 2, 3)
    flaws = engine_of(cuda, program).begin(work.pictures, work.labels)()
    assert [type(flaw) for flaw in flaws] == [type(None), ModelOutputError, type(None)]
    assert ids(work.labels) == [1, 99, 3]


def test_memory_is_given_back_when_nothing_holds_it_any_more(
    cuda: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[weakref.ref[Tensor]] = []
    gone: list[bool] = []

    def program(images_NHW3: Tensor) -> Tensor:
        activations = scores(images_NHW3)
        held.append(weakref.ref(activations))
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: gone.append(held[0]() is None))
    with pytest.raises(DeviceMemoryError):
        engine_of(cuda, program).begin(pictures(0), [])
    assert gone == [True]


def test_a_device_without_memory_is_named(cuda: ModuleType) -> None:
    def program(_: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("full")

    with pytest.raises(DeviceMemoryError, match="full"):
        engine_of(cuda, program).begin(pictures(0), [])


@pytest.mark.usefixtures("cuda")
def test_what_was_recorded_for_a_size_is_proven(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch, "compile", lambda network, **_: network)
    info = EngineInfo("torch", "cpu", "f16")
    options = EngineOptions("cpu", "f16", tmp_path, sizes=(ImageSize(64, 96),), max_batch=2)
    # Replays of the stand-in compute nothing: what was recorded were empty pictures.
    with pytest.raises(GoldenMismatchError):
        recorded_engine(on_gpu(tiny_network(), info), tiny_manifest(), options, info)


def test_pictures_travel_one_by_one_and_labels_are_copied_once(
    cuda: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied = list[tuple[int, ...]]()
    copy = np.copyto

    def copy_and_note(there: UInt8Array, here: UInt8Array) -> None:
        copied.append(there.shape)
        copy(there, here)

    monkeypatch.setattr(np, "copyto", copy_and_note)
    assert begun_of(engine_of(cuda, scores), 1, 3)() == [1, 3]
    assert copied == [(32, 32, 3)] * 2 + [(32, 32)] * 2
