"""How commands reach a service over gRPC: by itself, or behind a proxy with TLS."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from service.client.grpc_client import AsyncGrpcClient

Tls = Annotated[bool, typer.Option("--tls", help="Encrypt: for a proxy with TLS in front of the service.")]
CaFile = Annotated[
    Path | None,
    typer.Option(
        "--ca",
        metavar="FILE",
        exists=True,
        dir_okay=False,
        help="Encrypt, and trust these certificates (PEM) instead of those that come with gRPC.",
    ),
]
Connect = Callable[[], AsyncGrpcClient]
"""Makes a client in the running event loop."""


def connector(address: str, key_file: Path | None, *, tls: bool, ca_file: Path | None) -> Connect:
    """Return what connects to a service as flags say; the files are read at once."""
    key = key_file.read_text("utf-8").strip() if key_file else None
    ca = ca_file.read_bytes() if ca_file else None
    return partial(AsyncGrpcClient, address, key=key, tls=tls, ca=ca)


def refuse_tls_on_loopback(*, tls: bool, ca_file: Path | None) -> None:
    """Refuse the flags for a service that is started here: it has no TLS.

    Raises:
        typer.BadParameter: one of them was given.
    """
    if tls or ca_file:
        raise typer.BadParameter("--tls and --ca are for a service that runs already: name its --address")
