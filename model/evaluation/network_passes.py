"""Carries a plan out: views of a picture pass the network in batches, and their scores become labels.

Axes: N views in a batch, K channels of the head, h w = H/stride W/stride, H height, W width,
3 = red green blue.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from model.artifacts.manifest import ModelManifest
from model.decoding import decode
from model.decoding.score_grid import Float32Array
from model.evaluation.protocols import Chip, Pass, Plan, Protocol, find_protocol, make_plan
from model.evaluation.resampling import PixelArray, resized
from model.evaluation.score_sums import accumulate
from model.labels import UInt8Array
from model.pictures.preprocess import ImageSize, PreprocessSpec, Rgb, size_of

Infer = Callable[[PixelArray], Float32Array]
"""images_NHW3 (RGB, uint8 or float32 of 0..255, sides multiples of 32) -> raw_NKhw, the head's raw output."""

DEFAULT_BATCH_PIXELS = 2 << 20
"""Pixels of one batch: two chips of 1024x1024, or one Cityscapes picture; more are no faster on a CPU."""

_MAX_VALUE = 255


@dataclass(frozen=True, eq=False)
class PlanScores:
    """The raw output of the network for one picture: stride² times fewer values than scores of full size.

    Attributes:
        plan: the plan of the picture.
        raw: float32; for each pass raw_NKhw of its chips in order, each followed by its mirrored view if the
            plan flips.
    """

    plan: Plan
    raw: tuple[Float32Array, ...]


def segment(
    image_HW3: UInt8Array,
    protocol: Protocol,
    infer: Infer,
    manifest: ModelManifest,
    *,
    batch_pixels: int = DEFAULT_BATCH_PIXELS,
    executor: Executor | None = None,
) -> UInt8Array:
    """Return the labels of a picture by a protocol.

    Args:
        image_HW3: upright uint8 RGB of any size.
        protocol: the protocol.
        infer: runs the network; called once a batch, in order.
        manifest: of the network.
        batch_pixels: most pixels of a batch; one view is always a batch.
        executor: its threads share the rows; None: the calling thread does everything.

    Returns:
        labels_HW, uint8, each in [0, K).

    Raises:
        ModelOutputError: a score is not finite, or the raw output does not have the shape that the manifest
            implies.
    """
    plan = make_plan(protocol, size_of(image_HW3))
    scores = score(image_HW3, plan, infer, manifest, batch_pixels=batch_pixels, executor=executor)
    return label(scores, manifest, executor=executor)


