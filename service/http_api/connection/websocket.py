"""WebSockets as uvicorn and the library ``websockets`` speak them; loaded only where a path has them."""

from __future__ import annotations

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol


class GuardedWebSocket(WebSocketsSansIOProtocol):
    """Leaves the end of a conversation to the application, and cuts off a client that does not read."""

    def shutdown(self) -> None:
        """Let the application answer what it has accepted: it learns of the end by itself."""
        if not self.handshake_complete:
            super().shutdown()

    def keepalive_timeout(self) -> None:
        """Close the connection without waiting until the client has read what was sent."""
        super().keepalive_timeout()
        self.transport.abort()
