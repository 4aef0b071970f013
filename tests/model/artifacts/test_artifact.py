from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from fakes import POOLING_MANIFEST, seal, write_pooling_artifact
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model.artifacts.artifact import (
    GOLDEN_TOLERANCE,
    Artifact,
    ComputePrecision,
    Float32Array,
    Golden,
    check_golden,
    check_weights,
    pack_golden,
    read_artifact,
)
from model.artifacts.manifest import ARTIFACT_FILES, GOLDEN_FILE, MANIFEST_FILE, WEIGHTS_FILE
from model.errors import (
    ArtifactError,
    DigestMismatchError,
    GoldenMismatchError,
    ManifestError,
    WeightsError,
)

PICTURE_HW3 = np.zeros((128, 160, 3), np.uint8)
SCORES_Khw = np.random.default_rng(5).normal(size=(4, 16, 20)).astype(np.float32)
GOLDEN = Golden(PICTURE_HW3, SCORES_Khw, num_classes=4)
RANGE = float(np.ptp(SCORES_Khw))
PRECISIONS: list[ComputePrecision] = ["f32", "bf16", "f16", "int8"]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return write_pooling_artifact(tmp_path_factory.mktemp("sound") / "artifact")


@pytest.fixture
def artifact(sound: Artifact, tmp_path: Path) -> Artifact:
    """A copy that a test may damage."""
    return read_artifact(Path(shutil.copytree(sound.folder, tmp_path / "artifact")))


def resealed(artifact: Artifact, name: str, data: bytes) -> Artifact:
    """Replace a file and its digest, as somebody would who means to deceive."""
    artifact.path(name).write_bytes(data)
    return seal(artifact.folder, artifact.manifest)


def test_an_artifact_as_it_was_written_is_verified(sound: Artifact) -> None:
    sound.verify()
    golden = sound.golden()
    assert golden.image_HW3.shape == (128, 160, 3)
    assert golden.raw_Khw.shape == (2, 16, 20)
    assert golden.num_classes == 2


@pytest.mark.parametrize("name", ARTIFACT_FILES)
@pytest.mark.parametrize("place", [0.0, 0.37, 0.999])
def test_a_flipped_bit_in_any_file_is_refused(artifact: Artifact, name: str, place: float) -> None:
    data = bytearray(artifact.path(name).read_bytes())
    data[int(place * len(data))] ^= 4
    artifact.path(name).write_bytes(data)
    with pytest.raises(DigestMismatchError, match=name):
        artifact.verify()


@pytest.mark.parametrize("name", ARTIFACT_FILES)
def test_a_missing_file_is_named(artifact: Artifact, name: str) -> None:
    artifact.path(name).unlink()
    with pytest.raises(ArtifactError, match=Path(name).name):
        artifact.verify()


def test_a_folder_without_manifest_is_no_artifact(artifact: Artifact) -> None:
    artifact.path(MANIFEST_FILE).unlink()
    with pytest.raises(ArtifactError, match=r"manifest\.json cannot be read"):
        read_artifact(artifact.folder)


def test_a_manifest_that_was_edited_is_refused(artifact: Artifact) -> None:
    path = artifact.path(MANIFEST_FILE)
    path.write_text(path.read_text().replace('"bright"', '"blight"'))
    with pytest.raises(ManifestError):
        read_artifact(artifact.folder)


def test_a_manifest_must_name_every_file(artifact: Artifact) -> None:
    files = {name: digest for name, digest in artifact.manifest.files.items() if name != GOLDEN_FILE}
    artifact.path(MANIFEST_FILE).write_text(dataclasses.replace(artifact.manifest, files=files).to_json())
    with pytest.raises(ArtifactError, match=r"names no golden\.npz"):
        read_artifact(artifact.folder)


def test_a_manifest_of_an_absurd_size_is_not_read(artifact: Artifact) -> None:
    with artifact.path(MANIFEST_FILE).open("ab") as file:
        file.truncate(2 << 20)
    with pytest.raises(ArtifactError, match="more than"):
        read_artifact(artifact.folder)


@pytest.mark.parametrize("name", [MANIFEST_FILE, WEIGHTS_FILE])
def test_a_pipe_is_refused_and_not_waited_for(artifact: Artifact, name: str) -> None:
    artifact.path(name).unlink()
    os.mkfifo(artifact.path(name))
    with pytest.raises(ArtifactError, match="no regular file"):
        read_artifact(artifact.folder).verify()


def hostile_files() -> list[Path]:
    root = os.environ.get("BISENET_DATA_ROOT")
    return sorted(Path(root, "hostile_models").glob("[!m]*")) if root else []


