"""``bisenet serve``."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from service.settings import Layer, Settings, SettingsError, load_settings

if TYPE_CHECKING:
    from service.bootstrap import Ready

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
        str | None, typer.Option(help="auto, openvino, tensorrt, torch or a Python module. Default: auto.")
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
    ready_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            dir_okay=False,
            help="JSON with the addresses, written when the service is ready and removed at its end.",
        ),
    ] = None,
) -> None:
    """Serve models over HTTP and gRPC until SIGTERM or Ctrl-C.

    Examples:
        bisenet serve
        bisenet serve --http-port 9000 --model camvid@1
        bisenet serve --http-port 0 --ready-file /run/bisenet/ready.json
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
        raise typer.Exit(_run(load_settings(config, flags), ready_file))
    except SettingsError as error:
        _fail(error, EXIT_USAGE)


def write_ready_file(path: Path, ready: Ready) -> None:
    """Write the addresses of a service as JSON; the file has all of its content from the first moment on.

    Raises:
        OSError: the file cannot be written.
    """
    document = {
        "url": ready.url,
        "grpc_address": ready.grpc_address,
        "admin_url": ready.admin_url,
        "models": [str(model.version) for model in ready.models],
    }
    part = _part_of(path)
    part.write_text(json.dumps(document), encoding="utf-8")
    part.replace(path)


def _run(settings: Settings, ready_file: Path | None) -> int:
    # A wrong flag is reported before the libraries are imported, a wrong model before the frontends are.
    from model.errors import StorageError  # noqa: PLC0415
    from service import registry  # noqa: PLC0415

    try:
        registry.find_models(settings)
        if ready_file is not None:
            _clear(ready_file)
    except (StorageError, OSError) as error:
        _fail(error, EXIT_CANNOT_START)
    from service import bootstrap  # noqa: PLC0415

    def on_ready(ready: Ready) -> None:
        if ready_file is not None:
            write_ready_file(ready_file, ready)
        typer.echo(str(ready))

    try:
        return bootstrap.run_service(settings, on_ready=on_ready)
    except bootstrap.StartError as error:
        _fail(error, EXIT_CANNOT_START)
    finally:
        if ready_file is not None:
            ready_file.unlink(missing_ok=True)


def _clear(ready_file: Path) -> None:
    """Remove the file of an earlier service, and prove that another one can be written.

    Raises:
        OSError: it cannot.
    """
    ready_file.unlink(missing_ok=True)
    part = _part_of(ready_file)
    part.touch()
    part.unlink()


def _part_of(ready_file: Path) -> Path:
    return ready_file.with_name(f".{ready_file.name}.{os.getpid()}")


def _fail(error: Exception, exit_code: int) -> NoReturn:
    typer.echo(f"error: {error}", err=True)
    raise typer.Exit(exit_code)
