"""The listening socket tells at once when it cannot be had."""

from __future__ import annotations

import socket

import pytest

from service.http_api.server import BindError, listen, url_of


def test_a_free_port_is_found_and_told() -> None:
    with listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        assert url_of(listener) == f"http://127.0.0.1:{port}"
        with socket.create_connection(("127.0.0.1", port)):
            pass  # it is open before anybody accepts


def test_a_taken_port_is_named() -> None:
    with listen("127.0.0.1", 0) as holder:
        port = holder.getsockname()[1]
        with pytest.raises(BindError, match=rf"port {port}: Address already in use"):
            listen("127.0.0.1", port)


def test_an_address_of_another_machine_is_named() -> None:
    with pytest.raises(BindError, match=r"192\.0\.2\.1"):
        listen("192.0.2.1", 0)


def test_a_name_that_nobody_has_is_named() -> None:
    with pytest.raises(BindError, match="no such host"):
        listen("no such host", 0)


def test_an_ipv6_address_stands_in_brackets() -> None:
    class Listener:
        def getsockname(self) -> tuple[str, int, int, int]:
            return ("::1", 8000, 0, 0)

    assert url_of(Listener()) == "http://[::1]:8000"  # type: ignore[arg-type]
