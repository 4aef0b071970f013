"""API keys: what is kept of them, and whether a request bears one."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable


def key_digest(key: str) -> bytes:
    """Return what is kept of an API key; keys are long and random, so a fast hash is enough."""
    return hashlib.sha256(key.encode()).digest()


def key_digests(keys: Iterable[str]) -> frozenset[bytes]:
    """Return what ``bears_known_key`` compares with."""
    return frozenset(key_digest(key) for key in keys)


def bears_known_key(authorization: str, digests: frozenset[bytes]) -> bool:
    """Return whether ``Authorization: Bearer KEY`` holds one of the keys, in the same time for all of them.

    Args:
        authorization: the header's value; empty if there is none.
        digests: of the keys that are known.
    """
    scheme, _, _ = authorization.partition(" ")
    digest = bearer_digest(authorization)
    matches = [hmac.compare_digest(digest, known) for known in digests]
    return scheme.lower() == "bearer" and any(matches)


def bearer_digest(authorization: str) -> bytes:
    """Return the digest of the key in ``Authorization: Bearer KEY``."""
    return key_digest(authorization.partition(" ")[2].strip())
