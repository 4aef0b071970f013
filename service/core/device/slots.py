"""Memory that a picture is written into once, and that the worker process sees as well.

A slot is an anonymous file (``memfd_create``): nothing appears in any folder, and when both processes are
gone, so is the memory. It holds the pixels of a prepared picture and, behind them, room for its labels; or a
batch and its scores. Slots are used again, since a new page costs a microsecond in each process, and given
back to the system when they have not been used for a while.

Axes: H height, W width, 3 = red green blue.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import threading
import weakref
from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

_SMALLEST_BYTES = 1 << 18
_ALIGNMENT = 64
_MAX_IDLE_BYTES = 64 << 20
_IDLE_S = 5.0

# Neither side can make the other one read beyond the end.
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL

AnyArray = npt.NDArray[Any]


@dataclass(eq=False)
class Slot:
    """One region of shared memory.

    Attributes:
        number: by which the processes speak of it; never used for another one.
        descriptor: of the file, until a worker has it; Python's mapping holds another one, out of reach.
        memory: the region.
        address: where it begins in this process.
        holds_answer: its second array is taken: it holds what was made of the first.
        used_bytes: the most that was ever used of it: pages behind were never touched and take no memory.
        idle_since_s: when it was found to be unused.
        is_retired: it is not used again.
    """

    number: int
    descriptor: int | None
    memory: mmap.mmap
    address: int
    holds_answer: bool = False
    used_bytes: int = 0
    idle_since_s: float = 0.0
    is_retired: bool = False

    @property
    def capacity(self) -> int:
        """Bytes that it can hold."""
        return len(self.memory)

    def close_descriptor(self) -> None:
        """Keep the mapping alone: files are scarcer than memory where there are thousands of clients."""
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None


class SlotLease:
    """The use of a slot, from one picture to the next: ends when no array in it is left.

    Args:
        slot: what is used.
        anchor: keeps the slot; every array refers to it.
    """

    def __init__(self, slot: Slot, anchor: Any) -> None:
        self.slot = slot
        self._anchor = anchor

    def array(self, shape: tuple[int, ...], dtype: npt.DTypeLike = np.uint8, offset: int = 0) -> AnyArray:
        """Return a part of the slot as an array, C-contiguous; no bytes are copied."""
        return np.ndarray(shape, dtype, buffer=self._anchor, offset=offset)


def next_array_offset(num_bytes: int) -> int:
    """Return where the second array of a slot begins, if the first one has so many bytes."""
    return -(-num_bytes // _ALIGNMENT) * _ALIGNMENT


class SlotPool:
    """Gives out slots of at least the size that is asked for; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = 0
        self._idle: list[Slot] = []  # the latest comes last
        self._forgotten: list[int] = []
        # Filled by finalizers, which run whenever the last array goes: nothing there may wait for a lock.
        self._returned: deque[Slot] = deque()
        self._slots: dict[int, Slot] = {}  # by address
        self._anchors: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()  # the same

    def lease(self, num_bytes: int, *, now_s: float) -> SlotLease:
        """Return the use of a slot.

        Args:
            num_bytes: that it must hold.
            now_s: the time.

        Raises:
            OSError: the system has no memory or no file descriptors left.
        """
        with self._lock:
            self._collect(now_s)
            slot = self._fitting(num_bytes) or self._new(num_bytes)
            slot.holds_answer = False
            slot.used_bytes = max(slot.used_bytes, num_bytes)
            anchor = self._anchors[slot.address] = _anchor(slot.memory)
        weakref.finalize(anchor, self._returned.append, slot).atexit = False
        return SlotLease(slot, anchor)

    def lease_of(self, array: AnyArray) -> SlotLease | None:
        """Return the lease whose slot an array begins with; None when it lies elsewhere."""
        address = array.__array_interface__["data"][0]
        with self._lock:
            anchor = self._anchors.get(address)
            return None if anchor is None else SlotLease(self._slots[address], anchor)

    def trim(self, *, now_s: float) -> list[int]:
        """Give back slots that nobody needs.

        Returns:
            The numbers of all that were given back since the last call.
        """
        with self._lock:
            self._collect(now_s)
            self._drop([slot for slot in self._idle if now_s - slot.idle_since_s >= _IDLE_S])
            forgotten, self._forgotten = self._forgotten, []
            return forgotten

    def retire(self) -> None:
        """Use none of the present slots again: a new worker could not be given those that were sent."""
        with self._lock:
            for slot in self._slots.values():
                slot.is_retired = True
            self._drop(list(self._idle))

    @property
    def idle_bytes(self) -> int:
        """Memory that is kept for the next pictures."""
        return sum(slot.used_bytes for slot in self._idle)

    def close(self) -> None:
        """Give back everything that is not in use."""
        with self._lock:
            self._collect(0.0)
            self._drop(list(self._idle))

    def _collect(self, now_s: float) -> None:
        while self._returned:
            slot = self._returned.popleft()
            slot.idle_since_s = now_s
            self._idle.append(slot)
            if slot.is_retired:
                self._drop([slot])
        while self.idle_bytes > _MAX_IDLE_BYTES:
            self._drop(self._idle[:1])

    def _fitting(self, num_bytes: int) -> Slot | None:
        fitting = [slot for slot in self._idle if num_bytes <= slot.capacity < 4 * _capacity(num_bytes)]
        if not fitting:
            return None
        slot = min(reversed(fitting), key=lambda slot: slot.capacity)
        self._idle.remove(slot)
        return slot

    def _new(self, num_bytes: int) -> Slot:
        descriptor = os.memfd_create("bisenet-slot", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(descriptor, _capacity(num_bytes))
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
            memory = mmap.mmap(descriptor, _capacity(num_bytes))
        except OSError:
            os.close(descriptor)
            raise
        self._count += 1
        slot = Slot(self._count, descriptor, memory, ctypes.addressof(_anchor(memory)))
        self._slots[slot.address] = slot
        return slot

    def _drop(self, slots: list[Slot]) -> None:
        for slot in slots:
            self._idle.remove(slot)
            del self._slots[slot.address]
            self._forgotten.append(slot.number)
            slot.close_descriptor()  # the memory goes with the last reference to its mapping


def _anchor(memory: mmap.mmap) -> Any:
    """Return an object of its own that arrays can refer to and that tells when the last one is gone."""
    return (ctypes.c_char * len(memory)).from_buffer(memory)


def _capacity(num_bytes: int) -> int:
    """Round up to a power of two, so that slots fit many sizes; pages that are not touched cost nothing."""
    return max(_SMALLEST_BYTES, 1 << (num_bytes - 1).bit_length())


class SlotMap:
    """The slots as the worker sees them: descriptors come with the first job that needs them."""

    def __init__(self) -> None:
        self._memory: dict[int, mmap.mmap] = {}

    def __contains__(self, number: int) -> bool:
        """Return whether a slot is known."""
        return number in self._memory

    def add(self, number: int, descriptor: int) -> None:
        """Map a slot; the descriptor is closed.

        Raises:
            OSError: it is no such file.
        """
        try:
            self._memory[number] = mmap.mmap(descriptor, os.fstat(descriptor).st_size)
        finally:
            os.close(descriptor)

    def array(
        self, number: int, shape: tuple[int, ...], dtype: npt.DTypeLike = np.uint8, offset: int = 0
    ) -> AnyArray:
        """Return a part of a slot as an array.

        Raises:
            KeyError: there is no such slot.
            TypeError: it is smaller than that.
        """
        return np.ndarray(shape, dtype, buffer=self._memory[number], offset=offset)

    def forget(self, number: int) -> None:
        """Let go of a slot; one that is not known is none to forget."""
        self._memory.pop(number, None)
