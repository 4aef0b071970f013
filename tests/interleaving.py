"""Let threads share a storage one operation at a time, in an order that a test decides."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from fakes import PATIENCE_S

from model.artifacts.storage import Storage, StoredObject

T = TypeVar("T")
Outcome = object
"""What an actor returned, or the exception that it ended with."""


class Actor:
    """A thread that stops before each operation on its storage until it is its turn.

    Args:
        storage: shared with other actors.
        work: what to do with it.
    """

    def __init__(self, storage: Storage, work: Callable[[Storage], Outcome]) -> None:
        self.outcome: Outcome = None
        self.done = False
        self._storage = storage
        self._work = work
        self._stopped = threading.Semaphore(0)
        self._go_on = threading.Semaphore(0)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        assert self._stopped.acquire(timeout=PATIENCE_S)

    def take_turn(self) -> None:
        """Do one operation, and what follows until the next one."""
        self._go_on.release()
        assert self._stopped.acquire(timeout=PATIENCE_S)

    def _run(self) -> None:
        try:
            self.outcome = self._work(self)
        except Exception as error:  # noqa: BLE001 - a test looks at it
            self.outcome = error
        self.done = True
        self._stopped.release()

    def _in_turn(self, operation: Callable[[], T]) -> T:
        self._stopped.release()
        assert self._go_on.acquire(timeout=PATIENCE_S)
        return operation()

    def create(self, path: str, data: bytes) -> bool:
        return self._in_turn(lambda: self._storage.create(path, data))

    def swap(self, path: str, old: bytes, new: bytes) -> bool:
        return self._in_turn(lambda: self._storage.swap(path, old, new))

    def read(self, path: str) -> bytes | None:
        return self._in_turn(lambda: self._storage.read(path))

    def objects(self, prefix: str) -> list[StoredObject]:
        return self._in_turn(lambda: self._storage.objects(prefix))

    def delete(self, path: str) -> None:
        self._in_turn(lambda: self._storage.delete(path))

    def local_folder(self, prefix: str) -> Path | None:
        return self._storage.local_folder(prefix)


def interleave(
    storage: Storage, works: Sequence[Callable[[Storage], Outcome]], order: Iterable[int]
) -> list[Outcome]:
    """Run all works, each in a thread of its own; at most one does something at any time.

    Args:
        storage: what they share.
        works: called with a storage.
        order: whose turn it is, as indices into ``works``; who is done is passed over. When it ends, those
            that are left take turns.

    Returns:
        The outcome of each.
    """
    actors = [Actor(storage, work) for work in works]
    for index in order:
        if not actors[index].done:
            actors[index].take_turn()
    while not all(actor.done for actor in actors):
        for actor in actors:
            if not actor.done:
                actor.take_turn()
    return [actor.outcome for actor in actors]
