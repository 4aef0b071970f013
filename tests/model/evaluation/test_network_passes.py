"""Axes: N views, K classes, h w = the raw scores' own height and width, H W the picture's own size."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import evaluation_programs as published
import numpy as np
import numpy.typing as npt
import pytest
import torch
from fakes import FAKE_MANIFEST, red_scores
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from model.artifacts.manifest import ModelManifest
from model.decoding import decode
from model.evaluation.metrics import confusion_matrix
from model.evaluation.network_passes import label, score, segment
from model.evaluation.protocols import find_protocol, make_plan
from model.evaluation.resampling import PixelArray
from model.labels import ClassPalette, UInt8Array
from model.networks.segmentation_network import SegmentationNetwork, build
from model.pictures.preprocess import ImageSize, size_of

Float32Array = npt.NDArray[np.float32]

ROOT = Path(__file__).parents[3]
NUM_CLASSES = 6
MEAN, STD = (0.41, 0.43, 0.39), (0.21, 0.2, 0.22)
MANIFEST = ModelManifest(
    architecture="bisenetv2",
    generation="v2-g4",
    parameters={"head_channels": 16},
    upsample="bilinear",
    stride=8,
    palette=ClassPalette(tuple("abcdef"), tuple((i, 0, 0) for i in range(NUM_CLASSES))),
    mean=MEAN,
    std=STD,
    precision="f32",
)


@pytest.fixture(scope="module")
def network() -> SegmentationNetwork:
    """Return a network of random weights and statistics that gives every class some pixels."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        made = build(
            "bisenetv2", NUM_CLASSES, MANIFEST.parameters, mean=MEAN, std=STD, with_auxiliary=False
        ).eval()
        for part in made.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.running_mean.normal_(0, 0.1)  # type: ignore[union-attr]
                part.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
                part.weight.data.uniform_(0.5, 1.5)
                part.bias.data.normal_(0, 0.3)
    head = made.state_dict()["architecture.head.conv_out.1.bias"]
    with torch.inference_mode():
        head -= made(torch.from_numpy(picture(160, 224))[None]).mean((0, 2, 3))
    return made


