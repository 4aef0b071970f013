"""Runs the command blocks of a Markdown page as a reader would, one after the other in one folder.

A block is a fence of ``bash``. A comment on the line above it changes how it is run::

    <!-- not run: needs a camera -->
    <!-- background: http://127.0.0.1:8000/readyz -->

A background block runs until the page is done; the next block starts when the URL answers 200. Variables that
a block exports, and the folder that it changes to, hold for the blocks after it.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", ROOT / "examples/README.md", *sorted((ROOT / "docs").rglob("*.md")))

_BLOCK = re.compile(
    r"(?:^ *<!-- *([^>]*?) *-->\n)?^( *)```(\w+)[^\n]*\n(.*?)^\2```$", re.MULTILINE | re.DOTALL
)
_READY_S = 240.0


@dataclass(frozen=True)
class CommandBlock:
    """One block of commands.

    Attributes:
        commands: the text between the fences, without their indentation.
        not_run: why it is not run; empty if it is.
        ready_url: for a block in the background: the URL that answers 200 when it is ready; else empty.
    """

    commands: str
    not_run: str = ""
    ready_url: str = ""


def command_blocks(markdown: str) -> list[CommandBlock]:
    """Return the command blocks of a page in their order.

    Raises:
        ValueError: a comment above a block has an unknown form.
    """
    blocks = []
    for comment, indent, language, text in _BLOCK.findall(markdown):
        if language == "bash":
            commands = "".join(line.removeprefix(indent) for line in text.splitlines(keepends=True))
            blocks.append(CommandBlock(commands, **_directive(comment)))
    return blocks


def _directive(comment: str) -> dict[str, str]:
    keys = {"not run": "not_run", "background": "ready_url"}
    key, _, value = comment.partition(": ")
    if not comment:
        return {}
    if key not in keys or not value.strip():
        raise ValueError(
            f"a comment above a block is 'not run: REASON' or 'background: URL', not {comment!r}"
        )
    return {keys[key]: value.strip()}


def run_page(page: Path, folder: Path, environment: dict[str, str], *, timeout_s: float) -> None:
    """Run all blocks of a page.

    Args:
        page: a Markdown file.
        folder: where the commands run.
        environment: of the commands.
        timeout_s: for each block.

    Raises:
        AssertionError: a command failed; the message holds the block and what it printed.
    """
    state = folder / ".state"
    state.write_text(f"cd {shlex.quote(str(folder))}\n", "utf-8")
    with ExitStack() as stack:
        for block in command_blocks(page.read_text("utf-8")):
            if block.ready_url:
                stack.enter_context(_background(block, state, environment))
            elif not block.not_run:
                _run(block, state, environment, timeout_s)


def _run(block: CommandBlock, state: Path, environment: dict[str, str], timeout_s: float) -> None:
    save = f"{{ export -p; printf 'cd %q\\n' \"$PWD\"; }} >{state}"
    script = f"source {state}\nset -euo pipefail\n{block.commands}\n{save}\n"
    done = subprocess.run(
        ["bash", "-c", script],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    assert done.returncode == 0, f"exit {done.returncode} of\n{block.commands}\n{done.stdout[-4000:]}"


@contextmanager
def _background(block: CommandBlock, state: Path, environment: dict[str, str]) -> Iterator[None]:
    assert not _answers(block.ready_url), f"another program answers at {block.ready_url}: stop it first"
    script = f"source {state}\nset -euo pipefail\n{block.commands}"
    log = state.with_name(".background.log")
    with log.open("ab") as output:
        process = subprocess.Popen(
            ["bash", "-c", script],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        try:
            _wait_until_ready(block, process, log)
            yield
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGINT)
                try:
                    process.wait(60)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()


def _wait_until_ready(block: CommandBlock, process: subprocess.Popen[bytes], log: Path) -> None:
    give_up_s = time.monotonic() + _READY_S
    while not _answers(block.ready_url):
        assert process.poll() is None, (
            f"ended before it was ready:\n{block.commands}\n{log.read_text()[-4000:]}"
        )
        assert time.monotonic() < give_up_s, f"not ready:\n{block.commands}\n{log.read_text()[-4000:]}"
        time.sleep(0.2)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False
