from __future__ import annotations

import os
import signal

import pytest

from training.run.stop_signals import StopRequest


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_remembered_and_does_not_interrupt(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    stop = StopRequest()
    with stop.listening():
        seen = [stop.requested]
        os.kill(os.getpid(), number)
        seen.append(stop.requested)
    assert seen == [False, True]
    assert signal.getsignal(number) == before
