"""Who may administrate, and who may only look at the metrics."""

from __future__ import annotations

from starlette.datastructures import Headers

from service.core.keys.key_ring import Admission, KeyRing
from service.http_api.access import AccessPolicy

METRICS_PATH = "/metrics"


class AdminPolicy:
    """Lets nobody in without a key: the scope ``admin`` opens everything, ``metrics`` the metrics alone.

    Unknown paths are refused like known ones, so that nobody learns which there are.

    Args:
        keys: those of the configuration, the admin token and the scrape token among them.
        hosts: as ``AccessPolicy`` has it.
    """

    def __init__(self, keys: KeyRing, hosts: frozenset[str] | None) -> None:
        nothing: frozenset[str] = frozenset()
        self._everything = AccessPolicy(
            keys,
            hosts,
            open_paths=nothing,
            scopes=("admin",),
            needed="the admin token is needed: Authorization: Bearer TOKEN",
        )
        self._metrics = AccessPolicy(
            keys,
            hosts,
            open_paths=nothing,
            scopes=("metrics", "admin"),
            needed="the scrape token or the admin token is needed: Authorization: Bearer TOKEN",
        )

    def admit(self, headers: Headers, path: str) -> Admission | None:
        """Let a request pass, or not; raises what ``AccessPolicy.admit`` raises."""
        policy = self._metrics if path == METRICS_PATH else self._everything
        return policy.admit(headers, path)
