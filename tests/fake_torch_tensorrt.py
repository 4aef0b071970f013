"""What ``service.engines.tensorrt`` uses of torch_tensorrt 2.13.0, with the signatures of that release.

Nothing is compiled: an engine is the exported program itself. Calls are recorded in order.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

# The keyword arguments of ``torch_tensorrt.dynamo.compile`` in the released wheel, without ``**kwargs``,
# which swallows misspelt names.
COMPILE_OPTIONS = frozenset(
    """arg_inputs kwarg_inputs device disable_tf32 assume_dynamic_shape_support sparse_weights
    engine_capability num_avg_timing_iters workspace_size dla_sram_size dla_local_dram_size
    dla_global_dram_size truncate_double require_full_compilation min_block_size torch_executed_ops
    torch_executed_modules pass_through_build_failures max_aux_streams version_compatible optimization_level
    use_python_runtime use_fast_partitioner enable_experimental_decompositions dryrun hardware_compatible
    timing_cache_path lazy_engine_init cache_built_engines reuse_cached_engines engine_cache_dir
    engine_cache_size custom_engine_cache use_fp32_acc refit_identical_engine_weights strip_engine_weights
    immutable_weights enable_weight_streaming tiling_optimization_level l2_limit_for_tiling
    offload_module_to_cpu use_distributed_mode_trace enable_autocast autocast_low_precision_type
    autocast_excluded_nodes autocast_excluded_ops autocast_max_output_threshold
    autocast_max_depth_of_reduction autocast_calibration_dataloader cpu_memory_budget
    enable_resource_partitioning dynamically_allocate_resources decompose_attention attn_bias_is_causal
    fallback_data_dependent_ops""".split()  # noqa: SIM905 - a list of one name a line is no easier to compare
)
INPUT_OPTIONS = frozenset(
    "shape min_shape opt_shape max_shape dtype format tensor_domain torch_tensor is_shape_tensor name".split()  # noqa: SIM905
)


class FakeTorchTensorRt:
    """The module; ``calls`` tells what was called."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.inputs: list[dict[str, Any]] = []
        self.dynamo = SimpleNamespace(compile=self._compile)

    def Input(self, **options: Any) -> SimpleNamespace:
        assert options.keys() <= INPUT_OPTIONS
        self.inputs.append(options)
        return SimpleNamespace(**options)

    def _compile(
        self, exported_program: torch.export.ExportedProgram, inputs: Any = None, **options: Any
    ) -> torch.export.ExportedProgram:
        assert inputs is None
        assert options.keys() <= COMPILE_OPTIONS
        self.calls.append("compile")
        return exported_program

    def save(
        self,
        module: torch.export.ExportedProgram,
        file_path: str = "",
        *,
        arg_inputs: Any = None,
        retrace: bool = True,
    ) -> None:
        assert arg_inputs
        assert retrace
        self.calls.append("save")
        torch.export.save(module, file_path)

    def load(self, file_path: str = "") -> torch.export.ExportedProgram:
        assert Path(file_path).is_file()
        self.calls.append("load")
        return torch.export.load(file_path)
