from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from model.labels import UInt8Array
from model.networks.segmentation_network import SegmentationNetwork, build
from training.data.pictures import PackedPictures, ResidentPictures
from training.optimisation import bn_calibration
from training.optimisation.precision import ComputeConfig

PAD = (10, 20, 30)


@pytest.fixture
def network() -> SegmentationNetwork:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return build("bisenetv2", 3, {"head_channels": 8}, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))


def pictures(*sizes: tuple[int, int]) -> list[UInt8Array]:
    random = np.random.default_rng(5)
    return [random.integers(0, 256, (*size, 3), np.uint8) for size in sizes]


def calibrated(
    network: SegmentationNetwork, images: list[UInt8Array], batch_size: int, max_pixels: int = 10**9
) -> SegmentationNetwork:
    packed = PackedPictures.pack([(image, image[..., 0]) for image in images])
    source = ResidentPictures(packed, tuple(map(str, range(len(images)))), "", torch.device("cpu"))
    return bn_calibration.calibrated(
        network,
        source,
        batch_size=batch_size,
        max_pixels=max_pixels,
        pad_color=PAD,
        compute=ComputeConfig(),
    )


def stem_mean(network: SegmentationNetwork) -> Tensor:
    mean: Tensor = network.get_submodule("architecture.detail.S1.0.bn").running_mean  # type: ignore[assignment]
    return mean


def test_the_statistics_are_those_of_whole_pictures(network: SegmentationNetwork) -> None:
    images = pictures(*[(64, 32)] * 4)
    found = calibrated(network, images, batch_size=2)
    seen: list[Tensor] = []
    network.get_submodule("architecture.detail.S1.0.conv").register_forward_hook(
        lambda *call: seen.append(call[2])
    )
    with torch.no_grad():
        network.eval()(torch.from_numpy(np.stack(images)))
    torch.testing.assert_close(stem_mean(found), seen[0].mean((0, 2, 3)), rtol=0.02, atol=0.02)


def test_neither_the_network_nor_its_mode_changes(network: SegmentationNetwork) -> None:
    before = {key: value.clone() for key, value in network.state_dict().items()}
    found = calibrated(network, pictures((32, 32), (32, 32)), batch_size=2)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert not any(module.training for module in found.modules())


def test_what_training_left_in_the_statistics_does_not_matter(network: SegmentationNetwork) -> None:
    images = pictures((32, 64), (32, 64), (64, 64))
    fresh = calibrated(network, images, batch_size=2)
    stem_mean(network).fill_(7.0)
    assert torch.equal(stem_mean(calibrated(network, images, batch_size=2)), stem_mean(fresh))


def test_pictures_of_different_sizes_share_a_batch(network: SegmentationNetwork) -> None:
    found = calibrated(network, pictures((40, 50), (33, 90), (20, 20)), batch_size=3)
    assert all(torch.isfinite(value).all() for value in found.state_dict().values())


def test_a_large_set_is_sampled_evenly(network: SegmentationNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.optimisation.bn_calibration._MAX_PICTURES", 2)
    images = pictures(*[(32, 32)] * 5)
    part = calibrated(network, images, batch_size=2)
    same = calibrated(network, [images[0], images[3]], batch_size=2)
    assert torch.equal(stem_mean(part), stem_mean(same))


@pytest.mark.parametrize(
    ("sizes", "max_pixels", "batches"),
    [
        ([(32, 64)] * 6, 3 * 32 * 64, [3, 3]),
        ([(32, 64)] * 4, 1, [2, 2]),  # fewer than two cannot be normalised
        ([(32, 32), (32, 64), (64, 64)], 2 * 64 * 64, [2]),
    ],
)
def test_large_pictures_go_through_the_network_few_at_a_time(
    network: SegmentationNetwork, sizes: list[tuple[int, int]], max_pixels: int, batches: list[int]
) -> None:
    seen: list[int] = []
    forward = SegmentationNetwork.forward

    def watched(self: SegmentationNetwork, images_NHW3: Tensor) -> Tensor:
        seen.append(len(images_NHW3))
        return forward(self, images_NHW3)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SegmentationNetwork, "forward", watched)
        calibrated(network, pictures(*sizes), batch_size=4, max_pixels=max_pixels)
    assert seen == batches


def test_a_lone_picture_leaves_the_statistics_as_they_were(network: SegmentationNetwork) -> None:
    stem_mean(network).fill_(0.25)
    assert torch.equal(stem_mean(calibrated(network, pictures((32, 32)), batch_size=2)), stem_mean(network))
