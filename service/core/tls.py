"""Certificates of the service: one set of files for all of its ports."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path


class TlsError(Exception):
    """A certificate cannot be used; the message names the file."""


@dataclass(frozen=True)
class TlsFiles:
    """PEM files.

    Args:
        cert: certificate of the service, followed by those of its issuers.
        key: its private key, without a password.
        client_ca: certificates whose holders and issued clients may connect; None = every client may.
    """

    cert: Path
    key: Path
    client_ca: Path | None = None

    def http_context(self) -> ssl.SSLContext:
        """Return what an HTTP port listens with: TLS 1.2 or later.

        Raises:
            TlsError: a file cannot be read, or is no certificate or not its key.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        try:
            context.load_cert_chain(self.cert, self.key, password="")
        except (OSError, ValueError) as error:
            raise TlsError(f"{self.cert} and {self.key} are no certificate and key: {error}") from error
        if self.client_ca is not None:
            context.verify_mode = ssl.CERT_REQUIRED
            try:
                context.load_verify_locations(self.client_ca)
            except OSError as error:
                raise TlsError(f"{self.client_ca} holds no certificates: {error}") from error
        return context

    def pem(self) -> tuple[bytes, bytes, bytes | None]:
        """Return certificate, key and client certificates as they stand in the files.

        Raises:
            TlsError: a file cannot be used, as in ``http_context``.
        """
        self.http_context()  # gRPC says of a wrong file no more than that no port could be opened
        ca = None if self.client_ca is None else self.client_ca.read_bytes()
        return self.cert.read_bytes(), self.key.read_bytes(), ca
