"""What can be said of recorded networks without a GPU. Axes: as in ``service.engines.cuda_graphs``."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from fake_cuda import FakeCuda
from tiny_model import tiny_network
from torch import Tensor, nn

from model.artifacts.artifact import Artifact
from model.errors import GoldenMismatchError
from model.networks.segmentation_network import ARCHITECTURES
from model.pictures.preprocess import ImageSize
from service.core.device.engine import EngineInfo
from service.engines import cuda_graphs
from service.engines.cuda_graphs import GraphedNetwork
from service.engines.torch import check_size, load_network

CPU = torch.device("cpu")
SIZE = ImageSize(32, 64)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    fake = FakeCuda()
    fake.install(monkeypatch)
    return fake


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Have torch.compile hand graphs to a list instead of a compiler."""
    graphs: list[Any] = []

    def keep(graph: torch.fx.GraphModule, _: object) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    torch.compiler.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=keep))
    yield graphs
    torch.compiler.reset()


def test_torch_still_has_the_private_settings_that_forbid_skipping_a_shape() -> None:
    from torch._dynamo import config  # noqa: PLC0415 - as in the code

    with cuda_graphs._compiling():
        assert config.recompile_limit == config.accumulated_recompile_limit == 4096
        assert config.fail_on_recompile_limit_hit
    assert (config.recompile_limit, config.fail_on_recompile_limit_hit) == (8, False)


class Network(nn.Module):
    """Notes in which state it is called."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(3))
        self.seen: list[tuple[int, bool]] = []

    def forward(self, images_NHW3: Tensor) -> Tensor:
        if not torch.compiler.is_compiling():
            self.seen.append((len(images_NHW3), torch.is_inference_mode_enabled()))
        return (images_NHW3.float() * self.gain).permute(0, 3, 1, 2)


def use(network: GraphedNetwork, size: ImageSize, batch: int = 1, times: int = 1) -> None:
    with torch.inference_mode():
        for _ in range(times):
            network(torch.zeros((batch, *size.shape, 3), dtype=torch.uint8))


def test_a_shape_is_recorded_when_it_comes_for_the_third_time(cuda: FakeCuda) -> None:
    network = GraphedNetwork(Network(), CPU)
    use(network, SIZE, batch=3, times=2)
    assert not cuda.graphs
    use(network, SIZE, batch=4, times=2)
    assert [graph.replays for graph in cuda.graphs] == [2]


def test_a_recording_spoils_no_other_thread_and_shares_no_stream(cuda: FakeCuda) -> None:
    first, second = GraphedNetwork(Network(), CPU), GraphedNetwork(Network(), CPU)
    for network in (first, second):
        use(network, SIZE, times=3)
    assert [graph.options["capture_error_mode"] for graph in cuda.graphs] == ["thread_local"] * 2
    streams = [graph.options["stream"] for graph in cuda.graphs]
    assert streams[0] is not streams[1]
    assert {stream.priority for stream in streams} == {-1}


def test_a_shape_is_recorded_on_the_network_s_own_device(cuda: FakeCuda) -> None:
    use(GraphedNetwork(Network(), CPU), SIZE, times=3)
    assert cuda.calls == ["on cpu", "capture", "off cpu"]


def test_pictures_do_not_wait_for_another_thread_that_records(cuda: FakeCuda) -> None:
    network = GraphedNetwork(Network(), CPU)
    with cuda_graphs.recording:
        use(network, SIZE, times=5)
    assert not cuda.graphs
    use(network, SIZE)
    assert [graph.replays for graph in cuda.graphs] == [1]


def test_a_shape_without_memory_to_record_it_runs_and_is_not_tried_again(
    cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = list[tuple[int, ...]]()

    def refuse(_: object, __: object, key: tuple[int, ...]) -> None:
        tries.append(key)
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(cuda_graphs._Recorder, "record", refuse)
    network = GraphedNetwork(Network(), CPU)
    use(network, SIZE, times=6)
    assert len(tries) == 1
    assert not cuda_graphs.recording.locked()
    assert not cuda.graphs


def test_sizes_are_prepared_by_one_thread_at_a_time(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    held = list[bool]()
    network = Network()
    monkeypatch.setattr(torch, "compile", lambda network, **_: network)
    network.register_forward_hook(lambda *_: held.append(cuda_graphs.recording.locked()))
    GraphedNetwork(network, CPU).prepare(SIZE, 2)
    assert held
    assert all(held)
    assert len(cuda.graphs) == 2


def test_a_network_is_recorded_without_gradients(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    network = Network()
    monkeypatch.setattr(torch, "compile", lambda network, **_: network)
    GraphedNetwork(network, CPU).prepare(SIZE, 4)
    assert len(cuda.graphs) == 3
    assert all(inference for _, inference in network.seen)


def test_the_graphs_of_an_engine_share_memory_the_largest_first(
    cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = Network()
    monkeypatch.setattr(torch, "compile", lambda network, **_: network)
    GraphedNetwork(network, CPU).prepare(SIZE, 3)
    assert len({graph.options["pool"] for graph in cuda.graphs}) == 1
    assert [batch for batch, _ in itertools.groupby(batch for batch, _ in network.seen)] == [4, 2, 1]


def test_algorithms_are_searched_for_in_sizes_that_are_prepared_only(
    cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched = list[bool]()
    network = Network()
    network.register_forward_hook(lambda *_: searched.append(torch.backends.cudnn.benchmark))
    monkeypatch.setattr(torch, "compile", lambda network, **_: network)
    graphed = GraphedNetwork(network, CPU)
    use(graphed, ImageSize(64, 64), times=3)
    assert not any(searched)
    assert len(cuda.graphs) == 1
    searched.clear()
    graphed.prepare(SIZE, 1)
    assert all(searched)
    assert not torch.backends.cudnn.benchmark


@pytest.mark.usefixtures("cuda")
def test_every_size_has_fused_kernels_however_many_there_are(compiled: list[Any]) -> None:
    sizes = [ImageSize(32, 32 * n) for n in range(1, 14)]
    network = GraphedNetwork(Network(), CPU)
    for size in sizes:
        network.prepare(size, 1)
    assert len(compiled) == len(sizes)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_torch_compiles_each_network_as_one_graph(compiled: list[Any], name: str) -> None:
    network = tiny_network(name)
    images_NHW3 = torch.randint(0, 256, (2, 64, 96, 3), dtype=torch.uint8)
    with torch.inference_mode():
        fused = torch.compile(network, dynamic=False)
        torch.testing.assert_close(fused(images_NHW3), network(images_NHW3), rtol=1e-4, atol=1e-4)
    assert len(compiled) == 1


def test_what_was_made_for_a_size_computes_what_the_network_does() -> None:
    info = EngineInfo("torch", "cpu", "f16")
    network = Network()
    check_size(network, network, SIZE, 3, num_classes=3, info=info)

    def other_in_one_row(images_NHW3: Tensor) -> Tensor:
        raw_NKhw = network(images_NHW3)
        raw_NKhw[2] *= 0.5
        return raw_NKhw

    with pytest.raises(GoldenMismatchError):
        check_size(other_in_one_row, network, SIZE, 3, num_classes=3, info=info)


def test_the_weights_of_a_gpu_s_network_have_no_gradients(tiny_artifact: Artifact) -> None:
    network = load_network(tiny_artifact, EngineInfo("torch", "cpu", "f16"))
    assert not any(parameter.requires_grad for parameter in network.parameters())
