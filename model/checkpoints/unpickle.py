"""``python -m model.checkpoints.unpickle FILE OUT``: unpickle a checkpoint in a sandbox process.

Reads FILE (from ``torch.save``, in the format of today or of before 2020) and writes its one state dict to
OUT as safetensors. Exit 0, or 1 with one line on stderr. ``model.checkpoints.checkpoint`` starts it.

Four locks, each of which should suffice: torch's unpickler for weights builds only tensors and plain
containers; memory, time and the size of files are limited; tensors cannot be larger than the file that holds
them; and the output of this process is read only as text, its file only as safetensors.
"""

from __future__ import annotations

import resource
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from model.checkpoints.limits import MAX_FILE_BYTES
from model.errors import ForeignCheckpointError

_MEMORY_BYTES = 5 * MAX_FILE_BYTES
_CPU_TIME_S = 60
_ZIP_MAGIC = b"PK\x03\x04"
_PICKLE_MAGIC = b"\x80"
_BACKBONE_PARTS = {"detail", "segment", "bga"}


def main() -> None:
    """Convert the file that the command line names."""
    limit_resources()
    source, target = sys.argv[1:]
    try:
        convert(Path(source), Path(target))
    except ForeignCheckpointError as error:
        _refuse(str(error))
    except Exception as error:  # noqa: BLE001 - the edge of the process: hostile bytes raise anything
        _refuse(f"not a checkpoint that torch reads without running code from it: {type(error).__name__}")


def _refuse(message: str) -> None:
    sys.stderr.write(message)
    sys.exit(1)


def limit_resources() -> None:
    """Limit memory, time and file size of this process from now on, and leave no core dump."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    limits = {
        resource.RLIMIT_AS: pages * resource.getpagesize() + _MEMORY_BYTES,
        resource.RLIMIT_CPU: _CPU_TIME_S,
        resource.RLIMIT_FSIZE: MAX_FILE_BYTES,
        resource.RLIMIT_CORE: 0,
    }
    for kind, limit in limits.items():
        _, hard = resource.getrlimit(kind)
        lowest = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(kind, (lowest, lowest))


def convert(source: Path, target: Path) -> None:
    """Write the state dict of a pickled checkpoint as safetensors.

    Raises:
        ForeignCheckpointError: not a file of ``torch.save``, or not with one state dict in it.
        Exception: any other error of the unpickler.
    """
    if is_archive(source):
        check_archive(source)
    saved = torch.load(source, map_location="cpu", weights_only=True)
    state = state_dict_of(saved)
    if sum(tensor.numel() * tensor.element_size() for tensor in state.values()) > source.stat().st_size:
        raise ForeignCheckpointError("the tensors claim more bytes than the file has")
    # Cloned: safetensors refuses memory that two tensors share.
    plain = {key: tensor.detach().contiguous().clone() for key, tensor in state.items()}
    safetensors.torch.save_file(plain, target)


def is_archive(path: Path) -> bool:
    """Return whether a file is an archive, as torch writes since 2020, and not a plain pickle.

    Raises:
        ForeignCheckpointError: its first bytes are neither.
    """
    with path.open("rb") as file:
        magic = file.read(len(_ZIP_MAGIC))
    if magic != _ZIP_MAGIC and not magic.startswith(_PICKLE_MAGIC):
        raise ForeignCheckpointError(f"{path.name} is not a checkpoint: neither an archive nor a pickle")
    return magic == _ZIP_MAGIC


def check_archive(path: Path) -> None:
    """Refuse archives that ``torch.save`` did not write: it compresses no member.

    Raises:
        ForeignCheckpointError: a member is compressed, or its name leads out of the archive.
        zipfile.BadZipFile: the file is no archive.
    """
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            _check_member(member)


def _check_member(member: zipfile.ZipInfo) -> None:
    if member.compress_type != zipfile.ZIP_STORED:
        raise ForeignCheckpointError(f"{member.filename!r} in it is compressed, which torch.save never does")
    if ".." in Path(member.filename).parts or Path(member.filename).is_absolute():
        raise ForeignCheckpointError(f"{member.filename!r} in it points out of the archive")


def state_dict_of(saved: Any) -> Mapping[str, Tensor]:
    """Return the one state dict of a checkpoint: the checkpoint itself, or an entry beside others.

    The published backbone of BiSeNetV2 is in parts, which are joined.

    Raises:
        ForeignCheckpointError: there is none, or more than one.
    """
    if _is_state_dict(saved):
        return saved  # type: ignore[no-any-return]  # _is_state_dict looked at each item
    items = saved.items() if isinstance(saved, Mapping) else ()
    inside = {name: value for name, value in items if _is_state_dict(value)}
    if inside.keys() == _BACKBONE_PARTS:
        return {f"{part}.{key}": value for part, state in inside.items() for key, value in state.items()}
    if len(inside) > 1:
        names = ", ".join(map(repr, inside))
        raise ForeignCheckpointError(f"holds several state dicts ({names}): save the one to import alone")
    if not inside:
        raise ForeignCheckpointError("holds no state dict (tensors by name), neither alone nor in a dict")
    return next(iter(inside.values()))


def _is_state_dict(value: object) -> bool:
    return (
        isinstance(value, Mapping)
        and len(value) > 0
        and all(isinstance(key, str) and isinstance(item, Tensor) for key, item in value.items())
    )


if __name__ == "__main__":
    main()
