from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from service.core.device.restart_policy import RestartBackoff, RestartPolicy, Watchdog, WorkerTimeouts


def test_a_worker_that_dies_is_replaced_at_once_and_then_after_longer_and_longer_delays() -> None:
    backoff = RestartBackoff()
    delays = [backoff.record_death(now_s) for now_s in range(10)]
    assert delays == [0, 1, 2, 4, 8, 16, 32, 60, 60, 60]


def test_a_worker_that_was_ready_for_a_while_is_forgiven_what_was_before() -> None:
    backoff = RestartBackoff(RestartPolicy(stable_s=5))
    for now_s in range(4):
        backoff.record_death(now_s)
    backoff.record_ready(10)
    assert backoff.record_death(14.9) > 0
    backoff.record_ready(20)
    assert backoff.record_death(25) == 0


def test_a_worker_that_never_became_ready_is_not_forgiven_however_long_it_tried() -> None:
    backoff = RestartBackoff()
    assert backoff.record_death(0) == 0
    assert backoff.record_death(1e6) == 1


@given(st.lists(st.tuples(st.floats(0, 100), st.booleans()), max_size=60))
def test_delays_stay_within_their_bounds_and_never_shrink_in_a_crash_loop(
    workers: list[tuple[float, bool]],
) -> None:
    backoff, now_s, last_s = RestartBackoff(), 0.0, 0.0
    for duration_s, is_ready in workers:
        if is_ready:
            backoff.record_ready(now_s)
        now_s += duration_s
        delay_s = backoff.record_death(now_s)
        assert 0 <= delay_s <= 60
        assert delay_s >= last_s or (is_ready and duration_s > 4.99)
        last_s = delay_s


def test_thousands_of_deaths_are_no_reason_to_fail() -> None:
    backoff = RestartBackoff()
    assert {backoff.record_death(0) for _ in range(5000)} == {0, 1, 2, 4, 8, 16, 32, 60}


def test_a_worker_that_owes_nothing_is_never_overdue() -> None:
    watchdog = Watchdog(WorkerTimeouts())
    assert watchdog.hangs_at_s() is None
    watchdog.record_sent(1, expected_s=0, now_s=0)
    watchdog.record_answered(1, 1)
    assert watchdog.hangs_at_s() is None


def test_an_answer_is_due_after_ten_times_what_was_expected_but_never_before_the_floor() -> None:
    watchdog = Watchdog(WorkerTimeouts(batch_s=10, batch_factor=10))
    watchdog.record_sent(1, expected_s=0.02, now_s=100)
    assert watchdog.hangs_at_s() == 110
    watchdog.record_answered(1, 101)
    watchdog.record_sent(2, expected_s=3, now_s=200)
    assert watchdog.hangs_at_s() == 230


def test_a_job_that_waits_behind_another_has_its_time_from_the_moment_that_one_ends() -> None:
    watchdog = Watchdog(WorkerTimeouts(batch_s=10))
    watchdog.record_sent(1, expected_s=0, now_s=0)
    watchdog.record_sent(2, expected_s=0, now_s=1)
    watchdog.record_answered(1, 9)
    assert watchdog.hangs_at_s() == 19
