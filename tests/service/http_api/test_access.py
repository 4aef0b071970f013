"""Who may ask."""

from __future__ import annotations

import pytest
from fakes import key_ring
from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import Headers

from service.core.errors import ForbiddenError, InvalidArgumentError, UnauthenticatedError
from service.core.keys.access_key import AccessKey
from service.core.keys.key_ring import KeyRing
from service.http_api.access import LOOPBACK_HOSTS, OPEN_PATHS, AccessPolicy

KEYED = AccessPolicy(keys=key_ring("first-key", "second-key"))
LOOPBACK = AccessPolicy(hosts=LOOPBACK_HOSTS)


def headers(*pairs: tuple[str, str]) -> Headers:
    return Headers(raw=[(name.encode(), value.encode("latin-1")) for name, value in pairs])


@pytest.mark.parametrize("value", ["Bearer first-key", "bearer second-key", "Bearer  first-key "])
def test_each_key_opens_the_service(value: str) -> None:
    KEYED.admit(headers(("authorization", value)), "/v1/segment")


@pytest.mark.parametrize("value", ["", "Bearer", "Bearer first-ke", "Basic first-key", "Bearer é"])
def test_nothing_else_does(value: str) -> None:
    with pytest.raises(UnauthenticatedError):
        KEYED.admit(headers(("authorization", value)), "/v1/segment")


def test_a_missing_key_is_missed_on_every_path_that_is_not_open() -> None:
    for path in ("/", "/v1/models", "/v1/segment", "/livez/", "/docs/x", "/unknown"):
        with pytest.raises(UnauthenticatedError):
            KEYED.admit(headers(), path)


def test_a_key_for_streams_opens_the_list_of_models_and_no_picture() -> None:
    keys = KeyRing([AccessKey.of_secret("camera", ("stream",), "camera")])
    bearer = headers(("authorization", "Bearer camera"))
    for path in ("/v1/models", "/v1/models/camvid"):
        AccessPolicy(keys).admit(bearer, path)
    for path in ("/v1/segment", "/v1/models/camvid:segment", "/v1/models/camvid/versions/1:segment"):
        with pytest.raises(ForbiddenError):
            AccessPolicy(keys).admit(bearer, path)
    with pytest.raises(ForbiddenError):
        AccessPolicy(keys, scopes=("admin",)).admit(bearer, "/v1/models")


@pytest.mark.parametrize("path", sorted(OPEN_PATHS))
def test_probes_and_docs_need_no_key(path: str) -> None:
    KEYED.admit(headers(), path)


@given(value=st.text(st.characters(max_codepoint=255)))
def test_a_policy_without_keys_asks_for_none(value: str) -> None:
    AccessPolicy().admit(headers(("authorization", value)), "/v1/segment")


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:8000", "127.0.0.1:1", "[::1]", "[::1]:8000", "localhost:"]
)
def test_loopback_answers_to_its_own_names_on_any_port(host: str) -> None:
    LOOPBACK.admit(headers(("host", host)), "/v1/segment")


@pytest.mark.parametrize(
    "host", ["", "evil.example", "localhost.evil.example", "127.0.0.1.evil:80", "localhost%00"]
)
def test_loopback_answers_to_no_other_name_not_even_a_probe(host: str) -> None:
    with pytest.raises(ForbiddenError):
        LOOPBACK.admit(headers(("host", host)), "/livez")


def test_loopback_answers_to_no_request_without_a_name_but_probes_of_http_1_0() -> None:
    for path in ("/livez", "/readyz", "/startupz", "/healthz", "/health", "/ping"):
        LOOPBACK.admit(headers(), path)
    for path in ("/v1/segment", "/docs", "/livez/"):
        with pytest.raises(ForbiddenError):
            LOOPBACK.admit(headers(), path)


@pytest.mark.parametrize("policy", [AccessPolicy(), KEYED, LOOPBACK])
@pytest.mark.parametrize(
    "hosts", [["x/healthz?"], ["::1"], ["localhost:x"], ["user@localhost"], ["a b"], ["localhost"] * 2]
)
def test_a_malformed_host_or_a_second_one_is_refused_everywhere(
    policy: AccessPolicy, hosts: list[str]
) -> None:
    with pytest.raises(InvalidArgumentError):
        policy.admit(headers(*(("host", host) for host in hosts)), "/livez")


@pytest.mark.parametrize("path", ["/v1/segment\n", "/livez\0", "/v1/models/\x1b[2J"])
def test_a_path_with_control_characters_is_refused(path: str) -> None:
    with pytest.raises(InvalidArgumentError):
        AccessPolicy().admit(headers(), path)
