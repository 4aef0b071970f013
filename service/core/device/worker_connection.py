"""The service's side of one worker process, from its start to its end.

The process is exec'd, never forked from the service with its threads. It shares with the service a socket for
messages and one page of memory, the execution record; both end with either process.
"""

from __future__ import annotations

import mmap
import os
import select
import socket
import struct
import subprocess
from array import array
from collections.abc import Mapping, Sequence

from service.core.child_process import program, with_code
from service.core.device.ipc import MAX_MESSAGE_BYTES, IpcMessage, decode_message, encode_message

_COUNT = struct.Struct("<Q")
_REPLY_HEADER = struct.Struct("<QI")
_REPLY_OFFSETS = (mmap.PAGESIZE // 4, mmap.PAGESIZE // 2)
_STDERR = 2

MAX_RECORDED_BYTES = mmap.PAGESIZE // 4 - _REPLY_HEADER.size
"""Size of the longest reply that an execution record holds."""


class ExecutionRecord:
    """Shared page in which a worker records the batch that it started last, and the replies of the last two.

    The service reads it after the death of the worker, which may have had no time to send anything.

    Args:
        descriptor: of a file of at least one page.
    """

    def __init__(self, descriptor: int) -> None:
        self._memory = mmap.mmap(descriptor, mmap.PAGESIZE)
        self._replies = 0

    def record_start(self, token: int) -> None:
        """Record that this batch, and all before it, have started."""
        self._memory[: _COUNT.size] = _COUNT.pack(token + 1)

    def has_started(self, token: int) -> bool:
        """Return whether a batch has started."""
        (started,) = _COUNT.unpack(self._memory[: _COUNT.size])
        return token < int(started)

    def record_reply(self, token: int, reply: bytes) -> None:
        """Record a reply that is about to be sent.

        Args:
            token: of the batch.
            reply: encoded message of at most ``MAX_RECORDED_BYTES``.
        """
        assert len(reply) <= MAX_RECORDED_BYTES
        at = _REPLY_OFFSETS[self._replies % len(_REPLY_OFFSETS)]
        begin = at + _REPLY_HEADER.size
        self._replies += 1
        # The header last: it makes the reply valid.
        self._memory[at:begin] = _REPLY_HEADER.pack(0, 0)
        self._memory[begin : begin + len(reply)] = reply
        self._memory[at:begin] = _REPLY_HEADER.pack(token + 1, len(reply))

    def reply_of(self, token: int) -> bytes | None:
        """Return the recorded reply of a batch; None if it has none, or two others have ended since."""
        for at in _REPLY_OFFSETS:
            begin = at + _REPLY_HEADER.size
            count, length = _REPLY_HEADER.unpack(self._memory[at:begin])
            if count == token + 1:
                return self._memory[begin : begin + length]
        return None


class WorkerConnection:
    """A running worker process.

    Args:
        module: Python module to run; its last two arguments are the descriptors of the socket and of the
            execution record.
        arguments: the earlier ones.
        environment: of the process.

    Attributes:
        known_slots: numbers of the slots that the process has mapped.
        is_killed: ``kill`` was called.

    Raises:
        OSError: the process cannot be started.
    """

    def __init__(self, module: str, arguments: Sequence[str], environment: Mapping[str, str]) -> None:
        self.known_slots: set[int] = set()
        self.is_killed = False
        page = os.memfd_create("bisenet-record", os.MFD_CLOEXEC)
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            os.ftruncate(page, mmap.PAGESIZE)
            self._record = ExecutionRecord(page)
            descriptors = theirs.fileno(), page
            self._process = subprocess.Popen(  # noqa: S603 - this Python, a module of ours
                program(module, *arguments, *map(str, descriptors)),
                stdin=subprocess.DEVNULL,
                stdout=_STDERR,  # stdout belongs to the service
                env=with_code(environment),
                pass_fds=descriptors,
            )
        except OSError:
            self._socket.close()
            raise
        finally:
            theirs.close()
            os.close(page)

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def has_started(self, token: int) -> bool:
        """Return whether the process has started a batch; if not, another worker can run it."""
        return self._record.has_started(token)

    def recorded_reply(self, token: int) -> IpcMessage | None:
        """Return the reply to a batch that the process recorded, perhaps without sending it; None = no reply.

        Raises:
            IpcError: the record holds no message.
        """
        reply = self._record.reply_of(token)
        return None if reply is None else decode_message(reply)

    def send(self, message: IpcMessage, descriptors: Sequence[int] = ()) -> None:
        """Send a message; if that fails the process is killed, and ``receive`` reports its end."""
        try:
            # Not socket.send_fds: before Python 3.13 it takes flags and ignores them.
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", descriptors))] if descriptors else []
            self._socket.sendmsg([encode_message(message)], rights, socket.MSG_DONTWAIT)
        except OSError:
            self.kill()

    def receive(self, wake: socket.socket, timeout_s: float) -> IpcMessage | None:
        """Return the next message, or None if ``wake`` becomes readable or the time is over.

        Args:
            wake: is emptied.
            timeout_s: in seconds.

        Raises:
            EOFError: the process has ended.
            IpcError: it sent bytes that are no message.
        """
        poll = select.poll()  # not select(), which knows the first 1,024 descriptors only
        poll.register(self._socket, select.POLLIN)
        poll.register(wake, select.POLLIN)
        ready = {descriptor for descriptor, _ in poll.poll(max(0.0, 1e3 * timeout_s))}
        if wake.fileno() in ready:
            wake.recv(MAX_MESSAGE_BYTES)
        if self._socket.fileno() not in ready:
            return None
        try:
            data = self._socket.recv(MAX_MESSAGE_BYTES)
        except OSError:
            data = b""
        if not data:
            raise EOFError
        return decode_message(data)

    def kill(self) -> None:
        """Send SIGKILL to the process."""
        self.is_killed = True
        self._process.kill()

    def wait(self, timeout_s: float) -> int:
        """Close the socket and wait until the process has ended; after ``timeout_s`` kill it.

        Returns:
            Exit code; the negative number of a signal.
        """
        self._socket.close()
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
            return self._process.wait()
