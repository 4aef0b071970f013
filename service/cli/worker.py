"""``bisenet worker``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, NoReturn

import typer

from model.errors import RegistryUrlError
from service.settings import Layer, Settings, SettingsError, load_settings

EXIT_USAGE = 2
EXIT_CANNOT_START = 3


def worker(
    *,
    worker_id: Annotated[
        str | None,
        typer.Option(help="Name of this worker, kept over restarts. Default: host name and device."),
    ] = None,
    engine: Annotated[
        str | None, typer.Option(help="auto, openvino, tensorrt, torch or a Python module. Default: auto.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda:N. Default: auto.")] = None,
    precision: Annotated[
        str | None, typer.Option(help="auto, f32, bf16, f16 or int8. Default: auto.")
    ] = None,
    registry: Annotated[str | None, typer.Option(metavar="URL", help="Where published models are.")] = None,
    config: Annotated[Path | None, typer.Option(metavar="FILE.toml", help="Settings; flags win.")] = None,
) -> None:
    """Run evaluations and bulk predictions of the jobs database until SIGTERM or Ctrl-C, without frontends.

    Any number of workers share a Postgres database. A file belongs to one worker, or to the service.

    Examples:
        bisenet worker --config bisenet.toml
        BISENET_JOBS__DATABASE=postgresql://user:password@db/jobs bisenet worker --device cuda:1
    """
    flags: Layer = {
        "models": {"engine": engine, "device": device, "precision": precision},
        "registry": {"url": registry},
        "jobs": {"worker_id": worker_id},
    }
    try:
        _run(load_settings(config, flags))
    except (SettingsError, RegistryUrlError) as error:
        _fail(error, EXIT_USAGE)


def _run(settings: Settings) -> None:
    # A wrong flag is reported before the libraries are imported.
    from service.durable_jobs.errors import JobsUnavailableError  # noqa: PLC0415
    from service.jobs import run_jobs_worker  # noqa: PLC0415

    try:
        run_jobs_worker(settings, on_ready=lambda name: typer.echo(f"Ready: {name} takes jobs"))
    except JobsUnavailableError as error:
        _fail(error, EXIT_CANNOT_START)


def _fail(error: Exception, exit_code: int) -> NoReturn:
    typer.echo(f"error: {error}", err=True)
    raise typer.Exit(exit_code)
