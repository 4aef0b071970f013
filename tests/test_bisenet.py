"""The command as a whole."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import typer

from bisenet import COMMANDS


def commands(command: Any) -> Iterator[Any]:
    """Yield a command and those below it; typer's copy of click has no names that one may import."""
    yield command
    for inner in getattr(command, "commands", {}).values():
        yield from commands(inner)


@pytest.mark.parametrize("name", COMMANDS)
def test_no_help_text_holds_square_brackets_which_rich_would_take_for_markup(name: str) -> None:
    module, attribute, line = COMMANDS[name]
    found = getattr(import_module(module), attribute)
    app = found if isinstance(found, typer.Typer) else typer.Typer()
    if app is not found:
        app.command()(found)
    texts = [line]
    for command in commands(typer.main.get_command(app)):
        texts += [command.help or "", *(getattr(parameter, "help", "") or "" for parameter in command.params)]
    assert len(texts) > 2
    assert not [text for text in texts if "[" in text]


WITHOUT = "import sys; sys.modules[sys.argv.pop(1)] = None; import bisenet; bisenet.main()"
"""A program that runs the command as if a module were not installed."""


@pytest.mark.parametrize(
    ("absent", "command", "extra"), [("av", "stream", "client"), ("torch", "train", "torch")]
)
def test_without_its_extra_a_command_says_which_and_still_has_help(
    absent: str, command: str, extra: str
) -> None:
    def run(argument: str) -> subprocess.CompletedProcess[str]:
        program = [sys.executable, "-c", WITHOUT, absent, command, argument]
        return subprocess.run(
            program, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False
        )

    assert run("--help").returncode == 0
    refused = run("camvid-v2")
    assert (refused.returncode, len(refused.stderr.splitlines())) == (1, 1)
    assert f"bisenet-service[{extra}]" in refused.stderr
