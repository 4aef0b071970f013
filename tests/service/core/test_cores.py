from __future__ import annotations

import os
from pathlib import Path

import pytest

from service.core.cores import usable_cores

ALL = len(os.sched_getaffinity(0))


def cgroup(tmp_path: Path, line: str, files: dict[str, str]) -> tuple[Path, Path]:
    """Write a tree of control groups, and which of them a process belongs to."""
    process = tmp_path / "cgroup"
    process.write_text(f"{line}\n")
    for name, content in files.items():
        path = tmp_path / "mounted" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return tmp_path / "mounted", process


@pytest.mark.parametrize(
    ("line", "files", "expected"),
    [
        ("0::/", {"cpu.max": "max 100000"}, ALL),
        ("0::/", {"cpu.max": "50000 100000"}, 1),
        ("0::/", {"cpu.max": "100001 100000"}, min(2, ALL)),
        ("0::/pods/this", {"pods/cpu.max": "100000 100000", "pods/this/cpu.max": "max 100000"}, 1),
        ("0::/pods/this", {"pods/other/cpu.max": "100000 100000"}, ALL),
        (
            "4:cpu,cpuacct:/pod",
            {"cpu,cpuacct/pod/cpu.cfs_quota_us": "70000", "cpu,cpuacct/pod/cpu.cfs_period_us": "100000"},
            1,
        ),
        ("4:cpu:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, ALL),
        ("7:memory:/", {"memory/cpu.max": "100000 100000"}, ALL),
        ("0::/", {"cpu.max": "nonsense"}, ALL),
    ],
)
def test_a_quota_counts_wherever_it_is_set(
    tmp_path: Path, line: str, files: dict[str, str], expected: int
) -> None:
    assert usable_cores(*cgroup(tmp_path, line, files)) == expected


def test_where_there_are_no_control_groups_affinity_decides(tmp_path: Path) -> None:
    assert usable_cores(tmp_path / "none", tmp_path / "nothing") == ALL
