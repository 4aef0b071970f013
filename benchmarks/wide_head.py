"""Publish the shipped model with a wider head that computes the same, to measure the cost of a wide head.

    python benchmarks/wide_head.py --registry runs/wide
    bisenet models quantize wide@1 --registry runs/wide --dataset camvid --root CAMVID
    python benchmarks/serving_peers.py --registry runs/wide --model wide --pictures CAMVID/val

The channels of the head are repeated and the weights behind them divided by the number of repetitions, so
masks and accuracy are those of the shipped model, and the arithmetic is that of the wider network.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
from torch import Tensor

from model.artifacts.artifact import Artifact
from model.artifacts.manifest import WEIGHTS_FILE, ModelManifest
from model.artifacts.registry import ModelRegistry
from model.export.export import write_artifact
from model.networks.segmentation_network import from_manifest
from service.registry import open_registry
from service.settings import load_settings

HEAD = "head."
SCORES = "head.conv_out.1.weight"


def main() -> None:
    """Publish one version."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--registry", required=True, metavar="URL", help="where it is published")
    parser.add_argument("--model", required=True, help="a BiSeNetV2 in floating point, as name@version")
    parser.add_argument("--name", default="wide", help="of the wider model")
    parser.add_argument("--channels", type=int, default=1024, help="of its head")
    options = parser.parse_args()
    shipped = open_registry(load_settings())
    with tempfile.TemporaryDirectory() as folder:
        artifact = widened(shipped.open(shipped.resolve(options.model)), Path(folder), options.channels)
        print(ModelRegistry(options.registry).publish(artifact.folder, options.name))


def widened(source: Artifact, folder: Path, channels: int) -> Artifact:
    """Write the artifact with the wider head.

    Args:
        source: a BiSeNetV2.
        folder: is written to.
        channels: a multiple of the width of its head.
    """
    manifest = source.manifest
    width = manifest.parameters["head_channels"]
    if not isinstance(width, int) or channels % width:
        raise SystemExit(f"{channels} is no multiple of {width}")
    state = safetensors.torch.load(source.read(WEIGHTS_FILE))
    wide: ModelManifest = dataclasses.replace(
        manifest, parameters={**manifest.parameters, "head_channels": channels}
    )
    network = from_manifest(wide, repeated(state, channels // width))
    return write_artifact(folder, network.eval(), wide)


def repeated(state: Mapping[str, Tensor], times: int) -> dict[str, Tensor]:
    """Return weights in which the channels between the head's two convolutions are repeated."""
    changed = dict(state)
    for name, weight in state.items():
        if name == SCORES:
            changed[name] = weight.repeat(1, times, 1, 1) / times
        elif name.startswith(f"{HEAD}conv.") and weight.ndim:
            changed[name] = weight.repeat(times, *[1] * (weight.ndim - 1))
    return changed


if __name__ == "__main__":
    main()
