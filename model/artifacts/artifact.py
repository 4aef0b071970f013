"""A model as a folder of files, which is refused when any byte differs from the published one.

Axes: K channels of the head's raw output, H height, W width, h w = H/stride W/stride, 3 = red green blue.
"""

from __future__ import annotations

import hashlib
import re
import stat
import struct
import zipfile
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from model.artifacts.manifest import ARTIFACT_FILES, GOLDEN_FILE, MANIFEST_FILE, WEIGHTS_FILE, ModelManifest
from model.errors import ArtifactError, DigestMismatchError, GoldenMismatchError, WeightsError
from model.labels import UInt8Array
from model.pictures.preprocess import ImageSize

__all__ = ["Artifact", "Golden", "read_artifact"]

Float32Array = npt.NDArray[np.float32]
ComputePrecision = Literal["f32", "bf16", "f16", "int8"]

GOLDEN_SIZE = ImageSize(128, 160)
GOLDEN_TOLERANCE: dict[ComputePrecision, float] = {"f32": 1e-3, "bf16": 3e-2, "f16": 3e-2, "int8": 0.2}
"""Largest rms error of an engine's scores, as a share of the range of the reference scores."""

_MAX_MANIFEST_BYTES = 1 << 20
_NPY_MAGIC = b"\x93NUMPY\x01\x00"
_ENCRYPTED = 0x1
_TENSOR_NAME = re.compile(r"\w+(\.\w+)*", re.ASCII)
_TENSOR_TYPES = ("F16", "F32", "I8", "I64")


@dataclass(frozen=True, eq=False)
class Golden:
    """The golden sample: a picture and its raw output from the torch network, which engines must reproduce.

    Attributes:
        image_HW3: uint8 RGB, 128x160.
        raw_Khw: float32, raw output for the picture.
        num_classes: number of classes; a head with pixel shuffle has more channels.
    """

    image_HW3: UInt8Array
    raw_Khw: Float32Array
    num_classes: int


@dataclass(frozen=True)
class Artifact:
    """An artifact folder and its manifest; only ``verify`` checks the files."""

    folder: Path
    manifest: ModelManifest

    @property
    def precision(self) -> ComputePrecision:
        """Precision of the golden sample for its own files in f32: f16 weights reproduce it like f32 ones."""
        return "int8" if self.manifest.precision == "int8" else "f32"

    def path(self, name: str) -> Path:
        """Return the path of a file of the artifact, for example of ``openvino/graph.xml``."""
        return self.folder / name

    def read(self, name: str) -> bytes:
        """Return the bytes of a file.

        Raises:
            ArtifactError: the file is missing or no regular file.
            DigestMismatchError: the SHA-256 is not that of the manifest.
        """
        data = _read(self.path(name))
        if (digest := hashlib.sha256(data).hexdigest()) != self.manifest.files[name]:
            raise DigestMismatchError(f"{name}: SHA-256 is {digest}, not {self.manifest.files[name]}")
        return data

    def verify(self) -> None:
        """Check the digest of each file, the weights and the form of the golden sample.

        Raises:
            ArtifactError: a file is missing or malformed.
            DigestMismatchError: the digest of a file differs.
            WeightsError: the weights are malformed or not finite.
        """
        for name in ARTIFACT_FILES:
            self.read(name)
        check_weights(self.path(WEIGHTS_FILE))
        self.golden()

    def golden(self) -> Golden:
        """Return the golden sample.

        Raises:
            ArtifactError: the file is missing, or no picture with scores of this model's shape.
            DigestMismatchError: the digest of the file differs.
        """
        return _parse_golden(self.read(GOLDEN_FILE), self.manifest)


def read_artifact(folder: Path) -> Artifact:
    """Open an artifact folder; only the manifest is read.

    Raises:
        ArtifactError: there is no manifest, or it lacks a file of an artifact.
        ManifestError: the manifest is malformed.
    """
    manifest = ModelManifest.from_json(_read(folder / MANIFEST_FILE, limit=_MAX_MANIFEST_BYTES))
    if missing := set(ARTIFACT_FILES) - manifest.files.keys():
        raise ArtifactError(f"{MANIFEST_FILE} names no {', '.join(sorted(missing))}")
    return Artifact(folder, manifest)


def check_weights(path: Path) -> None:
    """Refuse a safetensors file that is malformed, or has values that are not finite or odd names.

    Raises:
        WeightsError: the message names the key.
    """
    try:
        with safe_open(path, framework="numpy") as weights:
            for key in weights.keys():  # noqa: SIM118 - the file is no mapping
                _check_tensor(weights, key)
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path.name} is not a safetensors file: {error}") from error


def _check_tensor(weights: Any, key: str) -> None:
    if not _TENSOR_NAME.fullmatch(key):
        raise WeightsError(f"not the name of a tensor: {key!r}")
    # From the header: numpy cannot load some types.
    if (dtype := weights.get_slice(key).get_dtype()) not in _TENSOR_TYPES:
        raise WeightsError(f"{key} is {dtype}, which is none of {', '.join(_TENSOR_TYPES)}")
    if not np.isfinite(weights.get_tensor(key)).all():
        raise WeightsError(f"{key} holds values that are not finite")


