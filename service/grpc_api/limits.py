"""What one peer of the gRPC server may do, as gRPC's core is told."""

from __future__ import annotations

from dataclasses import dataclass

_MESSAGE_OVERHEAD = 64 * 1024
"""What a message may hold beside its picture."""


@dataclass(frozen=True)
class PeerLimits:
    """What one peer may do, and when it is given up.

    Args:
        max_image_bytes: a message holds one picture and little else.
        max_streams: calls at the same time on one connection.
        max_calls: on all connections together; more are refused by name. Those to health and reflection do
            not count, and have as much room of their own, beyond which gRPC itself refuses without details.
        keepalive_s: a peer that is silent for so long is asked for a sign of life.
        keepalive_timeout_s: how long it has to answer.
        handshake_s: how long a new connection has to speak HTTP/2.
        min_ping_interval_s: a peer that pings more often, without sending anything, is sent away.
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
        """Calls of all kinds at the same time."""
        return 2 * self.max_calls

    def channel_options(self) -> list[tuple[str, int]]:
        """Return the limits as gRPC's core knows them."""
        return [
            ("grpc.so_reuseport", 0),  # or a second service would silently share the port
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
