"""Inference engines: their interface, options and errors, whatever library runs the network.

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
        precision: of the computation.
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
        precision: ``auto`` = that of ``EngineOptions``.
        streams: None = that of ``EngineOptions``.
        threads: None = that of ``EngineOptions``.
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
    """A built engine, as ``doctor``, ``/readyz`` and ``/v1/models`` show it.

    Attributes:
        engine: its name.
        device: ``cpu`` or ``cuda:N``.
        precision: of the computation.
        refused: why engines that ``auto`` prefers do not run here; empty if there are none.
    """

    engine: str
    device: str
    precision: Precision
    refused: str = field(default="", compare=False)


@dataclass(frozen=True)
class EngineOptions:
    """How engines are built.

    Args:
        device: ``cpu`` or ``cuda:N``; or ``AUTO_DEVICE``, for ``auto`` engines only.
        precision: ``auto`` = the first of the device's precisions that reproduces the golden sample.
        threads: inference threads; None = the choice of the library among the usable cores.
        cache_folder: folder for compiled graphs, writable by its owner only; created when missing.
        max_batch: pictures of the largest batch to optimise for.
        sizes: padded sizes to compile for, where the library can; all others run as well.
        refused: for ``EngineInfo``.
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
        """Return these options with the tuning of one version; values that it leaves open stay."""
        return replace(
            self,
            precision=self.precision if tuning.precision == "auto" else tuning.precision,
            streams=self.streams if tuning.streams is None else tuning.streams,
            threads=self.threads if tuning.threads is None else tuning.threads,
        )


class InferenceEngine(Protocol):
    """Runs one network on one device; used by one thread at a time."""

    @property
    def info(self) -> EngineInfo:
        """Name, device and precision."""
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
        """Free the device; called once, as the last method."""
        ...


class LabelingEngine(InferenceEngine, Protocol):
    """An engine that also makes labels, so that the scores stay on its device."""

    def begin(self, pictures: Sequence[PreparedImage], labels: Sequence[UInt8Array]) -> PendingLabels:
        """Enqueue a batch and return while it runs; others may be enqueued before its result is called.

        Args:
            pictures: of one padded size.
            labels: the answer to each, uint8, of the shape that ``batch_job.answer_shape`` returns; written
                when the result is called.

        Returns:
            To be called once, in any order: the parts of a failed batch run while the next one is under way.
        """
        ...


PendingLabels = Callable[[], Sequence[ModelOutputError | None]]
"""Waits for a batch and writes its labels; returns for each picture why it has none, or None.

Raises:
    DeviceMemoryError: the device has no memory for the batch.
    DeviceLostError: this process can no longer use the device.
"""

EngineBuilder = Callable[[Artifact, EngineOptions], InferenceEngine]
"""Builds an engine and proves it on the artifact's golden sample.

Raises:
    EngineUnavailableError: this machine cannot run the engine.
    model.errors.GoldenMismatchError: the engine computes something else.
"""


class EngineUnavailableError(Exception):
    """This machine cannot run the engine; the message says why."""


class DeviceMemoryError(Exception):
    """The device has no memory for the batch; a smaller one may fit."""


class DeviceLostError(Exception):
    """This process can no longer use the device (a sticky CUDA error); a new process can."""


def private_folder(path: Path) -> Path:
    """Return a folder that only its owner can write to; it and its parents are created (0700) when missing.

    Files in it are loaded as machine code, so a folder that others can write to is refused.

    Raises:
        EngineUnavailableError: the folder cannot be created or written to, or others can write to it.
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
