"""``bisenet jobs``: evaluation jobs of a running service."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer

from service.cli.admin import AdminClient, AdminError
from service.cli.local import EXIT_FAILED, exit_on_errors, local_settings
from service.settings import DEFAULT_MODEL

app = typer.Typer(no_args_is_help=True, help="Submit, list, show and cancel evaluation jobs of a service.")

_PATH = "/admin/v1/evaluations"
_FINAL = ("succeeded", "failed", "cancelled")
_POLL_S = 0.5

Server = Annotated[
    str | None,
    typer.Option(metavar="URL", help="Admin address of the service. Default: this machine, as configured."),
]
TokenFile = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Holds the admin token. Default: as configured.")
]
Config = Annotated[
    Path | None,
    typer.Option(
        "--config", metavar="FILE.toml", help="Settings of the service: its admin port and token file."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Report on stdout as JSON.")]
JobId = Annotated[str, typer.Argument(metavar="JOB", help="Id of the job.")]


@app.command()
def submit(
    dataset: Annotated[str, typer.Option(help="Name of a data set in the service's configuration.")],
    model: Annotated[str, typer.Option(help="NAME, NAME:ALIAS or NAME@VERSION.")] = DEFAULT_MODEL,
    split: Annotated[str, typer.Option(help="Of the data set.")] = "val",
    protocol: Annotated[str, typer.Option(help="ss, ssc, msf, mscf, ...")] = "ss",
    key: Annotated[
        str | None, typer.Option(help="Idempotency key: the same command again gives the same job.")
    ] = None,
    *,
    skip_broken: Annotated[
        bool, typer.Option("--skip-broken", help="Leave broken pairs out and count them.")
    ] = False,
    wait: Annotated[
        bool, typer.Option("--wait", help="Return when the job has ended; exit 1 unless it succeeded.")
    ] = False,
    server: Server = None,
    token_file: TokenFile = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Queue an evaluation.

    Examples:
        bisenet jobs submit --dataset camvid
        bisenet jobs submit --model city@4 --dataset city --protocol msf --wait --json
    """
    body = {
        "model": model,
        "dataset": dataset,
        "split": split,
        "protocol": protocol,
        "skip_broken": skip_broken,
    }
    with _service(server, token_file, config) as service:
        job = service.call("POST", _PATH, body, {} if key is None else {"Idempotency-Key": key})
        while wait and job["state"] not in _FINAL:
            time.sleep(_POLL_S)
            job = service.call("GET", _path(job["id"]))
    _report(job, as_json=as_json)
    if wait and job["state"] != "succeeded":
        raise typer.Exit(EXIT_FAILED)


@app.command("list")
def list_jobs(
    *, server: Server = None, token_file: TokenFile = None, config: Config = None, as_json: AsJson = False
) -> None:
    """List all jobs, the newest first.

    Examples:
        bisenet jobs list
        bisenet jobs list --config bisenet.toml
        bisenet jobs list --server http://10.0.0.5:8002 --token-file admin-token --json
    """
    with _service(server, token_file, config) as service:
        answer = service.call("GET", _PATH)
    if as_json:
        typer.echo(json.dumps(answer["evaluations"], indent=2))
        return
    for job in answer["evaluations"]:
        typer.echo(_line(job))


@app.command()
def show(
    job: JobId,
    *,
    server: Server = None,
    token_file: TokenFile = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Show a job: its state and, at its end, its result.

    Examples:
        bisenet jobs show 8254c329a92850f6d539
    """
    with _service(server, token_file, config) as service:
        _report(service.call("GET", _path(job)), as_json=as_json)


@app.command()
def cancel(
    job: JobId,
    *,
    server: Server = None,
    token_file: TokenFile = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Cancel a job before its next step; a job that has ended does not change.

    Examples:
        bisenet jobs cancel 8254c329a92850f6d539
    """
    with _service(server, token_file, config) as service:
        _report(service.call("DELETE", _path(job)), as_json=as_json)


@contextmanager
def _service(server: str | None, token_file: Path | None, config: Path | None) -> Iterator[AdminClient]:
    with exit_on_errors():
        settings = local_settings({}, config)
        url = server or f"{settings.server.tls.scheme}://127.0.0.1:{settings.server.admin_port}"
        try:
            yield AdminClient(url, token_file or settings.auth.admin_token_file)
        except AdminError as error:
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(EXIT_FAILED) from error


def _path(job: str) -> str:
    return f"{_PATH}/{quote(job, safe='')}"


def _report(job: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(job, indent=2))
        return
    typer.echo(_line(job))
    result = job["result"]
    if result is not None:
        width = max(map(len, result["per_class"]))
        for name, iou in result["per_class"].items():
            typer.echo(f"  {name:<{width}}  {_percent(iou)}")


def _line(job: dict[str, Any]) -> str:
    described = f"{job['model']} on {job['dataset']} {job['split']} by {job['protocol']}"
    line = f"{job['id']}  {job['state']:<9}  {described}"
    if job["result"] is not None:
        return f"{line}: mIoU {_percent(job['result']['miou'])} over {job['result']['images']} pictures"
    if job["error"] is not None:
        return f"{line}: {job['error']}"
    return line if job["total"] is None else f"{line}: {job['done']} of {job['total']} pictures"


def _percent(value: float | None) -> str:
    return "none" if value is None else f"{100 * value:.2f} %"
