"""The ONNX form of a model, for programs that read nothing else; ONNX Runtime proves each file.

Axes: N images in a batch, H height, W width, 3 = red green blue, K channels of the head's raw output,
h w = H/stride W/stride of the padded picture.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime
import torch
from onnxruntime.transformers.float16 import convert_float_to_float16
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional

from model.artifacts.artifact import Artifact, Float32Array, Golden, check_golden
from model.artifacts.manifest import ModelManifest
from model.artifacts.openvino_graph import GRAPH_INPUT, GRAPH_OUTPUT
from model.decoding.decode import labels
from model.errors import ArtifactError, GoldenMismatchError
from model.export.export import EXAMPLE_SHAPE, stored_network
from model.labels import UInt8Array
from model.networks.segmentation_network import SegmentationNetwork
from model.pictures.preprocess import PAD_MULTIPLE, ImageSize

Layout = Literal["nhwc", "nchw"]
Output = Literal["scores", "labels"]
Precision = Literal["f32", "f16"]

LABELS_OUTPUT = "labels"

_OPSET = 18
"""Of 2022: old enough for every reader, new enough for every operation of ours."""

_LABELS_AGREE = 0.999
"""Share of the pixels: between classes of equal scores rounding decides."""

_IN_F32 = ("Resize", "ArgMax", "Cast")
"""What a file of half precision computes in f32 beside its input and output: positions and comparisons."""


@dataclass(frozen=True)
class OnnxForm:
    """What a file takes and returns.

    Args:
        size: of the pictures, any; None: any multiples of 32.
        layout: of the input ``images``: RGB of 0..255, float32.
        output: ``scores``: the head's raw output, float32 NKhw, as ``raw``; ``labels``: class ids of the
            picture's own size, uint8 NHW, as ``labels``.
        precision: of weights and computation; input and scores are float32 in either case.
    """

    size: ImageSize | None = None
    layout: Layout = "nhwc"
    output: Output = "scores"
    precision: Precision = "f32"


def write_onnx(artifact: Artifact, path: Path, form: OnnxForm | None = None) -> None:
    """Write a model as an ONNX file, and prove by ONNX Runtime that it computes the same.

    The file normalises pictures itself. N is any number.

    Args:
        artifact: of the model.
        path: of the file; written over.
        form: what the file takes and returns; None = scores of NHWC pictures of any size, in f32.

    Raises:
        ImportError: onnxscript or onnxruntime is not installed.
        ArtifactError: the artifact is damaged, or the file does not run.
        GoldenMismatchError: the file computes something else.
        NetworkError: the manifest names an architecture or a parameter that there is not.
        OSError: the file cannot be written.
    """
    form = form or OnnxForm()
    network = stored_network(artifact.folder, artifact.manifest)
    _export(_Form(network, artifact.manifest, form).eval(), form, path)
    if form.precision == "f16":
        _halve(path)
    golden = artifact.golden()
    check_golden(golden, _scores(network, golden.image_HW3), artifact.precision)
    _prove(path, network, artifact, form)


class _Form(nn.Module):
    """A network with what a form asks for around it."""

    _pad_color_3: Tensor

    def __init__(self, network: SegmentationNetwork, manifest: ModelManifest, form: OnnxForm) -> None:
        super().__init__()
        self._network = network
        self._manifest = manifest
        self._form = form
        self.register_buffer("_pad_color_3", torch.tensor(manifest.preprocess.pad_color, dtype=torch.float32))

    def forward(self, images: Tensor) -> Tensor:
        """Return raw_NKhw, or labels_NHW."""
        form, manifest = self._form, self._manifest
        images_NHW3 = images.permute(0, 2, 3, 1) if form.layout == "nchw" else images
        if form.size is not None and form.size != form.size.padded():
            images_NHW3 = self._padded(images_NHW3, form.size)
        raw_NKhw: Tensor = self._network(images_NHW3)
        if form.output == "scores":
            return raw_NKhw
        if manifest.upsample == "pixel_shuffle":
            scores_NKHW = functional.pixel_shuffle(raw_NKhw, manifest.stride)
        else:
            aligned = manifest.upsample == "bilinear_aligned"
            scores_NKHW = functional.interpolate(
                raw_NKhw, scale_factor=float(manifest.stride), mode="bilinear", align_corners=aligned
            )
        if form.size is not None:
            scores_NKHW = scores_NKHW[:, :, : form.size.height, : form.size.width]
        return scores_NKHW.argmax(1).to(torch.uint8)

    def _padded(self, images_NHW3: Tensor, size: ImageSize) -> Tensor:
        padded = size.padded()
        below, right = padded.height - size.height, padded.width - size.width
        color_3 = self._pad_color_3
        return functional.pad(images_NHW3 - color_3, (0, 0, 0, right, 0, below)) + color_3


def _export(module: nn.Module, form: OnnxForm, path: Path) -> None:
    count, height, width, _ = EXAMPLE_SHAPE
    axes: dict[int, Any] = {0: Dim("n")}
    rows, columns = (2, 3) if form.layout == "nchw" else (1, 2)
    if form.size is None:
        axes |= {rows: PAD_MULTIPLE * Dim("h"), columns: PAD_MULTIPLE * Dim("w")}
    else:
        height, width = form.size.shape
    shape = (count, 3, height, width) if form.layout == "nchw" else (count, height, width, 3)
    with _quiet():
        program = torch.onnx.export(
            module,
            (torch.zeros(shape),),
            input_names=[GRAPH_INPUT],
            output_names=[_output_name(form)],
            dynamic_shapes=(axes,),
            opset_version=_OPSET,
            verbose=False,
        )
    assert program is not None
    for node in program.model.graph:
        node.metadata_props.clear()  # which quote our source, with the folders of this machine
    program.save(path)


def _halve(path: Path) -> None:
    """Turn weights and computation into half precision; what comes in and goes out stays as it is."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="the float32 number")  # too small for f16, and 0 there
        halved = convert_float_to_float16(onnx.load(path), keep_io_types=True, op_block_list=list(_IN_F32))
    onnx.save(halved, path)


