"""Aliases are looked at again and again, whatever a look comes to."""

from __future__ import annotations

import threading

import pytest
from fakes import PATIENCE_S
from structlog.testing import capture_logs

from service.core.errors import BusyError
from service.core.models.alias_follower import AliasFollower


class Versions:
    """Fails at the second and third look, and tells when it was looked at five times."""

    def __init__(self, failure: Exception) -> None:
        self.looks = 0
        self.enough = threading.Event()
        self._failure = failure

    def catch_up(self) -> None:
        self.looks += 1
        if self.looks >= 5:
            self.enough.set()
        if self.looks in (2, 3):
            raise self._failure


@pytest.mark.parametrize("failure", [BusyError("away"), ValueError("a defect")])
def test_a_look_that_fails_is_told_once_and_ends_nothing(failure: Exception) -> None:
    versions = Versions(failure)
    with capture_logs() as log, AliasFollower(versions, 0.001) as follower:  # type: ignore[arg-type]
        follower.start()
        assert versions.enough.wait(PATIENCE_S)
    events = [entry["event"] for entry in log]
    assert set(events) == {"aliases cannot be followed for now"}
    assert len(events) == (1 if isinstance(failure, BusyError) else 2)


def test_it_looks_no_more_when_it_is_closed() -> None:
    versions = Versions(BusyError("away"))
    with AliasFollower(versions, 0.001) as follower:  # type: ignore[arg-type]
        follower.start()
        assert versions.enough.wait(PATIENCE_S)
    looks = versions.looks
    assert not follower._thread.is_alive()
    assert versions.looks == looks


def test_one_that_never_began_is_closed_as_well() -> None:
    with AliasFollower(Versions(BusyError("away")), 60.0):  # type: ignore[arg-type]
        pass
