from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from training.config import TrainingConfig
from training.data.splits import TrainingData
from training.distributed import ALONE
from training.run.sample_grid import SAMPLE_COUNT, sample_grid, sample_indices, write_picture
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
    grid_HW3 = sample_grid(
        network,
        data.val,
        [1],
        architecture=ARCHITECTURES["bisenetv2"],
        palette=data.spec.palette,
        compute=config.compute,
    )
    assert grid_HW3.shape == (64 * 320 // 80 + 4, 3 * 324, 3)
    packed, (place,) = data.val.fetch([1])
    truth = data.spec.palette.rgb_table[packed.label(place).numpy()]
    assert (grid_HW3[100, 324 + 100] == truth[100 * 64 // 256, 100 * 80 // 320]).all()
    assert (grid_HW3[:-4, 648:-4] == (0, 0, 255)).all()
    write_picture(tmp_path / "deep/grid.png", grid_HW3)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "deep/grid.png")), grid_HW3)
