"""The command line of the benchmarks: the docstring of a script as its help, and no measuring while busy."""

from __future__ import annotations

import argparse
import socket
from pathlib import Path

from service.machine import is_busy


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser whose help is the docstring of a script, with the option ``--force``."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--force", action="store_true", help="measure even though the machine is busy")
    return parser


def add_model_and_pictures(parser: argparse.ArgumentParser) -> None:
    """Add the options that name a served model, and the pictures that it is asked for."""
    parser.add_argument("--model", default="camvid@2", help="name@version")
    parser.add_argument("--precision", default="int8", help="of that version")
    parser.add_argument("--size", default="512x1024", metavar="HxW", help="of the pictures")
    parser.add_argument("--pictures", type=Path, help="a folder of pictures; else made-up ones")


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
