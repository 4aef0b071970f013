"""A certificate that a test makes for its own server; needs the program openssl."""

from __future__ import annotations

import asyncio
import shutil
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed here")


@dataclass(frozen=True)
class Certificate:
    """What a server for 127.0.0.1 shows, and what its clients have to trust."""

    file: Path
    key_file: Path

    def server_credentials(self) -> grpc.ServerCredentials:
        """Return what a server listens with."""
        return grpc.ssl_server_credentials([(self.key_file.read_bytes(), self.file.read_bytes())])


async def make_certificate(folder: Path) -> Certificate:
    """Write a certificate that vouches for itself, and its key."""
    made = Certificate(folder / "certificate.pem", folder / "key.pem")
    program = await asyncio.create_subprocess_exec(
        *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=test"),
        *("-addext", "subjectAltName=IP:127.0.0.1", "-keyout", made.key_file, "-out", made.file),
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert await program.wait() == 0
    return made
