"""Who may ask: the host allow-list of a loopback service, and API keys."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Protocol

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from service.core.errors import ForbiddenError, InvalidArgumentError, ServiceError, UnauthenticatedError
from service.core.keys import bearer_digest, bears_known_key
from service.http_api.edge import PROBE_PATHS
from service.http_api.exchange import Exchange
from service.http_api.problems import problem

LOOPBACK_HOSTS = frozenset({"localhost", "127.0.0.1", "[::1]"})
OPEN_PATHS = PROBE_PATHS | {"/docs", "/openapi.json"}
"""What needs no key; everything else does, unknown paths too."""

_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~%-]*)(:[0-9]*)?", re.ASCII)
"""RFC 3986, 3.2.2, without the punctuation that no name has; frameworks build URLs from this header."""


@dataclass(frozen=True)
class AccessPolicy:
    """What a request must show.

    Args:
        key_digests: SHA-256 of each API key; empty = no key is asked for.
        hosts: values of ``Host`` that are answered, lower case, without port; None = any. A page that
            a browser loaded from elsewhere can reach a loopback service under a name of its own
            (DNS rebinding), but it cannot forge this header.
        open_paths: what needs no key.
        needed: what is said to who shows none, or a wrong one.
    """

    key_digests: frozenset[bytes] = frozenset()
    hosts: frozenset[str] | None = None
    open_paths: frozenset[str] = OPEN_PATHS
    needed: str = "a valid API key is needed: Authorization: Bearer KEY"

    def check(self, headers: Headers, path: str) -> None:
        """Let a request pass, or not.

        Raises:
            InvalidArgumentError: the path is malformed, or the host is, or there are two.
            ForbiddenError: the host is not allowed.
            UnauthenticatedError: there is no key, or a wrong one.
        """
        hosts = headers.getlist("host")
        if len(hosts) > 1 or not all(_HOST.fullmatch(host) for host in hosts):
            raise InvalidArgumentError("the header Host is malformed")
        if not path.isprintable():  # routes would match with a line feed at their end
            raise InvalidArgumentError("the path is malformed")
        is_anonymous_probe = not hosts and path in PROBE_PATHS  # HTTP/1.0, as load balancers speak it
        if self.hosts is not None and not (is_anonymous_probe or self._is_host_allowed(hosts)):
            raise ForbiddenError("this service does not answer under this host name")
        if (
            self.key_digests
            and path not in self.open_paths
            and not bears_known_key(headers.get("authorization", ""), self.key_digests)
        ):
            raise UnauthenticatedError(self.needed)

    def source(self, scope: Scope) -> str | None:
        """Return who asks, of the requests that pass: a key, or an address where nobody needs a key.

        Behind a proxy everybody has the address of the proxy.
        """
        if self.key_digests:
            return bearer_digest(Headers(scope=scope).get("authorization", "")).hex()
        client = scope.get("client")
        return None if client is None else str(client[0])

    def _is_host_allowed(self, hosts: list[str]) -> bool:
        assert self.hosts is not None
        return bool(hosts) and _without_port(hosts[0].lower()) in self.hosts


def _without_port(host: str) -> str:
    name, colon, port = host.rpartition(":")
    return name if colon and (port.isdigit() or not port) else host


class Policy(Protocol):
    """Lets a request pass, or raises an error of the service."""

    def check(self, headers: Headers, path: str) -> None:
        """Look at the head of a request."""
        ...


class AccessCheck:
    """Refuses what the policy refuses, before any route is looked for.

    Args:
        app: what answers the rest.
        policy: what a request must show.
    """

    def __init__(self, app: ASGIApp, policy: Policy) -> None:
        self._app = app
        self._policy = policy

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer 401 or 403."""
        answer = self._app
        if scope["type"] == "http":
            try:
                self._policy.check(Headers(scope=scope), scope["path"])
            except ServiceError as refusal:
                answer = problem(refusal, Exchange.of(scope))
        await answer(scope, receive, send)