def check_golden(golden: Golden, raw_Khw: Float32Array, precision: ComputePrecision) -> None:
    """Refuse an engine whose raw output differs from the golden sample by more than its precision explains.

    Args:
        golden: the golden sample.
        raw_Khw: raw output of the engine for ``golden.image_HW3``.
        precision: precision of the engine.

    Raises:
        GoldenMismatchError: another shape; values that are not finite; an rms error above
            ``GOLDEN_TOLERANCE`` of the reference's range; or another label where the reference's best score
            leads by more than twice that.
    """
    reference = golden.raw_Khw
    if raw_Khw.shape != reference.shape or not np.isfinite(raw_Khw).all():
        raise GoldenMismatchError(f"expected finite scores of shape {reference.shape}, got {raw_Khw.shape}")
    allowed = GOLDEN_TOLERANCE[precision] * float(np.ptp(reference))
    error = raw_Khw.astype(np.float64) - reference
    if (rms := float(np.sqrt(np.mean(error**2)))) > allowed:
        raise GoldenMismatchError(f"rms score error {rms:.3g} exceeds {allowed:.3g} ({precision})")
    decided = _margin(reference, golden.num_classes) > 2 * allowed
    wrong = _labels(raw_Khw, golden.num_classes) != _labels(reference, golden.num_classes)
    if count := int((wrong & decided).sum()):
        raise GoldenMismatchError(f"{count} cells with a clear winner got another label ({precision})")


def _by_class(raw_Khw: Float32Array, num_classes: int) -> Float32Array:
    # Channels of a pixel shuffle are class-major: those of one class are its sub-pixels.
    return raw_Khw.reshape(num_classes, -1)


def _labels(raw_Khw: Float32Array, num_classes: int) -> npt.NDArray[np.intp]:
    best: npt.NDArray[np.intp] = np.argmax(_by_class(raw_Khw, num_classes), axis=0)
    return best


def _margin(raw_Khw: Float32Array, num_classes: int) -> Float32Array:
    if num_classes == 1:
        return np.zeros(raw_Khw.size, np.float32)
    best_two = np.partition(_by_class(raw_Khw, num_classes), num_classes - 2, axis=0)[-2:]
    margin: Float32Array = best_two[1] - best_two[0]
    return margin


def pack_golden(image_HW3: UInt8Array, raw_Khw: Float32Array) -> bytes:
    """Return the bytes of ``golden.npz``; the same arrays give the same bytes."""
    buffer = BytesIO()
    np.savez(buffer, image=np.ascontiguousarray(image_HW3), raw=np.ascontiguousarray(raw_Khw))
    return buffer.getvalue()


def _parse_golden(data: bytes, manifest: ModelManifest) -> Golden:
    picture_shape = (GOLDEN_SIZE.height, GOLDEN_SIZE.width, 3)
    try:
        with zipfile.ZipFile(BytesIO(data)) as archive:
            image_HW3: UInt8Array = _array(_member(archive, "image.npy"), np.uint8, picture_shape)
            raw_Khw: Float32Array = _array(_member(archive, "raw.npy"), np.float32, _raw_shape(manifest))
    except (OSError, ValueError, EOFError, KeyError, RuntimeError, zipfile.BadZipFile, struct.error) as error:
        raise ArtifactError(f"{GOLDEN_FILE} is malformed: {error}") from error
    if not np.isfinite(raw_Khw).all():
        raise ArtifactError(f"{GOLDEN_FILE} holds scores that are not finite")
    return Golden(image_HW3, raw_Khw, manifest.palette.num_classes)


def _member(archive: zipfile.ZipFile, name: str) -> bytes:
    member = archive.getinfo(name)
    # As np.savez writes it; a compressed member could inflate without limit.
    if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & _ENCRYPTED:
        raise ValueError(f"{name} is compressed or encrypted")
    return archive.read(member)


def _array(data: bytes, dtype: type[np.generic], shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """Read an ``.npy`` of a known type and shape; numpy would evaluate any header."""
    wanted = f"{{'descr': '{np.dtype(dtype).str}', 'fortran_order': False, 'shape': {shape}, }}"
    header_end = len(_NPY_MAGIC) + 2
    begin = header_end + int.from_bytes(data[len(_NPY_MAGIC) : header_end], "little")
    header = data[header_end:begin].decode("latin-1").rstrip()
    if not data.startswith(_NPY_MAGIC) or header != wanted:
        raise ValueError(f"expected {wanted}")
    return np.frombuffer(data, dtype, offset=begin).reshape(shape)


def _raw_shape(manifest: ModelManifest) -> tuple[int, int, int]:
    sub_pixels = manifest.stride**2 if manifest.upsample == "pixel_shuffle" else 1
    height, width = GOLDEN_SIZE.height // manifest.stride, GOLDEN_SIZE.width // manifest.stride
    return manifest.palette.num_classes * sub_pixels, height, width


def _read(path: Path, *, limit: int | None = None) -> bytes:
    try:
        status = path.stat()
        # A pipe or a device would be read for ever.
        if not stat.S_ISREG(status.st_mode):
            raise ArtifactError(f"{path.name} is no regular file")
        if limit is not None and status.st_size > limit:
            raise ArtifactError(f"{path.name} has {status.st_size} bytes, more than {limit}")
        return path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"{path.name} cannot be read: {error.strerror}") from error
