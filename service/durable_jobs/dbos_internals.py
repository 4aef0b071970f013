"""The private parts of DBOS that this package needs; ``pyproject.toml`` bounds its version.

Source:
    https://github.com/dbos-inc/dbos-transact-py: _serialization.py, _dbos.py, _sys_db.py of version 3.4.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NoReturn

from dbos import DBOS
from dbos._serialization import DefaultSerializer


def refuse_pickles() -> None:
    """Make DBOS fail on rows that are marked as pickles; with any serializer it unpickles them."""
    DefaultSerializer.deserialize = _refuse_pickle  # type: ignore[assignment, method-assign]


def active_workflows(dbos: DBOS) -> Collection[str]:
    """Return the ids of the workflows that run in this process, or whose results are being stored."""
    active: Collection[str] = dbos._active_workflows_set.activeList()  # noqa: SLF001
    return active


def requeue_workflow(dbos: DBOS, workflow_id: str, executor_id: str, queue: str) -> bool:
    """Queue the workflow of a dead worker again; False if it is not pending with this worker any more.

    The public ``resume_workflow`` would also resume a job that was cancelled meanwhile.
    """
    return bool(dbos._sys_db.reenqueue_for_recovery(workflow_id, [executor_id], queue))  # noqa: SLF001


def _refuse_pickle(_self: object, _serialized: str) -> NoReturn:
    raise ValueError("a row of the jobs database claims to be a pickle")
