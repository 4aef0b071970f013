"""What the engines of a GPU use of torch.cuda and Triton, done by the CPU at once; some calls are recorded.

Axes: as in ``service.engines.cuda``.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from model.pictures.preprocess import ImageSize

_NEEDS_TRITON = ("service.engines.cuda", "model.decoding.decode_cuda")


class FakeCuda:
    """Stands in for ``torch.cuda``.

    Attributes:
        calls: what was called, in order.
        streams: made so far.
        graphs: recorded so far.
    """

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.streams: list[FakeStream] = []
        self.graphs: list[FakeGraph] = []
        self._current: list[FakeStream] = [FakeStream()]

    def install(self, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
        """Put this in the place of ``torch.cuda``; returns ``service.engines.cuda``."""
        stand_ins = {
            "Stream": self._stream,
            "Event": FakeEvent,
            "CUDAGraph": FakeGraph,
            "stream": self._on,
            "device": self._device,
            "graph": self._capture,
            "current_stream": lambda _device=None: self._current[-1],
            "graph_pool_handle": lambda: (0, len(self.graphs)),
            "empty_cache": lambda: self.calls.append("empty_cache"),
        }
        for name, stand_in in stand_ins.items():
            monkeypatch.setattr(torch.cuda, name, stand_in)
        for name in _NEEDS_TRITON:
            monkeypatch.setitem(sys.modules, name, ModuleType(name))
        monkeypatch.setitem(sys.modules, "model.decoding.decode_cuda", _decoding())
        del sys.modules["service.engines.cuda"]
        engines = importlib.import_module("service.engines.cuda")
        monkeypatch.setattr(engines, "_pinned", lambda size: torch.empty(size, dtype=torch.uint8))
        return engines

    def _stream(self, device: torch.device | None = None, priority: int = 0) -> FakeStream:
        self.streams.append(FakeStream(device, priority))
        return self.streams[-1]

    @contextlib.contextmanager
    def _on(self, stream: FakeStream) -> Iterator[None]:
        self._current.append(stream)
        try:
            yield
        finally:
            self._current.pop()

    @contextlib.contextmanager
    def _device(self, device: torch.device) -> Iterator[None]:
        self.calls.append(f"on {device}")
        yield
        self.calls.append(f"off {device}")

    @contextlib.contextmanager
    def _capture(self, graph: FakeGraph, **options: Any) -> Iterator[None]:
        self.calls.append("capture")
        graph.options = options
        self.graphs.append(graph)
        with self._on(options.get("stream") or FakeStream()):
            yield


class FakeStream:
    """A stream that is never behind."""

    def __init__(self, device: torch.device | None = None, priority: int = 0) -> None:
        self.device = device
        self.priority = priority

    def wait_event(self, event: FakeEvent) -> None:
        assert event.recorded

    def wait_stream(self, stream: FakeStream) -> None:
        """Nothing to wait for."""

    def synchronize(self) -> None:
        """Nothing to wait for."""


class FakeEvent:
    """An event that has happened when it is recorded."""

    def __init__(self) -> None:
        self.recorded = False

    def record(self) -> None:
        self.recorded = True

    def synchronize(self) -> None:
        assert self.recorded


class FakeGraph:
    """A graph whose replay leaves what its recording computed."""

    def __init__(self) -> None:
        self.options: dict[str, Any] = {}
        self.replays = 0

    def replay(self) -> None:
        self.replays += 1


def _decoding() -> ModuleType:
    module = ModuleType("model.decoding.decode_cuda")
    vars(module).update(labels=_labels, are_finite=_are_finite)
    return module


def _labels(
    raw_Khw: Tensor, *, upsample: str, stride: int, padded: ImageSize, content: ImageSize, original: ImageSize
) -> Tensor:
    """Decode by the nearest colour: enough to tell pictures apart."""
    assert (upsample, padded) == ("bilinear", ImageSize(*(stride * side for side in raw_Khw.shape[1:])))
    assert content.pixels <= padded.pixels
    return functional.interpolate(raw_Khw[None].float(), size=original.shape)[0].argmax(0).to(torch.uint8)


def _are_finite(raw_NKhw: Tensor) -> Tensor:
    return torch.isfinite(raw_NKhw).flatten(1).all(1)