def _prove(path: Path, network: SegmentationNetwork, artifact: Artifact, form: OnnxForm) -> None:
    """Compare a file with the network, which reproduces the golden sample, on the golden picture."""
    golden = artifact.golden()
    image_HW3 = golden.image_HW3 if form.size is None else _tiled(golden.image_HW3, form.size)
    found = _run(path, image_HW3, form)
    prepared = artifact.manifest.preprocess.prepare(image_HW3)
    raw_Khw = _scores(network, prepared.pixels_HW3)
    if form.output == "scores":
        check_golden(Golden(image_HW3, raw_Khw, golden.num_classes), found, form.precision)
        return
    wanted_HW = labels(
        raw_Khw,
        upsample=artifact.manifest.upsample,
        stride=artifact.manifest.stride,
        padded=prepared.padded,
        content=prepared.content,
        original=prepared.original,
    )
    if found.shape != wanted_HW.shape or found.dtype != np.uint8:
        raise GoldenMismatchError(f"{path.name} returns {found.dtype} {found.shape}, not {wanted_HW.shape}")
    if (agreeing := float((found == wanted_HW).mean())) < _least_agreement(form):
        raise GoldenMismatchError(f"{path.name} gives {100 * agreeing:.2f} % of the pixels their label")


def _least_agreement(form: OnnxForm) -> float:
    return _LABELS_AGREE if form.precision == "f32" else _LABELS_AGREE - 0.02


def _scores(network: SegmentationNetwork, image_HW3: UInt8Array) -> Float32Array:
    with torch.inference_mode():
        raw_Khw: Float32Array = network(torch.tensor(image_HW3[None]))[0].numpy()
    return raw_Khw


def _tiled(image_HW3: UInt8Array, size: ImageSize) -> UInt8Array:
    """Repeat a picture, or cut it, to another size."""
    rows, columns = np.arange(size.height), np.arange(size.width)
    tiled_HW3: UInt8Array = image_HW3[rows % len(image_HW3)][:, columns % image_HW3.shape[1]]
    return tiled_HW3


def _run(path: Path, image_HW3: UInt8Array, form: OnnxForm) -> Any:
    """Return the first of two equal pictures' answers."""
    images = np.stack([image_HW3, image_HW3]).astype(np.float32)
    if form.layout == "nchw":
        images = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        (answers,) = session.run([_output_name(form)], {GRAPH_INPUT: images})
    except Exception as error:  # its errors have no other base
        raise ArtifactError(f"{path.name} does not run: {error}") from error
    return answers[0]


def _output_name(form: OnnxForm) -> str:
    return GRAPH_OUTPUT if form.output == "scores" else LABELS_OUTPUT


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
