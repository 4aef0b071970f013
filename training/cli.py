"""``bisenet train``: the command line of this package."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True)

_USAGE_ERROR = 2


@app.callback()
def _group() -> None:
    """Make segmentation models."""


@app.command()
def train(
    config: Annotated[str, typer.Argument(help="A recipe (camvid-v2) or the path of a TOML file.")],
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="A.B=VALUE", help="Override a value; repeatable.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of the run: checkpoints, log, artifact.")] = Path(
        "runs/train"
    ),
    max_minutes: Annotated[
        float | None, typer.Option(min=0.5, help="Fit the number of steps into this time.")
    ] = None,
    *,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where the folder's run stands.")] = False,
) -> None:
    """Train a model; the result is the artifact in OUT/artifact.

    Stopped by SIGTERM or Ctrl-C, the run saves its state; --resume goes on from there, exactly.

    Examples:
      bisenet train camvid-v2 --set data.root=/data/camvid --out runs/camvid

      bisenet train camvid-v2 --set data.root=/data/camvid --out runs/camvid --max-minutes 50 --resume
    """
    # Only a run needs torch, and importing it takes seconds: --help does not wait.
    from model.errors import ModelError  # noqa: PLC0415
    from training.config import load_config  # noqa: PLC0415
    from training.errors import ConfigError, TrainingError  # noqa: PLC0415
    from training.run import RunOptions  # noqa: PLC0415
    from training.run import train as run  # noqa: PLC0415

    command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    options = RunOptions(out, resume=resume, max_minutes=max_minutes, command=command)
    try:
        finished = run(load_config(config, set_ or []), options)
    except ConfigError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(_USAGE_ERROR) from error
    except (TrainingError, ModelError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error
    if not finished:
        typer.echo(f"stopped; the state is in {out}: go on with --resume", err=True)
