"""API keys: their digests, and the check of a request."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable


def key_digest(key: str) -> bytes:
    """Return the digest of an API key; keys are long and random, so a fast hash is enough."""
    return hashlib.sha256(key.encode()).digest()


def key_digests(keys: Iterable[str]) -> frozenset[bytes]:
    """Return the digests of API keys."""
    return frozenset(key_digest(key) for key in keys)


def bears_known_key(authorization: str, digests: frozenset[bytes]) -> bool:
    """Return whether ``Authorization: Bearer KEY`` holds a known key; takes the same time for all keys.

    Args:
        authorization: the header's value; empty if there is none.
        digests: of the known keys.
    """
    scheme, _, _ = authorization.partition(" ")
    digest = bearer_digest(authorization)
    matches = [hmac.compare_digest(digest, known) for known in digests]
    return scheme.lower() == "bearer" and any(matches)


def bearer_digest(authorization: str) -> bytes:
    """Return the digest of the key in ``Authorization: Bearer KEY``."""
    return key_digest(authorization.partition(" ")[2].strip())
