"""Start the installed service where torch is absent and segment one picture with it.

Run with the interpreter of an environment that holds the base install only.
"""

from __future__ import annotations

import importlib.util
import io
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from PIL import Image

SIZE = (321, 203)
START_TIMEOUT_S = 120


def main() -> int:
    """Return 0 when the service answered a mask of the picture's size and stopped cleanly."""
    if importlib.util.find_spec("torch") is not None:
        print("torch is installed here: this check proves nothing")
        return 1
    port = free_port()
    command = [
        str(Path(sys.executable).with_name("bisenet")),
        "serve",
        "--http-port",
        str(port),
        "--admin-port",
        "0",
        "--grpc-port",
        "0",
    ]
    with subprocess.Popen(command) as server:
        try:
            wait_until_ready(port, server)
            mask = Image.open(io.BytesIO(segment(port)))
        finally:
            server.send_signal(signal.SIGTERM)
        code = server.wait(timeout=60)
    print(f"mask {mask.mode} {mask.size}, exit code {code}")
    return 0 if (mask.mode, mask.size, code) == ("P", SIZE, 0) else 1


def free_port() -> int:
    """Return a free loopback port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until_ready(port: int, server: subprocess.Popen[bytes]) -> None:
    """Poll ``/readyz`` until it answers 200; give up when the process ended or the time is over."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise RuntimeError(f"the service ended with code {server.returncode}")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5):
                return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.1)
    raise RuntimeError(f"not ready within {START_TIMEOUT_S} s")


def segment(port: int) -> bytes:
    """Post one generated JPEG and return the answer's body."""
    body = io.BytesIO()
    Image.linear_gradient("L").resize(SIZE).convert("RGB").save(body, "JPEG")
    request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/segment", data=body.getvalue())
    with urllib.request.urlopen(request, timeout=60) as response:
        return bytes(response.read())


if __name__ == "__main__":
    sys.exit(main())
