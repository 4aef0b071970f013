"""Reads weights of other programs: a file becomes named tensors, or an error.

This process never opens a pickle. ``model.checkpoints.unpickle`` does, in a process of its own, and writes a
safetensors file, which is checked like a file from an unknown source.
"""

from __future__ import annotations

import stat
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import safetensors.torch
from torch import Tensor

from model.artifacts.artifact import check_weights
from model.checkpoints.limits import MAX_FILE_BYTES
from model.checkpoints.unpickle import is_archive
from model.errors import ForeignCheckpointError

TIME_LIMIT_S = 300.0
"""A checkpoint of 111 MB takes 2 s; importing torch on a machine that is busy can take ten times that."""

_SAFETENSORS = ".safetensors"
_CODE = Path(__file__).parents[2]
_MAX_MESSAGE = 300


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Read the state dict of a checkpoint.

    Args:
        path: a safetensors file if it ends in ``.safetensors``, else what ``torch.save`` wrote.

    Returns:
        The tensors on the CPU, float32, float16 or int64, all finite.

    Raises:
        ForeignCheckpointError: the file is missing, empty, too large, no checkpoint, or would run code.
        WeightsError: a tensor is not finite, of another type, or its name is malformed.
    """
    _check_file(path)
    if path.suffix == _SAFETENSORS:
        return _load(path)
    is_archive(path)  # refuses other files before a process is started
    with TemporaryDirectory(prefix="bisenet-import-") as folder:
        converted = Path(folder, "weights.safetensors")
        _convert(path, converted)
        return _load(converted)


def _check_file(path: Path) -> None:
    try:
        status = path.stat()
    except OSError as error:
        raise ForeignCheckpointError(f"{path.name} cannot be read: {error.strerror}") from error
    if not stat.S_ISREG(status.st_mode) or not 0 < status.st_size <= MAX_FILE_BYTES:
        raise ForeignCheckpointError(
            f"{path.name} must be a file of 1..{MAX_FILE_BYTES} bytes, not of {status.st_size}"
        )


def _load(path: Path) -> dict[str, Tensor]:
    check_weights(path)
    return safetensors.torch.load_file(path)


def _convert(source: Path, target: Path) -> None:
    # -s and -P: no code from the user's home or from the working folder.
    options = ("-s", "-P", "-W", "ignore", "-m", "model.checkpoints.unpickle")
    errors = target.with_name("errors.txt")
    with errors.open("wb") as stream:
        try:
            done = subprocess.run(  # noqa: S603 - this Python, a module of ours, and file names
                [sys.executable, *options, source.resolve(), target],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stream,
                cwd=target.parent,
                env={"PYTHONPATH": str(_CODE), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"},
                timeout=TIME_LIMIT_S,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise ForeignCheckpointError(f"{source.name} took more than {TIME_LIMIT_S:.0f} s") from error
    if done.returncode:
        raise ForeignCheckpointError(f"{source.name}: {_reason(errors, done.returncode)}")


def _reason(errors: Path, code: int) -> str:
    """Return the output of the process, which may be anything, as one printable line."""
    with errors.open("rb") as stream:
        output = stream.read(_MAX_MESSAGE).decode(errors="replace")
    line = "".join(c if c.isprintable() else " " for c in output).strip()
    return line if code == 1 and line else f"reading it ended with exit code {code}"