@pytest.mark.guarantee("G20")
@pytest.mark.skipif("BISENET_DATA_ROOT" not in os.environ, reason="needs BISENET_DATA_ROOT")
def test_every_hostile_file_is_refused_as_weights(artifact: Artifact) -> None:
    names = {path.name for path in hostile_files() if path.name != "ok.safetensors"}
    refused = set()
    for path in hostile_files():
        hostile = resealed(artifact, WEIGHTS_FILE, path.read_bytes())
        try:
            hostile.verify()
        except WeightsError:
            refused.add(path.name)
    assert len(names) == 27
    assert refused == names


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_weights_that_are_not_finite_are_refused_by_key(tmp_path: Path, value: float, dtype: Any) -> None:
    weights = {"a.weight": np.zeros(3, dtype), "b.weight": np.array([0, value, 0], dtype)}
    (tmp_path / WEIGHTS_FILE).write_bytes(safetensors.numpy.save(weights))
    with pytest.raises(WeightsError, match=r"b\.weight"):
        check_weights(tmp_path / WEIGHTS_FILE)


@pytest.mark.parametrize(
    ("dtype", "size"), [("F64", 8), ("I16", 2), ("BOOL", 1), ("BF16", 2), ("F8_E4M3", 1)]
)
def test_weights_of_another_type_are_refused(tmp_path: Path, dtype: str, size: int) -> None:
    header = json.dumps({"a.weight": {"dtype": dtype, "shape": [3], "data_offsets": [0, 3 * size]}}).encode()
    data = len(header).to_bytes(8, "little") + header + bytes(3 * size)
    (tmp_path / WEIGHTS_FILE).write_bytes(data)
    with pytest.raises(WeightsError, match=rf"a\.weight is {dtype}"):
        check_weights(tmp_path / WEIGHTS_FILE)


def test_the_counters_of_batch_normalisation_are_weights(tmp_path: Path) -> None:
    weights = {"bn.num_batches_tracked": np.array(7, np.int64)}
    (tmp_path / WEIGHTS_FILE).write_bytes(safetensors.numpy.save(weights))
    check_weights(tmp_path / WEIGHTS_FILE)


