"""A path prefix under which a proxy offers the service."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send


class RootPath:
    """Removes the prefix from the paths of requests, for proxies that leave it on.

    Args:
        app: answers the paths without prefix.
        prefix: such as ``/segmentation``, without a slash at its end.
    """

    def __init__(self, app: ASGIApp, prefix: str) -> None:
        self._app = app
        self._prefix = f"{prefix}/"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on without the prefix."""
        if scope["type"] in ("http", "websocket") and scope["path"].startswith(self._prefix):
            scope = {**scope, "path": scope["path"][len(self._prefix) - 1 :]}
        await self._app(scope, receive, send)
