from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.datasets.dataset import DatasetSpec, LabeledImages
from training.data.pictures import (
    FilePictures,
    PackedPictures,
    Pair,
    choose_residency,
    free_bytes,
    iterate_pictures,
)

CPU = torch.device("cpu")
GIB = 1 << 30


def pairs() -> list[Pair]:
    random = np.random.default_rng(0)
    sizes = [(3, 5), (7, 2), (1, 1)]
    return [
        (random.integers(0, 256, (*size, 3), np.uint8), random.integers(0, 9, size, np.uint8))
        for size in sizes
    ]


def test_packed_pictures_come_back_whole() -> None:
    wanted = pairs()
    packed = PackedPictures.pack(wanted)
    assert len(packed) == 3
    for index, (image_HW3, label_HW) in enumerate(wanted):
        assert np.array_equal(packed.image(index).numpy(), image_HW3)
        assert np.array_equal(packed.label(index).numpy(), label_HW)


@pytest.fixture
def from_files(dataset_file: Path) -> Iterator[FilePictures]:
    splits = [LabeledImages(DatasetSpec.from_toml(dataset_file), name) for name in ("train", "val")]
    source = FilePictures(splits, workers=3, device=CPU)
    yield source
    source.close()


def test_running_ahead_changes_nothing(from_files: FilePictures) -> None:
    alone, _ = from_files.fetch([2, 0, 2])
    from_files.prefetch([6, 2, 0, 1])
    ahead, places = from_files.fetch([2, 0, 2])
    assert list(places) == [0, 1, 2]
    assert torch.equal(alone.colors, ahead.colors)
    assert torch.equal(alone.labels, ahead.labels)


def test_pictures_are_iterated_in_order(from_files: FilePictures) -> None:
    order = [5, 0, 3, 1]
    for index, (image_HW3, label_HW) in zip(order, iterate_pictures(from_files, order), strict=True):
        packed, _ = from_files.fetch([index])
        assert torch.equal(packed.image(0), image_HW3)
        assert torch.equal(packed.label(0), label_HW)


def test_names_are_paths_below_the_root(from_files: FilePictures) -> None:
    assert from_files.names[0] == "train0.png"
    assert from_files.names[-1] == "val1.png"


@pytest.mark.parametrize(
    ("pixels", "on_device", "on_host", "wanted"),
    [
        (GIB // 8, None, GIB, "device"),  # a CPU computes in the host's memory
        (GIB // 7, None, GIB, "files"),
        (GIB // 8, GIB, GIB, "device"),
        (GIB // 7, GIB, 8 * GIB, "host"),
        (2 * GIB, GIB, 8 * GIB, "files"),
    ],
)
def test_pictures_are_kept_as_near_to_the_device_as_half_of_its_memory_holds(
    pixels: int, on_device: int | None, on_host: int, wanted: str
) -> None:
    assert choose_residency(pixels, on_device=on_device, on_host=on_host) == wanted


@given(processes=st.integers(1, 8))
def test_processes_share_the_memory_of_their_machine(processes: int) -> None:
    on_device, on_host = free_bytes(CPU, processes)
    assert on_device is None
    assert 0 < on_host * processes <= 1 << 50


def test_pictures_packed_on_a_device_are_those_packed_here() -> None:
    wanted = pairs()
    there, packed = PackedPictures.pack_on(wanted, CPU), PackedPictures.pack(wanted)
    for name in ("colors", "labels", "starts_M", "sizes_M2"):
        assert torch.equal(getattr(there, name), getattr(packed, name))
