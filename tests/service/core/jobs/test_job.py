from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from service.core.jobs.job import MAX_RESCUES, SUCCESSORS, JobError, JobPlan, JobProgress, JobState, Pace

plans = st.builds(JobPlan, st.integers(0, 5000), st.integers(1, 100), st.just({"engine": "fake"}))


@given(plans)
def test_a_plan_survives_the_database(plan: JobPlan) -> None:
    assert JobPlan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


@given(plans)
def test_every_picture_is_in_exactly_one_step_and_in_order(plan: JobPlan) -> None:
    pictures = [picture for shard in plan.shards() for step in shard for picture in step]
    assert pictures == list(range(plan.images))


@given(plans)
def test_no_step_is_longer_than_planned_and_no_shard_is_empty(plan: JobPlan) -> None:
    assert all(
        shard and all(0 < len(step) <= plan.images_per_step for step in shard) for shard in plan.shards()
    )


def test_a_job_of_a_million_pictures_has_a_bounded_number_of_shards() -> None:
    assert len(JobPlan(1_000_000, 1, {}).shards()) == 256


def test_the_transitions_are_those_of_the_interface() -> None:
    drawn = {(a.value, b.value) for a, following in SUCCESSORS.items() for b in following}
    assert drawn == {
        ("queued", "running"),
        ("queued", "cancelled"),
        ("queued", "failed"),
        ("running", "succeeded"),
        ("running", "failed"),
        ("running", "cancelled"),
    }


def test_what_has_ended_stays_as_it_is() -> None:
    assert {state for state in JobState if state.is_final} == {
        JobState.SUCCEEDED,
        JobState.FAILED,
        JobState.CANCELLED,
    }


class ShardMachine(RuleBasedStateMachine):
    """A shard whose workers die, stop on purpose, or finish steps, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.progress = JobProgress()
        self.deaths_here = 0
        self.runs = False

    @precondition(lambda self: not self.runs)
    @rule()
    def begin(self) -> None:
        if self.deaths_here > MAX_RESCUES:
            with pytest.raises(JobError, match=f"after {self.progress.done}$"):
                self.progress.started()
        else:
            self.progress = self.progress.started()
            self.runs = True

    @precondition(lambda self: self.runs)
    @rule(images=st.integers(1, 9))
    def finish_a_step(self, images: int) -> None:
        done = self.progress.done
        self.progress = self.progress.advanced(done + images)
        assert self.progress.done == done + images
        self.deaths_here = 0

    @precondition(lambda self: self.runs)
    @rule()
    def die(self) -> None:
        self.deaths_here += 1
        self.runs = False

    @precondition(lambda self: self.runs)
    @rule()
    def be_stopped_on_purpose(self) -> None:
        self.progress = self.progress.suspended()
        self.deaths_here = 0
        self.runs = False

    @precondition(lambda self: self.runs)
    @rule(back=st.integers(0, 50))
    def replay_stored_steps(self, back: int) -> None:
        assert self.progress.advanced(max(0, self.progress.done - back)) == self.progress


TestShard = ShardMachine.TestCase
TestShard.settings = settings(max_examples=50, stateful_step_count=30)


def test_work_is_begun_again_three_times_at_the_same_place_and_then_fails() -> None:
    progress = JobProgress()
    for _ in range(1 + MAX_RESCUES):
        progress = progress.started()
    with pytest.raises(JobError, match="died 4 times at the same pictures, after 0"):
        progress.started()


def test_who_gets_further_each_time_may_die_as_often_as_it_likes() -> None:
    progress = JobProgress()
    for done in range(1, 100):
        progress = progress.started().advanced(done)
    assert progress.started().done == 99


def test_a_pace_is_the_mean_since_the_first_look() -> None:
    pace = Pace(begun_s=100.0, done=40)
    assert pace.pictures_per_s(110.0, 90) == 5.0
    for too_early in ((110.0, 40), (100.0, 90)):
        assert pace.pictures_per_s(*too_early) is None


def test_the_pace_is_kept_with_the_progress_and_ends_with_a_planned_stop() -> None:
    progress = JobProgress().started().advanced(8, 2.5)
    assert progress.pictures_per_s == 2.5
    assert progress.started().pictures_per_s == 2.5
    assert progress.suspended().pictures_per_s is None
