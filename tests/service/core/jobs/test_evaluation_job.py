from __future__ import annotations

import json
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from model.artifacts.manifest import ModelVersion
from service.core.device.engine import Precision
from service.core.jobs.evaluation_job import EvaluationRequest, EvaluationResult
from service.core.jobs.job import MAX_RESCUES, SUCCESSORS, JobError, JobPlan, JobProgress, JobState

names = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,20}", fullmatch=True)
requests = st.builds(
    EvaluationRequest,
    version=st.builds(ModelVersion, names, st.integers(1, 999)),
    dataset=names,
    split=names,
    protocol=names,
    skip_broken=st.booleans(),
    reference=st.none() | names,
    precision=st.none() | st.sampled_from(get_args(Precision)),
)
fractions = st.none() | st.floats(0, 1)
results = st.builds(
    EvaluationResult,
    miou=fractions,
    per_class=st.dictionaries(names, fractions),
    images=st.integers(0, 10**6),
    skipped=st.lists(names).map(tuple),
    digest=st.text("0123456789abcdef"),
)
plans = st.builds(JobPlan, st.integers(0, 5000), st.integers(1, 100), st.just({"engine": "fake"}))


@given(requests)
def test_a_request_survives_the_database(request: EvaluationRequest) -> None:
    assert EvaluationRequest.from_json(json.loads(json.dumps(request.to_json()))) == request


def test_a_request_of_before_references_and_precisions_were_kept_can_still_be_read() -> None:
    request = EvaluationRequest(ModelVersion("city", 3), "streets", "val", "ss")
    document = request.to_json()
    del document["reference"], document["precision"]
    assert EvaluationRequest.from_json(document) == request


@given(results)
def test_a_result_survives_the_database(result: EvaluationResult) -> None:
    assert EvaluationResult.from_json(json.loads(json.dumps(result.to_json()))) == result


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
