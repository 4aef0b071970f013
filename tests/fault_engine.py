"""An engine that fails on purpose, to test everything above it: ``--engine fault_engine:FAULTS``.

``fault_engine:slow:20`` takes 20 ms for each picture; ``fault_engine:slow:20+segv:marked`` also crashes on
marked pictures. Its scores need no network and tell pictures and versions apart: a cell of the output has the
class

    (red value in the middle of the cell * K / 256 + the shift of the version) mod K

Axes: N images in a batch, K classes, H height, W width, h w = H/stride W/stride.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from model.artifacts.artifact import Artifact
from model.artifacts.manifest import WEIGHTS_FILE, ModelManifest
from model.labels import UInt8Array
from service.core.device.engine import (
    DeviceLostError,
    DeviceMemoryError,
    EngineInfo,
    EngineOptions,
    EngineUnavailableError,
    Float32Array,
    ImageBatch,
    InferenceEngine,
    Precision,
)

MARK_RGB = (255, 0, 255)
"""Colour of the first pixel of a picture that makes a fault ``:marked`` happen."""

EXIT_CODE = 9
_LEAKED: list[bytes] = []


@dataclass(frozen=True)
class Fault:
    """One fault.

    Attributes:
        kind: key of ``KINDS``, or ``slow``.
        only_marked: whether it happens with marked pictures only.
        ms: time for each picture of ``slow``, in milliseconds.
    """

    kind: str
    only_marked: bool = False
    ms: float = 0.0


def parse_faults(text: str) -> tuple[Fault, ...]:
    """Read faults: ``KIND[:marked]`` or ``slow:MS``, joined by ``+``.

    Raises:
        EngineUnavailableError: there is no such fault.
    """
    return tuple(map(_parse_fault, text.split("+")))


def _parse_fault(text: str) -> Fault:
    kind, _, detail = text.partition(":")
    try:
        if kind == "slow":
            return Fault(kind, ms=float(detail))
        if kind in KINDS and detail in ("", "marked"):
            return Fault(kind, only_marked=detail == "marked")
    except ValueError:
        pass
    raise EngineUnavailableError(f"there is no fault {text!r}: {', '.join(KINDS)} or slow:MS, with :marked")


def precisions(_device: str) -> tuple[Precision, ...]:
    """Return the one precision that it claims."""
    return ("f32",)


def build(artifact: Artifact, options: EngineOptions) -> InferenceEngine:
    """Build an engine with the faults of ``options.arguments``.

    Raises:
        EngineUnavailableError: there is no such fault.
    """
    faults = parse_faults(options.arguments)
    if any(fault.kind == "exit_at_load" for fault in faults):
        os._exit(EXIT_CODE)
    return FaultEngine(artifact.manifest, faults, EngineInfo("fault", options.device, "f32"))


def shift_of(manifest: ModelManifest) -> int:
    """Return the shift of a version's classes, 0..K-1."""
    digest = hashlib.sha256(manifest.files[WEIGHTS_FILE].encode()).digest()
    return digest[0] % manifest.palette.num_classes


class FaultEngine:
    """Computes scores from red values, unless a fault happens.

    Args:
        manifest: of the version.
        faults: that happen, in their order.
        info: of this engine.
    """

    def __init__(self, manifest: ModelManifest, faults: tuple[Fault, ...], info: EngineInfo) -> None:
        self._manifest = manifest
        self._faults = faults
        self._info = info
        self._has_failed = False

    @property
    def info(self) -> EngineInfo:
        """Name, device and precision."""
        return self._info

    def infer(self, images_NHW3: ImageBatch) -> Float32Array:
        """Return raw_NKhw: 1 for the class of each cell, 0 for all others; or fail."""
        raw_NKhw = self._scores(images_NHW3)
        is_marked = (images_NHW3[:, 0, 0] == MARK_RGB).all(axis=1).any()
        for fault in self._faults:
            if is_marked or not fault.only_marked:
                raw_NKhw = self._fail(fault, raw_NKhw)
        return raw_NKhw

    def close(self) -> None:
        """Free nothing."""

    def _scores(self, images_NHW3: ImageBatch) -> Float32Array:
        stride, num_classes = self._manifest.stride, self._manifest.palette.num_classes
        middles_Nhw = images_NHW3[:, stride // 2 :: stride, stride // 2 :: stride, 0].astype(np.uint8)
        ids_Nhw = cell_classes(middles_Nhw, self._manifest)
        scores_NhwK = np.eye(num_classes, dtype=np.float32)[ids_Nhw]
        return np.ascontiguousarray(scores_NhwK.transpose(0, 3, 1, 2))

    def _fail(self, fault: Fault, raw_NKhw: Float32Array) -> Float32Array:
        if fault.kind == "slow":
            time.sleep(fault.ms * len(raw_NKhw) / 1e3)
            return raw_NKhw
        if fault.kind == "oom_once" and self._has_failed:
            return raw_NKhw
        self._has_failed = True
        return KINDS[fault.kind](raw_NKhw)


def cell_classes(red: UInt8Array, manifest: ModelManifest) -> UInt8Array:
    """Return the class of cells that have these red values in their middle."""
    num_classes = manifest.palette.num_classes
    ids = (red.astype(np.int64) * num_classes // 256 + shift_of(manifest)) % num_classes
    return ids.astype(np.uint8)


def _hang(_: Float32Array) -> Float32Array:
    threading.Event().wait()
    raise AssertionError


def _nan(raw_NKhw: Float32Array) -> Float32Array:
    return np.full_like(raw_NKhw, np.nan)


def _out_of_memory(_: Float32Array) -> Float32Array:
    raise DeviceMemoryError("a fault on purpose")


def _sticky(_: Float32Array) -> Float32Array:
    raise DeviceLostError("a fault on purpose")


def _segv(_: Float32Array) -> Float32Array:
    ctypes.string_at(0)
    raise AssertionError


def _exit(_: Float32Array) -> Float32Array:
    os._exit(EXIT_CODE)


def _leak(raw_NKhw: Float32Array) -> Float32Array:
    """Keep 16 KiB of each batch, a descriptor and a thread of every 50th, until the process ends."""
    _LEAKED.append(b"\1" * (16 << 10))
    if len(_LEAKED) % 50 == 0:
        os.dup(0)
        threading.Thread(target=_hang, args=(raw_NKhw,), daemon=True).start()
    return raw_NKhw


def _wrong_shape(raw_NKhw: Float32Array) -> Float32Array:
    return np.ascontiguousarray(raw_NKhw[..., :-1])


KINDS: Mapping[str, Callable[[Float32Array], Float32Array]] = MappingProxyType(
    {
        "hang": _hang,
        "nan": _nan,
        "oom_once": _out_of_memory,
        "oom_always": _out_of_memory,
        "sticky": _sticky,
        "segv": _segv,
        "exit": _exit,
        "exit_at_load": _exit,
        "wrong_shape": _wrong_shape,
        "leak": _leak,
    }
)
"""Each fault, and its effect on the scores."""
