"""``bisenet jobs``: evaluations and bulk predictions of a running service."""

from __future__ import annotations

import datetime as dt
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import quote

import typer

from service.cli.admin import AdminClient, AdminError
from service.cli.local import EXIT_FAILED, exit_on_errors, local_settings
from service.settings import DEFAULT_MODEL

app = typer.Typer(
    no_args_is_help=True, help="Submit, list, show and cancel evaluations and bulk predictions of a service."
)

_EVALUATIONS = "/admin/v1/evaluations"
_PREDICTIONS = "/admin/v1/predictions"
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
Output = Literal["labels", "overlay", "coco"]
AsJson = Annotated[bool, typer.Option("--json", help="Report on stdout as JSON.")]
JobId = Annotated[str, typer.Argument(metavar="JOB", help="Id of the job.")]


@app.command()
def submit(
    *,
    dataset: Annotated[
        str | None, typer.Option(help="Evaluate on this data set of the service's configuration.")
    ] = None,
    predict: Annotated[
        str | None,
        typer.Option(metavar="SOURCE", help="Predict all pictures of this source of the configuration."),
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(metavar="TARGET", help="Where --predict writes: a target of the configuration."),
    ] = None,
    output: Annotated[
        Output | None, typer.Option(help="What the masks of --predict show. Default: labels.")
    ] = None,
    model: Annotated[str, typer.Option(help="NAME, NAME:ALIAS or NAME@VERSION.")] = DEFAULT_MODEL,
    split: Annotated[str | None, typer.Option(help="Of the data set. Default: val.")] = None,
    protocol: Annotated[str | None, typer.Option(help="ss, ssc, msf, mscf, ... Default: ss.")] = None,
    key: Annotated[
        str | None, typer.Option(help="Idempotency key: the same command again gives the same job.")
    ] = None,
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
    """Queue an evaluation, or the prediction of a whole folder or bucket.

    Examples:
        bisenet jobs submit --dataset camvid
        bisenet jobs submit --model city@4 --dataset city --protocol msf --wait --json
        bisenet jobs submit --predict camera --out masks --output overlay
    """
    evaluation = {
        "dataset": dataset,
        "split": split,
        "protocol": protocol,
        "skip_broken": skip_broken or None,
    }
    prediction = {"source": predict, "target": out, "output": output}
    path, body = _wanted(evaluation, prediction)
    with _service(server, token_file, config) as service:
        headers = {} if key is None else {"Idempotency-Key": key}
        job = service.call("POST", path, {"model": model} | body, headers)
        while wait and job["state"] not in _FINAL:
            time.sleep(_POLL_S)
            job = service.call("GET", f"{path}/{job['id']}")
    _report(job, as_json=as_json)
    if wait and job["state"] != "succeeded":
        raise typer.Exit(EXIT_FAILED)


@app.command("list")
def list_jobs(
    *, server: Server = None, token_file: TokenFile = None, config: Config = None, as_json: AsJson = False
) -> None:
    """List all evaluations, then all bulk predictions, each the newest first.

    Examples:
        bisenet jobs list
        bisenet jobs list --config bisenet.toml
        bisenet jobs list --server http://10.0.0.5:8002 --token-file admin-token --json
    """
    with _service(server, token_file, config) as service:
        evaluations = service.call("GET", _EVALUATIONS)["evaluations"]
        predictions = service.call("GET", _PREDICTIONS)["predictions"]
    jobs = [*evaluations, *predictions]
    if as_json:
        typer.echo(json.dumps(jobs, indent=2))
        return
    for job in jobs:
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
    """Show a job: its state, its pace, and at its end its result.

    Examples:
        bisenet jobs show 8254c329a92850f6d539
    """
    with _service(server, token_file, config) as service:
        _report(_call(service, "GET", job), as_json=as_json)


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
        _report(_call(service, "DELETE", job), as_json=as_json)


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


def _wanted(evaluation: dict[str, Any], prediction: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the path and the body of a submission; the service knows the defaults of what is not said."""
    evaluation, prediction = _said(evaluation), _said(prediction)
    if "dataset" in evaluation and not prediction:
        return _EVALUATIONS, evaluation
    if {"source", "target"} <= prediction.keys() and not evaluation:
        return _PREDICTIONS, prediction
    raise typer.BadParameter(
        "say either --dataset NAME (with --split, --protocol, --skip-broken) "
        "or --predict SOURCE --out TARGET (with --output)"
    )


def _said(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _call(service: AdminClient, method: str, job: str) -> dict[str, Any]:
    """Send a request for a job of either kind."""
    job_id = quote(job, safe="")
    try:
        return service.call(method, f"{_EVALUATIONS}/{job_id}")
    except AdminError as error:
        if error.code != "not_found":
            raise
    return service.call(method, f"{_PREDICTIONS}/{job_id}")


def _report(job: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(job, indent=2))
        return
    typer.echo(_line(job))
    result = job["result"]
    if result is None:
        return
    if "failures" in result:
        _report_failures(result)
        return
    width = max(map(len, result["per_class"]))
    for name, iou in result["per_class"].items():
        typer.echo(f"  {name:<{width}}  {_percent(iou)}")


def _report_failures(result: dict[str, Any]) -> None:
    for one in result["failures"]:
        typer.echo(f"  {one['picture']}: {one['code']}: {one['message']}")
    others = result["failed"] - len(result["failures"])
    if others:
        typer.echo(f"  and {others} more in the manifest")
    if result["not_taken"]:
        kinds = ", ".join(f"{count} {kind}" for kind, count in result["not_taken"].items())
        typer.echo(f"  not taken: {kinds}")


def _line(job: dict[str, Any]) -> str:
    line = f"{job['id']}  {job['state']:<9}  {_description(job)}"
    if job["result"] is not None:
        return f"{line}: {_outcome(job)}"
    if job["error"] is not None:
        return f"{line}: {job['error']}"
    return line if job["total"] is None else f"{line}: {_progress(job)}"


def _description(job: dict[str, Any]) -> str:
    if "source" in job:
        return f"{job['model']} on {job['source']} to {job['target']} as {job['output']}"
    return f"{job['model']} on {job['dataset']} {job['split']} by {job['protocol']}"


def _outcome(job: dict[str, Any]) -> str:
    result = job["result"]
    if "failures" not in result:
        return f"mIoU {_percent(result['miou'])} over {result['images']} pictures"
    counts = f"{result['written']} written, {result['kept']} kept, {result['failed']} failed"
    return f"{counts}; {result['manifest']} in {job['target']}"


def _progress(job: dict[str, Any]) -> str:
    progress = f"{job['done']} of {job['total']} pictures"
    if job["eta_s"] is None:
        return progress
    left = dt.timedelta(seconds=round(job["eta_s"]))
    return f"{progress}, {job['pictures_per_s']:.3g} a second, {left} left"


def _percent(value: float | None) -> str:
    return "none" if value is None else f"{100 * value:.2f} %"
