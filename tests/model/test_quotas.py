from __future__ import annotations

import os
from pathlib import Path

import pytest

from model.quotas import free_memory, passive_threads, usable_cores

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


V1, V2 = "total_inactive_file 100\n", "anon 7\ninactive_file 100\n"


@pytest.mark.parametrize(
    ("line", "files", "expected"),
    [
        ("0::/", {"memory.max": "max", "memory.current": "300", "memory.stat": V2}, 4096),
        ("0::/", {"memory.max": "1000", "memory.current": "300", "memory.stat": V2}, 800),
        ("0::/", {"memory.max": "9000", "memory.current": "300", "memory.stat": V2}, 4096),
        ("0::/", {"memory.max": "1000", "memory.current": "1200", "memory.stat": V2}, 0),
        ("0::/", {"memory.max": "1000"}, 4096),
        (
            "0::/pods/this",
            {
                "pods/memory.max": "900",
                "pods/memory.current": "800",
                "pods/memory.stat": V2,
                "pods/this/memory.max": "max",
            },
            200,
        ),
        (
            "4:memory:/pod",
            {
                "memory/pod/memory.limit_in_bytes": "1000",
                "memory/pod/memory.usage_in_bytes": "500",
                "memory/pod/memory.stat": V1,
            },
            600,
        ),
        ("4:cpu:/pod", {"memory/pod/memory.limit_in_bytes": "1000"}, 4096),
    ],
)
def test_memory_is_what_the_machine_has_and_every_container_around_grants(
    tmp_path: Path, line: str, files: dict[str, str], expected: int
) -> None:
    machine = tmp_path / "meminfo"
    machine.write_text("MemTotal:  99 kB\nMemAvailable:  4 kB\n")
    assert free_memory(*cgroup(tmp_path, line, files), machine) == expected


def test_this_machine_has_memory() -> None:
    assert 0 < free_memory() < 1 << 50


def test_threads_of_openmp_sleep_while_they_wait() -> None:
    assert passive_threads({"HOME": "/"}) == {"HOME": "/", "OMP_WAIT_POLICY": "PASSIVE"}


@pytest.mark.parametrize("name", ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"])
def test_how_threads_wait_can_be_chosen_otherwise(name: str) -> None:
    assert passive_threads({name: "active"}) == {name: "active"}
