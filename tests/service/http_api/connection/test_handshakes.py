"""A socket that stops listening loses no connected client."""

from __future__ import annotations

import socket
import sys
from contextlib import ExitStack

import pytest

from service.http_api.connection.handshakes import stop_handshakes
from service.http_api.connection.server import BindError, listen

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the filter is Linux's")


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_connected_clients_stay_and_no_new_ones_come(host: str) -> None:
    if host == "::1" and not has_ipv6():
        pytest.skip("there is no IPv6 here")
    with listen(host, 0) as listener, ExitStack() as stack:
        address = listener.getsockname()[:2]
        for number in range(10):
            client = stack.enter_context(socket.create_connection(address))
            client.sendall(bytes([number]))
        stop_handshakes(listener)
        with pytest.raises(TimeoutError):
            socket.create_connection(address, timeout=0.2)
        received = set()
        for _ in range(10):
            connection, _ = listener.accept()
            with connection:
                received.add(connection.recv(1)[0])
        assert received == set(range(10))


def test_those_who_are_connected_can_go_on_talking() -> None:
    with listen("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()) as client:
        stop_handshakes(listener)
        connection, _ = listener.accept()
        with connection:
            listener.close()
            client.sendall(b"question")
            assert connection.recv(100) == b"question"
            connection.sendall(b"answer")
            assert client.recv(100) == b"answer"


def has_ipv6() -> bool:
    try:
        with listen("::1", 0):
            return True
    except BindError:
        return False
