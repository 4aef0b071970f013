"""Shared memory between the service and a worker process, in slots.

A slot is an anonymous file (``memfd_create``); its memory is freed with the last process that maps it. It
holds the pixels of a prepared picture and its labels behind them, or a batch and its scores. Slots are
reused, since a new page costs a microsecond in each process, and freed after some idle seconds.

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

# Neither process can shrink a file that the other one reads.
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL

AnyArray = npt.NDArray[Any]


@dataclass(eq=False)
class Slot:
    """One region of shared memory.

    Attributes:
        number: its name in messages; never reused.
        descriptor: of the file, until a worker has it. Python's mapping keeps a duplicate of its own.
        memory: the region.
        address: of its first byte in this process.
        holds_answer: the second array has been written.
        used_bytes: most bytes ever used; the pages behind were never touched and take no memory.
        idle_since_s: when the slot became idle.
        is_retired: the slot is not used again.
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
        """Size in bytes."""
        return len(self.memory)

    def close_descriptor(self) -> None:
        """Close the descriptor, keep the mapping: with thousands of clients files are scarcer than memory."""
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None


class SlotLease:
    """The use of a slot for one picture; ends when no array in the slot is referenced any more.

    Args:
        slot: the slot.
        anchor: referenced by every array in the slot.
    """

    def __init__(self, slot: Slot, anchor: Any) -> None:
        self.slot = slot
        self._anchor = anchor

    def array(self, shape: tuple[int, ...], dtype: npt.DTypeLike = np.uint8, offset: int = 0) -> AnyArray:
        """Return a part of the slot as a C-contiguous array; nothing is copied."""
        return np.ndarray(shape, dtype, buffer=self._anchor, offset=offset)


def next_array_offset(num_bytes: int) -> int:
    """Return the offset of the second array in a slot whose first array has ``num_bytes``."""
    return -(-num_bytes // _ALIGNMENT) * _ALIGNMENT


class SlotPool:
    """Slots in use and idle ones; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = 0
        self._idle: list[Slot] = []  # the latest comes last
        self._forgotten: list[int] = []
        # Filled by finalizers, which may run while this thread holds the lock.
        self._returned: deque[Slot] = deque()
        self._slots: dict[int, Slot] = {}  # by address
        self._anchors: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()  # by address

    def lease(self, num_bytes: int, *, now_s: float) -> SlotLease:
        """Return a slot of at least ``num_bytes``.

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
        """Return the lease of the slot at whose start an array lies; None if it lies elsewhere."""
        address = array.__array_interface__["data"][0]
        with self._lock:
            anchor = self._anchors.get(address)
            return None if anchor is None else SlotLease(self._slots[address], anchor)

    def trim(self, *, now_s: float) -> list[int]:
        """Free slots that have been idle for a while; return the numbers of all freed since the last call."""
        with self._lock:
            self._collect(now_s)
            self._drop([slot for slot in self._idle if now_s - slot.idle_since_s >= _IDLE_S])
            forgotten, self._forgotten = self._forgotten, []
            return forgotten

    def retire(self) -> None:
        """Use no present slot again: a new worker cannot be given one whose descriptor is closed."""
        with self._lock:
            for slot in self._slots.values():
                slot.is_retired = True
            self._drop(list(self._idle))

    @property
    def idle_bytes(self) -> int:
        """Memory of idle slots, in bytes."""
        return sum(slot.used_bytes for slot in self._idle)

    def close(self) -> None:
        """Free all idle slots."""
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
            slot.close_descriptor()  # the memory is freed with the last reference to its mapping


def _anchor(memory: mmap.mmap) -> Any:
    """Return a new object that arrays can reference; its finalizer runs when no array is left."""
    return (ctypes.c_char * len(memory)).from_buffer(memory)


def _capacity(num_bytes: int) -> int:
    """Round up to a power of two, so that slots fit many sizes; untouched pages cost nothing."""
    return max(_SMALLEST_BYTES, 1 << (num_bytes - 1).bit_length())


class SlotMap:
    """The slots as the worker sees them; descriptors come with the first message that names a slot."""

    def __init__(self) -> None:
        self._memory: dict[int, mmap.mmap] = {}

    def __contains__(self, number: int) -> bool:
        """Return whether a slot is known."""
        return number in self._memory

    def add(self, number: int, descriptor: int) -> None:
        """Map a slot and close its descriptor.

        Raises:
            OSError: the descriptor cannot be mapped.
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
            TypeError: the array does not fit into the slot.
            ValueError: no array can have this shape.
        """
        return np.ndarray(shape, dtype, buffer=self._memory[number], offset=offset)

    def forget(self, number: int) -> None:
        """Unmap a slot, if it is mapped."""
        self._memory.pop(number, None)
