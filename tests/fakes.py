"""Small real things that stand in for large ones, for tests of all packages."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import hashlib
import itertools
import re
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import pytest
import safetensors.numpy

from model.artifacts.artifact import Artifact, pack_golden, read_artifact
from model.artifacts.manifest import (
    ARTIFACT_FILES,
    GOLDEN_FILE,
    GRAPH_FILE,
    MANIFEST_FILE,
    WEIGHTS_FILE,
    ModelManifest,
)
from model.artifacts.openvino_graph import GRAPH_INPUT, GRAPH_OUTPUT, load_openvino
from model.artifacts.storage import Storage, StoredObject
from model.labels import ClassPalette, UInt8Array
from model.pictures.image import ImageLimits, decode_image
from service.core.device.engine import EngineInfo, Float32Array, ImageBatch
from service.core.errors import BusyError, ConflictError, NotFoundError, ServiceError
from service.core.jobs.evaluation_job import EvaluationRequest, EvaluationResult
from service.core.jobs.job import Job, JobState, RequestT, ResultT
from service.core.jobs.prediction_job import PredictionRequest, PredictionResult
from service.core.keys.access_key import AccessKey
from service.core.keys.key_ring import KeyRing

T = TypeVar("T")

POOLING_MANIFEST = ModelManifest(
    architecture="pooling",
    generation="test",
    parameters={},
    upsample="bilinear",
    stride=8,
    palette=ClassPalette(names=("dark", "bright"), colors=((0, 0, 0), (255, 255, 255))),
    mean=(0.5, 0.5, 0.5),
    std=(0.25, 0.25, 0.25),
    precision="f32",
)


def key_ring(*secrets: str) -> KeyRing:
    """Return keys that open inference."""
    return KeyRing(AccessKey.of_secret(secret) for secret in secrets)


def admin_keys(admin_token: str, scrape_token: str) -> KeyRing:
    """Return the keys of a service that has nothing but the tokens of its admin frontend."""
    return KeyRing(
        [
            AccessKey.of_secret(admin_token, ("admin",), "admin-token"),
            AccessKey.of_secret(scrape_token, ("metrics",), "scrape-token"),
        ]
    )


def write_pooling_artifact(folder: Path, *, seed: int = 0, **changes: Any) -> Artifact:
    """Write a complete artifact without torch: scores are weighted means of 8x8 pixels.

    It is a few kilobytes, and OpenVINO compiles it in milliseconds.
    """
    random = np.random.default_rng(seed)
    weights_K3 = random.normal(size=(2, 3)).astype(np.float32)
    image_HW3 = random.integers(0, 256, (128, 160, 3), np.uint8)
    cells_hw3 = image_HW3.reshape(16, 8, 20, 8, 3).mean((1, 3))
    raw_Khw = np.einsum("kc,hwc->khw", weights_K3, cells_hw3).astype(np.float32)
    (folder / GRAPH_FILE).parent.mkdir(parents=True)
    (folder / WEIGHTS_FILE).write_bytes(safetensors.numpy.save({"head.weight": weights_K3}))
    (folder / GOLDEN_FILE).write_bytes(pack_golden(image_HW3, raw_Khw))
    _save_pooling_graph(folder / GRAPH_FILE, weights_K3)
    return seal(folder, dataclasses.replace(POOLING_MANIFEST, **changes))


def seal(folder: Path, manifest: ModelManifest) -> Artifact:
    """Write the manifest of the files that are in the folder now."""
    files = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in ARTIFACT_FILES}
    sealed = dataclasses.replace(manifest, files=files)
    (folder / MANIFEST_FILE).write_text(sealed.to_json())
    return read_artifact(folder)


def _save_pooling_graph(path: Path, weights_K3: np.ndarray[Any, Any]) -> None:
    openvino = load_openvino()
    ops = openvino.opset13
    images = ops.parameter([-1, -1, -1, 3], np.float32)
    planes = ops.transpose(images, ops.constant([0, 3, 1, 2]))
    cells = ops.avg_pool(planes, [8, 8], [0, 0], [0, 0], [8, 8], True)
    kernel = ops.constant(weights_K3[:, :, None, None])
    scores = ops.convolution(cells, kernel, [1, 1], [0, 0], [0, 0], [1, 1])
    graph = openvino.Model([scores], [images], "pooling")
    graph.input().set_names({GRAPH_INPUT})
    graph.output().set_names({GRAPH_OUTPUT})
    openvino.save_model(graph, path, compress_to_fp16=False)


class InterruptedStorage:
    """A storage that fails at one operation, before or after it was carried out.

    Args:
        inner: what carries the operations out.
        fail_at: number of the failing operation, from 1.
        failure: raised there.
        after: the operation happens, but its caller does not learn of it.
    """

    def __init__(self, inner: Storage, *, fail_at: int, failure: BaseException, after: bool) -> None:
        self.operations = 0
        self._inner = inner
        self._fail_at = fail_at
        self._failure = failure
        self._after = after

    def create(self, path: str, data: bytes) -> bool:
        return self._interrupted(lambda: self._inner.create(path, data))

    def swap(self, path: str, old: bytes, new: bytes) -> bool:
        return self._interrupted(lambda: self._inner.swap(path, old, new))

    def read(self, path: str) -> bytes | None:
        return self._interrupted(lambda: self._inner.read(path))

    def objects(self, prefix: str) -> list[StoredObject]:
        return self._interrupted(lambda: self._inner.objects(prefix))

    def delete(self, path: str) -> None:
        self._interrupted(lambda: self._inner.delete(path))

    def local_folder(self, prefix: str) -> Path | None:
        return self._inner.local_folder(prefix)

    def _interrupted(self, operation: Callable[[], T]) -> T:
        self.operations += 1
        if self.operations != self._fail_at:
            return operation()
        if self._after:
            operation()
        raise self._failure


LEAKED = re.compile(
    r"Traceback|File \"|\.py\b|(?<![:/\w])/(usr|home|root|tmp|var|opt|work)/|PIL|OpenVINO|libjpeg|libpng"
)
"""What an error must not tell a client: a path of the machine, a trace, the name of a library."""

PATIENCE_S = 30.0
"""Time after which a test that waits for another thread fails, in seconds; a successful test takes less."""

FAKE_MANIFEST = ModelManifest(
    architecture="fake",
    generation="test",
    parameters={},
    upsample="bilinear",
    stride=8,
    palette=ClassPalette(
        names=("black", "dark", "light", "white"),
        colors=((0, 0, 0), (85, 85, 85), (170, 170, 170), (255, 255, 255)),
    ),
    mean=(0.0, 0.0, 0.0),
    std=(1.0, 1.0, 1.0),
    precision="f32",
)
"""Of a model whose class k is a red value near 85 k."""


class FakeEngine:
    """An engine that scores a cell by its mean red value; can be held, and told to fail.

    Args:
        held: each ``infer`` waits for a ``go_on`` of its own before it answers.
        answer: computes the raw output instead; may raise.
    """

    def __init__(
        self, *, held: bool = False, answer: Callable[[ImageBatch], Float32Array] | None = None
    ) -> None:
        self.info = EngineInfo("fake", "cpu", "f32")
        self.seen: list[tuple[int, ...]] = []
        self.closed = False
        self._held = held
        self._answer = answer or red_scores
        self._begun = threading.Semaphore(0)
        self._released = threading.Semaphore(0)

    def infer(self, images_NHW3: ImageBatch) -> Float32Array:
        self.seen.append(images_NHW3.shape)
        if self._held:
            self._begun.release()
            assert self._released.acquire(timeout=PATIENCE_S)
        return self._answer(images_NHW3)

    def wait_until_busy(self) -> None:
        """Return when the next ``infer`` has begun."""
        assert self._begun.acquire(timeout=PATIENCE_S)

    def go_on(self, times: int = 1) -> None:
        """Let that many calls of ``infer`` answer."""
        self._released.release(times)

    def close(self) -> None:
        self.closed = True


def red_scores(images_NHW3: ImageBatch) -> Float32Array:
    """Return raw_NKhw of ``FAKE_MANIFEST``'s model: class k scores highest where red is nearest to 85 k."""
    count, height, width = images_NHW3.shape[:3]
    red_Nhw = images_NHW3[..., 0].reshape(count, height // 8, 8, width // 8, 8).mean((2, 4), dtype=np.float32)
    centres_K11 = 85.0 * np.arange(FAKE_MANIFEST.palette.num_classes, dtype=np.float32)[:, None, None]
    return np.ascontiguousarray(-np.abs(red_Nhw[:, None] - centres_K11))


class PictureWatch:
    """Knows whether pictures that the segmenter decoded are still in memory."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._pictures: list[weakref.ref[UInt8Array]] = []
        monkeypatch.setattr("service.core.pictures.picture.decode_image", self._decode)

    async def wait_until_gone(self) -> None:
        """Return when the first picture is out of memory, though no garbage collector has come by."""
        given_up_s = time.monotonic() + PATIENCE_S
        while self._pictures[0]() is not None:  # no event says so
            assert time.monotonic() < given_up_s, "the picture is still in memory"
            await asyncio.sleep(0)

    def _decode(self, data: bytes, limits: ImageLimits) -> UInt8Array:
        image_HW3 = decode_image(data, limits)
        self._pictures.append(weakref.ref(image_HW3))
        return image_HW3


@contextmanager
def no_garbage_collector() -> Iterator[None]:
    """Leave everything to reference counts."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


async def until(condition: Callable[[], bool]) -> None:
    """Return when a condition holds of which no event tells."""
    given_up_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < given_up_s, "it never came true"
        await asyncio.sleep(0.002)


_job_ids = itertools.count()  # of all kinds of jobs


class FakeJobs(Generic[RequestT, ResultT]):
    """Jobs in memory that do not run: a test moves them itself."""

    def __init__(self) -> None:
        self.known: dict[str, Job[RequestT, ResultT]] = {}
        self.failure: ServiceError | None = None
        self.cancelling_fails = False
        self._keys: dict[str, str] = {}

    def enqueue_job(self, request: RequestT, *, key: str | None = None) -> Job[RequestT, ResultT]:
        self._fail()
        job_id = self._keys.get(key or "") or f"{next(_job_ids):020x}"
        if key is not None:
            self._keys[key] = job_id
        job = self.known.setdefault(job_id, Job(job_id, request, JobState.QUEUED))
        if job.request.client_fields != request.client_fields:
            raise ConflictError("this Idempotency-Key was used for another request")
        return job

    def find_by_key(self, key: str) -> Job[RequestT, ResultT] | None:
        self._fail()
        return self.known.get(self._keys.get(key, ""))

    def get_job(self, job_id: str) -> Job[RequestT, ResultT]:
        self._fail()
        if job_id not in self.known:
            raise NotFoundError("there is no such job")
        return self.known[job_id]

    def list_jobs(self) -> tuple[Job[RequestT, ResultT], ...]:
        self._fail()
        return tuple(reversed(self.known.values()))

    def cancel_job(self, job_id: str) -> Job[RequestT, ResultT]:
        if self.cancelling_fails:
            raise BusyError("the jobs database does not answer")
        if not self.get_job(job_id).state.is_final:
            self.move(job_id, state=JobState.CANCELLED)
        return self.get_job(job_id)

    def move(self, job_id: str, **changes: Any) -> None:
        """Let a job be another one from now on."""
        self.known[job_id] = dataclasses.replace(self.known[job_id], **changes)

    def _fail(self) -> None:
        if self.failure is not None:
            raise self.failure


FakeEvaluations = FakeJobs[EvaluationRequest, EvaluationResult]
FakePredictions = FakeJobs[PredictionRequest, PredictionResult]
