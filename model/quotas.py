"""Cores and memory that this process may use, and how its threads share the cores."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

_GROUPS = Path("/sys/fs/cgroup")
_PROCESS = Path("/proc/self/cgroup")
_MEMORY = Path("/proc/meminfo")
_MEMORY_FILES = (
    ("memory.max", "memory.current", "inactive_file"),  # version 2
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),  # version 1
)


def usable_cores(groups: Path = _GROUPS, process: Path = _PROCESS) -> int:
    """Return the number of cores that this process may use, at least 1.

    Args:
        groups: mount point of the control groups.
        process: file that names the groups of this process.

    Source:
        Linux, Documentation/admin-guide/cgroup-v2.rst (cpu.max) and scheduler/sched-bwc.rst (cfs_quota_us).
    """
    quotas = [_quota(folder) for folder in _groups_of("cpu", process, groups)]
    return min([len(os.sched_getaffinity(0)), *(math.ceil(quota) for quota in quotas if quota is not None)])


def passive_threads(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment in which threads of OpenMP sleep while they wait for each other.

    By default libgomp, which torch uses, spins. On cores shared with other programs it spins for threads that
    wait for a core. Beside ten busy processes on two cores, training ran at 0.14 steps/s with spinning and at
    0.95 without. OpenMP reads the variable when it is loaded, so set it before torch is imported.

    Args:
        environment: its own value of the variable wins.

    Source:
        GCC, libgomp manual: OMP_WAIT_POLICY, GOMP_SPINCOUNT. OpenMP of LLVM and Intel: KMP_BLOCKTIME.
    """
    own_choice = environment.keys() & {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"}
    return {**environment} if own_choice else {**environment, "OMP_WAIT_POLICY": "PASSIVE"}


def free_memory(groups: Path = _GROUPS, process: Path = _PROCESS, machine: Path = _MEMORY) -> int:
    """Return the bytes that this process can still use, limited by the machine and by its container.

    Args:
        groups: mount point of the control groups.
        process: file that names the groups of this process.
        machine: file of the kernel with the machine's memory.

    Source:
        Linux, Documentation/admin-guide/cgroup-v2.rst (memory.max) and cgroup-v1/memory.rst.
    """
    lines = machine.read_text("ascii").splitlines()
    available = next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))
    granted = [_granted(folder) for folder in _groups_of("memory", process, groups)]
    return min([available, *(max(0, left) for left in granted if left is not None)])


def _groups_of(controller: str, process: Path, groups: Path) -> Iterator[Path]:
    """Return the group of this process and the groups around it: each may have its own quota."""
    try:
        lines = process.read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux, or not visible from here
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers or controller in controllers.split(","):
            mount = groups / controllers if controllers else groups
            own = mount / path.strip("/")
            yield from (folder for folder in (own, *own.parents) if folder.is_relative_to(mount))


def _quota(folder: Path) -> float | None:
    """Return the cores of a quota, in version 2 or 1 of control groups; None = no quota."""
    try:
        if (limit := folder / "cpu.max").exists():
            quota, period = limit.read_text(encoding="ascii").split()
        else:
            quota, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return float(quota) / float(period) if float(quota) > 0 else None
    except (OSError, ValueError):  # there is no such file, or "max"
        return None


def _granted(folder: Path) -> int | None:
    """Return the free memory of a group, in bytes; None = no limit.

    Inactive page cache counts as free: the kernel releases it on demand.
    """
    for limit, usage, cached in _MEMORY_FILES:
        try:
            left = int((folder / limit).read_text("ascii")) - int((folder / usage).read_text("ascii"))
            stat = dict(line.split() for line in (folder / "memory.stat").read_text("ascii").splitlines())
            return left + int(stat[cached])
        except (OSError, ValueError, KeyError):  # there is no such file, or "max"
            continue
    return None
