"""Options and checks that the commands of ``bisenet bench`` share."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
import uvloop

from service.cli.bench.load import RefusedError
from service.cli.local import EXIT_FAILED
from service.machine import is_busy

DEFAULT_SIZE = "512x1024"

_Result = TypeVar("_Result")

Sizes = Annotated[
    list[str] | None,
    typer.Option(
        "--size", metavar="HxW", help="Of the pictures; repeatable: a mixed load. Default: 512x1024."
    ),
]
Pictures = Annotated[
    Path | None,
    typer.Option(
        exists=True, file_okay=False, metavar="FOLDER", help="Pictures to resize and send; else made-up ones."
    ),
]
InFlight = Annotated[int, typer.Option(min=1, help="Closed loop: requests under way all the time.")]
Rate = Annotated[
    float | None, typer.Option(min=0.01, help="Open loop: requests a second, at random (Poisson).")
]
Seconds = Annotated[float, typer.Option(min=0, help="How long to send.")]
KeyFile = Annotated[
    Path | None,
    typer.Option(
        "--key-file", "--token-file", exists=True, dir_okay=False, help="Holds an API key for the service."
    ),
]
Model = Annotated[str | None, typer.Option(help="NAME, NAME:ALIAS or NAME@VERSION.")]
RegistryUrl = Annotated[str | None, typer.Option(metavar="URL", help="Where published models are.")]
Engine = Annotated[str | None, typer.Option(help="auto, openvino, tensorrt, torch or a Python module.")]
Device = Annotated[str | None, typer.Option(help="auto, cpu or cuda:N.")]
Precision = Annotated[str | None, typer.Option(help="auto, f32, bf16, f16 or int8.")]
Force = Annotated[bool, typer.Option("--force", help="Measure even though the machine is busy.")]
AsJson = Annotated[bool, typer.Option("--json", help="Report on stdout as JSON.")]


def refuse_busy(*, force: bool) -> None:
    """Refuse to measure while other work runs on this machine.

    Raises:
        typer.Exit: the machine is busy, and ``force`` is false.
    """
    if is_busy() and not force:
        typer.echo("error: the machine is busy with other work; wait, or measure with --force", err=True)
        raise typer.Exit(EXIT_FAILED)


@contextmanager
def exit_on_refusal(target: str) -> Iterator[None]:
    """Turn a target that does not answer into one line on stderr.

    Raises:
        typer.Exit: it does not answer.
    """
    try:
        yield
    except RefusedError as error:
        typer.echo(f"error: {target} does not answer: {error}", err=True)
        raise typer.Exit(EXIT_FAILED) from error


def service_arguments(
    flags: Mapping[str, str | None], *, address: str | None = None, option: str = ""
) -> list[str]:
    """Return the flags of a service that is started here.

    Args:
        flags: value by flag; None = not given.
        address: of a service that runs already, if that is measured.
        option: by which the address was given.

    Raises:
        typer.BadParameter: there are flags and an address.
    """
    arguments = [word for flag, value in flags.items() if value for word in (flag, value)]
    if address and arguments:
        raise typer.BadParameter(f"{arguments[0]} is for a service that is started here, not for {option}")
    return arguments


def run_async(measuring: Coroutine[Any, Any, _Result]) -> _Result:
    """Run a measurement in an event loop of the kind that the service has."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(measuring)
