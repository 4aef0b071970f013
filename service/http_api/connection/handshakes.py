"""Ends the listening of a socket without resetting a client that has connected.

The kernel resets clients that connect between the last ``accept`` and the ``close`` of a listening socket,
after their request was sent. A packet filter therefore drops new handshakes first and lets begun ones end;
then every connected client is accepted. A dropped client asks again after a second, and is refused before it
sends a request.

Source:
    socket(7), SO_ATTACH_FILTER; the filter of a listening socket sees each packet from its TCP header on.
"""

from __future__ import annotations

import contextlib
import ctypes
import socket
import struct

_SO_ATTACH_FILTER = 26
_TCP_FLAGS_AT = 13
_SYN, _ACK = 0x02, 0x10

# Classic BPF: code, jump if true, jump if false, operand.
_LOAD_BYTE, _AND, _JUMP_IF_EQUAL, _RETURN = 0x30, 0x54, 0x15, 0x06
_DROP, _PASS = 0, 0xFFFFFFFF
_NO_NEW_HANDSHAKE = (
    (_LOAD_BYTE, 0, 0, _TCP_FLAGS_AT),
    (_AND, 0, 0, _SYN | _ACK),
    (_JUMP_IF_EQUAL, 0, 1, _SYN),
    (_RETURN, 0, 0, _DROP),
    (_RETURN, 0, 0, _PASS),
)

HANDSHAKE_S = 0.1
"""Time in which begun handshakes end: a round trip, in seconds."""


def stop_handshakes(listener: socket.socket) -> None:
    """Refuse new connections; does nothing where the system has no such filters.

    Args:
        listener: a listening TCP socket; all its duplicates are affected.
    """
    program = b"".join(struct.pack("=HBBI", *instruction) for instruction in _NO_NEW_HANDSHAKE)
    buffer = ctypes.create_string_buffer(program, len(program))
    pointer = struct.pack("@HP", len(_NO_NEW_HANDSHAKE), ctypes.addressof(buffer))
    with contextlib.suppress(OSError):
        listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, pointer)
