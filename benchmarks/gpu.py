"""Time of a network with decoding on an NVIDIA GPU, for each way to run it and each batch size.

    python -m benchmarks.gpu --architecture bisenetv1-lite --size 1024x2048 --batch 1 --batch 8

Weights are random: the time of a network does not depend on them. Pictures are noise in host memory, labels
return to host memory, two batches are under way. The ways run in turns, five rounds each:

    eager      kernel by kernel
    recorded   CUDA graphs of the same kernels
    fused      CUDA graphs of what torch.compile makes of the network; --no-fused leaves it out
    tensorrt   if it is installed

``decode`` is the decoding kernel alone, ``network`` the best network without copies and decoding.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch

from model.artifacts.manifest import ModelManifest
from model.decoding import decode_cuda
from model.labels import ClassPalette
from model.networks.segmentation_network import ARCHITECTURES, SegmentationNetwork, build
from model.pictures.preprocess import ImageSize, PreparedImage
from service.core.device.engine import EngineInfo, EngineUnavailableError
from service.engines.cuda import CudaEngine
from service.engines.cuda_graphs import GraphedNetwork, NetworkProgram

NUM_CLASSES = 19
GRAY = (0.5, 0.5, 0.5)
DEVICE = "cuda:0"
ROUNDS = 5


def main() -> None:
    """Print frames per second, the median of the rounds, and its ratio to eager."""
    options = _options()
    size = ImageSize(*(int(side) for side in options.size.split("x"))).padded()
    parameters = dict(options.parameter)
    described = ", ".join([options.architecture, *(f"{key} {value}" for key, value in options.parameter)])
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {described}, f16, {size}")
    network = _network(options.architecture, parameters)
    programs = _programs(network, size, max(options.batch), fused=options.fused)
    for batch in options.batch:
        _compare(programs, _manifest(options.architecture, parameters), size, batch, options.seconds)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--architecture", choices=ARCHITECTURES, default="bisenetv2")
    parser.add_argument(
        "--parameter",
        type=_parameter,
        action="append",
        default=[],
        metavar="NAME=N",
        help="of the architecture",
    )
    parser.add_argument("--size", default="1024x2048", metavar="HxW")
    parser.add_argument("--batch", type=int, action="append", default=None)
    parser.add_argument("--seconds", type=float, default=1.0, help="of a round")
    parser.add_argument("--fused", action=argparse.BooleanOptionalAction, default=True)
    options = parser.parse_args()
    options.batch = options.batch or [1, 8]
    return options


def _parameter(text: str) -> tuple[str, int]:
    name, _, value = text.partition("=")
    return name, int(value)


def _network(architecture: str, parameters: Mapping[str, int]) -> SegmentationNetwork:
    network = build(architecture, NUM_CLASSES, parameters, mean=GRAY, std=GRAY, with_auxiliary=False).eval()
    network.architecture.half()
    network.architecture.to(memory_format=torch.channels_last)
    return network.to(DEVICE).requires_grad_(requires_grad=False)


def _programs(
    network: SegmentationNetwork, size: ImageSize, max_batch: int, *, fused: bool
) -> dict[str, NetworkProgram]:
    device = torch.device(DEVICE)
    programs: dict[str, NetworkProgram] = {"eager": network, "recorded": GraphedNetwork(network, device)}
    if fused:
        started_s = time.monotonic()
        prepared = GraphedNetwork(network, device)
        prepared.prepare(size, max_batch)
        programs["fused"] = prepared
        print(f"fused kernels took {time.monotonic() - started_s:.0f} s to make")
    try:
        programs["tensorrt"] = _tensorrt(network, size, max_batch)
    except (EngineUnavailableError, ImportError) as error:
        print(f"without tensorrt: {error}")
    return programs


def _tensorrt(network: SegmentationNetwork, size: ImageSize, max_batch: int) -> NetworkProgram:
    from service.engines import tensorrt  # noqa: PLC0415 - needs torch_tensorrt
    from service.engines.cache import CompileCache  # noqa: PLC0415

    tensorrt.precisions(DEVICE)
    with tempfile.TemporaryDirectory() as folder:
        builder = tensorrt.TensorRtBuilder(
            tensorrt.library(), CompileCache(Path(folder) / "tensorrt"), "this GPU", max_batch
        )
        engine = builder.engine(network.architecture, size, {})
    return tensorrt.TensorRtProgram(network, {size: engine}, network)


def _compare(
    programs: dict[str, NetworkProgram], manifest: ModelManifest, size: ImageSize, batch: int, seconds: float
) -> None:
    pictures = _pictures(size, batch)
    runs: dict[str, Callable[[], None]] = {}
    for name, program in programs.items():
        engine = CudaEngine(program, manifest, EngineInfo("torch", DEVICE, "f16"))
        runs[name] = _pipelined(engine, pictures)
    fastest = programs.get("fused", programs["recorded"])
    runs |= {"network": _network_alone(fastest, size, batch), "decode": _decode_alone(manifest, size, batch)}
    for run in runs.values():
        for _ in range(10):
            run()
    torch.cuda.synchronize()
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(ROUNDS):
        for name, run in runs.items():
            rates[name].append(batch * _rate(run, seconds))
    print(f"\nbatch {batch:<12}{'frames/s':>10}{'ms/frame':>10}{'x eager':>9}")
    for name, measured in rates.items():
        median = statistics.median(measured)
        ratio = statistics.median(a / b for a, b in zip(measured, rates["eager"], strict=True))
        print(f"{name:<18}{median:>10.0f}{1000 / median:>10.3f}{ratio:>9.2f}")


def _rate(run: Callable[[], None], seconds: float) -> float:
    """Return runs a second."""
    torch.cuda.synchronize()
    started_s = time.perf_counter()
    count = 0
    while time.perf_counter() - started_s < seconds:
        run()
        count += 1
    torch.cuda.synchronize()
    return count / (time.perf_counter() - started_s)


def _pipelined(engine: CudaEngine, pictures: list[PreparedImage]) -> Callable[[], None]:
    labels = [[np.empty(picture.original.shape, np.uint8) for picture in pictures] for _ in range(2)]
    pending = [engine.begin(pictures, labels[0])]

    def run() -> None:
        labels.reverse()
        following = engine.begin(pictures, labels[0])
        pending.pop()()
        pending.append(following)

    return run


def _network_alone(program: NetworkProgram, size: ImageSize, batch: int) -> Callable[[], None]:
    images_NHW3 = torch.zeros((batch, size.height, size.width, 3), dtype=torch.uint8, device=DEVICE)

    def run() -> None:
        with torch.inference_mode():
            program(images_NHW3)
        torch.cuda.current_stream().synchronize()

    return run


def _decode_alone(manifest: ModelManifest, size: ImageSize, batch: int) -> Callable[[], None]:
    stride, upsample = manifest.stride, manifest.upsample
    channels = NUM_CLASSES * (stride**2 if upsample == "pixel_shuffle" else 1)
    raw_Khw = torch.randn((channels, size.height // stride, size.width // stride), device=DEVICE).half()

    def run() -> None:
        for _ in range(batch):
            decode_cuda.labels(
                raw_Khw, upsample=upsample, stride=stride, padded=size, content=size, original=size
            )
        torch.cuda.current_stream().synchronize()

    return run


def _pictures(size: ImageSize, batch: int) -> list[PreparedImage]:
    generator = np.random.default_rng(0)
    shape = (size.height, size.width, 3)
    return [PreparedImage(generator.integers(0, 256, shape, np.uint8), size, size) for _ in range(batch)]


def _manifest(name: str, parameters: Mapping[str, int]) -> ModelManifest:
    architecture = ARCHITECTURES[name]
    classes = range(NUM_CLASSES)
    return ModelManifest(
        architecture=name,
        generation=architecture.generation,
        parameters=parameters,
        upsample=architecture.upsample,
        stride=architecture.stride,
        palette=ClassPalette(tuple(f"class {k}" for k in classes), tuple((k, k, k) for k in classes)),
        mean=GRAY,
        std=GRAY,
        precision="f16",
    )


if __name__ == "__main__":
    main()
