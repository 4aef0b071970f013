"""All keys of a service: those of its configuration, and those of a file that may change while it runs."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import structlog

from service.core.errors import ForbiddenError, UnauthenticatedError
from service.core.keys.access_key import AccessKey, Scope, secret_digest
from service.core.keys.key_file import KeyFileError, read_keys
from service.core.keys.key_limits import KeyLimits

_log = structlog.get_logger()

_LOOK_AGAIN_S = 1.0

_FileState = tuple[int, int, int]


@dataclass(frozen=True)
class Admission:
    """A request that a key may make.

    Attributes:
        key: whose request it is.
        leave: ends the request; the holder calls it once.
    """

    key: AccessKey
    leave: Callable[[], None]


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


class KeyRing:
    """Finds the key of a request, and counts what each key asks for; not thread-safe.

    The file is looked at once a second at most, when a request comes, and read again when it has changed. A
    file that is gone or malformed leaves the keys as they are, and an error in the log.

    Args:
        keys: of the configuration.
        file: of further keys; None = none.
        now: the time by which keys expire.
        clock: the clock by which the file is looked at, in seconds.

    Raises:
        KeyFileError: the file cannot be used, or holds no key.
    """

    def __init__(
        self,
        keys: Iterable[AccessKey] = (),
        file: Path | None = None,
        *,
        now: Callable[[], dt.datetime] = _now,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._fixed = tuple(keys)
        self._file = file
        self._now = now
        self._clock = clock
        # By digest: who times the look-up learns about digests, which cannot be turned into secrets.
        self._limits: dict[str, KeyLimits] = {}
        self._seen = _state_of(file)
        self._looked_s = clock()
        found = () if file is None else read_keys(file)
        if file is not None and not found:
            raise KeyFileError(f"{file} holds no key: `bisenet keys create` makes one")
        self._take(found)

    def __repr__(self) -> str:
        """Return the number of keys and nothing of the keys."""
        return f"KeyRing({len(self._limits)} keys)"

    def admit(self, authorization: str, *scopes: Scope, needed: str) -> Admission:
        """Begin a request of the key in ``Authorization: Bearer SECRET``.

        Args:
            authorization: the header's value; empty if there is none.
            scopes: the key must have one of them.
            needed: message for a caller without a valid key.

        Raises:
            UnauthenticatedError: there is no key, a wrong one, or one that has expired.
            ForbiddenError: the key has none of the scopes.
            RateLimitedError: the key has as many requests as it may have.
        """
        self._look_at_file()
        scheme, _, secret = authorization.partition(" ")
        limits = self._limits.get(secret_digest(secret.strip()))
        if limits is None or scheme.lower() != "bearer":
            raise UnauthenticatedError(needed)
        key = limits.key
        if key.has_expired(self._now()):
            raise UnauthenticatedError(f"the key {key.name} has expired")
        if not set(scopes) & set(key.scopes):
            raise ForbiddenError(f"the key {key.name} lacks the scope {' or '.join(scopes)}")
        limits.enter()
        return Admission(key, limits.leave)

    def _look_at_file(self) -> None:
        now_s = self._clock()
        if self._file is None or now_s - self._looked_s < _LOOK_AGAIN_S:
            return
        self._looked_s = now_s
        state = _state_of(self._file)
        if state == self._seen:
            return
        self._seen = state
        try:
            self._take(read_keys(self._file))
        except KeyFileError as error:
            _log.error("keys file is not used, the earlier keys stay valid", reason=str(error))
        else:
            _log.info("keys file read again", keys=len(self._limits))

    def _take(self, keys: Iterable[AccessKey]) -> None:
        """Use other keys of the file; a key that has not changed goes on to be counted."""
        before = self._limits
        self._limits = {
            key.sha256: before[key.sha256]
            if key.sha256 in before and before[key.sha256].key == key
            else KeyLimits(key)
            for key in (*keys, *self._fixed)
        }


def _state_of(file: Path | None) -> _FileState | None:
    """Return what changes when a file is written or replaced; None where there is none."""
    try:
        found = None if file is None else file.stat()
    except OSError:
        return None
    return None if found is None else (found.st_mtime_ns, found.st_size, found.st_ino)
