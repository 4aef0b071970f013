from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

from training.errors import ConfigError
from training.optimisation.precision import ComputeConfig, Precision

CPU = torch.device("cpu")


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_mixed_precision_multiplies_in_fewer_bits(precision: Precision, dtype: torch.dtype) -> None:
    with ComputeConfig(precision=precision).autocast(CPU):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype


def test_full_precision_stays_full() -> None:
    with ComputeConfig(precision="f32").autocast(CPU):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


def test_only_fp16_scales_its_loss() -> None:
    scaled = {p: ComputeConfig(precision=p).scaler(CPU).is_enabled() for p in ("bf16", "fp16", "f32")}
    assert scaled == {"bf16": False, "fp16": True, "f32": False}


@pytest.mark.parametrize(
    ("instructions", "precision"),
    [({"avx512_bf16": True}, "bf16"), ({"amx_bf16": True}, "bf16"), ({"avx512_f": True}, "f32"), ({}, "f32")],
)
def test_auto_is_bf16_only_where_the_processor_has_it(
    instructions: dict[str, bool], precision: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: instructions)
    assert ComputeConfig().on(CPU).precision == precision
    with ComputeConfig().autocast(CPU):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == (
            torch.bfloat16 if precision == "bf16" else torch.float32
        )


def test_a_precision_that_was_asked_for_stays() -> None:
    assert ComputeConfig(precision="bf16").on(CPU).precision == "bf16"


@pytest.fixture
def _any_algorithm_afterwards() -> Iterator[None]:
    yield
    torch.use_deterministic_algorithms(mode=False)


@pytest.mark.usefixtures("_any_algorithm_afterwards")
def test_a_deterministic_run_says_so_to_torch() -> None:
    ComputeConfig(deterministic=True).set_up(CPU)
    assert torch.are_deterministic_algorithms_enabled()
    ComputeConfig().set_up(CPU)
    assert not torch.are_deterministic_algorithms_enabled()


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(ConfigError, match="int4"):
        ComputeConfig(precision="int4")  # type: ignore[arg-type]


@pytest.mark.usefixtures("_any_algorithm_afterwards")
@pytest.mark.parametrize("kept", [None, ":16:8"])
def test_a_deterministic_run_on_a_gpu_gives_cublas_memory_of_its_own(
    kept: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", kept or "")
    if kept is None:
        monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    precision = torch.get_float32_matmul_precision()
    ComputeConfig(deterministic=True).set_up(torch.device("cuda"))
    torch.set_float32_matmul_precision(precision)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == (kept or ":4096:8")


@pytest.mark.parametrize(
    ("device", "deterministic", "searched"),
    [("cuda", False, True), ("cuda", True, False), ("cpu", False, False)],
)
def test_algorithms_are_searched_for_while_a_gpu_learns_only(
    device: str, *, deterministic: bool, searched: bool
) -> None:
    before = torch.backends.cudnn.benchmark
    with ComputeConfig(deterministic=deterministic).searching(torch.device(device)):
        assert torch.backends.cudnn.benchmark is searched
    assert torch.backends.cudnn.benchmark is before is False


@pytest.mark.usefixtures("_any_algorithm_afterwards")
def test_a_run_leaves_the_search_to_its_steps() -> None:
    precision = torch.get_float32_matmul_precision()
    ComputeConfig().set_up(torch.device("cuda"))
    torch.set_float32_matmul_precision(precision)
    assert not torch.backends.cudnn.benchmark
