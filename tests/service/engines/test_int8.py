from __future__ import annotations

from pathlib import Path

import pytest

from service.core.device.engine import PrecisionChoice
from service.engines import int8
from service.engines.int8 import cpuinfo, has_dot_products, prefers_int8

X86 = {"model name": "some", "flags": "fpu avx512f avx512_vnni"}


@pytest.mark.parametrize(
    ("info", "has"),
    [
        (X86, True),
        ({"flags": "fpu avx2 avx_vnni"}, True),
        ({"flags": "fpu amx_tile amx_int8"}, True),
        ({"Features": "fp asimd asimddp"}, True),
        ({"flags": "fpu avx2 avx512f avx512_bf16"}, False),
        ({"Features": "fp asimd"}, False),
        ({}, False),
    ],
)
def test_int8_takes_instructions_that_add_up_products_of_8_bits(info: dict[str, str], *, has: bool) -> None:
    assert has_dot_products(info) is has


@pytest.fixture(params=[True, False], ids=["int8", "no-int8"])
def has_instructions(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(int8, "cpuinfo", lambda: X86 if request.param else {})
    return bool(request.param)


@pytest.mark.parametrize("engine", ["auto", "openvino"])
def test_auto_prefers_int8_where_the_processor_has_instructions_for_it(
    engine: str, *, has_instructions: bool
) -> None:
    assert prefers_int8(engine, "cpu", "auto") is has_instructions


@pytest.mark.parametrize(("engine", "device"), [("torch", "cpu"), ("auto", "cuda:0"), ("tensorrt", "cuda:0")])
@pytest.mark.usefixtures("has_instructions")
def test_engines_without_int8_run_the_original(engine: str, device: str) -> None:
    assert not prefers_int8(engine, device, "auto")


@pytest.mark.parametrize(("precision", "preferred"), [("int8", True), ("f32", False), ("bf16", False)])
@pytest.mark.usefixtures("has_instructions")
def test_a_precision_that_is_asked_for_decides(precision: PrecisionChoice, *, preferred: bool) -> None:
    assert prefers_int8("auto", "cpu", precision) is preferred


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="no Linux")
def test_the_processor_of_this_machine_is_asked() -> None:
    assert cpuinfo()
