"""Tokens of the admin frontend: one for administration, one for the metrics alone."""

from __future__ import annotations

from starlette.datastructures import Headers

from service.core.keys.key_ring import Admission, KeyRing
from service.http_api.access import AccessPolicy

METRICS_PATH = "/metrics"


class AdminPolicy:
    """Asks every request for a key: the scope ``admin`` opens everything, ``metrics`` only the metrics.

    Unknown paths are refused like known ones, so the answers do not tell which paths exist.

    Args:
        keys: of the configuration, with the admin token and the scrape token.
        hosts: accepted values of ``Host``, lower case, without port; None = any.
        open_paths: paths that need no token: the files of the page, which asks for it.
    """

    def __init__(
        self, keys: KeyRing, hosts: frozenset[str] | None, open_paths: frozenset[str] = frozenset()
    ) -> None:
        self._everything = AccessPolicy(
            keys,
            hosts,
            open_paths=open_paths,
            scopes=("admin",),
            needed="the admin token is needed: Authorization: Bearer TOKEN",
        )
        self._metrics = AccessPolicy(
            keys,
            hosts,
            open_paths=frozenset(),
            scopes=("metrics", "admin"),
            needed="the scrape token or the admin token is needed: Authorization: Bearer TOKEN",
        )

    def admit(self, headers: Headers, path: str) -> Admission | None:
        """Check the path, the host and the token of a request.

        Raises:
            InvalidArgumentError: the path or the host is malformed, or there are two hosts.
            ForbiddenError: the host is not allowed, or the key does not have the scope.
            UnauthenticatedError: there is no token, or it is wrong or has expired.
            RateLimitedError: the key is at its limit.
        """
        policy = self._metrics if path == METRICS_PATH else self._everything
        return policy.admit(headers, path)
