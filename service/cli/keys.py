"""``bisenet keys``: the named keys of a service, in its keys file."""

from __future__ import annotations

import datetime as dt
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from service.cli.local import EXIT_FAILED, EXIT_USAGE, exit_on_errors, local_settings
from service.core.keys.access_key import AccessKey, Scope, new_secret, secret_digest
from service.core.keys.key_file import KeyFileError, add_key, read_keys, revoke_key

app = typer.Typer(
    no_args_is_help=True,
    help="Create, list and revoke API keys. A running service reads its keys file again when it has changed.",
)

_DURATION = re.compile(r"([1-9][0-9]{0,4})d")

KeyFile = Annotated[
    Path | None,
    typer.Option("--file", metavar="FILE", dir_okay=False, help="The keys file. Default: auth.keys_file."),
]
Config = Annotated[
    Path | None, typer.Option("--config", metavar="FILE.toml", help="Of the service: names its keys file.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Report on stdout as JSON.")]
Name = Annotated[str, typer.Argument(metavar="NAME", help="Of the key: lower case, digits, '.', '_', '-'.")]


@app.command()
def create(
    name: Name,
    *,
    scope: Annotated[
        list[str] | None,
        typer.Option(help="infer, stream, admin or metrics; repeatable. Default: infer and stream."),
    ] = None,
    expires: Annotated[
        str | None,
        typer.Option(metavar="DAYSd|TIME", help="90d, 2027-01-31 or 2027-01-31T12:00:00Z. Default: never."),
    ] = None,
    rate: Annotated[float | None, typer.Option(help="Requests a second. Default: any number.")] = None,
    concurrency: Annotated[
        int | None, typer.Option(help="Requests and streams at the same time. Default: any number.")
    ] = None,
    file: KeyFile = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Add a key to the keys file and print its secret, which is kept nowhere else.

    Examples:
        bisenet keys create camera-3 --file api-keys --scope stream --expires 90d
        bisenet keys create ci --config bisenet.toml --scope infer --rate 10 --concurrency 2
    """
    secret = new_secret()
    with _usable(file, config) as path:
        key = _key(
            {
                "name": name,
                "sha256": secret_digest(secret),
                "scopes": scope or ["infer", "stream"],
                "expires": None if expires is None else _moment(expires, dt.datetime.now(dt.UTC)),
                "rate_per_s": rate,
                "concurrency": concurrency,
            }
        )
        add_key(path, key)
    if as_json:
        typer.echo(json.dumps({"key": secret, **_document(key)}, indent=2))
    else:
        typer.echo(secret)
        typer.echo(f"Keep it: {path} holds its digest only. {_line(key)}", err=True)


@app.command("list")
def list_keys(*, file: KeyFile = None, config: Config = None, as_json: AsJson = False) -> None:
    """List the keys of the keys file, without their secrets.

    Examples:
        bisenet keys list --file api-keys
        bisenet keys list --config bisenet.toml --json
    """
    with _usable(file, config) as path:
        keys = read_keys(path)
    if as_json:
        typer.echo(json.dumps([_document(key) for key in keys], indent=2))
        return
    for key in keys:
        typer.echo(_line(key))


@app.command()
def revoke(name: Name, *, file: KeyFile = None, config: Config = None) -> None:
    """Remove a key; running services refuse it within a second.

    To rotate a key, create one under a new name, hand it out, and revoke the old one.

    Examples:
        bisenet keys revoke camera-3 --file api-keys
    """
    with _usable(file, config) as path:
        revoke_key(path, name)
    typer.echo(f"Revoked {name}.", err=True)


@contextmanager
def _usable(file: Path | None, config: Path | None) -> Iterator[Path]:
    """Yield the keys file; print errors as one line."""
    with exit_on_errors():
        path = file or local_settings({}, config).auth.keys_file
        if path is None:
            typer.echo("error: no keys file: say --file FILE, or set auth.keys_file", err=True)
            raise typer.Exit(EXIT_USAGE)
        try:
            yield path
        except KeyFileError as error:
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(EXIT_FAILED) from error


def _key(fields: dict[str, object]) -> AccessKey:
    try:
        return msgspec.convert(fields, AccessKey, strict=True)
    except msgspec.ValidationError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(EXIT_USAGE) from error


def _moment(text: str, now: dt.datetime) -> dt.datetime:
    """Return the time that a user means: in so many days, at the begin of a day in UTC, or exactly."""
    if days := _DURATION.fullmatch(text):
        return (now + dt.timedelta(days=int(days[1]))).replace(microsecond=0)
    try:
        moment = dt.datetime.fromisoformat(text)
    except ValueError as error:
        typer.echo(f"error: --expires {text}: neither days (90d) nor a date (2027-01-31)", err=True)
        raise typer.Exit(EXIT_USAGE) from error
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=dt.UTC)


def _document(key: AccessKey) -> dict[str, object]:
    return {
        "name": key.name,
        "scopes": key.scopes,
        "expires": None if key.expires is None else key.expires.isoformat(),
        "expired": key.has_expired(dt.datetime.now(dt.UTC)),
        "rate_per_s": key.rate_per_s,
        "concurrency": key.concurrency,
    }


def _line(key: AccessKey) -> str:
    scopes: tuple[Scope, ...] = key.scopes
    parts = [f"{key.name}: {', '.join(scopes)}"]
    if key.expires is not None:
        verb = "expired" if key.has_expired(dt.datetime.now(dt.UTC)) else "expires"
        parts.append(f"{verb} {key.expires.isoformat()}")
    if key.rate_per_s is not None:
        parts.append(f"{key.rate_per_s:g} requests a second")
    if key.concurrency is not None:
        parts.append(f"{key.concurrency} at the same time")
    return "; ".join(parts)
