"""What this machine and its libraries are: the context of every measured number."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from importlib import metadata

from model.quotas import usable_cores
from service.engines.int8 import cpuinfo

_LIBRARIES = ("bisenet-service", "openvino", "torch", "numpy", "numba")
_VECTOR_FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "avx_vnni", "amx_bf16", "amx_int8")
_BUSY_LOAD_PER_CORE = 0.25


@dataclass(frozen=True)
class Machine:
    """A machine in plain JSON values.

    Attributes:
        processor: its name.
        cores: that this process may use.
        vector_flags: what decides which precisions are fast.
        system: operating system and architecture.
        versions: of Python and the libraries that matter, by name; those that are not installed are absent.
    """

    processor: str
    cores: int
    vector_flags: tuple[str, ...]
    system: str
    versions: dict[str, str]


def this_machine() -> Machine:
    """Describe the machine that this runs on."""
    info = cpuinfo()
    flags = info.get("flags", "").split()
    return Machine(
        processor=info.get("model name", platform.machine()),
        cores=usable_cores(),
        vector_flags=tuple(flag for flag in _VECTOR_FLAGS if flag in flags),
        system=f"{platform.system()} {platform.machine()}",
        versions={"python": platform.python_version(), **_installed()},
    )


def is_busy() -> bool:
    """Return whether other work would show in a measurement: a load of the last minute above 1/4 a core."""
    return os.getloadavg()[0] > _BUSY_LOAD_PER_CORE * usable_cores()


def _installed() -> dict[str, str]:
    versions = {}
    for name in _LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions
