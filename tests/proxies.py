"""nginx and HAProxy in front of services, as Debian packs them, with short idle time-outs."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from fakes import PATIENCE_S

BODY_LIMIT = 1_000_000
_NGINX_COMMAND = ("nginx", "-e", "stderr", "-c")
_HAPROXY_COMMAND = ("haproxy", "-W", "-db", "-f")

needs_nginx = pytest.mark.skipif(
    shutil.which("nginx") is None, reason="nginx is not installed: apt-get install nginx-light"
)
needs_haproxy = pytest.mark.skipif(
    shutil.which("haproxy") is None, reason="HAProxy is not installed: apt-get install haproxy"
)


@dataclass(frozen=True)
class Upstream:
    """Ports of the service behind a proxy."""

    http: int
    grpc: int


@dataclass(frozen=True)
class Proxy:
    """A running proxy.

    Attributes:
        http_url: takes pictures, also below ``/masks``; bodies of more than 1 MB are refused.
        grpc_address: takes calls of any size.
        small_grpc_address: refuses calls of more than 1 MB.
        tcp_address: passes bytes on, without knowing gRPC.
        reload: begins with new workers; the old ones end.
    """

    http_url: str
    grpc_address: str
    small_grpc_address: str
    tcp_address: str
    reload: Callable[[], None]


_NGINX = """
{user}
daemon off;
worker_processes 1;
pid {folder}/pid;
error_log stderr warn;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    keepalive_timeout {idle_s}s;
    client_header_timeout {idle_s}s;
    client_body_timeout {idle_s}s;
    send_timeout {idle_s}s;
    upstream http_service {{ server 127.0.0.1:{upstream.http}; keepalive 8; }}
    upstream grpc_service {{ server 127.0.0.1:{upstream.grpc}; keepalive 8; }}
    server {{
        listen 127.0.0.1:{ports[0]};
        client_max_body_size {limit};
        proxy_http_version 1.1;
        proxy_set_header Connection "";
        proxy_set_header Host $http_host;
        location / {{ proxy_pass http://http_service; }}
        location /masks/ {{ proxy_pass http://http_service/; }}
    }}
    server {{
        listen 127.0.0.1:{ports[1]} http2;
        client_max_body_size 0;
        grpc_read_timeout {idle_s}s;
        grpc_send_timeout {idle_s}s;
        location / {{ grpc_pass grpc://grpc_service; }}
    }}
    server {{
        listen 127.0.0.1:{ports[2]} http2;
        client_max_body_size {limit};
        location / {{ grpc_pass grpc://grpc_service; }}
    }}
}}
"""

_HAPROXY = """
defaults
    mode http
    timeout connect 2s
    timeout client {idle_s}s
    timeout server {idle_s}s
    timeout http-request {idle_s}s
    timeout http-keep-alive {idle_s}s
frontend http
    bind 127.0.0.1:{ports[0]}
    http-request deny deny_status 413 if {{ req.hdr_val(content-length) gt {limit} }}
    http-request replace-path /masks(/.*) \\1
    default_backend http_service
frontend grpc
    bind 127.0.0.1:{ports[1]} proto h2
    default_backend grpc_service
frontend tcp
    mode tcp
    bind 127.0.0.1:{ports[3]}
    default_backend tcp_service
backend http_service
    server service 127.0.0.1:{upstream.http}
backend grpc_service
    server service 127.0.0.1:{upstream.grpc} proto h2
backend tcp_service
    mode tcp
    server service 127.0.0.1:{upstream.grpc}
"""


_NGINX_BALANCER = """
{user}
daemon off;
worker_processes 1;
pid {folder}/pid;
error_log stderr warn;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    upstream services {{
        server 127.0.0.1:{services[0]} max_fails=1 fail_timeout={idle_s}s;
        server 127.0.0.1:{services[1]} max_fails=1 fail_timeout={idle_s}s;
        keepalive 8;
    }}
    server {{
        listen 127.0.0.1:{ports[0]};
        client_max_body_size {limit};
        proxy_http_version 1.1;
        proxy_set_header Connection "";
        proxy_set_header Host $http_host;
        location / {{ proxy_pass http://services; }}
        proxy_next_upstream error timeout http_503 non_idempotent;
    }}
}}
"""

_HAPROXY_BALANCER = """
defaults
    mode http
    timeout connect 2s
    timeout client 60s
    timeout server 60s
    timeout check 10s
frontend http
    bind 127.0.0.1:{ports[0]}
    default_backend services
backend services
    balance roundrobin
    option httpchk
    http-check send meth GET uri /readyz ver HTTP/1.1 hdr Host localhost
    option redispatch 1
    retries 3
    retry-on conn-failure
    default-server check inter 200ms fall 1 rise 1
    server first 127.0.0.1:{services[0]}
    server second 127.0.0.1:{services[1]}
"""


@contextmanager
def nginx(folder: Path, upstream: Upstream, *, idle_s: int) -> Iterator[Proxy]:
    """Run nginx in front of a service."""
    values = {"upstream": upstream, "idle_s": idle_s, "user": _user()}
    with _running(folder, _NGINX, _NGINX_COMMAND, signal.SIGHUP, values) as proxy:
        yield proxy


@contextmanager
def haproxy(folder: Path, upstream: Upstream, *, idle_s: int) -> Iterator[Proxy]:
    """Run HAProxy in front of a service."""
    values = {"upstream": upstream, "idle_s": idle_s}
    with _running(folder, _HAPROXY, _HAPROXY_COMMAND, signal.SIGUSR2, values) as proxy:
        yield proxy


@contextmanager
def nginx_balancer(folder: Path, services: Sequence[int]) -> Iterator[Proxy]:
    """Run nginx, which shares requests between two services and sends what one refuses to the other."""
    values = {"services": services, "idle_s": 1, "user": _user()}
    with _running(folder, _NGINX_BALANCER, _NGINX_COMMAND, signal.SIGHUP, values) as proxy:
        yield proxy


@contextmanager
def haproxy_balancer(folder: Path, services: Sequence[int]) -> Iterator[Proxy]:
    """Run HAProxy, which shares requests between two services as long as they say that they are ready."""
    with _running(
        folder, _HAPROXY_BALANCER, _HAPROXY_COMMAND, signal.SIGUSR2, {"services": services}
    ) as proxy:
        yield proxy


def _user() -> str:
    return "user root;" if os.geteuid() == 0 else ""


@contextmanager
def _running(
    folder: Path,
    template: str,
    command: Sequence[str],
    reload_signal: signal.Signals,
    values: Mapping[str, object],
) -> Iterator[Proxy]:
    folder.mkdir()
    ports = free_ports(4)
    config = template.format(folder=folder, ports=ports, limit=BODY_LIMIT, **values)
    (folder / "config").write_text(config)
    with (
        (folder / "log").open("w") as log,
        subprocess.Popen([*command, str(folder / "config")], stdout=log, stderr=log) as process,
    ):
        try:
            _wait_until_open(ports[0], process, folder / "log")
            yield Proxy(
                f"http://127.0.0.1:{ports[0]}",
                *(f"127.0.0.1:{port}" for port in ports[1:]),
                reload=lambda: process.send_signal(reload_signal),
            )
        finally:
            process.terminate()
            process.wait(PATIENCE_S)


def free_ports(count: int) -> list[int]:
    """Return ports on which nothing listens."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [listener.getsockname()[1] for listener in sockets]
    for listener in sockets:
        listener.close()
    return ports


def _wait_until_open(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    given_up_s = time.monotonic() + PATIENCE_S
    while True:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < given_up_s, log.read_text()
        try:
            with closing(socket.create_connection(("127.0.0.1", port), timeout=1.0)):
                return
        except OSError:
            time.sleep(0.02)
