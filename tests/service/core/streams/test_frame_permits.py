"""Streams share the device evenly, and frames start just in time for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from statistics import mean

import pytest
from stream_simulation import Simulation

from service.core.streams.frame_permits import FramePermits, FrameTiming


def test_turns_go_round() -> None:
    permits = FramePermits(max_frames=1)
    order: list[str] = []

    def taker(name: str) -> Callable[[], bool]:
        def take() -> bool:
            order.append(name)
            return True

        return take

    takers = [taker(name) for name in "abc"]
    for _ in range(3):
        for take in takers:
            permits.request(take)
        for take in takers:
            permits.release()
            permits.request(take)
    assert all(first != second for first, second in pairwise(order))
    assert max(Counter(order).values()) - min(Counter(order).values()) <= 1


def test_a_turn_that_is_not_used_goes_to_the_next() -> None:
    permits = FramePermits(max_frames=1)
    taken: list[str] = []
    permits.request(lambda: False)
    permits.request(lambda: not taken.append("used"))
    permits.request(lambda: not taken.append("too many"))
    assert taken == ["used"]


def test_films_have_more_turns_while_no_live_stream_is_there() -> None:
    permits = FramePermits(max_frames=1, max_film_frames=3)
    taken: Counter[str] = Counter()

    def film() -> bool:
        taken["film"] += 1
        return True

    def live() -> bool:
        taken["live"] += 1
        return True

    for _ in range(4):
        permits.request(film, is_live=False)
    assert taken == {"film": 3}
    permits.request(live)
    permits.release()
    permits.release()
    assert taken == {"film": 3}
    permits.release()
    assert taken.total() == 4  # one of the two that wait
    permits.remove_stream(live)
    permits.request(film, is_live=False)
    assert taken["film"] >= 4


def test_who_left_the_line_gets_no_turn() -> None:
    permits = FramePermits(max_frames=1)
    taken: list[str] = []
    permits.request(lambda: not taken.append("first"))

    def late() -> bool:
        return not taken.append("gone")

    permits.request(late)
    permits.remove_stream(late)
    permits.release()
    assert taken == ["first"]


@pytest.mark.parametrize("seed", range(20))
def test_eight_cameras_get_equal_shares_of_fresh_results(seed: int) -> None:
    simulation = Simulation(seed, cameras=8, frame_s=0.012)
    simulation.run(seconds=10)
    for camera in simulation.cameras:
        assert camera.ledger.answered == camera.ledger.sent
        assert max(camera.ages_s) <= camera.period_s + 2 * 0.012 + 0.005
    shares = [camera.frames_started for camera in simulation.cameras]
    assert max(shares) - min(shares) <= 1
    assert 0.012 * sum(shares) >= 0.98 * 10  # the device is never idle


@pytest.mark.parametrize("jitter", [0.0, 0.1, 0.3])
def test_frames_taken_just_in_time_are_younger_and_the_device_is_as_busy(jitter: float) -> None:
    ages_s: list[float] = []
    served: list[int] = []
    for just_in_time in (False, True):
        simulation = Simulation(3, cameras=8, frame_s=0.02, jitter=jitter, just_in_time=just_in_time)
        simulation.run(seconds=30)
        ages_s.append(mean(age_s for camera in simulation.cameras for age_s in camera.ages_s))
        shares = [camera.frames_started for camera in simulation.cameras]
        assert max(shares) - min(shares) <= 2
        assert all(camera.ledger.answered == camera.ledger.sent for camera in simulation.cameras)
        served.append(sum(shares))
    assert ages_s[1] <= ages_s[0] - 0.02 * (0.7 - 1.2 * jitter)
    assert served[1] >= 0.99 * served[0]


def test_nothing_is_awaited_before_anything_is_known() -> None:
    timing = FrameTiming()
    timing.learn(lead_s=0.05, busy_s=1.0)  # the first of a size
    for _ in range(14):
        timing.learn(lead_s=0.001, busy_s=0.02)
        assert timing.delay_s == 0
    timing.learn(lead_s=0.001, busy_s=0.02)
    assert timing.delay_s == pytest.approx(0.02 - 0.001 - 0.001)


def test_a_pause_of_the_machine_does_not_make_frames_older() -> None:
    timing = FrameTiming()
    for _ in range(50):
        timing.learn(lead_s=0.001, busy_s=0.02)
    before_s = timing.delay_s
    for _ in range(3):
        timing.learn(lead_s=0.05, busy_s=0.01)
        assert timing.delay_s == before_s
    timing.learn(lead_s=0.05, busy_s=0.01)
    assert timing.delay_s < before_s


def test_a_frame_that_takes_longer_than_the_device_is_never_awaited() -> None:
    timing = FrameTiming()
    for _ in range(50):
        timing.learn(lead_s=0.03, busy_s=0.02)
    assert timing.delay_s == 0


def experienced(permits: FramePermits) -> FramePermits:
    """Let permits learn that a frame takes 20 ms in the device, and 1 ms before."""
    for _ in range(32):
        permits.request(yes)
        permits.frame_left_device(lead_s=0.001, busy_s=0.02)
    permits.remove_stream(yes)
    return permits


def yes() -> bool:
    return True


def test_a_turn_rests_only_while_the_device_has_another_frame_and_a_live_stream_is_there() -> None:
    permits = experienced(FramePermits(max_frames=2))

    def film() -> bool:
        return True

    permits.request(yes)
    permits.request(film, is_live=False)
    assert permits.frame_left_device(lead_s=0.001, busy_s=0.02) == pytest.approx(0.018)
    assert permits.frame_left_device(lead_s=0.001, busy_s=0.02) == 0  # the device has no other
    permits.release_delayed()
    permits.request(yes)
    permits.request(film, is_live=False)
    permits.remove_stream(yes)
    assert permits.frame_left_device(lead_s=0.001, busy_s=0.02) == 0  # films want many frames, not young ones


def test_a_resting_permit_belongs_to_no_stream_until_it_is_given_back() -> None:
    permits = experienced(FramePermits(max_frames=2))
    taken: list[str] = []
    for name in "abc":
        permits.request(lambda name=name: not taken.append(name))  # type: ignore[misc]
    assert taken == ["a", "b"]
    assert permits.frame_left_device(lead_s=0.001, busy_s=0.02)
    assert taken == ["a", "b"]
    permits.release_delayed()
    assert taken == ["a", "b", "c"]


def test_one_camera_that_the_device_can_follow_loses_no_frame() -> None:
    simulation = Simulation(1, cameras=1, frame_s=0.012)
    simulation.run(seconds=10)
    (camera,) = simulation.cameras
    assert camera.frames_started == len(camera.ledger.sent)
    assert max(camera.ages_s) <= 2 * 0.012
