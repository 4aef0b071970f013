"""The machine and its libraries: the context of every measured number."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from model.quotas import usable_cores

_LIBRARIES = ("bisenet-service", "openvino", "torch", "numpy", "numba")
_VECTOR_FLAGS = (
    *("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "avx512_vnni", "avx_vnni", "amx_bf16", "amx_int8"),
    *("asimddp", "bf16", "i8mm", "sve"),  # of ARM
)
_BUSY_LOAD_PER_CORE = 0.25


@dataclass(frozen=True)
class Machine:
    """A machine in plain JSON values.

    Attributes:
        processor: its name.
        cores: number that this process may use.
        vector_flags: vector extensions of the processor.
        system: operating system and architecture.
        versions: name -> version of Python and of each relevant library that is installed.
    """

    processor: str
    cores: int
    vector_flags: tuple[str, ...]
    system: str
    versions: dict[str, str]

    @property
    def summary(self) -> str:
        """One line for the head of a report: processor, cores and versions."""
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        return f"{self.processor}, {self.cores} cores; {versions}"


def this_machine() -> Machine:
    """Describe this machine."""
    info = cpuinfo()
    flags = f"{info.get('flags', '')} {info.get('Features', '')}".split()  # x86 and ARM
    return Machine(
        processor=info.get("model name", platform.machine()),
        cores=usable_cores(),
        vector_flags=tuple(flag for flag in _VECTOR_FLAGS if flag in flags),
        system=f"{platform.system()} {platform.machine()}",
        versions={"python": platform.python_version(), **_installed()},
    )


def cpuinfo() -> dict[str, str]:
    """Return the first core of Linux' ``/proc/cpuinfo``; empty on other systems."""
    try:
        first_core = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").partition("\n\n")[0]
    except FileNotFoundError:
        return {}
    pairs = (line.partition(":") for line in first_core.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


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
