"""``bisenet serve``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, NoReturn

import typer

from service.settings import Layer, Settings, SettingsError, load_settings

EXIT_USAGE = 2
EXIT_CANNOT_START = 3

_Reference = Annotated[
    list[str] | None,
    typer.Option(
        "--model", metavar="MODEL", help="NAME, NAME:ALIAS or NAME@VERSION; the first is the default."
    ),
]


def serve(
    *,
    host: Annotated[
        str | None, typer.Option(help="Name or address to listen on. Default: 127.0.0.1.")
    ] = None,
    http_port: Annotated[
        int | None, typer.Option(help="Port for HTTP; 0 = a free one. Default: 8000.")
    ] = None,
    grpc_port: Annotated[int | None, typer.Option(help="Port for gRPC. Default: 8001.")] = None,
    admin_port: Annotated[
        int | None, typer.Option(help="Port for administration and metrics. Default: 8002.")
    ] = None,
    model: _Reference = None,
    engine: Annotated[
        str | None, typer.Option(help="auto, openvino, tensorrt or torch. Default: auto.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda:N. Default: auto.")] = None,
    precision: Annotated[
        str | None, typer.Option(help="auto, f32, bf16, f16 or int8. Default: auto.")
    ] = None,
    registry: Annotated[str | None, typer.Option(metavar="URL", help="Where published models are.")] = None,
    jobs: Annotated[
        str | None, typer.Option(help="Evaluation jobs: embedded, external or off. Default: embedded.")
    ] = None,
    config: Annotated[Path | None, typer.Option(metavar="FILE.toml", help="Settings; flags win.")] = None,
    allow_anonymous: Annotated[
        bool | None, typer.Option("--allow-anonymous", help="Let other machines in without API keys.")
    ] = None,
) -> None:
    """Serve models over HTTP and gRPC until SIGTERM or Ctrl-C.

    Examples:
        bisenet serve
        bisenet serve --http-port 9000 --model camvid@1
        curl --data-binary @photo.jpg http://127.0.0.1:8000/v1/segment -o mask.png
    """
    flags: Layer = {
        "server": {"host": host, "http_port": http_port, "grpc_port": grpc_port, "admin_port": admin_port},
        "models": {"serve": model or None, "engine": engine, "device": device, "precision": precision},
        "registry": {"url": registry},
        "auth": {"allow_anonymous": allow_anonymous},
        "jobs": {"mode": jobs},
    }
    try:
        raise typer.Exit(_run(load_settings(config, flags)))
    except SettingsError as error:
        _fail(error, EXIT_USAGE)


def _run(settings: Settings) -> int:
    # A wrong flag is told before the libraries are imported, a wrong model before the frontends are.
    from model.errors import StorageError  # noqa: PLC0415
    from service import registry  # noqa: PLC0415

    try:
        registry.find_models(settings)
    except StorageError as error:
        _fail(error, EXIT_CANNOT_START)
    from service import bootstrap  # noqa: PLC0415

    try:
        return bootstrap.run_service(settings, on_ready=lambda ready: typer.echo(str(ready)))
    except bootstrap.StartError as error:
        _fail(error, EXIT_CANNOT_START)


def _fail(error: Exception, exit_code: int) -> NoReturn:
    typer.echo(f"error: {error}", err=True)
    raise typer.Exit(exit_code)
