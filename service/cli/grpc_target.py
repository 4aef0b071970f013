"""How commands connect to a service over gRPC: directly, or through a proxy with TLS."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from service.client.grpc_client import AsyncGrpcClient

Tls = Annotated[
    bool, typer.Option("--tls", help="Encrypt the connection, to a proxy with TLS in front of the service.")
]
CaFile = Annotated[
    Path | None,
    typer.Option(
        "--ca",
        metavar="FILE",
        exists=True,
        dir_okay=False,
        help="Encrypt the connection and trust these certificates (PEM) instead of those of gRPC.",
    ),
]
Connect = Callable[[], AsyncGrpcClient]
"""Returns a client that belongs to the running event loop."""


def connector(address: str, key_file: Path | None, *, tls: bool, ca_file: Path | None) -> Connect:
    """Return a function that makes clients for a service. The files are read now.

    Args:
        address: ``HOST:PORT`` of the service's gRPC.
        key_file: file with the API key; None = no key.
        tls: encrypt the connection.
        ca_file: certificates to trust, PEM, which implies ``tls``; None = those of gRPC.
    """
    key = key_file.read_text("utf-8").strip() if key_file else None
    ca = ca_file.read_bytes() if ca_file else None
    return partial(AsyncGrpcClient, address, key=key, tls=tls, ca=ca)


def refuse_tls_on_loopback(*, tls: bool, ca_file: Path | None) -> None:
    """Refuse the flags for a service that the command starts itself, without TLS.

    Raises:
        typer.BadParameter: one of the flags is given.
    """
    if tls or ca_file:
        raise typer.BadParameter(
            "--tls and --ca are for a service that is running already: name its --address"
        )
