"""Who may administrate, and who may only look at the metrics."""

from __future__ import annotations

from starlette.datastructures import Headers

from service.core.keys import key_digests
from service.http_api.access import AccessPolicy

METRICS_PATH = "/metrics"


class AdminPolicy:
    """Lets nobody in without a token: the admin's opens everything, the scraper's the metrics alone.

    Unknown paths are refused like known ones, so that nobody learns which there are.

    Args:
        admin_token: long and random.
        scrape_token: likewise, and another one.
        hosts: as ``AccessPolicy`` has it.
        open_paths: what needs no token: the files of the page, which asks for it.
    """

    def __init__(
        self,
        admin_token: str,
        scrape_token: str,
        hosts: frozenset[str] | None,
        open_paths: frozenset[str] = frozenset(),
    ) -> None:
        assert admin_token
        assert scrape_token
        self._everything = AccessPolicy(
            key_digests([admin_token]),
            hosts,
            open_paths=open_paths,
            needed="the admin token is needed: Authorization: Bearer TOKEN",
        )
        self._metrics = AccessPolicy(
            key_digests([admin_token, scrape_token]),
            hosts,
            open_paths=frozenset(),
            needed="the scrape token or the admin token is needed: Authorization: Bearer TOKEN",
        )

    def check(self, headers: Headers, path: str) -> None:
        """Let a request pass, or not; raises what ``AccessPolicy.check`` raises."""
        policy = self._metrics if path == METRICS_PATH else self._everything
        policy.check(headers, path)
