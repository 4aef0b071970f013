"""One worker process from its start to its end, as the service sees it.

The program is started anew (never forked from the service, whose threads would not survive that), with a
socket for frames and a page on which it notes what it does. Both end with either process.
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
_WORDS = struct.Struct("<QI")
_PLACES = (mmap.PAGESIZE // 4, mmap.PAGESIZE // 2)
_STDERR = 2

MAX_LAST_WORDS = mmap.PAGESIZE // 4 - _WORDS.size


class BatchJobMark:
    """Shared memory in which a worker notes which job it began last, and how the last ones ended.

    So it is known after its death, whatever it had no time to say.

    Args:
        descriptor: of the file; a page or more.
    """

    def __init__(self, descriptor: int) -> None:
        self._memory = mmap.mmap(descriptor, mmap.PAGESIZE)
        self._ended = 0

    def begin(self, token: int) -> None:
        """Take note that this job and all before it have begun."""
        self._memory[: _COUNT.size] = _COUNT.pack(token + 1)

    def has_begun(self, token: int) -> bool:
        """Return whether a job has begun."""
        (begun,) = _COUNT.unpack(self._memory[: _COUNT.size])
        return token < int(begun)

    def end(self, token: int, frame: bytes) -> None:
        """Take note of what is about to be said of a job; all but the last two are forgotten.

        Args:
            token: of the job.
            frame: at most ``MAX_LAST_WORDS`` bytes.
        """
        assert len(frame) <= MAX_LAST_WORDS
        at = _PLACES[self._ended % len(_PLACES)]
        begin = at + _WORDS.size
        self._ended += 1
        self._memory[at:begin] = _WORDS.pack(0, 0)
        self._memory[begin : begin + len(frame)] = frame
        self._memory[at:begin] = _WORDS.pack(token + 1, len(frame))

    def words_of(self, token: int) -> bytes | None:
        """Return what was noted of a job; None if it has not ended, or others ended since."""
        for at in _PLACES:
            begin = at + _WORDS.size
            count, length = _WORDS.unpack(self._memory[at:begin])
            if count == token + 1:
                return self._memory[begin : begin + length]
        return None


class WorkerConnection:
    """A worker process that runs.

    Args:
        module: Python module that is run as a program; its last two arguments are the descriptors of the
            socket and of the mark.
        arguments: those before.
        environment: of the process.

    Attributes:
        known_slots: numbers of the shared memory that the process has been given.
        is_killed: it was killed from here.

    Raises:
        OSError: the process cannot be started.
    """

    def __init__(self, module: str, arguments: Sequence[str], environment: Mapping[str, str]) -> None:
        self.known_slots: set[int] = set()
        self.is_killed = False
        page = os.memfd_create("bisenet-mark", os.MFD_CLOEXEC)
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            os.ftruncate(page, mmap.PAGESIZE)
            self._mark = BatchJobMark(page)
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
        """Of the process."""
        return self._process.pid

    def has_begun(self, token: int) -> bool:
        """Return whether a job had begun; what has not can be given to another worker."""
        return self._mark.has_begun(token)

    def last_words(self, token: int) -> IpcMessage | None:
        """Return how a job ended that the process had no time to tell about; None if it did not.

        Raises:
            FrameError: it noted something else than a frame.
        """
        words = self._mark.words_of(token)
        return None if words is None else decode_message(words)

    def send(self, frame: IpcMessage, descriptors: Sequence[int] = ()) -> None:
        """Send a frame; one that cannot be sent is lost like the process, whose end ``receive`` tells."""
        try:
            # Not socket.send_fds: before Python 3.13 it takes flags and ignores them.
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", descriptors))] if descriptors else []
            self._socket.sendmsg([encode_message(frame)], rights, socket.MSG_DONTWAIT)
        except OSError:
            self.kill()

    def receive(self, wake: socket.socket, timeout_s: float) -> IpcMessage | None:
        """Wait for a frame.

        Args:
            wake: anything to be read from it ends the waiting.
            timeout_s: so does this.

        Returns:
            None: there is none yet.

        Raises:
            EOFError: the process is gone.
            FrameError: it sent something else.
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
        """End the process, whatever it does."""
        self.is_killed = True
        self._process.kill()

    def bury(self, timeout_s: float) -> int:
        """Wait until the process is gone, at most so long, then kill it.

        Returns:
            Its exit code; the negative number of a signal.
        """
        self._socket.close()
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
            return self._process.wait()
