from __future__ import annotations

import json
from typing import get_args

from hypothesis import given
from hypothesis import strategies as st

from model.artifacts.manifest import ModelVersion
from service.core.device.engine import Precision
from service.core.jobs.evaluation_job import EvaluationRequest, EvaluationResult

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
