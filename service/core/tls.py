"""Certificates of the service: one set of files for all of its ports, which may be replaced while it runs."""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import structlog

_log = structlog.get_logger()

_LOOK_AGAIN_S = 1.0

Pem = tuple[bytes, bytes, bytes | None]
"""Certificate, key, and certificates of clients."""


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

    def pem(self) -> Pem:
        """Return certificate, key and client certificates as they stand in the files.

        Raises:
            TlsError: a file cannot be used, as in ``http_context``.
        """
        self.http_context()  # gRPC says of a wrong file no more than that no port could be opened
        ca = None if self.client_ca is None else self.client_ca.read_bytes()
        return self.cert.read_bytes(), self.key.read_bytes(), ca

    def state(self) -> tuple[tuple[int, int, int] | None, ...]:
        """Return values that change when a file is written or replaced."""
        return tuple(_state_of(file) for file in (self.cert, self.key, self.client_ca) if file is not None)


class CertificateFollower:
    """Listens with the certificates that are in the files when a client connects. Threads may share it.

    The files are looked at once a second at most, and read again when one of them has changed. Open
    connections keep their certificate. Files that cannot be used leave the earlier certificates in place, and
    an error in the log.

    Args:
        files: of the certificates.
        clock: the clock by which the files are looked at, in seconds.

    Raises:
        TlsError: a file cannot be used.
    """

    def __init__(self, files: TlsFiles, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._files = files
        self._clock = clock
        self._lock = threading.Lock()
        self._looked_s = clock()
        self._seen = files.state()
        self._pem = files.pem()
        self._context = files.http_context()

    def http_context(self) -> ssl.SSLContext:
        """Return what an HTTP port listens with; each connection gets the newest certificates."""
        context = self._files.http_context()
        # OpenSSL calls it for every client, those that name no server included.
        context.sni_callback = self._use_newest
        return context

    def pem(self) -> Pem:
        """Return the newest certificates, the same object as long as they do not change."""
        self._look_at_files()
        return self._pem

    def _use_newest(self, connection: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        del name, context
        self._look_at_files()
        connection.context = self._context

    def _look_at_files(self) -> None:
        with self._lock:
            now_s = self._clock()
            if now_s - self._looked_s < _LOOK_AGAIN_S:
                return
            self._looked_s = now_s
            state = self._files.state()
            if state == self._seen:
                return
            self._seen = state
            try:
                self._pem, self._context = self._files.pem(), self._files.http_context()
            except TlsError as error:
                _log.error("certificate is not used, the earlier one stays in place", reason=str(error))
            else:
                _log.info("certificate read again", file=str(self._files.cert))


def _state_of(file: Path) -> tuple[int, int, int] | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size