def picture(height: int, width: int) -> UInt8Array:
    random = np.random.default_rng(7)
    grid = random.integers(0, 256, (height // 16, width // 16, 3), np.uint8)
    smooth = np.asarray(Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC), np.int16)
    return (smooth + random.integers(-8, 9, smooth.shape)).clip(0, 255).astype(np.uint8)


def infer_with(network: SegmentationNetwork) -> Callable[[PixelArray], Float32Array]:
    def infer(images_NHW3: PixelArray) -> Float32Array:
        with torch.inference_mode():
            return network(torch.from_numpy(images_NHW3)).numpy()

    return infer


def full_size(network: SegmentationNetwork) -> published.Network:
    def run(normalised: Tensor) -> Tensor:
        raw = network.architecture(normalised)
        return functional.interpolate(raw, normalised.shape[2:], mode="bilinear", align_corners=False)

    return run


def normalised(image_HW3: UInt8Array) -> Tensor:
    pixels = torch.from_numpy(image_HW3).float() / 255
    return ((pixels - torch.tensor(MEAN)) / torch.tensor(STD)).permute(2, 0, 1)[None]


@torch.inference_mode()
def both_programs(
    network: SegmentationNetwork,
    name: str,
    image_HW3: UInt8Array,
    *,
    crop: int,
    short_side: int | None = None,
) -> tuple[UInt8Array, Tensor]:
    """Return our labels and the published program's sums_KHW."""
    protocol = find_protocol(name)
    protocol = protocol.with_crop(crop) if protocol.crop else protocol
    protocol = protocol.with_short_side(short_side) if short_side else protocol
    guess_HW = segment(image_HW3, protocol, infer_with(network), MANIFEST)
    sums = published_sums(name, full_size(network), normalised(image_HW3), crop, short_side=short_side)
    return guess_HW, sums[0]


def is_clear(sums_KHW: Tensor) -> npt.NDArray[np.bool_]:
    """Tell where the best class is ahead by more than rounding."""
    first_HW, second_HW = sums_KHW.topk(2, dim=0).values
    return ((first_HW - second_HW) > 1e-4).numpy()


def published_sums(
    name: str, network: published.Network, image: Tensor, crop: int, *, short_side: int | None = None
) -> Tensor:
    flip = name.startswith("m")
    scales = published.MULTIPLE if flip else published.SINGLE
    older = name.endswith("-old")
    if name in {"ss", "msf", "ss-old", "msf-old"}:
        return published.whole_probabilities(
            network, image, scales=scales, flip=flip, rounded=not older, short_side=short_side
        )
    if name == "slide":
        return published.slide_scores(network, image, crop=crop, stride=math.ceil(crop * 2 / 3))
    advance = 5 / 6 if older else 2 / 3
    return published.chip_probabilities(
        network,
        image,
        scales=scales,
        flip=flip,
        crop=crop,
        advance=advance,
        always_exp=older,
        short_side=short_side,
    )


@pytest.mark.parametrize(
    ("name", "height", "width"),
    [
        ("ss", 150, 230),
        ("ss", 128, 160),
        ("msf", 90, 131),
        ("ssc", 50, 230),
        ("ssc", 150, 67),
        ("mscf", 75, 115),
        ("mscf", 40, 60),
        # What the older programs cannot take has no oracle: sides, at every scale, are multiples of 32.
        ("ss-old", 128, 160),
        ("msf-old", 128, 128),
        ("ssc-old", 230, 150),
        ("mscf-old", 75, 115),
        ("slide", 160, 224),
    ],
)
def test_labels_are_those_of_the_published_program(
    network: SegmentationNetwork, name: str, height: int, width: int
) -> None:
    guess_HW, sums_KHW = both_programs(network, name, picture(height, width), crop=64)
    wanted_HW, clear_HW = sums_KHW.argmax(dim=0).numpy(), is_clear(sums_KHW)
    assert len(np.unique(wanted_HW)) >= 3, "the test would not notice much"
    assert clear_HW.mean() > 0.99
    assert (guess_HW == wanted_HW)[clear_HW].mean() >= 0.9999


@pytest.mark.parametrize(
    ("name", "height", "width", "short_side"),
    [
        ("ss", 150, 230, 64),
        ("ss", 90, 70, 100),
        ("ss", 128, 160, 128),
        ("msf", 70, 81, 60),
        ("ssc", 90, 130, 80),
    ],
)
def test_labels_are_those_of_the_published_program_that_first_resizes_the_short_side(
    network: SegmentationNetwork, name: str, height: int, width: int, short_side: int
) -> None:
    guess_HW, sums_KHW = both_programs(network, name, picture(height, width), crop=64, short_side=short_side)
    wanted_HW, clear_HW = sums_KHW.argmax(dim=0).numpy(), is_clear(sums_KHW)
    assert guess_HW.shape == (height, width)
    assert clear_HW.mean() > 0.99
    assert (guess_HW == wanted_HW)[clear_HW].mean() >= 0.9999


@pytest.mark.soak
@pytest.mark.parametrize("name", ["ss", "ssc", "msf", "mscf"])
def test_iou_is_that_of_the_published_program(network: SegmentationNetwork, name: str) -> None:
    guess_HW, sums_KHW = both_programs(network, name, picture(360, 480), crop=256)
    wanted_HW = sums_KHW.argmax(dim=0).numpy().astype(np.uint8)
    truth_HW = np.random.default_rng(0).integers(0, NUM_CLASSES, wanted_HW.shape, np.uint8)
    truth_HW[:, ::2] = wanted_HW[:, ::2]
    matrices = [confusion_matrix(truth_HW, guess, num_classes=NUM_CLASSES) for guess in (guess_HW, wanted_HW)]
    ours, theirs = (published.published_iou(torch.from_numpy(one.counts_KK)).numpy() for one in matrices)
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_the_older_arithmetic_takes_any_size_as_the_service_does(network: SegmentationNetwork) -> None:
    image_HW3 = picture(150, 230)
    prepared = MANIFEST.preprocess.prepare(image_HW3)
    infer = infer_with(network)
    served_HW = decode.labels(
        infer(prepared.pixels_HW3[np.newaxis])[0],
        upsample="bilinear",
        stride=8,
        padded=prepared.padded,
        content=prepared.content,
        original=prepared.original,
    )
    np.testing.assert_array_equal(segment(image_HW3, find_protocol("ss-old"), infer, MANIFEST), served_HW)


@pytest.mark.parametrize("name", ["ss", "mscf"])
def test_batches_of_any_size_lead_to_the_same_labels(name: str) -> None:
    image_HW3 = picture(150, 230)
    protocol = find_protocol(name)
    protocol = protocol.with_crop(96) if protocol.crop else protocol
    shapes: list[tuple[int, ...]] = []

    def infer(images_NHW3: PixelArray) -> Float32Array:
        shapes.append(images_NHW3.shape)
        return red_scores(images_NHW3)

    one_by_one = segment(image_HW3, protocol, infer, FAKE_MANIFEST, batch_pixels=1)
    assert {shape[0] for shape in shapes} == {1}
    views, shapes[:] = len(shapes), []
    in_threes = segment(image_HW3, protocol, infer, FAKE_MANIFEST, batch_pixels=3 * 96 * 96 + 1)
    assert sum(shape[0] for shape in shapes) == views
    assert views == make_plan(protocol, size_of(image_HW3)).runs
    np.testing.assert_array_equal(one_by_one, in_threes)


def test_pixels_that_nothing_was_computed_of_stay_bytes() -> None:
    kinds = []

    def infer(images_NHW3: PixelArray) -> Float32Array:
        kinds.append(images_NHW3.dtype.name)
        return red_scores(images_NHW3)

    for protocol in ("ss", "ss-old", "msf"):
        segment(picture(128, 96), find_protocol(protocol), infer, FAKE_MANIFEST)
    assert kinds == ["uint8", "uint8", *["float32"] * 2, "uint8", *["float32"] * 3]


def test_a_small_picture_lies_on_the_exact_mean_which_normalisation_turns_into_zero() -> None:
    image_HW3 = picture(32, 48)
    seen: list[PixelArray] = []

    def infer(images_NHW3: PixelArray) -> Float32Array:
        seen.append(images_NHW3)
        return np.zeros((len(images_NHW3), NUM_CLASSES, 8, 8), np.float32)

    plan = make_plan(find_protocol("ssc").with_crop(64), size_of(image_HW3))
    labels_HW = label(score(image_HW3, plan, infer, MANIFEST), MANIFEST)
    assert size_of(labels_HW) == ImageSize(32, 48)
    (canvas_HW3,) = seen[0]
    np.testing.assert_array_equal(canvas_HW3[16:48, 8:56], image_HW3)
    normal_HW3 = (canvas_HW3 / 255 - np.array(MEAN)) / np.array(STD)
    normal_HW3[16:48, 8:56] = 0
    assert np.abs(normal_HW3).max() < 1e-6


def test_evaluating_needs_no_torch() -> None:
    program = (
        "import sys; sys.modules['torch'] = None\n"
        "from model.evaluation import comparison, evaluation, network_passes, report"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)
