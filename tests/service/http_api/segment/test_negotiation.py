"""What a client accepts decides what it gets."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.core.errors import NotAcceptableError
from service.http_api.segment.negotiation import JPEG, JSON, NPY, OFFERS, PNG, RAW, Output, negotiate

ALL_TYPES = (PNG, JPEG, JSON, NPY, RAW)
OUTPUTS: tuple[Output, ...] = ("labels", "color", "overlay")


@pytest.mark.parametrize("accept", [[], [""], ["*/*"], ["image/*"], ["text/html, */*;q=0.8"], [" , "]])
@pytest.mark.parametrize("output", OUTPUTS)
def test_a_client_that_does_not_mind_gets_png(accept: list[str], output: Output) -> None:
    assert negotiate(accept, output) == PNG


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("media_type", ALL_TYPES)
def test_an_exact_type_is_given_or_refused(output: Output, media_type: str) -> None:
    if media_type in OFFERS[output]:
        assert negotiate([media_type], output) == media_type
    else:
        with pytest.raises(NotAcceptableError, match=output):
            negotiate([media_type], output)


def test_labels_are_never_a_jpeg() -> None:
    assert JPEG not in OFFERS["labels"]


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        (["image/jpeg;q=0.5, application/json;q=0.9"], JSON),
        (["image/jpeg, */*;q=0.1"], JPEG),
        (["image/png;q=0.2", "image/jpeg;q=0.3"], JPEG),
        (["image/*;q=0.5, image/png;q=0"], JPEG),
        (["*/*, image/png;q=0, image/jpeg;q=0"], JSON),
        (["IMAGE/JPEG ; Q=1.000"], JPEG),
        (["image/jpeg;q=oops, image/png;q=0.001"], PNG),
        (["application/json;charset=utf-8;q=0.7, image/png;q=0.6"], JSON),
    ],
)
def test_the_highest_quality_wins_and_the_most_specific_range_gives_it(
    accept: list[str], expected: str
) -> None:
    assert negotiate(accept, "color") == expected


@pytest.mark.parametrize("accept", ["text/html", "image/webp", "*/*;q=0", "image/png;q=0", "image", "q=1"])
def test_what_cannot_be_satisfied_is_refused(accept: str) -> None:
    with pytest.raises(NotAcceptableError):
        negotiate([accept], "overlay")


@given(accept=st.lists(st.text(), max_size=4), output=st.sampled_from(OUTPUTS))
def test_any_header_gives_an_offer_or_a_refusal(accept: list[str], output: Output) -> None:
    with contextlib.suppress(NotAcceptableError):
        assert negotiate(accept, output) in OFFERS[output]


@given(
    qualities=st.dictionaries(st.sampled_from(ALL_TYPES), st.integers(0, 1000), min_size=1),
    output=st.sampled_from(OUTPUTS),
)
def test_no_other_offer_has_a_higher_quality(qualities: dict[str, int], output: Output) -> None:
    accept = ", ".join(f"{name};q={quality / 1000:.3f}" for name, quality in qualities.items())
    best = max(qualities.get(offer, 0) for offer in OFFERS[output])
    if best == 0:
        with pytest.raises(NotAcceptableError):
            negotiate([accept], output)
    else:
        assert qualities[negotiate([accept], output)] == best
