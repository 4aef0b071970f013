from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from model.artifacts.manifest import Upsample
from model.decoding.decode import labels
from model.labels import ClassPalette
from model.networks.segmentation_network import ARCHITECTURES, build
from model.pictures.preprocess import ImageSize
from training.data.pictures import PackedPictures, ResidentPictures
from training.distributed import ALONE
from training.optimisation.precision import ComputeConfig
from training.run.validation import cell_loss, device_labels, validate

PALETTE = ClassPalette(("a", "b", "c"), ((1, 0, 0), (0, 1, 0), (0, 0, 1)))


@pytest.mark.parametrize("upsample", ["bilinear", "bilinear_aligned"])
@pytest.mark.parametrize("size", [ImageSize(64, 96), ImageSize(50, 71), ImageSize(1, 1)])
def test_labels_are_the_same_on_a_device_as_from_the_decoder(upsample: Upsample, size: ImageSize) -> None:
    padded = size.padded()
    generator = torch.Generator().manual_seed(0)
    raw_Khw = torch.randn((3, padded.height // 8, padded.width // 8), generator=generator)
    ours = device_labels(raw_Khw, upsample=upsample, size=size)
    decoded = labels(raw_Khw.numpy(), upsample=upsample, stride=8, padded=padded, content=size, original=size)
    assert ours.shape == decoded.shape
    assert (ours == decoded).mean() > 0.999


def test_whole_pictures_of_any_size_are_scored_and_the_ignored_left_out() -> None:
    truths = [np.full((40, 50), 0, np.uint8), np.full((33, 64), 2, np.uint8)]
    truths[0][:10] = 255
    packed = PackedPictures.pack([(np.zeros((*truth.shape, 3), np.uint8), truth) for truth in truths])
    pictures = ResidentPictures(packed, ("a", "b"), "", torch.device("cpu"))
    network = build("bisenetv2", 3, {"head_channels": 8}, mean=(0, 0, 0), std=(1, 1, 1)).eval()
    network.state_dict()["architecture.head.conv_out.1.bias"][0] = 1e4  # class 0 wins everywhere
    scores = validate(
        network,
        pictures,
        architecture=ARCHITECTURES["bisenetv2"],
        palette=PALETTE,
        compute=ComputeConfig(),
        ranks=ALONE,
    )
    assert scores.matrix.counts_KK.tolist() == [[30 * 50, 0, 0], [0, 0, 0], [33 * 64, 0, 0]]
    assert [(one.index, one.name, one.matrix(3).miou) for one in scores.images] == [(0, "a", 1), (1, "b", 0)]
    right, wrong = 30 * 50 / 64, 33 * 64 / 64  # cells of 8 x 8 pixels; class 0 is certain
    assert scores.loss == pytest.approx(1e4 * wrong / (right + wrong), rel=0.1)


@pytest.mark.parametrize("upsample", ["bilinear", "bilinear_aligned"])
def test_the_loss_of_cells_is_that_of_full_size_scores_where_labels_are_smooth(upsample: Upsample) -> None:
    generator = torch.Generator().manual_seed(0)
    raw_Khw = torch.randn((3, 12, 16), generator=generator)
    is_aligned = upsample == "bilinear_aligned"
    full_KHW = functional.interpolate(
        raw_Khw[None], size=(96, 128), mode="bilinear", align_corners=is_aligned
    )[0]
    label_HW = full_KHW.argmax(0).to(torch.uint8)  # the best class is that of the scores everywhere
    total, cells = cell_loss(raw_Khw, label_HW, upsample=upsample, ignore_id=255)
    expected = functional.cross_entropy(raw_Khw[None], raw_Khw.argmax(0)[None], reduction="sum")
    assert cells == 12 * 16
    assert total == pytest.approx(float(expected), rel=0.02)


def test_cells_without_a_label_and_outside_the_picture_do_not_count() -> None:
    raw_Khw = torch.zeros((3, 8, 8))
    label_HW = torch.zeros((40, 64), dtype=torch.uint8)  # padded to 64 x 64
    label_HW[:, :32] = 255
    total, cells = cell_loss(raw_Khw, label_HW, upsample="bilinear", ignore_id=255)
    assert cells == 5 * 4
    assert total == pytest.approx(cells * math.log(3))
    label_HW[:] = 255
    assert cell_loss(raw_Khw, label_HW, upsample="bilinear", ignore_id=255) == (0, 0)
