from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.artifacts.aliases import Alias, parse_alias
from model.errors import StorageError

NUMBERS = st.integers(1, 999_999_999)
ALIASES = st.builds(Alias, NUMBERS, st.lists(NUMBERS, max_size=5).map(tuple))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda children: (
        st.lists(children) | st.dictionaries(st.sampled_from(["version", "previous", "x"]), children)
    ),
    max_leaves=6,
)


@given(ALIASES)
def test_what_is_written_is_read_back(alias: Alias) -> None:
    assert parse_alias("p", alias.to_json()) == alias


def test_an_alias_is_the_json_that_the_interface_names() -> None:
    assert json.loads(Alias(3, (2, 1)).to_json()) == {"version": 3, "previous": [2, 1]}


@given(st.binary() | JSON.map(lambda value: json.dumps(value).encode()))
def test_anything_else_is_an_alias_or_an_error(data: bytes) -> None:
    try:
        alias = parse_alias("p", data)
    except StorageError:
        return
    assert parse_alias("p", alias.to_json()) == alias


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"3",
        b"[]",
        b"{}",
        b'{"version": 1}',
        b'{"version": 1, "previous": [], "more": 1}',
        b'{"version": "1", "previous": []}',
        b'{"version": true, "previous": []}',
        b'{"version": 0, "previous": []}',
        b'{"version": 1000000000, "previous": []}',
        b'{"version": 1, "previous": 1}',
        b'{"version": 1, "previous": [0]}',
        b'{"version": 1.0, "previous": []}',
        b'{"version": ' + b"1" * 5000 + b', "previous": []}',
        b"[" * 99_999,
        b"\xff",
    ],
)
def test_a_malformed_alias_is_named(content: bytes) -> None:
    with pytest.raises(StorageError, match=r"production\.json is no alias"):
        parse_alias("models/city/aliases/production.json", content)


def test_promotion_remembers_where_the_alias_pointed() -> None:
    assert Alias(1).promoted(2).promoted(5) == Alias(5, (2, 1))


@given(ALIASES)
def test_to_promote_the_current_version_changes_nothing(alias: Alias) -> None:
    assert alias.promoted(alias.version) == alias


@given(ALIASES, NUMBERS)
def test_rollback_undoes_a_promotion(alias: Alias, number: int) -> None:
    moved = alias.promoted(number)
    undone = moved.rolled_back({alias.version, *alias.previous})
    assert alias in (moved, undone)


def test_rollback_passes_over_versions_that_are_gone() -> None:
    assert Alias(4, (3, 2, 1)).rolled_back({1, 2, 4}) == Alias(2, (1,))
    assert Alias(4, (3, 2)).rolled_back({4}) is None
    assert Alias(4).rolled_back({1, 2, 3, 4}) is None


def test_rollback_leads_to_another_version() -> None:
    assert Alias(3, (2, 3, 1)).rolled_back({1, 3}) == Alias(1)


def test_the_memory_of_an_alias_is_bounded() -> None:
    alias = Alias(1)
    for number in range(2, 1100):
        alias = alias.promoted(number)
    assert alias.previous == tuple(range(1098, 98, -1))
