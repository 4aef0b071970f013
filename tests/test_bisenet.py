from __future__ import annotations

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import bisenet

SOURCE = Path(bisenet.__file__)
HEAVY = ("fastapi", "numba", "openvino", "torch")


def test_the_joining_module_imports_typer_and_the_standard_library_only() -> None:
    tree = ast.parse(SOURCE.read_text(encoding="utf-8"))
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    named = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    named |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in named} <= {"typer", *sys.stdlib_module_names}


@pytest.mark.parametrize("name", bisenet.COMMANDS)
def test_every_command_is_where_the_table_says(name: str) -> None:
    module, attribute, _ = bisenet.COMMANDS[name]
    assert callable(getattr(import_module(module), attribute))


def test_the_overview_names_every_command_and_imports_none() -> None:
    script = (
        "import sys, bisenet; sys.argv = ['bisenet', '--help']\n"
        "try: bisenet.main()\n"
        "finally: print([m for m in sys.modules if m.split('.')[0] in " + repr((*HEAVY, "service")) + "])"
    )
    run = subprocess.run(
        [sys.executable, "-c", script], cwd=SOURCE.parent, capture_output=True, text=True, check=True
    )
    assert run.stdout.rstrip().endswith("[]")
    assert all(f" {name} " in run.stdout for name in bisenet.COMMANDS)


def test_an_unknown_command_is_wrong_usage() -> None:
    run = subprocess.run(
        [sys.executable, str(SOURCE), "segment"], capture_output=True, text=True, check=False
    )
    assert run.returncode == 2
    assert "segment" in run.stderr


@pytest.mark.parametrize(("command", "exit_code"), [("serve", 0), ("predict", 143)])
def test_sigterm_is_noticed_before_a_command_is_imported(command: str, exit_code: int) -> None:
    script = (
        "import os, signal, sys, bisenet\n"
        "def stopped(name):\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "bisenet.import_module = stopped\n"
        f"sys.argv = ['bisenet', {command!r}]\n"
        "bisenet.main()"
    )
    run = subprocess.run([sys.executable, "-c", script], cwd=SOURCE.parent, check=False)
    assert run.returncode == exit_code
