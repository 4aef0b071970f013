"""A network's kernels recorded once and launched together: a BiSeNet has 200 of them, and Python is slower.

Axes: N images in a batch, K channels of the head, H height, W width (of the padded input), h w = H/stride
W/stride.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from model.preprocess import ImageSize

NetworkProgram = Callable[[Tensor], Tensor]
"""images_NHW3 on the device (uint8 or float32 0..255) -> raw_NKhw, enqueued on the current stream."""

_MAX_GRAPHS = 16
"""Each keeps its pictures and scores on the device; the one that was not used for longest goes first."""

_USES_BEFORE_RECORDING = 3
"""Of one shape; recording takes as long as a few batches, and many sizes come once only."""

_WARM_UPS = 3

_Key = tuple[int, int, int, torch.dtype]


class GraphedNetwork:
    """Calls a network, and from the third time on that a shape comes replays what it does.

    Belongs to the thread and the stream that call it. Batches are recorded in sizes of powers of two.

    Args:
        network: images_NHW3 -> raw_NKhw, in evaluation mode on its device.
        device: where the network is.
    """

    def __init__(self, network: nn.Module, device: torch.device) -> None:
        self._network = network
        self._device = device
        self._uses: Counter[_Key] = Counter()
        self._prepared: dict[_Key, _Graph] = {}
        self._graphs: OrderedDict[_Key, _Graph] = OrderedDict()

    def prepare(self, size: ImageSize, max_batch: int) -> None:
        """Record uint8 batches of one size with fused kernels (torch.compile), which takes minutes.

        Args:
            size: padded.
            max_batch: the largest batch; 1, 2, 4 ... up to it are recorded.
        """
        fused = torch.compile(self._network, dynamic=False)
        batch = 1
        while batch <= recorded_batch(max_batch):
            key = (batch, size.height, size.width, torch.uint8)
            self._prepared[key] = _record(fused, key, self._device)
            batch *= 2

    def __call__(self, images_NHW3: Tensor) -> Tensor:
        """Return raw_NKhw, valid until the next call."""
        num_images, height, width, _ = images_NHW3.shape
        key = (recorded_batch(num_images), height, width, images_NHW3.dtype)
        if key in self._prepared:
            return self._prepared[key].replay(images_NHW3)
        if key not in self._graphs:
            self._uses[key] += 1
            if self._uses[key] < _USES_BEFORE_RECORDING:
                raw_NKhw: Tensor = self._network(images_NHW3)
                return raw_NKhw
            self._graphs[key] = _record(self._network, key, self._device)
            del self._uses[key]
            if len(self._graphs) > _MAX_GRAPHS:
                self._graphs.popitem(last=False)
        self._graphs.move_to_end(key)
        return self._graphs[key].replay(images_NHW3)


def recorded_batch(num_images: int) -> int:
    """Return the smallest power of two that is not below a number of pictures."""
    return 1 << (num_images - 1).bit_length()


@dataclass(frozen=True, eq=False)
class _Graph:
    graph: torch.cuda.CUDAGraph
    images_NHW3: Tensor
    raw_NKhw: Tensor

    def replay(self, images_NHW3: Tensor) -> Tensor:
        # What the other rows hold is computed too, and nobody looks at it.
        num_images = len(images_NHW3)
        self.images_NHW3[:num_images].copy_(images_NHW3)
        self.graph.replay()
        return self.raw_NKhw[:num_images]


def _record(network: NetworkProgram, key: _Key, device: torch.device) -> _Graph:
    batch, height, width, dtype = key
    images_NHW3 = torch.zeros((batch, height, width, 3), dtype=dtype, device=device)
    for _ in range(_WARM_UPS):  # cuDNN picks its algorithms, Triton compiles
        network(images_NHW3)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        raw_NKhw = network(images_NHW3)
    return _Graph(graph, images_NHW3, raw_NKhw)
