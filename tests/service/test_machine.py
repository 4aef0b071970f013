from __future__ import annotations

from pathlib import Path

import pytest

from service import machine
from service.machine import cpuinfo, this_machine


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="no Linux")
def test_the_processor_of_this_machine_is_asked() -> None:
    assert cpuinfo()
    assert this_machine().cores >= 1
    assert "openvino" in this_machine().versions


@pytest.mark.parametrize(
    ("info", "flags"),
    [
        ({"flags": "fpu avx2 sse avx512_vnni"}, ("avx2", "avx512_vnni")),
        ({"Features": "fp asimd asimddp i8mm"}, ("asimddp", "i8mm")),
        ({}, ()),
    ],
)
def test_the_extensions_that_networks_use_are_told_on_x86_and_arm(
    monkeypatch: pytest.MonkeyPatch, info: dict[str, str], flags: tuple[str, ...]
) -> None:
    monkeypatch.setattr(machine, "cpuinfo", lambda: info)
    assert this_machine().vector_flags == flags
