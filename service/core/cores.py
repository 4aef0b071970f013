"""How many cores this process may keep busy: its affinity, and the quota of its container."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path


def usable_cores(groups: Path = Path("/sys/fs/cgroup"), process: Path = Path("/proc/self/cgroup")) -> int:
    """Return how many cores this process may keep busy, at least 1.

    Args:
        groups: where control groups are mounted.
        process: which of them this process belongs to.

    Source:
        Linux, Documentation/admin-guide/cgroup-v2.rst (cpu.max) and scheduler/sched-bwc.rst (cfs_quota_us).
    """
    quotas = [_quota(folder) for folder in _groups_of(process, groups)]
    return min([len(os.sched_getaffinity(0)), *(math.ceil(quota) for quota in quotas if quota is not None)])


def _groups_of(process: Path, groups: Path) -> Iterator[Path]:
    """Name the group of this process and those around it: each may have a quota of its own."""
    try:
        lines = process.read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux, or nothing of it can be seen from here
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers or "cpu" in controllers.split(","):
            mount = groups / controllers if controllers else groups
            own = mount / path.strip("/")
            yield from (folder for folder in (own, *own.parents) if folder.is_relative_to(mount))


def _quota(folder: Path) -> float | None:
    """Read cores of a quota, in version 2 of control groups or in version 1; None where there is none."""
    try:
        if (limit := folder / "cpu.max").exists():
            quota, period = limit.read_text(encoding="ascii").split()
        else:
            quota, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return float(quota) / float(period) if float(quota) > 0 else None
    except (OSError, ValueError):  # there is no such file, or "max"
        return None
