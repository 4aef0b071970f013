"""The command line of the benchmarks: the docstring of a script as its help, and no measuring while busy."""

from __future__ import annotations

import argparse
import socket

from service.machine import is_busy


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser whose help is the docstring of a script, with the option ``--force``."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--force", action="store_true", help="measure even though the machine is busy")
    return parser


def parse_if_idle(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Return the options.

    Raises:
        SystemExit: they are wrong; or other work runs on this machine, and ``--force`` is not among them.
    """
    options = parser.parse_args()
    if is_busy() and not options.force:
        parser.error("the machine is busy with other work; wait, or measure with --force")
    return options


def free_port() -> int:
    """Return a port of the loopback interface on which no program listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port