@settings(max_examples=50, deadline=None)
@given(data=st.binary(max_size=200))
def test_any_bytes_are_weights_or_a_weights_error(
    data: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    path.write_bytes(data)
    with pytest.raises(WeightsError):
        check_weights(path)


EDITS = st.lists(
    st.tuples(st.integers(0, 300) | st.integers(-300, -1), st.integers(0, 8), st.binary(max_size=8)),
    min_size=1,
    max_size=4,
)
"""Position (from the start or the end, where formats describe themselves), bytes cut, bytes put in."""


def edited(data: bytes, edits: list[tuple[int, int, bytes]]) -> bytes:
    for place, cut, inserted in edits:
        begin = max(0, len(data) + place) if place < 0 else min(place, len(data))
        data = data[:begin] + inserted + data[begin + cut :]
    return data


@settings(max_examples=100, deadline=None)
@given(edits=EDITS)
def test_edited_weights_are_weights_or_a_weights_error(
    edits: list[tuple[int, int, bytes]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    weights = {"a.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "a.bias": np.zeros(3, np.float16)}
    path = tmp_path_factory.getbasetemp() / "edited.safetensors"
    path.write_bytes(edited(safetensors.numpy.save(weights), edits))
    with contextlib.suppress(WeightsError):
        check_weights(path)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(edits=EDITS)
def test_an_edited_golden_sample_is_one_or_an_artifact_error(
    edits: list[tuple[int, int, bytes]], artifact: Artifact, sound: Artifact
) -> None:
    """The digest is right: somebody means to deceive."""
    hostile = resealed(artifact, GOLDEN_FILE, edited(sound.path(GOLDEN_FILE).read_bytes(), edits))
    with contextlib.suppress(ArtifactError):
        assert hostile.golden().raw_Khw.shape == (2, 16, 20)


def npz(**arrays: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def bomb() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("image.npy", bytes(65 << 20))
        archive.writestr("raw.npy", bytes(65 << 20))
    return buffer.getvalue()


def with_flag(data: bytes, flag: int) -> bytes:
    """Set a flag of each member, such as 1 = encrypted."""
    for begin, distance in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        parts = data.split(begin)
        data = begin.join(
            [parts[0], *(p[: distance - 4] + bytes([flag]) + p[distance - 3 :] for p in parts[1:])]
        )
    return data


def with_header(array: Any, header: str) -> bytes:
    """Return a golden sample whose scores describe themselves otherwise."""
    text = header.encode().ljust(118) + b"\n"
    npy = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + array.tobytes()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        with archive.open("image.npy", "w") as image:
            np.save(image, PICTURE_HW3)
        archive.writestr("raw.npy", npy)
    return buffer.getvalue()


RAW = np.zeros((2, 16, 20), np.float32)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"PK\x03\x04" + bytes(40),
        npz(image=PICTURE_HW3),
        npz(image=PICTURE_HW3[:64], raw=RAW),
        npz(image=PICTURE_HW3[..., 0], raw=RAW),
        npz(image=PICTURE_HW3.astype(np.int16), raw=RAW),
        npz(image=PICTURE_HW3, raw=RAW[:, :8]),
        npz(image=PICTURE_HW3, raw=RAW[:1]),
        npz(image=PICTURE_HW3, raw=RAW[:0]),
        npz(image=PICTURE_HW3, raw=RAW.astype(np.float64)),
        npz(image=PICTURE_HW3, raw=RAW + np.nan),
        npz(image=np.array([object()]), raw=RAW),
        bomb(),
        with_flag(npz(image=PICTURE_HW3, raw=RAW), 1),
        with_header(RAW, "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 16, 20"),
        with_header(RAW, "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 16, 1 << 60), }"),
        with_header(RAW, "{'descr': '<f4', 'fortran_order': True, 'shape': (2, 16, 20), }"),
    ],
)
def test_a_golden_sample_that_is_none_is_refused(artifact: Artifact, data: bytes) -> None:
    with pytest.raises(ArtifactError, match=r"golden\.npz"):
        resealed(artifact, GOLDEN_FILE, data).verify()


def test_the_same_arrays_are_packed_into_the_same_bytes() -> None:
    assert pack_golden(PICTURE_HW3, RAW) == pack_golden(PICTURE_HW3.copy(), np.asfortranarray(RAW))


def test_the_header_of_the_test_above_is_the_one_that_is_read(artifact: Artifact) -> None:
    header = "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 16, 20), }"
    assert (resealed(artifact, GOLDEN_FILE, with_header(RAW + 1, header)).golden().raw_Khw == 1).all()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_scores_within_the_tolerance_of_the_precision_pass(precision: ComputePrecision) -> None:
    signs = np.where(np.random.default_rng(6).random(SCORES_Khw.shape) < 0.5, -1, 1)
    allowed = GOLDEN_TOLERANCE[precision] * RANGE
    check_golden(GOLDEN, (SCORES_Khw + 0.99 * allowed * signs).astype(np.float32), precision)
    with pytest.raises(GoldenMismatchError, match="rms"):
        check_golden(GOLDEN, (SCORES_Khw + 1.01 * allowed * signs).astype(np.float32), precision)


def _with_one_swap(margin: float) -> tuple[Golden, Float32Array]:
    """Return scores whose two classes differ by ``margin`` in one cell, and the same with them swapped."""
    reference = np.stack((np.linspace(5, 10, 320), np.zeros(320))).reshape(2, 16, 20).astype(np.float32)
    reference[1, 0, 0] = reference[0, 0, 0] - margin
    swapped = reference.copy()
    swapped[:, 0, 0] = reference[::-1, 0, 0]
    return Golden(PICTURE_HW3, reference, num_classes=2), swapped


def test_a_clear_winner_must_stay_and_a_close_one_may_change() -> None:
    limit = 2 * GOLDEN_TOLERANCE["f32"] * 10
    golden, swapped = _with_one_swap(0.9 * limit)
    check_golden(golden, swapped, "f32")
    golden, swapped = _with_one_swap(1.1 * limit)
    with pytest.raises(GoldenMismatchError, match="1 cells"):
        check_golden(golden, swapped, "f32")


def test_the_sub_pixels_of_a_pixel_shuffle_are_compared_by_class() -> None:
    """Eight channels are two classes of four sub-pixels; class 0 wins sub-pixel 0, class 1 sub-pixel 3."""
    reference = np.zeros((8, 16, 20), np.float32)
    reference[0] = 20
    reference[7] = 10
    golden = Golden(PICTURE_HW3, reference, num_classes=2)
    wrong = reference.copy()
    wrong[[3, 7], 0, 0] = wrong[[7, 3], 0, 0]
    check_golden(golden, reference, "int8")
    with pytest.raises(GoldenMismatchError, match="1 cells"):
        check_golden(golden, wrong, "int8")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_score_that_is_not_finite_is_no_score(value: float) -> None:
    raw_Khw = SCORES_Khw.copy()
    raw_Khw[0, 0, 0] = value
    with pytest.raises(GoldenMismatchError, match="finite"):
        check_golden(GOLDEN, raw_Khw, "int8")


def test_scores_of_another_shape_are_refused() -> None:
    with pytest.raises(GoldenMismatchError, match=r"\(4, 16, 20\)"):
        check_golden(GOLDEN, SCORES_Khw[:, :8], "f32")


def test_a_single_class_wins_everywhere() -> None:
    golden = Golden(PICTURE_HW3, SCORES_Khw[:1], num_classes=1)
    check_golden(golden, SCORES_Khw[:1], "f32")


def test_the_manifest_of_the_fake_is_one_without_files() -> None:
    assert not POOLING_MANIFEST.files
