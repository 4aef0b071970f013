"""What every inference engine is, whatever library runs the network.

Axes: N images in a batch, K channels of the head, H height, W width (of the padded input),
h w = H/stride W/stride.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from model.artifact import Artifact

Float32Array = npt.NDArray[np.float32]
ImageBatch = npt.NDArray[np.uint8] | npt.NDArray[np.float32]
Precision = Literal["f32", "bf16", "f16", "int8"]
PrecisionChoice = Literal["auto", "f32", "bf16", "f16", "int8"]


@dataclass(frozen=True)
class EngineInfo:
    """What an engine turned out to be: shown by ``doctor``, ``/readyz`` and ``/v1/models``."""

    engine: str
    device: str
    precision: Precision


@dataclass(frozen=True)
class EngineOptions:
    """How an engine is to be built.

    Args:
        device: ``cpu`` or ``cuda:N``.
        precision: ``auto`` takes the fastest that the device has and the golden sample allows.
        threads: inference threads; None = what the library takes of the cores that this process may use.
        cache_folder: owner-only folder for compiled graphs, created when missing.
    """

    device: str
    precision: PrecisionChoice
    cache_folder: Path
    threads: int | None = None


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


EngineBuilder = Callable[[Artifact, EngineOptions], InferenceEngine]
"""Builds an engine and proves it on the artifact's golden sample.

Raises:
    EngineUnavailableError: this machine cannot run it; the message says why.
    model.errors.GoldenMismatchError: it runs, but computes something else.
"""


class EngineUnavailableError(Exception):
    """This machine cannot run the engine; the message says why, for people."""


def usable_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0))


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
