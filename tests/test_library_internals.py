"""Private parts of other libraries are used in one module each, and are still as that module expects them."""

from __future__ import annotations

import ast
import inspect
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PRIVATE_IMPORTS = {
    "dbos._serialization": "service/durable_jobs/dbos_internals.py",
    "grpc._cython": "service/client/grpc_write.py",
    "torch._dynamo": "service/engines/cuda_graphs.py",
    "uvicorn._types": "service/http_api/connection/protocol.py",
}
BOUNDED = ("dbos", "grpcio", "numba", "openvino", "pillow", "uvicorn")


def source_files() -> Iterator[Path]:
    for package in ("model", "service", "training"):
        yield from (path for path in (ROOT / package).rglob("*.py") if path.parent.name != "wire")


def private_imports(path: Path) -> Iterator[str]:
    """Yield the modules that a file imports from a package and whose own name begins with an underscore."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        yield from (name for name in names if "._" in name)


def test_each_private_module_is_imported_by_one_module() -> None:
    found = {(name, str(path.relative_to(ROOT))) for path in source_files() for name in private_imports(path)}
    assert found == set(PRIVATE_IMPORTS.items())


def test_private_attributes_are_reached_by_modules_for_that_purpose_alone() -> None:
    found = {
        str(path.relative_to(ROOT)) for path in source_files() if "noqa: SLF001" in path.read_text("utf-8")
    }
    assert found == {"service/client/grpc_write.py", "service/durable_jobs/dbos_internals.py"}


@pytest.mark.parametrize("name", BOUNDED)
def test_a_library_whose_internals_are_used_has_an_upper_bound(name: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    [requirement] = [one for one in map(Requirement, project["dependencies"]) if one.name == name]
    assert any(bound.operator == "<" for bound in requirement.specifier)


def test_private_functions_of_torch_are_used_by_the_moving_average_alone() -> None:
    torch = pytest.importorskip("torch")
    found = {
        str(path.relative_to(ROOT)) for path in source_files() if "torch._foreach" in path.read_text("utf-8")
    }
    assert found == {"training/optimisation/optim.py"}
    assert callable(torch._foreach_lerp_)
    assert callable(torch._foreach_copy_)


def test_uvicorn_has_what_the_guarded_protocol_overrides_and_reads() -> None:
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle  # noqa: PLC0415

    for name in ("_start_asgi_task", "_unset_keepalive_if_required", "timeout_keep_alive_handler"):
        assert callable(getattr(HttpToolsProtocol, name))
    protocol = inspect.getsource(HttpToolsProtocol)
    for name in ("pipeline", "cycle", "flow", "headers", "connections", "timeout_keep_alive_task"):
        assert f"self.{name}" in protocol
    cycle = inspect.getsource(RequestResponseCycle)
    for name in ("body", "message_event", "more_body", "response_started", "response_complete", "keep_alive"):
        assert f"self.{name}" in cycle
    assert "self.expected_content_length" in cycle


def test_pillow_decodes_into_the_canvas_and_keeps_the_webp_decoder_where_it_is_released() -> None:
    from PIL import ImageFile, WebPImagePlugin  # noqa: PLC0415

    assert "self.load_prepare()" in inspect.getsource(ImageFile.ImageFile.load)
    assert "self._decoder" in inspect.getsource(WebPImagePlugin.WebPImageFile)


def test_dbos_has_the_private_names_of_the_jobs() -> None:
    import dbos._dbos  # noqa: PLC0415
    from dbos._sys_db import SystemDatabase  # noqa: PLC0415

    source = inspect.getsource(dbos._dbos.DBOS)
    assert "self._active_workflows_set" in source
    assert "def _sys_db" in source
    inspect.signature(SystemDatabase.reenqueue_for_recovery).bind(None, "workflow", ["executor"], "queue")


def test_numba_looks_for_its_cache_where_the_kernels_put_it() -> None:
    import numba.core.caching  # noqa: PLC0415

    assert "config.CACHE_DIR" in inspect.getsource(numba.core.caching)


def test_torch_has_the_settings_that_limit_recompiling() -> None:
    pytest.importorskip("torch")
    from torch._dynamo import config  # noqa: PLC0415

    for name in ("recompile_limit", "accumulated_recompile_limit", "fail_on_recompile_limit_hit"):
        assert hasattr(config, name)
    with pytest.raises(AttributeError):
        _ = config.no_such_setting
