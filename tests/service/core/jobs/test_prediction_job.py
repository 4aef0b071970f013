from __future__ import annotations

import json
from typing import get_args

from hypothesis import given
from hypothesis import strategies as st

from model.artifacts.manifest import ModelVersion
from service.core.device.engine import Precision
from service.core.jobs.job import JobState
from service.core.jobs.prediction_job import (
    PictureFailure,
    PredictionJob,
    PredictionOutput,
    PredictionRequest,
    PredictionResult,
)

names = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,20}", fullmatch=True)
counts = st.integers(0, 10**6)
requests = st.builds(
    PredictionRequest,
    version=st.builds(ModelVersion, names, st.integers(1, 999)),
    source=names,
    target=names,
    output=st.sampled_from(get_args(PredictionOutput)),
    reference=names,
    precision=st.none() | st.sampled_from(get_args(Precision)),
)
results = st.builds(
    PredictionResult,
    written=counts,
    kept=counts,
    failed=counts,
    failures=st.lists(st.builds(PictureFailure, st.text(), names, st.text())).map(tuple),
    not_taken=st.dictionaries(names, counts),
    manifest=names,
    digest=st.text("0123456789abcdef"),
)


@given(requests)
def test_a_request_survives_the_database(request: PredictionRequest) -> None:
    assert PredictionRequest.from_json(json.loads(json.dumps(request.to_json()))) == request


@given(results)
def test_a_result_survives_the_database(result: PredictionResult) -> None:
    assert PredictionResult.from_json(json.loads(json.dumps(result.to_json()))) == result


def test_the_rest_of_a_job_takes_as_long_as_its_pace_says() -> None:
    request = PredictionRequest(ModelVersion("city", 3), "camera", "masks", "labels", "city")
    job = PredictionJob("0", request, JobState.RUNNING, 40, 100, pictures_per_s=4.0)
    assert job.eta_s == 15.0
    for unknown in (
        PredictionJob("0", request, JobState.RUNNING, 0, 100),
        PredictionJob("0", request, JobState.RUNNING, 0, None, pictures_per_s=4.0),
        PredictionJob("0", request, JobState.FAILED, 4, 9, pictures_per_s=4.0),
    ):
        assert unknown.eta_s is None
