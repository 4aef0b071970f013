"""Time of BiSeNetV2 by the width of its head: networks with 1024, 256 and 128 channels, in turns.

    python benchmarks/head_width.py --size 512x1024

Weights are random: the time of a network does not depend on them. The picture is noise. The baseline is 1024
channels, the width of the published weights.
"""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from benchmarks.command_line import make_parser, parse_if_idle
from model.artifacts.artifact import Artifact
from model.artifacts.manifest import ModelManifest
from model.export.export import write_artifact
from model.labels import ClassPalette
from model.networks.segmentation_network import ARCHITECTURES, build
from service.cli.bench.bench import noise, parse_size
from service.cli.bench.engine_comparison import ServiceEngine, compare
from service.core.device.engine import EngineOptions
from service.engines.openvino import build as build_engine
from service.engines.openvino import precisions
from service.machine import this_machine

ARCHITECTURE = "bisenetv2"
WIDTHS = (1024, 256, 128)
NUM_CLASSES = 19
GRAY = (0.5, 0.5, 0.5)
QUARTER = (0.25, 0.25, 0.25)
ROUNDS = 5


@dataclass(frozen=True, eq=False)
class HeadEngine(ServiceEngine):
    """An engine whose name is the width of its network's head."""

    width: int = 0

    @property
    def name(self) -> str:
        """Width and precision."""
        return f"head {self.width} {self.precision}"


def main() -> None:
    """Print one table for each precision."""
    parser = make_parser(__doc__)
    parser.add_argument("--size", default="512x1024", metavar="HxW")
    parser.add_argument("--seconds", type=float, default=10.0, help="for each width, in five rounds")
    options = parse_if_idle(parser)
    images_NHW3 = noise(1, parse_size(options.size))
    print(f"{ARCHITECTURE}, {options.size}, batch 1: {this_machine().processor}")
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        artifacts = {width: artifact(Path(folder) / str(width), width) for width in WIDTHS}
        for precision in set(precisions("cpu")) - {"int8"}:
            engine_options = EngineOptions("cpu", precision, Path(folder) / "cache")
            engines = {width: build_engine(artifacts[width], engine_options) for width in WIDTHS}
            for engine in engines.values():
                stack.callback(engine.close)
            compared = [HeadEngine(engines[width], images_NHW3, width=width) for width in WIDTHS]
            for figures in compare(compared, rounds=ROUNDS, round_s=options.seconds / ROUNDS, batch=1):
                print("{:<18}{:>6}{:>9}{:>9}{:>9}{:>9}   {}".format(*figures.cells()))


def artifact(folder: Path, width: int) -> Artifact:
    """Write an artifact of random weights."""
    parameters = {"head_channels": width}
    network = build(ARCHITECTURE, NUM_CLASSES, parameters, mean=GRAY, std=QUARTER)
    form = ARCHITECTURES[ARCHITECTURE]
    palette = ClassPalette(
        tuple(f"class {k}" for k in range(NUM_CLASSES)), tuple((k, k, k) for k in range(NUM_CLASSES))
    )
    manifest = ModelManifest(
        architecture=ARCHITECTURE,
        generation=form.generation,
        parameters=parameters,
        upsample=form.upsample,
        stride=form.stride,
        palette=palette,
        mean=GRAY,
        std=QUARTER,
        precision="f16",
    )
    return write_artifact(folder, network.eval(), manifest)


if __name__ == "__main__":
    main()
