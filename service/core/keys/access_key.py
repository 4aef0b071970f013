"""A named key: the digest of a secret, what the secret opens, and what it may cost."""

from __future__ import annotations

import datetime as dt
import hashlib
import secrets
from typing import Annotated, Literal

import msgspec

Scope = Literal["infer", "stream", "admin", "metrics"]
"""infer = pictures and models over HTTP and gRPC, stream = gRPC streams, admin = the admin port,
metrics = ``/metrics`` alone."""

INFERENCE_SCOPES: tuple[Scope, ...] = ("infer", "stream")

KEY_NAME = r"^[a-z0-9][a-z0-9._-]{0,62}$"

_SECRET_BYTES = 32


class AccessKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A key as the service keeps it.

    Attributes:
        name: what log and audit log call its owner.
        sha256: SHA-256 of the secret, in lower-case hexadecimal digits. Secrets are long and random: a fast
            hash is enough.
        scopes: what it opens; at least one.
        expires: when it stops to be valid, with a time zone; None = never.
        rate_per_s: requests a second on average, with bursts of one second; None = any.
        concurrency: requests and streams at the same time; None = any.
    """

    name: Annotated[str, msgspec.Meta(pattern=KEY_NAME)]
    sha256: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}$")]
    scopes: Annotated[tuple[Scope, ...], msgspec.Meta(min_length=1)]
    expires: Annotated[dt.datetime, msgspec.Meta(tz=True)] | None = None
    rate_per_s: Annotated[float, msgspec.Meta(ge=0.001, le=1e6)] | None = None
    concurrency: Annotated[int, msgspec.Meta(ge=1)] | None = None

    @classmethod
    def of_secret(
        cls, secret: str, scopes: tuple[Scope, ...] = INFERENCE_SCOPES, name: str | None = None
    ) -> AccessKey:
        """Return the key of a secret that the configuration holds.

        Args:
            secret: printable ASCII without spaces.
            scopes: what it opens.
            name: None = ``key-`` and the first digits of its digest.
        """
        digest = secret_digest(secret)
        return cls(name or f"key-{digest[:8]}", digest, scopes)

    def has_expired(self, now: dt.datetime) -> bool:
        """Return whether the key is no longer valid."""
        return self.expires is not None and now >= self.expires


def secret_digest(secret: str) -> str:
    """Return the digest that is kept of a secret."""
    return hashlib.sha256(secret.encode()).hexdigest()


def is_secret(text: str) -> bool:
    """Return whether a text can be sent as ``Authorization: Bearer TEXT``: printable ASCII without spaces."""
    return bool(text) and text.isascii() and text.isprintable() and " " not in text


def new_secret() -> str:
    """Return a secret of 256 random bits that secret scanners can recognise by its prefix."""
    return f"bisenet_{secrets.token_urlsafe(_SECRET_BYTES)}"
