"""The machine of a run in words."""

from __future__ import annotations

import platform
from pathlib import Path

import torch

from model.quotas import usable_cores

_CPUINFO = Path("/proc/cpuinfo")
_GIB = 2**30


def processor_name(cpuinfo: Path = _CPUINFO) -> str:
    """Return the name of the processor, or its architecture where the system does not tell.

    Args:
        cpuinfo: file of Linux.
    """
    try:
        lines = cpuinfo.read_text("utf-8").splitlines()
    except OSError:
        return platform.machine()
    names = (
        value.strip() for key, _, value in (line.partition(":") for line in lines) if "model name" in key
    )
    return next(names, platform.machine())


def hardware(device: torch.device, processes: int) -> str:
    """Return device, processor and cores in one line.

    Args:
        device: of this process.
        processes: number of processes of the run.
    """
    host = f"{processor_name()}, {usable_cores()} cores"
    if device.type != "cuda":
        return host
    memory = torch.cuda.get_device_properties(device).total_memory / _GIB
    return f"{processes} x {torch.cuda.get_device_name(device)} ({memory:.0f} GiB); {host}"
