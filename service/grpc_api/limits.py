"""Limits of one gRPC peer, and the channel options that enforce them."""

from __future__ import annotations

from dataclasses import dataclass

_MESSAGE_OVERHEAD = 64 * 1024
"""Bytes of a message beside its picture."""


@dataclass(frozen=True)
class PeerLimits:
    """Limits of one peer.

    Args:
        max_image_bytes: size of the picture in a message.
        max_streams: open calls on one connection.
        max_calls: open calls on all connections; more fail with ``busy``. Calls to health and reflection are
            not counted. They have the same limit, beyond which gRPC refuses without details.
        keepalive_s: silence after which a peer is pinged.
        keepalive_timeout_s: time to answer a ping, after which the connection is closed.
        handshake_s: time until a new connection must speak HTTP/2.
        min_ping_interval_s: a connection with more frequent pings, and no data between them, is closed.
    """

    max_image_bytes: int = 20 * 1024 * 1024
    max_streams: int = 64
    max_calls: int = 512
    keepalive_s: float = 10.0
    keepalive_timeout_s: float = 8.0
    handshake_s: float = 10.0
    min_ping_interval_s: float = 2.0  # half the interval of this project's clients

    @property
    def max_rpcs(self) -> int:
        """Open calls of all kinds."""
        return 2 * self.max_calls

    def channel_options(self) -> list[tuple[str, int]]:
        """Return the limits as options of gRPC's core."""
        return [
            ("grpc.so_reuseport", 0),  # else a second service would silently share the port
            ("grpc.max_receive_message_length", self.max_image_bytes + _MESSAGE_OVERHEAD),
            ("grpc.max_send_message_length", -1),  # as large as the picture is
            ("grpc.max_concurrent_streams", self.max_streams),
            ("grpc.keepalive_time_ms", round(1e3 * self.keepalive_s)),
            ("grpc.keepalive_timeout_ms", round(1e3 * self.keepalive_timeout_s)),
            # Without this one, grpcio 1.85 gives a peer that stopped answering pings a whole minute.
            ("grpc.http2.ping_timeout_ms", round(1e3 * self.keepalive_timeout_s)),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.max_pings_without_data", 0),
            ("grpc.server_handshake_timeout_ms", round(1e3 * self.handshake_s)),
            ("grpc.http2.min_ping_interval_without_data_ms", round(1e3 * self.min_ping_interval_s)),
            ("grpc.http2.max_ping_strikes", 2),
        ]
