"""CUDA graphs: the kernels of a network are recorded once and launched together.

A BiSeNet has 200 kernels, and launching each from Python takes longer than running it.

Axes: N images in a batch, K channels of the head, H height, W width (of the padded input), h w = H/stride
W/stride.
"""

from __future__ import annotations

import threading
import traceback
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from model.pictures.preprocess import ImageSize

NetworkProgram = Callable[[Tensor], Tensor]
"""images_NHW3 on the device (uint8 or float32 0..255) -> raw_NKhw, enqueued on the current stream."""

_MAX_GRAPHS = 16
"""Each keeps its pictures and scores on the device; the least recently used one is dropped."""

_USES_BEFORE_RECORDING = 3
"""Of one shape. Recording takes as long as a few batches, and many sizes come only once."""

_WARM_UPS = 3

_MAX_COMPILED = 4096
"""Shapes of all networks of a process. The default is 8; torch silently does not compile the ninth."""

recording = threading.Lock()
"""Held while a thread records, or waits for the whole device: CUDA refuses both at the same time."""

_Key = tuple[int, int, int, torch.dtype]


class GraphedNetwork:
    """Runs a network; from the third batch of a shape on, replays its graph.

    It is used by one thread and one stream; another thread may prepare it before. Batches are recorded in
    sizes of powers of two.

    Args:
        network: images_NHW3 -> raw_NKhw, in evaluation mode on its device.
        device: where the network is.
    """

    def __init__(self, network: nn.Module, device: torch.device) -> None:
        self._network = network
        self._recorder = _Recorder(device)
        self._uses: Counter[_Key] = Counter()
        self._prepared: dict[_Key, _Graph] = {}
        self._graphs: OrderedDict[_Key, _Graph] = OrderedDict()

    def prepare(self, size: ImageSize, max_batch: int) -> None:
        """Record uint8 batches of one size with fused kernels (torch.compile); takes minutes.

        Args:
            size: padded.
            max_batch: the largest batch; 1, 2, 4 ... up to it are recorded.
        """
        fused = torch.compile(self._network, dynamic=False)
        for batch in reversed(prepared_batches(max_batch)):  # smaller batches reuse memory of larger ones
            key = (batch, size.height, size.width, torch.uint8)
            with recording, _compiling(), _searching():
                self._prepared[key] = self._recorder.record(fused, key)

    def __call__(self, images_NHW3: Tensor) -> Tensor:
        """Return raw_NKhw, valid until the next call; in ``torch.inference_mode`` only."""
        num_images, height, width, _ = images_NHW3.shape
        key = (recorded_batch(num_images), height, width, images_NHW3.dtype)
        graph = self._prepared.get(key) or self._recent(key)
        if graph is None:
            raw_NKhw: Tensor = self._network(images_NHW3)
            return raw_NKhw
        return graph.replay(images_NHW3)

    def _recent(self, key: _Key) -> _Graph | None:
        if key not in self._graphs and not self._record(key):
            return None
        self._graphs.move_to_end(key)
        return self._graphs[key]

    def _record(self, key: _Key) -> bool:
        """Record a shape at its third use; a shape that was too large for memory is not tried again."""
        if self._uses[key] >= _USES_BEFORE_RECORDING:
            return False
        if self._uses[key] + 1 < _USES_BEFORE_RECORDING:
            self._uses[key] += 1
            return False
        # Another thread may compile for minutes; pictures must not wait for it.
        if not recording.acquire(blocking=False):
            return False
        try:
            self._graphs[key] = self._recorder.record(self._network, key)
        except torch.OutOfMemoryError as error:
            self._uses[key] += 1
            traceback.clear_frames(error.__traceback__)  # they hold the tensors that were computed so far
            return False
        finally:
            recording.release()
        del self._uses[key]
        if len(self._graphs) > _MAX_GRAPHS:
            self._graphs.popitem(last=False)
        return True


def recorded_batch(num_images: int) -> int:
    """Return the smallest power of two that is at least a number of pictures."""
    return 1 << (num_images - 1).bit_length()


def prepared_batches(max_batch: int) -> list[int]:
    """Return 1, 2, 4 ... up to the smallest power of two that is at least the largest batch."""
    return [1 << power for power in range(recorded_batch(max_batch).bit_length())]


@dataclass(frozen=True, eq=False)
class _Graph:
    graph: torch.cuda.CUDAGraph
    images_NHW3: Tensor
    raw_NKhw: Tensor

    def replay(self, images_NHW3: Tensor) -> Tensor:
        # The other rows are computed too, and not returned.
        num_images = len(images_NHW3)
        self.images_NHW3[:num_images].copy_(images_NHW3)
        self.graph.replay()
        return self.raw_NKhw[:num_images]


class _Recorder:
    """Records the graphs of one engine; they share memory, because they run one after the other."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        # Another priority than that of the engines' streams: torch has 32 streams of each priority and hands
        # them out in turn. Kernels of another engine on a recorded stream would be recorded too.
        self._stream = torch.cuda.Stream(device, priority=-1)  # type: ignore[no-untyped-call]  # untyped in torch
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, network: NetworkProgram, key: _Key) -> _Graph:
        """Record a network on a batch; one thread of the process at a time.

        Raises:
            torch.OutOfMemoryError: the device has too little memory.
        """
        batch, height, width, dtype = key
        # With gradients, every activation would be kept for a backward pass.
        with torch.cuda.device(self._device), torch.inference_mode():
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):  # torch.cuda.graph does not leave its stream on an error
                images_NHW3 = torch.zeros((batch, height, width, 3), dtype=dtype, device=self._device)
                for _ in range(_WARM_UPS):  # cuDNN picks its algorithms, Triton compiles
                    network(images_NHW3)
                graph = torch.cuda.CUDAGraph()
                # By default, an allocation of another thread would make the recording fail.
                with torch.cuda.graph(
                    graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
                ):
                    raw_NKhw = network(images_NHW3)
            torch.cuda.current_stream().wait_stream(self._stream)
        return _Graph(graph, images_NHW3, raw_NKhw)


@contextmanager
def _searching() -> Iterator[None]:
    """Have cuDNN time its algorithms, which takes seconds: worth it for prepared sizes only.

    It holds for the whole process: cuDNN also times the first runs of other threads meanwhile.
    """
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def _compiling() -> AbstractContextManager[object]:
    """Return a context in which each shape is compiled, or raises an error.

    Source:
        https://github.com/pytorch/pytorch/blob/v2.13.0/torch/_dynamo/config.py: private settings of torch.
    """
    from torch._dynamo import config  # noqa: PLC0415 - takes a second, and most engines compile nothing

    patch: AbstractContextManager[object] = config.patch(
        recompile_limit=_MAX_COMPILED,
        accumulated_recompile_limit=_MAX_COMPILED,
        fail_on_recompile_limit_hit=True,
    )
    return patch
