"""Errors: one table that fits the tree, one document for all of them."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.core import errors
from service.core.errors import (
    BusyError,
    InternalError,
    InvalidArgumentError,
    LoadingError,
    OverloadError,
    QueueFullError,
    ServiceError,
)
from service.http_api.exchange import Exchange
from service.http_api.problems import STATUS_OF_CODE, MethodNotAllowedError, problem


def concrete_errors(root: type[ServiceError] = ServiceError) -> Iterator[type[ServiceError]]:
    """Yield the leaves of the core's tree: the classes that are raised."""
    children = [child for child in root.__subclasses__() if child.__module__ == errors.__name__]
    if not children:
        yield root
    for child in children:
        yield from concrete_errors(child)


def exchange() -> Exchange:
    return Exchange("an-id", 0.0)


def test_the_table_has_every_code_of_the_tree_and_no_other() -> None:
    assert {error.code for error in concrete_errors()} == set(STATUS_OF_CODE)


def test_no_two_errors_share_a_code() -> None:
    codes = [error.code for error in concrete_errors()]
    assert len(codes) == len(set(codes))


@pytest.mark.parametrize("error_type", list(concrete_errors()), ids=lambda error: error.code)
def test_each_error_is_a_problem_document_with_its_code_and_the_id_of_the_request(
    error_type: type[ServiceError],
) -> None:
    seen = exchange()
    response = problem(error_type("what happened"), seen)
    document = json.loads(bytes(response.body))
    assert response.media_type == "application/problem+json"
    assert document["status"] == response.status_code == STATUS_OF_CODE[error_type.code]
    assert (document["code"], document["request_id"]) == (error_type.code, "an-id")
    assert set(document) == {"type", "title", "status", "code", "detail", "request_id"}
    assert seen.code == error_type.code


@pytest.mark.parametrize("error_type", list(concrete_errors()), ids=lambda error: error.code)
def test_who_should_try_again_is_told_when(error_type: type[ServiceError]) -> None:
    response = problem(error_type("busy"), exchange())
    assert ("retry-after" in response.headers) == issubclass(error_type, OverloadError)


@given(seconds=st.floats(0, 1e6))
def test_the_advice_is_a_whole_number_of_seconds_and_never_too_early(seconds: float) -> None:
    advice = int(problem(QueueFullError("full", retry_after_s=seconds), exchange()).headers["retry-after"])
    assert advice >= 1
    assert seconds <= advice < max(1, seconds) + 1


@pytest.mark.parametrize("error_type", [BusyError, LoadingError])
def test_who_was_refused_with_others_comes_back_at_another_time(error_type: type[OverloadError]) -> None:
    advice = {
        int(problem(error_type("busy", retry_after_s=4.5), exchange()).headers["retry-after"])
        for _ in range(300)
    }
    assert advice == {5, 6, 7}


@pytest.mark.guarantee("G26")
def test_only_a_defect_keeps_its_message_to_itself() -> None:
    for error, is_shown in ((InvalidArgumentError("a detail"), True), (InternalError("a detail"), False)):
        document = json.loads(bytes(problem(error, exchange()).body))
        assert ("a detail" in document["detail"]) == is_shown


def test_a_wrong_method_is_a_405_that_names_the_right_ones() -> None:
    response = problem(MethodNotAllowedError("GET", "POST"), exchange())
    assert (response.status_code, response.headers["allow"]) == (405, "POST")
    assert json.loads(bytes(response.body))["code"] == "invalid_argument"
