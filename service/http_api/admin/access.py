"""Tokens of the admin frontend: one for administration, one for the metrics alone."""

from __future__ import annotations

from starlette.datastructures import Headers

from service.core.keys import key_digests
from service.http_api.access import AccessPolicy

METRICS_PATH = "/metrics"


class AdminPolicy:
    """Asks every request for a token: the admin token opens everything, the scrape token only the metrics.

    Unknown paths are refused like known ones, so the answers do not tell which paths exist.

    Args:
        admin_token: long and random.
        scrape_token: long and random, other than ``admin_token``.
        hosts: accepted values of ``Host``, lower case, without port; None = any.
    """

    def __init__(self, admin_token: str, scrape_token: str, hosts: frozenset[str] | None) -> None:
        assert admin_token
        assert scrape_token
        nothing: frozenset[str] = frozenset()
        self._everything = AccessPolicy(
            key_digests([admin_token]),
            hosts,
            open_paths=nothing,
            needed="the admin token is needed: Authorization: Bearer TOKEN",
        )
        self._metrics = AccessPolicy(
            key_digests([admin_token, scrape_token]),
            hosts,
            open_paths=nothing,
            needed="the scrape token or the admin token is needed: Authorization: Bearer TOKEN",
        )

    def check(self, headers: Headers, path: str) -> None:
        """Check the path, the host and the token of a request.

        Raises:
            InvalidArgumentError: the path or the host is malformed, or there are two hosts.
            ForbiddenError: the host is not allowed.
            UnauthenticatedError: there is no token, or a wrong one.
        """
        policy = self._metrics if path == METRICS_PATH else self._everything
        policy.check(headers, path)