def score(
    image_HW3: UInt8Array,
    plan: Plan,
    infer: Infer,
    manifest: ModelManifest,
    *,
    batch_pixels: int = DEFAULT_BATCH_PIXELS,
    executor: Executor | None = None,
) -> PlanScores:
    """Run the network: the first half of ``segment``.

    Args:
        image_HW3: upright uint8 RGB of the plan's size.
        plan: the plan of the picture.
        infer: runs the network; called once a batch, in order.
        manifest: of the network.
        batch_pixels: most pixels of a batch; one view is always a batch.
        executor: its threads share the rows; None: the calling thread does everything.
    """
    raw = []
    for one in plan.passes:
        canvas_HW3 = _canvas(image_HW3, plan.start, one, manifest.mean, executor)
        views = _views(canvas_HW3, one, manifest.preprocess, flip=plan.flip)
        count = max(1, batch_pixels // one.chips[0].size.padded().pixels)
        raw.append(np.concatenate([infer(batch_NHW3) for batch_NHW3 in _batches(views, count)]))
    return PlanScores(plan, tuple(raw))


def label(scores: PlanScores, manifest: ModelManifest, *, executor: Executor | None = None) -> UInt8Array:
    """Return labels_HW from the scores of one picture: the second half of ``segment``.

    Args:
        scores: scores of one picture.
        manifest: of the network.
        executor: its threads share the rows; None: the calling thread does everything.

    Raises:
        ModelOutputError: a score is not finite, or the raw output does not have the shape that the manifest
            implies.
    """
    plan = scores.plan
    upsample, stride = manifest.upsample, manifest.stride
    if plan.single and plan.passes[0].scaled == plan.start == plan.size:
        return decode.labels(
            scores.raw[0][0],
            upsample=upsample,
            stride=stride,
            padded=plan.size.padded(),
            content=plan.size,
            original=plan.size,
            executor=executor,
        )
    return accumulate(plan, scores.raw, upsample=upsample, stride=stride, executor=executor)


def chip_view(canvas_HW3: PixelArray, chip: Chip, spec: PreprocessSpec) -> PixelArray:
    """Return a chip as the network sees it: padded right and bottom to multiples of 32.

    Args:
        canvas_HW3: uint8 or float32 of the canvas's size.
        chip: part of the canvas.
        spec: says the colour of the padding.

    Returns:
        An array of the canvas's type; a view of it where nothing is padded.
    """
    return _padded(_cut(canvas_HW3, chip), chip.size.padded(), spec)


def warm_up(cache_folder: Path | None = None) -> None:
    """Load or compile every kernel of an evaluation, those of decoding included.

    Args:
        cache_folder: folder for compiled kernels, writable by its owner alone; None = beside their sources.

    Raises:
        RuntimeError: numba found no folder that it can write to.
    """
    decode.warm_up(cache_folder)
    resized(np.zeros((2, 2, 3), np.uint8), ImageSize(32, 32))
    for name in ("ss", "msf"):
        plan = make_plan(find_protocol(name), ImageSize(2, 2))
        raw = [np.zeros((1 + plan.flip, 2, 4, 4), np.float32) for _ in plan.passes]
        accumulate(plan, raw, upsample="bilinear", stride=8)


def _canvas(
    image_HW3: UInt8Array, start: ImageSize, one: Pass, mean: Rgb, executor: Executor | None
) -> PixelArray:
    """Return the scaled picture on its canvas; uint8 where it is not resized."""
    same = size_of(image_HW3) == start == one.scaled
    scaled_HW3 = image_HW3 if same else resized(image_HW3, one.scaled, executor, start=start)
    if one.canvas == one.scaled:
        return scaled_HW3
    # The published programs pad with zeros after normalisation: the mean colour.
    canvas_HW3 = np.empty((one.canvas.height, one.canvas.width, 3), np.float32)
    canvas_HW3[:] = np.array(mean) * _MAX_VALUE
    bottom, right = one.top + one.scaled.height, one.left + one.scaled.width
    canvas_HW3[one.top : bottom, one.left : right] = scaled_HW3
    return canvas_HW3


def _views(canvas_HW3: PixelArray, one: Pass, spec: PreprocessSpec, *, flip: bool) -> Iterator[PixelArray]:
    for chip in one.chips:
        yield chip_view(canvas_HW3, chip, spec)
        if flip:
            yield _padded(_cut(canvas_HW3, chip)[:, ::-1], chip.size.padded(), spec)


def _cut(canvas_HW3: PixelArray, chip: Chip) -> PixelArray:
    return canvas_HW3[chip.top : chip.top + chip.size.height, chip.left : chip.left + chip.size.width]


def _padded(view_HW3: PixelArray, size: ImageSize, spec: PreprocessSpec) -> PixelArray:
    height, width = view_HW3.shape[:2]
    if size == ImageSize(height, width):
        return view_HW3
    padded_HW3 = np.empty((size.height, size.width, 3), view_HW3.dtype)
    padded_HW3[:] = spec.pad_color
    padded_HW3[:height, :width] = view_HW3
    return padded_HW3


def _batches(views: Iterator[PixelArray], count: int) -> Iterator[PixelArray]:
    while batch := list(islice(views, count)):
        batch_NHW3: PixelArray = np.stack(batch)  # type: ignore[assignment]  # they are of one kind
        yield batch_NHW3
