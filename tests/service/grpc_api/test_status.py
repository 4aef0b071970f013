"""Errors over gRPC: one table that fits the tree, and details that programs can read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc.error_details_pb2 import ErrorInfo, RequestInfo, RetryInfo
from hypothesis import given
from hypothesis import strategies as st

from service.core import errors
from service.core.errors import InternalError, OverloadError, QueueFullError, ServiceError
from service.grpc_api.status import ERROR_DOMAIN, STATUS_OF_CODE, status_of


def concrete_errors(root: type[ServiceError] = ServiceError) -> Iterator[type[ServiceError]]:
    children = [child for child in root.__subclasses__() if child.__module__ == errors.__name__]
    if not children:
        yield root
    for child in children:
        yield from concrete_errors(child)


def unpacked(details: list[AnyMessage], kind: type[Any]) -> Any:
    for detail in details:
        message = kind()
        if detail.Unpack(message):
            return message
    return None


def test_the_table_has_every_code_of_the_tree_and_no_other() -> None:
    assert {error.code for error in concrete_errors()} == set(STATUS_OF_CODE)


@pytest.mark.parametrize("error_type", list(concrete_errors()), ids=lambda error: error.code)
def test_each_status_names_the_code_and_the_id_of_the_request(error_type: type[ServiceError]) -> None:
    status = status_of(error_type("what happened"), "an-id")
    assert status.code == STATUS_OF_CODE[error_type.code].value[0]
    info = unpacked(list(status.details), ErrorInfo)
    assert (info.reason, info.domain) == (error_type.code.upper(), ERROR_DOMAIN)
    assert unpacked(list(status.details), RequestInfo).request_id == "an-id"


@pytest.mark.parametrize("error_type", list(concrete_errors()), ids=lambda error: error.code)
def test_who_should_try_again_is_told_when(error_type: type[ServiceError]) -> None:
    retry = unpacked(list(status_of(error_type("busy"), "an-id").details), RetryInfo)
    assert (retry is not None) == issubclass(error_type, OverloadError)


@given(seconds=st.floats(0, 1e6))
def test_the_advice_is_the_cores_own_to_the_millisecond_and_never_nothing(seconds: float) -> None:
    status = status_of(QueueFullError("full", retry_after_s=seconds), "an-id")
    delay_ms = unpacked(list(status.details), RetryInfo).retry_delay.ToMilliseconds()
    assert delay_ms >= 1
    assert abs(delay_ms - max(1.0, 1e3 * seconds)) <= 0.51


def test_what_can_be_tried_again_is_unavailable_or_exhausted() -> None:
    retried = {STATUS_OF_CODE[e.code] for e in concrete_errors() if issubclass(e, OverloadError)}
    assert retried == {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED}


def test_a_defect_keeps_its_message_to_itself() -> None:
    assert "a detail" not in str(status_of(InternalError("a detail"), "an-id"))
