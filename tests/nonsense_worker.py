"""A program in the place of a worker: says nothing, or what no worker says."""

from __future__ import annotations

import socket
import sys
import threading

WORDS = {"garbage": b"\x00\x01garbage", "silence": None}

if __name__ == "__main__":
    kind, link, _mark = sys.argv[1:]
    with socket.socket(fileno=int(link)) as connection:
        if (words := WORDS[kind]) is not None:
            connection.send(words)
        threading.Event().wait()
