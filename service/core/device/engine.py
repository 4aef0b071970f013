"""What every inference engine is, whatever library runs the network.

Axes: N images in a batch, K channels of the head, H height, W width (of the padded input),
h w = H/stride W/stride.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from model.artifacts.artifact import Artifact
from model.errors import ModelOutputError
from model.labels import UInt8Array
from model.pictures.preprocess import ImageSize, PreparedImage

Float32Array = npt.NDArray[np.float32]
ImageBatch = npt.NDArray[np.uint8] | npt.NDArray[np.float32]
Precision = Literal["f32", "bf16", "f16", "int8"]
PrecisionChoice = Literal["auto", "f32", "bf16", "f16", "int8"]
AUTO_DEVICE = "auto"
"""The first GPU or, if no engine runs there, the CPU."""


@dataclass(frozen=True)
class EngineChoice:
    """One way to run a model on this machine, and the time it takes.

    Attributes:
        precision: what the network computes in.
        streams: pictures of a batch that run side by side, 1 or 2.
        threads: inference threads.
        latency_ms: median time of one picture alone, in milliseconds.
    """

    precision: Precision
    streams: int
    threads: int
    latency_ms: float


@dataclass(frozen=True)
class EngineTuning:
    """How the engine of one version is built, where that differs from version to version.

    Attributes:
        precision: ``auto`` = what ``EngineOptions`` says.
        streams: None = what ``EngineOptions`` says.
        threads: None = what ``EngineOptions`` says.
        choice: what was measured before this was chosen: the chosen way first, then the others, fastest
            first; empty where nothing was measured.
    """

    precision: PrecisionChoice = "auto"
    streams: int | None = None
    threads: int | None = None
    choice: tuple[EngineChoice, ...] = ()


DEFAULT_TUNING = EngineTuning()
"""Everything as ``EngineOptions`` say."""


@dataclass(frozen=True)
class EngineInfo:
    """What an engine turned out to be: shown by ``doctor``, ``/readyz`` and ``/v1/models``.

    Attributes:
        engine: its name.
        device: ``cpu`` or ``cuda:N``.
        precision: what it computes in.
        refused: why engines that ``auto`` likes better do not run here; empty if there are none.
    """

    engine: str
    device: str
    precision: Precision
    refused: str = field(default="", compare=False)


@dataclass(frozen=True)
class EngineOptions:
    """How an engine is to be built.

    Args:
        device: ``cpu`` or ``cuda:N``; or ``AUTO_DEVICE``, for ``auto`` engines only.
        precision: ``auto`` = the first of the device's precisions that reproduces the golden sample.
        threads: inference threads; None = what the library takes of the cores that this process may use.
        cache_folder: owner-only folder for compiled graphs, created when missing.
        max_batch: pictures of the largest batch that is to be fast.
        sizes: padded sizes that are compiled for, where a library gains by that; all others run as well.
        refused: why better engines are not built, for ``EngineInfo``.
        streams: pictures of a batch that run side by side, 1 or 2; None = 2 where there are cores for it.
        arguments: for an engine that is a plug-in: the text behind its name and a colon.
    """

    device: str
    precision: PrecisionChoice
    cache_folder: Path
    threads: int | None = None
    max_batch: int = 1
    sizes: tuple[ImageSize, ...] = ()
    refused: str = ""
    streams: int | None = None
    arguments: str = ""

    def tuned(self, tuning: EngineTuning) -> EngineOptions:
        """Return these options for one version: what its tuning leaves open stays as it is."""
        return replace(
            self,
            precision=self.precision if tuning.precision == "auto" else tuning.precision,
            streams=self.streams if tuning.streams is None else tuning.streams,
            threads=self.threads if tuning.threads is None else tuning.threads,
        )


class InferenceEngine(Protocol):
    """Runs one model on one device; used by one thread at a time."""

    @property
    def info(self) -> EngineInfo:
        """What this engine is."""
        ...

    def infer(self, images_NHW3: ImageBatch) -> Float32Array:
        """Run the network.

        Args:
            images_NHW3: RGB, uint8 or float32 of 0..255, both sides multiples of 32.

        Returns:
            raw_NKhw: the head's raw output, float32, C-contiguous; the caller owns it.
        """
        ...

    def close(self) -> None:
        """Free the device; the engine is not used afterwards."""
        ...


class LabelingEngine(InferenceEngine, Protocol):
    """An engine that makes labels, too, because the scores are better left on its device."""

    def begin(self, pictures: Sequence[PreparedImage], labels: Sequence[UInt8Array]) -> PendingLabels:
        """Enqueue a batch and return while it runs; others may be begun before this one is fetched.

        Args:
            pictures: of one padded size.
            labels: where the answer to each goes (``service.core.device.batch_job.answer_shape``), uint8;
                written when they are fetched.

        Returns:
            To be called once, in any order: parts of a batch that failed are begun and fetched while the next
            batch is under way.
        """
        ...


PendingLabels = Callable[[], Sequence[ModelOutputError | None]]
"""Waits for a batch and writes its labels; for each picture why there are none, or None.

Raises:
    DeviceMemoryError: the device has no memory for it.
    DeviceLostError: the device is lost to this process.
"""

EngineBuilder = Callable[[Artifact, EngineOptions], InferenceEngine]
"""Builds an engine and proves it on the artifact's golden sample.

Raises:
    EngineUnavailableError: this machine cannot run it; the message says why.
    model.errors.GoldenMismatchError: it runs, but computes something else.
"""


class EngineUnavailableError(Exception):
    """This machine cannot run the engine; the message says why, for people."""


class DeviceMemoryError(Exception):
    """The device has no memory for the batch; a smaller one may fit."""


class DeviceLostError(Exception):
    """The device is lost to this process (an error of CUDA that sticks): only a new process can use it."""


def private_folder(path: Path) -> Path:
    """Return a folder that only its owner can write to, created (0700, its parents too) when missing.

    What lies in it is loaded as machine code, so one that somebody else could have filled is refused.

    Raises:
        EngineUnavailableError: it cannot be created or written to, or is open to others.
    """
    try:
        for folder in reversed([path, *path.parents]):
            if not folder.is_dir():
                folder.mkdir(mode=0o700, exist_ok=True)
        status = path.stat()
    except OSError as error:
        raise EngineUnavailableError(f"cache folder {path} cannot be used: {error.strerror}") from error
    if status.st_uid != os.geteuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise EngineUnavailableError(f"cache folder {path} can be written to by others")
    if not os.access(path, os.W_OK):
        raise EngineUnavailableError(f"cache folder {path} is read-only")
    return path
