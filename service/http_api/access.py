"""Access checks: the host allow-list of a loopback service, and API keys."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Protocol

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Send
from starlette.types import Scope as HttpScope

from service.core.errors import ForbiddenError, InvalidArgumentError, ServiceError
from service.core.keys.access_key import Scope
from service.core.keys.key_ring import Admission, KeyRing
from service.http_api.edge import PROBE_PATHS
from service.http_api.exchange import Exchange
from service.http_api.problems import problem

LOOPBACK_HOSTS = frozenset({"localhost", "127.0.0.1", "[::1]"})
OPEN_PATHS = PROBE_PATHS | {"/docs", "/openapi.json"}
"""Paths that need no key. All others do, unknown paths too."""

_MODELS = re.compile(r"/v1/models(/[^/:]+)?")
"""What is served; cameras ask for it, too."""

_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~%-]*)(:[0-9]*)?", re.ASCII)
"""RFC 3986, 3.2.2, without the punctuation that no name has; frameworks build URLs from this header."""


@dataclass(frozen=True)
class AccessPolicy:
    """The conditions that a request must meet.

    Args:
        keys: API keys, one of which is needed; None = no key is needed.
        hosts: accepted values of ``Host``, lower case, without port; None = any. A page that a browser
            loaded from elsewhere can reach a loopback service under its own name (DNS rebinding), but it
            cannot forge this header.
        open_paths: paths that need no key.
        scopes: the key must have one of them; where ``infer`` is one, ``stream`` opens the list of models.
        needed: message of the error when the key is missing or wrong.
    """

    keys: KeyRing | None = None
    hosts: frozenset[str] | None = None
    open_paths: frozenset[str] = OPEN_PATHS
    scopes: tuple[Scope, ...] = ("infer",)
    needed: str = "a valid API key is needed: Authorization: Bearer KEY"

    def admit(self, headers: Headers, path: str) -> Admission | None:
        """Check the path, the host and the key of a request.

        Returns:
            The key of the request, to be left when it is answered; None where no key is needed.

        Raises:
            InvalidArgumentError: the path or the host is malformed, or there are two hosts.
            ForbiddenError: the host is not allowed, or the key does not have the scope.
            UnauthenticatedError: there is no key, or it is wrong or has expired.
            RateLimitedError: the key is at its limit.
        """
        hosts = headers.getlist("host")
        if len(hosts) > 1 or not all(_HOST.fullmatch(host) for host in hosts):
            raise InvalidArgumentError("the header Host is malformed")
        if not path.isprintable():  # routes would match with a line feed at their end
            raise InvalidArgumentError("the path is malformed")
        is_anonymous_probe = not hosts and path in PROBE_PATHS  # HTTP/1.0, as load balancers speak it
        if self.hosts is not None and not (is_anonymous_probe or self._is_host_allowed(hosts)):
            raise ForbiddenError("this service does not answer under this host name")
        if self.keys is None or path in self.open_paths:
            return None
        scopes = self.scopes
        if "infer" in scopes and _MODELS.fullmatch(path):
            scopes = (*scopes, "stream")
        return self.keys.admit(headers.get("authorization", ""), *scopes, needed=self.needed)

    def source(self, scope: HttpScope) -> str | None:
        """Return the identity of an admitted client: its key, or its address where no key is needed.

        Behind a proxy all clients have the address of the proxy.
        """
        key = Exchange.of(scope).key
        if key is not None:
            return key.sha256
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

    def admit(self, headers: Headers, path: str) -> Admission | None:
        """Check the head of a request. The caller closes the admission when the request is answered.

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

    async def __call__(self, scope: HttpScope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer 401, 403 or 429."""
        answer = self._app
        if scope["type"] == "http":
            exchange = Exchange.of(scope)
            try:
                admission = self._policy.admit(Headers(scope=scope), scope["path"])
            except ServiceError as refusal:
                answer = problem(refusal, exchange)
            else:
                if admission is not None:
                    exchange.admitted(admission)
        await answer(scope, receive, send)
