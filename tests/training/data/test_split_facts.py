from __future__ import annotations

import pytest

from training.data.split_facts import (
    BrokenPair,
    SplitFacts,
    TurnedPicture,
    class_shares,
    color_statistics,
)

COLORS = [[4] + [0] * 255, [0] * 255 + [4], [2] + [0] * 254 + [2]]
FACTS = SplitFacts(
    split="train",
    fingerprint="0" * 64,
    pictures=2,
    sizes={"2x2": 1},
    ids={0: 3, 255: 1},
    colors=COLORS,
    broken={1: BrokenPair("train.csv:2: 2.png", "torn", (7,))},
    flaws=["a flaw"],
    turned={0: TurnedPicture(6, with_labels=True)},
    unlabelled=[0],
    nearest_pixels=1,
)


def test_facts_survive_json() -> None:
    assert SplitFacts.from_json(FACTS.to_json()) == FACTS


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"ids": 5}', '{"ids": {}, "broken": {}, "turned": {}}'])
def test_other_json_is_no_facts(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - json raises its own kind of it
        SplitFacts.from_json(text)


def test_statistics_are_those_of_all_pixels_of_all_splits() -> None:
    assert FACTS.pixels == 4
    mean, std = color_statistics([FACTS, FACTS])
    assert mean == (0, 1, 0.5)
    assert std == (0, 0, 0.5)


def test_frequencies_are_shares_of_the_labelled_pixels() -> None:
    assert class_shares([FACTS], 2) == [1, 0]
    assert class_shares([], 2) == [0, 0]


def test_a_broken_pair_says_where_and_what() -> None:
    assert FACTS.broken[1].message == "train.csv:2: 2.png: torn"
    assert not FACTS.is_sound
