from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from run_folders import PALETTE, shown_images

from training.config import TrainingConfig
from training.data.splits import TrainingData
from training.distributed import ALONE
from training.run.sample_grid import (
    SAMPLE_COUNT,
    draw_grid,
    label_samples,
    sample_indices,
    write_crops,
    write_picture,
    write_samples,
)
from training.run.train_step import TrainStep


@pytest.mark.parametrize("count", [0, 1, 5, 6, 101])
def test_the_sample_of_a_split_is_even_and_always_the_same(count: int) -> None:
    indices = sample_indices(count)
    assert indices == sample_indices(count) == sorted(set(indices))
    assert len(indices) == min(count, SAMPLE_COUNT)
    assert all(0 <= index < count for index in indices)


def test_a_row_shows_picture_truth_and_guess(
    config: TrainingConfig, data: TrainingData, tmp_path: Path
) -> None:
    from model.networks.segmentation_network import ARCHITECTURES  # noqa: PLC0415

    network = TrainStep(config, data, ALONE).average.network
    network.state_dict()["architecture.head.conv_out.1.bias"][2] = 1e4  # everything is blue
    shown = label_samples(
        network,
        data.val,
        [1],
        architecture=ARCHITECTURES["bisenetv2"],
        palette=data.spec.palette,
        compute=config.compute,
    )
    grid_HW3 = draw_grid(shown, data.spec.palette)
    assert grid_HW3.shape == (64 * 320 // 80 + 4, 3 * 324, 3)
    packed, (place,) = data.val.fetch([1])
    truth_HW = packed.label(place).numpy()
    blue = (truth_HW[truth_HW != 255] == 2).mean()
    assert [one.name for one in shown] == ["val1.png"]
    assert shown[0].miou == pytest.approx(blue / len(np.unique(truth_HW[truth_HW != 255])))
    truth = data.spec.palette.rgb_table[truth_HW]
    assert (grid_HW3[100, 324 + 100] == truth[100 * 64 // 256, 100 * 80 // 320]).all()
    assert (grid_HW3[:-4, 648:-4] == (0, 0, 255)).all()
    write_picture(tmp_path / "deep/grid.png", grid_HW3)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "deep/grid.png")), grid_HW3)


def test_samples_of_a_later_step_share_the_files_that_stay_the_same(tmp_path: Path) -> None:
    first = write_samples(tmp_path, shown_images(1), PALETTE, 100)
    second = write_samples(tmp_path, shown_images(1), PALETTE, 200)
    assert (first[0]["name"], first[0]["miou"]) == ("val/0.png", 0.5)
    shared = {what for what in first[0]["files"] if first[0]["files"][what] == second[0]["files"][what]}
    assert shared == {"picture", "truth"}
    assert len(list(tmp_path.iterdir())) == 2 + 2 * 2
    prediction = Image.open(tmp_path / second[0]["files"]["prediction"]).convert("RGB")
    assert np.array_equal(np.asarray(prediction), PALETTE.rgb_table[shown_images(1)[0].guess_HW])


def test_crops_are_written_with_their_labels_and_names(tmp_path: Path) -> None:
    labels_NHW = torch.arange(3, dtype=torch.uint8)[:, None, None].expand(3, 32, 48).contiguous()
    images_NHW3 = torch.zeros((3, 32, 48, 3), dtype=torch.uint8)
    told = write_crops(tmp_path / "samples", ["a.png", "b.png", "a.png"], images_NHW3, labels_NHW, PALETTE)
    assert [one["name"] for one in told] == ["a.png", "b.png", "a.png"]
    labels = Image.open(tmp_path / "samples" / told[1]["files"]["labels"]).convert("RGB")
    assert np.array_equal(np.unique(np.asarray(labels).reshape(-1, 3), axis=0), [PALETTE.colors[1]])
    crop = Image.open(tmp_path / "samples" / told[1]["files"]["crop"]).convert("RGB")
    assert crop.size == (48, 32)
