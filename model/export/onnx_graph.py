"""The ONNX form of a model, for programs that read nothing else.

Axes: N images in a batch, H height, W width, 3 = red green blue, K channels of the head's raw output,
h w = H/stride W/stride.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.export import Dim

from model.artifacts.artifact import Artifact
from model.artifacts.openvino_graph import GRAPH_INPUT, GRAPH_OUTPUT, prove_file
from model.export.export import EXAMPLE_SHAPE, stored_network
from model.networks.segmentation_network import SegmentationNetwork
from model.pictures.preprocess import PAD_MULTIPLE

_OPSET = 18
"""Of 2022: old enough for everybody, new enough for every operation of ours."""


def write_onnx(artifact: Artifact, path: Path) -> None:
    """Write a model as an ONNX file, and prove by OpenVINO's reader that it computes the same.

    The file takes ``images``, float32 NHW3 of RGB 0..255, normalises them itself and returns ``raw``, float32
    NKhw; N is any number, H and W are any multiples of 32. Weights are float32, rounded ones stay so.

    Args:
        artifact: which model.
        path: of the file; written over.

    Raises:
        ImportError: onnxscript is not installed.
        ArtifactError: the artifact is damaged, or the file does not run.
        GoldenMismatchError: the file computes something else.
        NetworkError: the manifest names an architecture or a parameter that there is not.
        OSError: the file cannot be written.
    """
    _export(stored_network(artifact.folder, artifact.manifest), path)
    # Of another batch and size than the network was recorded with: nothing of those is left in the file.
    prove_file(path, artifact.golden(), "f32")


def _export(network: SegmentationNetwork, path: Path) -> None:
    shape = {0: Dim("n"), 1: PAD_MULTIPLE * Dim("h"), 2: PAD_MULTIPLE * Dim("w")}
    with _quiet():
        program = torch.onnx.export(
            network,
            (torch.zeros(EXAMPLE_SHAPE),),
            input_names=[GRAPH_INPUT],
            output_names=[GRAPH_OUTPUT],
            dynamic_shapes=(shape,),
            opset_version=_OPSET,
            verbose=False,
        )
    assert program is not None
    for node in program.model.graph:
        node.metadata_props.clear()  # which quote our source, with the folders of this machine
    program.save(path)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what the exporter says about itself: its own old calls, and a torchvision that it misses."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*LeafSpec", category=FutureWarning)
            yield
    finally:
        logger.setLevel(level)
