"""Access checks: the host allow-list of a loopback service, and API keys."""

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
"""Paths that need no key. All others do, unknown paths too."""

_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~%-]*)(:[0-9]*)?", re.ASCII)
"""RFC 3986, 3.2.2, without the punctuation that no name has; frameworks build URLs from this header."""


@dataclass(frozen=True)
class AccessPolicy:
    """The conditions that a request must meet.

    Args:
        key_digests: SHA-256 of each API key; empty = no key is needed.
        hosts: accepted values of ``Host``, lower case, without port; None = any. A page that a browser
            loaded from elsewhere can reach a loopback service under its own name (DNS rebinding), but it
            cannot forge this header.
        open_paths: paths that need no key.
        needed: message of the error when the key is missing or wrong.
    """

    key_digests: frozenset[bytes] = frozenset()
    hosts: frozenset[str] | None = None
    open_paths: frozenset[str] = OPEN_PATHS
    needed: str = "a valid API key is needed: Authorization: Bearer KEY"

    def check(self, headers: Headers, path: str) -> None:
        """Check the path, the host and the key of a request.

        Raises:
            InvalidArgumentError: the path or the host is malformed, or there are two hosts.
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
        """Return the identity of a client: its key, or its address where no key is needed.

        Behind a proxy all clients have the address of the proxy.
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
    """Conditions on a request."""

    def check(self, headers: Headers, path: str) -> None:
        """Check the head of a request.

        Raises:
            ServiceError: the request is refused.
        """
        ...


class AccessCheck:
    """Applies a policy before the route is looked up.

    Args:
        app: answers the requests that pass.
        policy: conditions on a request.
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
