"""One picture is taken out of a form, whatever else the form holds."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.core.errors import InvalidArgumentError
from service.http_api.segment.form import MAX_FIELD_BYTES, MAX_PARTS, FormFile, boundary_of

BOUNDARY = b"xYz"


def part(name: str, content: bytes, extra: str = "") -> bytes:
    head = f'--xYz\r\nContent-Disposition: form-data; name="{name}"{extra}\r\n\r\n'
    return head.encode() + content + b"\r\n"


def form(*parts: bytes) -> bytes:
    return b"".join(parts) + b"--xYz--\r\n"


def parse(*chunks: bytes) -> bytes:
    parser = FormFile(BOUNDARY)
    for chunk in chunks:
        parser.feed(chunk)
    return parser.finish()


@given(content=st.binary(max_size=200), cuts=st.lists(st.integers(0, 400), max_size=6))
def test_the_file_is_the_same_however_the_form_is_cut_into_chunks(content: bytes, cuts: list[int]) -> None:
    whole = form(part("note", b"hello"), part("file", content, '; filename="../../a.jpg"'))
    ends = [0, *sorted(min(cut, len(whole)) for cut in cuts), len(whole)]
    assert parse(*(whole[a:b] for a, b in itertools.pairwise(ends))) == content


@given(garbage=st.binary(max_size=300))
def test_garbage_is_refused_as_an_invalid_argument(garbage: bytes) -> None:
    with pytest.raises(InvalidArgumentError):
        parse(garbage)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (form(part("picture", b"x")), "no field 'file': send the picture"),
        (form(part("file", b"x"), part("file", b"y")), "more than one"),
        (part("file", b"x"), "cut off"),
        (b"", "cut off"),
        (form(*[part(f"f{i}", b"") for i in range(MAX_PARTS)], part("file", b"x")), "at most 4 fields"),
        (form(part("note", bytes(MAX_FIELD_BYTES + 1)), part("file", b"x")), "4096 bytes: send the"),
        (form(part("file", b"x", "\r\nA: " + "b" * 5000)), "malformed"),
        (form(part("file", b"x", "\r\nA: b" * 100)), "malformed"),
    ],
)
def test_a_form_that_is_not_what_was_asked_for_is_refused_with_the_reason(body: bytes, reason: str) -> None:
    with pytest.raises(InvalidArgumentError, match=reason):
        parse(body)


def test_a_large_file_is_no_large_field() -> None:
    content = bytes(10 * MAX_FIELD_BYTES)
    assert parse(form(part("file", content))) == content


@pytest.mark.parametrize(
    ("content_type", "boundary"),
    [
        ("", None),
        ("image/jpeg", None),
        ("application/x-www-form-urlencoded", None),
        ("multipart/mixed; boundary=a", None),
        ("multipart/form-data; boundary=a", b"a"),
        ('Multipart/Form-Data; charset=utf-8; boundary="a b"', b"a b"),
    ],
)
def test_only_a_multipart_form_has_a_boundary(content_type: str, boundary: bytes | None) -> None:
    assert boundary_of(content_type) == boundary


@pytest.mark.parametrize("content_type", ["multipart/form-data", f"multipart/form-data; boundary={'a' * 71}"])
def test_a_form_needs_a_boundary_of_legal_length(content_type: str) -> None:
    with pytest.raises(InvalidArgumentError, match="boundary"):
        boundary_of(content_type)
